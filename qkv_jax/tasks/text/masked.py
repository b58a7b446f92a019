"""Masked language modelling: Shakespeare's works, any files, or a Hugging Face data set; on bytes,
or on byte pairs learned from the training split."""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_positive, require_range, settle
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import hub_datasets, overlap, sources
from qkv_jax.tasks.base import Batch, Data, Outcome, Task, keys_schedule, register
from qkv_jax.tasks.streaming import DEVICE_LIMIT, BatchStream, WindowRows
from qkv_jax.tasks.text.files import check_utf8, read_bytes, shakespeare_files
from qkv_jax.tasks.text.tokenizers import BYTES, check_vocabulary, make_tokenizer

_HELD_OUT = 0.05  # of each file, at its end: as much again for validation and for test

Texts = dict[str, list[np.ndarray]]  # of each split


@register("masked_bytes")
@dataclasses.dataclass(frozen=True)
class MaskedBytes(Task):
    """Guess the masked bytes of a window of text; loss in nats per masked byte.

    Of each file the first 90 % are for training, the next 5 % for validation, the last 5 % for
    test; a data set's own splits are kept, and what it lacks is cut off the end of its training
    split. Held-out windows lie evenly in their split and do not overlap; their masks are fixed.
    """

    title = "Masked bytes"
    description = "Guess the masked bytes of a window of text from the bytes around them."
    symbol: ClassVar[str] = "byte"

    files: tuple[str, ...] = ()  # by default the 42 works of the package `shakespeare`
    encoding: Literal["bytes", "utf-8"] = "bytes"  # "utf-8" refuses files that are not
    dataset: str = ""  # instead of files: a Hugging Face name or a local folder
    subset: str = ""  # of the data set, where it has several
    text_column: str = "text"
    length: int = 64
    masked: float = 0.15
    validation_examples: int = 512
    test_examples: int = 2048
    margin: float = 0.02
    device_limit_bytes: int = DEVICE_LIMIT

    def __post_init__(self):
        settle(self)
        sizes = ("length", "validation_examples", "test_examples", "device_limit_bytes")
        require_positive(self, *sizes)
        require_range(self, "masked", 1 / self.length, 1.0)
        if self.files and self.dataset:
            raise ConfigError("dataset", self.dataset, "name files or a data set, not both")
        if self.files:
            self.sources()
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        uniform_guess = float(np.log(self.classes))
        unit = f"nats/{self.symbol}"
        return Outcome(
            "mean", "loss", unit, self.margin, failure_value=uniform_guess, chance=uniform_guess
        )

    @property
    def classes(self) -> int:
        return BYTES

    @property
    def max_length(self) -> int:
        return self.length

    @property
    def masked_per_window(self) -> int:
        return max(1, round(self.masked * self.length))

    def stem(self, width):
        return TokenStem((self.classes + 1,), width)  # the one symbol beside them is the mask

    def example(self):
        places = jnp.zeros((1, self.masked_per_window), jnp.int32)
        return {"inputs": jnp.zeros((1, self.length), jnp.int32), "read": places}

    def load(self) -> Data:
        texts = self.texts()
        windows = lambda name, wanted: self._windows(np.concatenate(texts[name]), name, wanted)
        validation = windows("validation", self.validation_examples)
        test = windows("test", self.test_examples)
        if max(map(len, texts["train"])) < self.length:
            raise self._too_short("training")
        fits = sum(text.nbytes for text in texts["train"]) <= self.device_limit_bytes
        return Data(validation, test, np.concatenate(texts["train"]) if fits else None)

    def sources(self):
        if self.dataset:
            return hub_datasets.files(self.dataset, self.subset)
        paths = (sources.expanded(name, "files") for name in self.files)
        return sources.distinct(paths, "files") or tuple(shakespeare_files())

    def texts(self) -> Texts:
        """The symbols of each split, one text per item."""
        if self.dataset:
            return self._dataset_texts()
        texts: Texts = {"train": [], "validation": [], "test": []}
        for path in self.sources():
            text = read_bytes(path, self.length)
            if self.encoding == "utf-8":
                check_utf8(text, str(path))
            for name, part in _cut(text, ("validation", "test")).items():
                texts[name].append(part)
        return texts

    def stream(self, train, seed, batch_size):
        if train is not None:
            return None
        return BatchStream(WindowRows(self.texts()["train"], self.length), seed, batch_size)

    def schedule(self, train, key, first, steps, batch_size):
        keys = keys_schedule(key, first, steps)

        def draw(key):
            place, hide = jax.random.split(key)
            entry = {"places": self.masked_places(hide, batch_size)}
            if train is not None:
                last = train.shape[0] - self.length
                entry["starts"] = jax.random.randint(place, (batch_size,), 0, last + 1)
            return entry

        return jax.vmap(draw)(keys)

    def batch(self, train, entry):
        if "starts" in entry:
            windows = train[entry["starts"][:, None] + jnp.arange(self.length)[None]]
        else:
            windows = entry["windows"]
        return self.mask(windows.astype(jnp.int32), entry["places"])

    def masked_places(self, key: PRNGKeyArray, windows: int) -> Int[Array, "B R"]:
        """The same number of distinct places in every window, each set equally likely."""
        draws = jax.random.uniform(key, (windows, self.length))
        return jax.lax.top_k(draws, self.masked_per_window)[1]

    def mask(self, windows: Int[Array, "B T"], places: Int[Array, "B R"]) -> Batch:
        """Hides the symbols at `places`, and asks for them."""
        targets = jnp.take_along_axis(windows, places, axis=1)
        rows = jnp.arange(windows.shape[0])[:, None]
        hidden = windows.at[rows, places].set(self.classes)
        return {"inputs": hidden, "targets": targets, "read": places}

    def notes(self, data):
        splits = {name: _unmasked(split) for name, split in data.held_out.items()}
        texts = self.texts()["train"] if data.train is None else [data.train]
        windows = np.concatenate([*splits.values()])
        seen = np.any([overlap.occurring(windows, np.asarray(text)) for text in texts], axis=0)
        sentences = ()
        for name, some in splits.items():
            here, seen = seen[: len(some)], seen[len(some) :]
            sentences += overlap.sentence(name, "windows", int(here.sum()), len(some))
            if len(some) < (wanted := getattr(self, f"{name}_examples")):
                sentences += (f"The {name} split has room for {len(some)} of {wanted} windows.",)
        return sentences

    def _windows(self, text: np.ndarray, split: str, wanted: int) -> Batch:
        count = min(wanted, len(text) // self.length)
        if count < 1:
            raise self._too_short(split, " (5 % of the text)")
        starts = np.linspace(0, len(text) - self.length, count).astype(int)
        windows = jnp.asarray(text[starts[:, None] + np.arange(self.length)], jnp.int32)
        key = jax.random.key({"validation": 1, "test": 2}[split])
        return self.mask(windows, self.masked_places(key, count))

    def _too_short(self, split: str, share: str = "") -> ConfigError:
        wanted = f"must hold at least one sequence of {self.length} {self.symbol}s"
        allowed = f"too short: the {split} split{share} {wanted}"
        if self.dataset:
            return ConfigError("dataset", self.dataset, allowed)
        return ConfigError("files", ", ".join(self.files), allowed)

    def _dataset_texts(self) -> Texts:
        tables = hub_datasets.read_splits(self.dataset, self.subset, self.text_column)
        whole = {}
        for name, table in tables.items():
            text = "\n".join(table[self.text_column]).encode()
            whole[name] = np.frombuffer(text, np.uint8)
        lacking = tuple(name for name in ("validation", "test") if name not in whole)
        whole |= _cut(whole["train"], lacking)
        return {name: [text] for name, text in whole.items()}


@register("masked_tokens")
@dataclasses.dataclass(frozen=True)
class MaskedTokens(MaskedBytes):
    """Masked language modelling on byte pairs learned from the training split alone; lengths count
    tokens and the loss is in nats per masked token, so losses of two vocabularies do not compare.
    """

    title = "Masked tokens"
    description = "Guess the masked tokens (byte pairs) of a window of text from those around them."
    symbol = "token"

    vocabulary: int = 1024

    def __post_init__(self):
        check_vocabulary("bpe", self.vocabulary)
        super().__post_init__()

    @property
    def classes(self):
        return self.vocabulary

    def texts(self):
        return _encoded(self, self.stamp())


@functools.lru_cache(maxsize=1)
def _encoded(task: MaskedTokens, changed: sources.Stamp) -> Texts:
    """The tokens of a task's texts: seconds of work, asked for by checks, runs and streams."""
    texts = MaskedBytes.texts(task)
    train = (text.tobytes() for text in texts["train"])
    tokenizer = make_tokenizer("bpe", task.vocabulary, train)
    encode = lambda text: tokenizer.encode(text.tobytes())
    return {name: [encode(text) for text in some] for name, some in texts.items()}


def _unmasked(batch: Batch) -> np.ndarray:
    """The windows [M, T] of a batch with what is hidden put back."""
    windows = np.array(batch["inputs"])
    np.put_along_axis(windows, np.asarray(batch["read"]), np.asarray(batch["targets"]), axis=1)
    return windows


def _cut(text: np.ndarray, held_out: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The text without its end, as `train`, and a share of its end for each name."""
    share = int(len(text) * _HELD_OUT)
    places = [len(text) - n * share for n in range(len(held_out), 0, -1)]
    return dict(zip(("train", *held_out), np.split(text, places), strict=True))
