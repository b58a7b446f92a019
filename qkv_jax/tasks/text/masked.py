"""Masked language modelling: Shakespeare's works, any files, or a Hugging Face data set; on bytes,
or on byte pairs learned from the training split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import require_range
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import overlap
from qkv_jax.tasks.base import Batch, Data, keys_schedule, register
from qkv_jax.tasks.streaming import BatchStream, WindowRows
from qkv_jax.tasks.text.texts import BytePairs, LanguageTask, cut, lacking


@register("masked_bytes")
@dataclasses.dataclass(frozen=True)
class MaskedBytes(LanguageTask):
    """Guess the masked bytes of a window of text; loss in nats per masked byte.

    Of each file the first 90 % are for training, the next 5 % for validation, the last 5 % for
    test; a data set's own splits are kept, and what it lacks is cut off the end of its training
    split. Held-out windows lie evenly in their split and do not overlap; their masks are fixed.
    """

    title = "Masked bytes"
    description = "Guess the masked bytes of a window of text from the bytes around them."

    masked: float = 0.15

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "masked", 1 / self.length, 1.0)

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
            raise self.too_short("training")
        fits = sum(text.nbytes for text in texts["train"]) <= self.device_limit_bytes
        return Data(validation, test, np.concatenate(texts["train"]) if fits else None)

    def of_rows(self, rows):
        whole = {name: "\n".join(texts).encode() for name, texts in rows.items()}
        whole |= cut(whole["train"], lacking(rows), self.share)
        return {name: [np.frombuffer(text, np.uint8)] for name, text in whole.items()}

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
            sentences += self.shortage(name, len(some), "windows")
        return sentences

    def _windows(self, text: np.ndarray, split: str, wanted: int) -> Batch:
        count = min(wanted, len(text) // self.length)
        if count < 1:
            raise self.too_short(split, " (5 % of the text)")
        starts = np.linspace(0, len(text) - self.length, count).astype(int)
        windows = jnp.asarray(text[starts[:, None] + np.arange(self.length)], jnp.int32)
        key = jax.random.key({"validation": 1, "test": 2}[split])
        return self.mask(windows, self.masked_places(key, count))


@register("masked_tokens")
@dataclasses.dataclass(frozen=True)
class MaskedTokens(BytePairs, MaskedBytes):
    """Masked language modelling on byte pairs learned from the training split alone; lengths count
    tokens and the loss is in nats per masked token, so losses of two vocabularies do not compare.
    """

    title = "Masked tokens"
    description = "Guess the masked tokens (byte pairs) of a window of text from those around them."

    def texts(self):
        return self.encoded()[0]


def _unmasked(batch: Batch) -> np.ndarray:
    """The windows [M, T] of a batch with what is hidden put back."""
    windows = np.array(batch["inputs"])
    np.put_along_axis(windows, np.asarray(batch["read"]), np.asarray(batch["targets"]), axis=1)
    return windows
