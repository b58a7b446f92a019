"""Tables and other files of a study's folder, read back equal to what was written."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol.inference import MAX_SEEDS

# Of the summary and the tables beside it; what is neither is a number.
_TEXTS = {
    "family", "task", "arm", "tie", "baseline", "edge", "role", "verdict", "by", "measure", "claim",
    "evidence", "against", "expect", "outcome", "finding", "unit", "note",
}  # fmt: skip
_TRUTHS = {"control"}
_SEEDS = "seeds_to_decide"  # a number that files hold as text: "", "14" or ">100"


def table_csv(frame: pd.DataFrame) -> str:
    """A table as a study's folder holds it."""
    if _SEEDS in frame:
        frame = frame.assign(**{_SEEDS: frame[_SEEDS].map(seeds_text)})
    return frame.to_csv(index=False)


def seeds_text(seeds: float) -> str:
    """A number of seeds that would decide: "14", ">100", or "" where it is not known."""
    if math.isnan(seeds):
        return ""
    return f">{MAX_SEEDS}" if math.isinf(seeds) else f"{seeds:.0f}"


def read_table(file: pathlib.Path) -> pd.DataFrame:
    """A table of a study's folder, equal to the one that was written."""
    frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    for column in frame:
        if column in _TRUTHS:
            frame[column] = frame[column].map({"True": True, "False": False})
        elif column == _SEEDS:
            frame[column] = frame[column].map(_read_seeds).astype(float)
        elif column not in _TEXTS:
            frame[column] = _numbers(frame[column])
    return frame


def _read_seeds(text: str) -> float:
    return math.inf if text.startswith(">") else float(text or "nan")


def _numbers(texts: pd.Series) -> pd.Series:
    """Whole numbers if all are, else floats, which Python reads to the bit and pandas does not."""
    try:
        return texts.map(int).astype(int)
    except ValueError:
        return texts.map(lambda text: float(text or "nan")).astype(float)


def read_checked(file: pathlib.Path) -> pd.DataFrame:
    """Likewise, of a file that should be a table.

    Raises:
      ConfigError: naming a file that is damaged.
    """
    frame = read_file(file, read_table)
    if not _TEXTS.intersection(frame):
        given = ",".join(map(str, frame))
        raise ConfigError(f"{file}: columns", given, "damaged; are not those of a table")
    return frame


def read_file(file: pathlib.Path, reader: Callable[[pathlib.Path], Any]) -> Any:
    """What a reader makes of a file.

    Raises:
      ConfigError: naming a file that is damaged.
    """
    try:
        return reader(file)
    except OSError:
        raise
    except Exception as error:  # what a reader raises depends on what is broken
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ConfigError(str(file), "a damaged file", reason) from None
