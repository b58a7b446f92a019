"""Causal language modelling: every symbol of a text from those before it. Shakespeare's works, any
files, or a Hugging Face data set; here on bytes, on other symbols in `causal_symbols`.

A file is long: its windows hold one symbol more than the model reads, so that the first is given
and each of the others asked for, as in nanoGPT. A row of a data set is a document of its own: it
begins with a begin-of-text symbol, from which its first symbol is guessed, and documents are packed
into rows of which none sees another (`documents` of the batch). The number above all symbols
stands for begin-of-text, for padding and for what training texts do not have: it is never asked
for.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

from qkv_jax.config import ConfigError, require_positive, require_range, settle
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import overlap
from qkv_jax.tasks.base import (
    Batch,
    Data,
    Reference,
    epoch_schedule,
    keys_schedule,
    register,
)
from qkv_jax.tasks.streaming import ArrayRows, BatchStream, WindowRows
from qkv_jax.tasks.text.packing import best_fit, smallest_dtype
from qkv_jax.tasks.text.texts import LanguageTask, Texts, cut, lacking

_MOST = 2**31 - 1  # places that 32 bits count
_COUNTED = 2**24  # training symbols that the references look at


@register("causal_bytes")
@dataclasses.dataclass(frozen=True)
class CausalBytes(LanguageTask):
    """Guess each byte of a text from those before it; loss in nats per byte.

    Of each file the end is held out: its first half for validation, its second for test. A data
    set's own splits are kept, and of those that it lacks each is cut off the end of the training
    split, half of `held_out` of its rows. Held-out windows lie evenly in their texts and ask for no
    byte twice. A document longer than `length` is cut, and each part given the last byte of the
    part before.
    """

    title = "Causal bytes"
    description = "Guess each byte of a text from the bytes before it."
    is_causal = True

    held_out: float = 0.1  # of each file, at its end, or of a data set's rows

    def __post_init__(self):
        settle(self)
        require_positive(self, "held_out")
        require_range(self, "held_out", 0.0, 1.0)
        super().__post_init__()

    @property
    def window(self) -> int:
        return self.length + 1

    @property
    def share(self) -> float:
        return self.held_out / 2

    def stem(self, width):
        return TokenStem((self.classes + 1,), width)

    def example(self):
        inputs = jnp.zeros((1, self.length), jnp.int32)
        return {"inputs": inputs} | ({"documents": inputs} if self.dataset else {})

    def of_rows(self, rows):
        rows = rows | cut(rows["train"], lacking(rows), self.share)
        return {name: [self.of_text(text) for text in some] for name, some in rows.items()}

    def of_text(self, text: str) -> np.ndarray:
        """A document as `texts` gives it."""
        return np.frombuffer(text.encode(), np.uint8)

    def symbols(self) -> Texts:
        """The texts in the task's symbols."""
        return self.texts()

    def symbol_bytes(self) -> np.ndarray:
        """How many bytes each symbol stands for."""
        return np.ones(self.classes)

    def encode(self, prompt: str) -> np.ndarray:
        """A text as the model reads it, with the begin-of-text symbol where rows have one; where
        they have none a text must not be empty.

        Raises:
          ConfigError: for a text with symbols that no training text has.
        """
        symbols = self._spelled(prompt)
        if not (len(symbols) or self.dataset):
            allowed = "must be a text: this task has no symbol that begins one"
            raise ConfigError("prompt", prompt, allowed)
        strange = symbols >= self.classes
        if strange.any():
            allowed = f"must be of {self.symbol}s that training texts have"
            if len(symbols) == len(prompt):
                found = "".join(dict.fromkeys(np.array([*prompt])[strange]))
                allowed += f", not {found!r}"
            raise ConfigError("prompt", prompt, allowed)
        begin = [self.classes] if self.dataset else []
        return np.concatenate([np.array(begin, np.int32), symbols.astype(np.int32)])

    def decode(self, symbols: np.ndarray) -> bytes:
        """The text that symbols stand for; UTF-8, perhaps with a sign cut in two at its ends."""
        return np.asarray(symbols, np.uint8).tobytes()

    def _spelled(self, text: str) -> np.ndarray:
        return self.of_text(text)

    # --- splits

    def load(self) -> Data:
        texts = self.symbols()
        split = self._packed if self.dataset else self._windows
        held_out = {
            name: self._batch(**split(texts[name], name, getattr(self, f"{name}_examples")))
            for name in ("validation", "test")
        }
        return Data(**held_out, train=self._train(texts["train"]))

    def _train(self, texts: list[np.ndarray]) -> dict[str, np.ndarray] | None:
        if self.dataset:
            rows = self._packed(texts, "training")
            fits = sum(array.nbytes for array in rows.values()) <= self.device_limit_bytes
            return rows if fits else None
        texts = self._long_enough(texts)
        if sum(text.nbytes for text in texts) > min(self.device_limit_bytes, _MOST):
            return None
        ends = np.cumsum([len(text) - self.length for text in texts]).astype(np.int32)
        return {"text": np.concatenate(texts), "ends": ends}

    def _long_enough(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """The training texts that hold a window."""
        texts = [text for text in texts if len(text) >= self.window]
        if not texts:
            raise self.too_short("training")
        return texts

    def _windows(self, texts: list[np.ndarray], split: str, wanted: int) -> dict[str, np.ndarray]:
        """Windows [N, T + 1] that lie evenly in each text; a shorter text is filled up."""
        if max(map(len, texts)) < self.window:
            raise self.too_short(split, f" ({100 * self.share:g} % of the text)")
        windows = []
        for text in texts:
            count = max(0, (len(text) - 1) // self.length)
            starts = np.linspace(0, len(text) - self.window, count).astype(int)
            windows += [text[start : start + self.window] for start in starts]
            windows += [text] if count < 1 < len(text) else []
        chosen = np.linspace(0, len(windows) - 1, min(wanted, len(windows))).astype(int)
        rows = np.full((len(chosen), self.window), self.classes, np.int32)
        for row, place in zip(rows, chosen, strict=True):
            row[: len(windows[place])] = windows[place]
        return {"windows": rows}

    def _packed(
        self, texts: list[np.ndarray], split: str, wanted: int | None = None
    ) -> dict[str, np.ndarray]:
        """Rows [N, T + 1] of documents, and the number of each within its row; padding has 0."""
        parts, mark = [], smallest_dtype(self.classes)(self.classes)
        for text in texts:
            whole = np.append(mark, text)
            parts += [whole[i : i + self.window] for i in range(0, len(text), self.length)]
        if not parts:
            raise self.refused(f"the {split} split has no text to guess")
        rows = best_fit([len(part) for part in parts], self.window)
        if wanted is not None and wanted < len(rows):
            rows = [rows[i] for i in np.linspace(0, len(rows) - 1, wanted).astype(int)]
        shape, dtype = (len(rows), self.window), smallest_dtype(max(self.classes, self.window))
        windows, documents = np.full(shape, self.classes, dtype), np.zeros(shape, dtype)
        for row, chosen in enumerate(rows):
            start = 0
            for number, place in enumerate(chosen, 1):
                end = start + len(parts[place])
                windows[row, start:end], documents[row, start:end] = parts[place], number
                start = end
        return {"windows": windows, "documents": documents}

    # --- batches

    def stream(self, train, seed, batch_size):
        if train is not None:
            return None
        texts = self.symbols()["train"]
        if self.dataset:
            packed = self._packed(texts, "training")
            rows = ArrayRows(packed, np.arange(len(packed["windows"])))
        else:
            rows = WindowRows(self._long_enough(texts), self.window)
        return BatchStream(rows, seed, batch_size)

    def schedule(self, train, key, first, steps, batch_size):
        if train is None:
            return {}
        if self.dataset:
            examples = train["windows"].shape[0]
            return {"rows": epoch_schedule(key, first, steps, batch_size, examples)}

        def draw(key):
            window = jax.random.randint(key, (batch_size,), 0, train["ends"][-1])
            # Of the texts before, the last `length` places begin no window.
            return window + self.length * jnp.searchsorted(train["ends"], window, side="right")

        return {"starts": jax.vmap(draw)(keys_schedule(key, first, steps))}

    def batch(self, train, entry):
        if "starts" in entry:
            places = entry["starts"][:, None] + jnp.arange(self.window)[None]
            return self._batch(train["text"][places])
        if "rows" in entry:
            entry = {name: values[entry["rows"]] for name, values in train.items()}
        return self._batch(**entry)

    def _batch(self, windows: Any, documents: Any = None) -> Batch:
        """`targets` are `classes` where nothing is asked for; `weights` [B] make the mean over rows
        that over symbols."""
        windows = jnp.asarray(windows).astype(jnp.int32)
        inputs, targets = windows[:, :-1], windows[:, 1:]
        batch = {"inputs": inputs}
        if documents is not None:
            documents = jnp.asarray(documents).astype(jnp.int32)
            targets = jnp.where(documents[:, 1:] == documents[:, :-1], targets, self.classes)
            batch["documents"] = documents[:, :-1]
        asked = self._asked(targets).sum(1).astype(jnp.float32)
        mean = asked.mean()
        return batch | {"targets": targets, "weights": asked / jnp.where(mean > 0, mean, 1)}

    def _asked(self, targets: Any) -> Any:
        return targets < self.classes

    def loss(self, logits, batch):
        asked = self._asked(batch["targets"])
        targets = jnp.where(asked, batch["targets"], 0)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        count = asked.sum(1).astype(nats.dtype)
        means = jnp.where(asked, nats, 0).sum(1) / jnp.maximum(count, 1)
        return means * batch.get("weights", 1.0)

    # --- what reports say beside the arms

    def also(self, value, data):
        targets = np.asarray(data.test["targets"])
        length = self.symbol_bytes()[targets[self._asked(targets)]].mean()
        bits = float(value / np.log(2) / length)
        return {"bits per byte": bits, "perplexity": float(np.exp(value))}

    def references(self, data):
        """How well the training split's counts of symbols, and of pairs of them, tell the test
        split; what comes after a symbol is smoothed by the single counts, with as much weight as it
        has different successors (Witten & Bell 1991)."""
        before, after = _pairs(self.symbols()["train"], self.classes)
        singles = np.bincount(after, minlength=self.classes) + 1
        singles = singles / singles.sum()
        code = lambda before, after: before.astype(np.int64) * self.classes + after
        pairs, counts = np.unique(code(before, after), return_counts=True)
        of_context = lambda weights: np.bincount(
            pairs // self.classes, weights, minlength=self.classes + 1
        )
        seen, different = of_context(counts), of_context(np.ones_like(counts))
        inputs, targets = (np.asarray(data.test[name]) for name in ("inputs", "targets"))
        asked = self._asked(targets)
        before, after = inputs[asked], targets[asked]
        places = np.minimum(np.searchsorted(pairs, code(before, after)), len(pairs) - 1)
        found = np.where(pairs[places] == code(before, after), counts[places], 0)
        total = seen[before] + different[before]
        smoothed = (found + different[before] * singles[after]) / np.maximum(total, 1)
        likely = np.where(total > 0, smoothed, singles[after])
        note = f"counted in the first {_COUNTED} training {self.symbol}s"
        note = note if sum(map(len, self.symbols()["train"])) > _COUNTED else ""
        return (
            Reference("unigrams", float(-np.log(singles[after]).mean()), note),
            Reference("bigrams", float(-np.log(likely).mean()), note),
        )

    def notes(self, data):
        bits = self.also(1.0, data)["bits per byte"]
        sentences = (
            f"Perplexity is e to the nats per {self.symbol}; times {bits:.4f} these are bits per "
            "byte.",
        )
        texts, what = self.symbols(), "rows" if self.dataset else "windows"
        for name, split in data.held_out.items():
            sentences += self._overlap(name, split, texts)
            sentences += self.shortage(name, len(split["targets"]), what)
            if unknown := sum(int((text >= self.classes).sum()) for text in texts[name]):
                lack = f"{self.symbol}s of the {name} split are in no training text"
                sentences += (f"{unknown} {lack} and are not asked for.",)
        short = sum(len(text) < self.window for text in texts["train"])
        if short and not self.dataset:
            total = len(texts["train"])
            line = f"{short} of {total} files hold no training window and are held out alone."
            sentences += (line,)
        return sentences

    def _overlap(self, name: str, split: Batch, texts: Texts) -> tuple[str, ...]:
        if self.dataset:
            plain = {n: [text.tobytes() for text in texts[n]] for n in ("train", name)}
            found = overlap.count(plain["train"], plain[name])
            return overlap.sentence(name, "documents", found, len(plain[name]))
        windows = np.concatenate([split["inputs"], split["targets"][:, -1:]], axis=1)
        seen = np.zeros(len(windows), bool)
        for text in texts["train"]:
            if len(text) >= self.window:
                seen |= overlap.occurring(windows, np.asarray(text))
        return overlap.sentence(name, "windows", int(seen.sum()), len(windows))


def _pairs(
    texts: list[np.ndarray], mark: int
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Each symbol of the first `_COUNTED` and the one before it, `mark` in front of each text."""
    parts, left = [], _COUNTED
    for text in texts:
        parts.append(np.append(mark, text[: max(left, 0)]))
        left -= len(text)
    joined = np.concatenate(parts)
    asked = joined[1:] < mark
    return joined[:-1][asked], joined[1:][asked]
