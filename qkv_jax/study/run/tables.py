"""Tables and other files of a study's folder, read back equal to what was written."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from qkv_jax.config import ConfigError

# Of the summary and the tables beside it; what is neither is a number.
_TEXTS = {
    "family", "task", "arm", "tie", "baseline", "edge", "role", "verdict", "by", "measure", "claim",
    "evidence", "against", "expect", "outcome", "finding", "unit", "note", "live_rates",
    "study", "started", "kind",
}  # fmt: skip
_TRUTHS = {"control"}


def read_table(file: pathlib.Path) -> pd.DataFrame:
    """A table of a study's folder, equal to the one that was written."""
    frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    for column in frame:
        if column in _TRUTHS:
            frame[column] = frame[column].map({"True": True, "False": False})
        elif column not in _TEXTS:
            frame[column] = _numbers(frame[column])
    return frame


def _numbers(texts: pd.Series) -> pd.Series:
    """Whole numbers if all are, else floats, which Python reads to the bit and pandas does not."""
    try:
        return texts.map(int).astype(int)
    except ValueError:
        return texts.map(lambda text: float(text or "nan")).astype(float)


def read_points(file: pathlib.Path, most: int) -> Float[np.ndarray, "2 P"]:
    """Steps and values of a curve; of a longer one so many reports, evenly in the logarithm of
    their number. A summary of thousands of curves has no time for every line of them."""
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    if len(lines) > most:
        kept = np.unique(np.geomspace(1, len(lines), most).round().astype(int))
        lines = [lines[number - 1] for number in kept]
    places = [head.split(",").index(name) for name in ("step", "value")]
    rows = [line.split(",") for line in lines]
    return np.array([[float(row[place] or "nan") for row in rows] for place in places])


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
