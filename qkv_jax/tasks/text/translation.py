"""Translation: from sentence pairs in two aligned files, or in one of two columns; by an
encoder-decoder (`qkv_jax/model/seq2seq.py`).

Both sides are spelled in the same symbols, bytes or byte pairs learned from both sides of the
training split. The number above them ends a sentence; the one above that begins the target and
fills rows up. The decoder guesses each symbol of the target, its end among them, from those before
it and from the whole source.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer

from qkv_jax.config import ConfigError, require_positive, require_range, settle
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import overlap, sources
from qkv_jax.tasks.base import Batch, Data, Outcome, Reference, Task, epoch_schedule, register
from qkv_jax.tasks.splits import require_seed
from qkv_jax.tasks.streaming import DEVICE_LIMIT, ArrayRows, BatchStream
from qkv_jax.tasks.text.pairs import Pairs, drawn, read_aligned, read_columns, spaced, whole
from qkv_jax.tasks.text.tokenizers import (
    BYTES,
    Tokenizer,
    TokenizerName,
    check_vocabulary,
    make_tokenizer,
)

_SPLITS = ("train", "validation", "test")


@register("translation")
@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """Translate sentences; loss in nats per token of the target.

    The files are split here: sources that are equal but for white space are kept together, and of
    the different ones a fixed seed draws those for validation and test. Sides longer than `length`
    tokens are cut, and the end of a cut target is not asked for; shorter ones are filled up.
    """

    title = "Translation"
    description = "Translate a sentence: guess each token from those before it and the source."
    is_causal, is_seq2seq = True, True

    source: str = ""  # a file of sentences, one a line
    target: str = ""  # their translations, line by line
    pairs: str = ""  # instead of both: a file whose lines are a sentence, a tab, its translation
    tokenizer: TokenizerName = "bpe"
    vocabulary: int = 4096  # of byte pairs
    length: int = 64  # tokens of a source and of a target, the end of the sentence among them
    smoothing: float = 0.1  # share of the target that is spread over all symbols, in training alone
    validation_examples: int = 512  # different sources
    test_examples: int = 1024
    split_seed: int = 0
    margin: float = 0.02
    device_limit_bytes: int = DEVICE_LIMIT

    def __post_init__(self):
        settle(self)
        sizes = ("length", "validation_examples", "test_examples", "vocabulary")
        require_positive(self, *sizes, "device_limit_bytes")
        require_range(self, "smoothing", 0.0, 1.0)
        check_vocabulary(self.tokenizer, self.vocabulary)
        require_seed(self, "split_seed")
        if bool(self.pairs) == bool(self.source or self.target):
            allowed = "name source and target, or pairs, one of the two"
            raise ConfigError("pairs", self.pairs, allowed)
        for name, other in (("source", "target"), ("target", "source")):
            if getattr(self, name) and not getattr(self, other):
                raise ConfigError(other, "", f"must be given where {name} is")
        self.sources()
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        guess, unit = float(np.log(self.classes)), "nats/token"
        return Outcome("mean", "loss", unit, self.margin, failure_value=guess, chance=guess)

    @property
    def end(self) -> int:
        """The symbol that ends a sentence, above those of texts."""
        return self.vocabulary if self.tokenizer == "bpe" else BYTES

    @property
    def mark(self) -> int:
        """The symbol that begins a target, and padding."""
        return self.end + 1

    @property
    def classes(self) -> int:
        return self.end + 1

    @property
    def max_length(self) -> int:
        return self.length

    def stem(self, width):
        return TokenStem((self.mark + 1,), width)

    def example(self):
        tokens = jnp.zeros((1, self.length), jnp.int32)
        return {"inputs": tokens, "source": tokens, "source_valid": jnp.ones_like(tokens, bool)}

    def sources(self):
        names = {name: getattr(self, name) for name in ("source", "target", "pairs")}
        paths = [sources.expanded(path, name) for name, path in names.items() if path]
        return sources.distinct(paths, "target")

    def splits(self) -> dict[str, Pairs]:
        """The sentence pairs of the three splits."""
        return _read(self, self.stamp()).splits

    # --- symbols

    def encode(self, text: str) -> Int[np.ndarray, " T"]:
        """A source as the model reads it: its first `length` tokens.

        Raises:
          ConfigError: for a text without symbols.
        """
        tokens = self._spelled(text)
        if not len(tokens):
            raise ConfigError("source", text, "must have a symbol at least")
        return np.append(tokens[: self.length], self.end)[: self.length].astype(np.int32)

    def beyond(self, text: str) -> int:
        """How many tokens of a source, its end among them, the model does not read."""
        return max(0, len(self._spelled(text)) + 1 - self.length)

    def _spelled(self, text: str) -> np.ndarray:
        return _encoded(self, self.stamp()).tokenizer.encode(text.strip().encode())

    def decode(self, tokens: Integer[np.ndarray, " T"]) -> str:
        """The sentence up to its end."""
        tokens = np.asarray(tokens)
        stops = np.flatnonzero(tokens >= self.end)
        text = tokens[: stops[0]] if len(stops) else tokens
        return _encoded(self, self.stamp()).tokenizer.decode(text).decode(errors="replace")

    def load(self) -> Data:
        rows = _encoded(self, self.stamp()).rows
        fits = sum(array.nbytes for array in rows["train"].values()) <= self.device_limit_bytes
        return Data(
            validation=self._batch(rows["validation"]),
            test=self._batch(rows["test"]),
            train=rows["train"] if fits else None,
        )

    # --- batches

    def stream(self, train, seed, batch_size):
        if train is not None:
            return None
        rows = _encoded(self, self.stamp()).rows["train"]
        return BatchStream(ArrayRows(rows, np.arange(len(rows["target"]))), seed, batch_size)

    def schedule(self, train, key, first, steps, batch_size):
        if train is None:
            return {}
        examples = train["target"].shape[0]
        return {"rows": epoch_schedule(key, first, steps, batch_size, examples)}

    def batch(self, train, entry):
        if "rows" in entry:
            entry = {name: values[entry["rows"]] for name, values in train.items()}
        return self._batch(entry)

    def _batch(self, rows: dict[str, Any]) -> Batch:
        """`targets` are `mark` where nothing is asked for; `weights` [B] make the mean over rows
        that over tokens."""
        source, target = (jnp.asarray(rows[n]).astype(jnp.int32) for n in ("source", "target"))
        inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=self.mark)
        asked = (target < self.mark).sum(1).astype(jnp.float32)
        return {
            "inputs": inputs, "source": source, "source_valid": source < self.mark,
            "targets": target, "weights": asked / jnp.maximum(asked.mean(), 1),
        }  # fmt: skip

    def loss(self, logits, batch):
        return self._nats(logits, batch, self.smoothing)

    def score(self, logits, batch):
        return self._nats(logits, batch, 0.0)

    def _nats(self, logits: Float[Array, "B T C"], batch: Batch, smoothing: float):
        """Cross-entropy with label smoothing (Szegedy et al. 2016): of the target's probability a
        share is spread evenly over all classes."""
        asked = batch["targets"] < self.mark
        targets = jnp.where(asked, batch["targets"], 0)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if smoothing:
            even = jax.nn.logsumexp(logits, axis=-1) - logits.mean(-1)
            nats = (1 - smoothing) * nats + smoothing * even
        count = jnp.maximum(asked.sum(1).astype(nats.dtype), 1)
        return jnp.where(asked, nats, 0).sum(1) / count * batch.get("weights", 1.0)

    # --- what reports say beside the arms

    def also(self, value, data):
        targets = np.asarray(data.test["targets"])
        asked = targets[targets < self.mark]
        lengths = _encoded(self, self.stamp()).symbol_bytes
        bits = float(value / np.log(2) / lengths[asked].mean())
        return {"bits per byte": bits, "perplexity": float(np.exp(value))}

    def references(self, data):
        tokens = _encoded(self, self.stamp()).rows["train"]["target"]
        counts = np.bincount(tokens[tokens < self.mark], minlength=self.classes) + 1
        targets = np.asarray(data.test["targets"])
        asked = targets[targets < self.mark]
        nats = -np.log(counts[asked] / counts.sum()).mean()
        return (Reference("unigrams", float(nats), "of the target, without the source"),)

    def notes(self, data):
        read, encoded = _read(self, self.stamp()), _encoded(self, self.stamp())
        bits = self.also(1.0, data)["bits per byte"]
        sentences = (
            f"Perplexity is e to the nats per token; times {bits:.4f} these are bits per byte of "
            "the target.",
        )
        if read.dropped:
            empty = f"{read.dropped} of {read.lines} lines have an empty side and are left out."
            sentences += (empty,)
        for name in _SPLITS:
            cut, total = encoded.cut[name], len(read.splits[name].sources)
            if any(cut):
                what = f"{cut[0]} sources and {cut[1]} targets of {total} {name} pairs"
                sentences += (f"{what} are longer than {self.length} tokens and are cut.",)
        for name in _SPLITS[1:]:
            for side in ("sources", "targets"):
                texts = {n: list(map(spaced, getattr(read.splits[n], side))) for n in _SPLITS}
                found = overlap.count(texts["train"], texts[name])
                sentences += overlap.sentence(name, side, found, len(texts[name]))
        return sentences


class _Read(NamedTuple):
    splits: dict[str, Pairs]
    lines: int
    dropped: int


class _Encoded(NamedTuple):
    rows: dict[str, dict[str, np.ndarray]]  # `source` and `target` [N, T] of each split
    cut: dict[str, tuple[int, int]]  # sources and targets that are longer
    tokenizer: Tokenizer
    symbol_bytes: np.ndarray  # of each class; the end of a sentence is one


@functools.lru_cache(maxsize=2)
def _read(task: Translation, changed: sources.Stamp) -> _Read:
    paths = task.sources()
    lines = read_columns(*paths) if task.pairs else read_aligned(*paths)
    rows = whole(lines)
    if not rows:
        name = "pairs" if task.pairs else "source"
        raise ConfigError(name, getattr(task, name), "has no line with a sentence on both sides")
    sizes = {"validation": task.validation_examples, "test": task.test_examples}
    found = drawn(rows, sizes, task.split_seed)
    splits = {name: found[name] for name in _SPLITS}
    return _Read(splits, len(lines), len(lines) - len(rows))


@functools.lru_cache(maxsize=2)
def _encoded(task: Translation, changed: sources.Stamp) -> _Encoded:
    """The tokens of a task's texts, and what made them: seconds of work, asked for by checks, runs
    and streams."""
    splits = _read(task, changed).splits
    train = ("\n".join(side).encode() for side in splits["train"])
    tokenizer = make_tokenizer(task.tokenizer, task.vocabulary, train)
    dtype = np.uint16 if task.mark < 2**16 else np.int32
    rows, cut = {}, {}
    for name, pairs in splits.items():
        rows[name], longer = {}, []
        for side, texts in zip(("source", "target"), pairs, strict=True):
            table = np.full((len(texts), task.length), task.mark, dtype)
            longer.append(0)
            for row, text in zip(table, texts, strict=True):
                tokens = np.append(tokenizer.encode(text.encode()), task.end)
                longer[-1] += len(tokens) > task.length
                row[: len(tokens)] = tokens[: task.length]
            rows[name][side] = table
        cut[name] = (longer[0], longer[1])
    lengths = [len(tokenizer.decode(np.array([token]))) for token in range(task.end)]
    return _Encoded(rows, cut, tokenizer, np.array([*lengths, 1]))
