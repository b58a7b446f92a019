"""What public functions say of arguments of another kind: one line with name, value, what may be.

Annotations are checked in this project's tests alone, not where others call these functions.
"""

import contextlib
import math
import numbers
import operator
import os
import pathlib
from collections.abc import Collection
from typing import Any

from qkv_jax.config import ConfigError


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`, NumPy's too; a truth value is none."""
    given = None
    if not isinstance(value, bool) and not _is_array(value):
        with contextlib.suppress(TypeError):  # an array of no axes has an index if it is whole
            given = operator.index(value)
    if given is None or given < least or (most is not None and given > most):
        upper = "" if most is None else f" and at most {most}"
        raise ConfigError(name, value, f"must be a whole number of at least {least}{upper}")
    return given


def number(name: str, value: Any) -> float:
    """A finite number, NumPy's too; a truth value is none."""
    given = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            given = float(value)
    if not math.isfinite(given):
        raise ConfigError(name, value, "must be a finite number")
    return given


def truth(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigError(name, value, "must be true or false")
    return value


def text(name: str, value: Any) -> str:
    """A text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ConfigError(name, value, "must be a text")
    if not is_unicode(value):
        raise ConfigError(name, value, "is not valid UTF-8")
    return value


def is_unicode(value: str) -> bool:
    """Whether a text holds whole characters: no half of a pair, as a command line may hand on."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def path(name: str, value: Any) -> pathlib.Path:
    """A path of a file or a folder."""
    if not isinstance(value, str | os.PathLike) or not str(value) or "\0" in str(value):
        raise ConfigError(name, value, "must be a path")
    return pathlib.Path(value)


def instance(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    """An object of that class."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        allowed = f"must be of {' or '.join(k.__name__ for k in kinds)}"
        raise ConfigError(name, value, allowed)
    return value


def word(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(name, value, f"allowed: {', '.join(allowed)}")
    return value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape) > 0
