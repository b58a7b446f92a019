"""What language modelling shares, masked or causal: where texts come from, how they are cut into
splits, and the one line for those that are too short."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import numpy as np

from qkv_jax.config import ConfigError, require_positive, settle
from qkv_jax.tasks import hub_datasets, sources
from qkv_jax.tasks.base import Outcome, Task
from qkv_jax.tasks.streaming import DEVICE_LIMIT
from qkv_jax.tasks.text.files import check_utf8, read_bytes, shakespeare_files
from qkv_jax.tasks.text.tokenizers import BYTES, Tokenizer, check_vocabulary, make_tokenizer

HELD_OUT = ("validation", "test")
_SHARE = 0.05  # of each file, at its end: as much again for validation and for test

Texts = dict[str, list[np.ndarray]]  # of each split


@dataclasses.dataclass(frozen=True)
class LanguageTask(Task):
    """Guess symbols of texts: Shakespeare's works, any files, or a Hugging Face data set."""

    symbol: ClassVar[str] = "byte"

    files: tuple[str, ...] = ()  # by default the 42 works of the package `shakespeare`
    encoding: Literal["bytes", "utf-8"] = "bytes"  # "utf-8" refuses files that are not
    dataset: str = ""  # instead of files: a Hugging Face name or a local folder
    subset: str = ""  # of the data set, where it has several
    text_column: str = "text"
    length: int = 64
    validation_examples: int = 512
    test_examples: int = 2048
    margin: float = 0.02
    device_limit_bytes: int = DEVICE_LIMIT

    def __post_init__(self):
        settle(self)
        sizes = ("length", "validation_examples", "test_examples", "device_limit_bytes")
        require_positive(self, *sizes)
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
    def window(self) -> int:
        """The number of symbols of a window of text."""
        return self.length

    @property
    def share(self) -> float:
        """Of each text, at its end: as much again for validation and for test."""
        return _SHARE

    def sources(self):
        if self.dataset:
            return hub_datasets.files(self.dataset, self.subset)
        paths = (sources.expanded(name, "files") for name in self.files)
        return sources.distinct(paths, "files") or tuple(shakespeare_files())

    def texts(self) -> Texts:
        """What is read of each split, bytes unless a task reads something else; one text per
        item."""
        if self.dataset:
            tables = hub_datasets.read_splits(self.dataset, self.subset, self.text_column)
            return self.of_rows({name: table[self.text_column] for name, table in tables.items()})
        texts: Texts = {"train": [], "validation": [], "test": []}
        for path in self.sources():
            for name, part in cut(self.read(path), HELD_OUT, self.share).items():
                texts[name].append(part)
        return texts

    def read(self, path) -> np.ndarray:
        """The text of a file."""
        text = read_bytes(path, self.window)
        if self.encoding == "utf-8":
            check_utf8(text, str(path))
        return text

    def of_rows(self, rows: dict[str, list[str]]) -> Texts:
        """The texts of the splits that a data set has, and of those that it lacks."""
        raise NotImplementedError

    def too_short(self, split: str, share: str = "") -> ConfigError:
        """The refusal of a split that holds no window."""
        wanted = f"must hold at least one sequence of {self.window} {self.symbol}s"
        return self.refused(f"too short: the {split} split{share} {wanted}")

    def refused(self, what: str) -> ConfigError:
        """The refusal of the texts that the config names."""
        if self.dataset:
            return ConfigError("dataset", self.dataset, what)
        return ConfigError("files", ", ".join(self.files), what)

    def shortage(self, split: str, found: int, what: str) -> tuple[str, ...]:
        """What is to be said where a split has fewer examples than the config asks for."""
        wanted = getattr(self, f"{split}_examples")
        return (f"The {split} split has room for {found} of {wanted} {what}.",) * (found < wanted)


def cut(text: Any, held_out: tuple[str, ...], share: float) -> dict[str, Any]:
    """A text or a list of them: its beginning as `train`, a share of its end for each name."""
    size = int(len(text) * share)
    ends = [len(text) - n * size for n in range(len(held_out), -1, -1)]
    parts = zip([0, *ends], ends, strict=False)
    return {name: text[a:b] for name, (a, b) in zip(("train", *held_out), parts, strict=True)}


def lacking(splits: dict[str, list[str]]) -> tuple[str, ...]:
    """The held-out splits that a data set does not bring."""
    return tuple(name for name in HELD_OUT if name not in splits)


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """What tasks on byte pairs add to a task on bytes, and so are derived from first: the pairs are
    learned from the training split alone."""

    symbol: ClassVar[str] = "token"

    vocabulary: int = 1024

    def __post_init__(self):
        check_vocabulary("bpe", self.vocabulary)
        super().__post_init__()

    @property
    def classes(self) -> int:
        return self.vocabulary

    def encoded(self) -> tuple[Texts, Tokenizer]:
        """The tokens of the task's texts, and what made them."""
        return _encoded(self, self.stamp())


@functools.lru_cache(maxsize=2)
def _encoded(task: BytePairs, changed: sources.Stamp) -> tuple[Texts, Tokenizer]:
    """Seconds of work, asked for by checks, runs and streams."""
    texts = super(BytePairs, task).texts()
    tokenizer = make_tokenizer("bpe", task.vocabulary, (text.tobytes() for text in texts["train"]))
    encode = lambda text: tokenizer.encode(text.tobytes())
    return {name: [encode(text) for text in some] for name, some in texts.items()}, tokenizer
