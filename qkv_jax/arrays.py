"""What public functions say of arrays that cannot be, in one line: name, what was given, what is
allowed.

The annotations of shapes are checked in this project's tests alone; in a user's program a mask of
another rank or number format would broadcast, or mean something else. Looked at here are shape and
number format, which are known while a program is traced: the check is no part of the program.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qkv_jax.config import (
    ConfigError,
    shown,
)  # fmt: skip

Kind = Literal["bool", "float", "int", "real"]

_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("booleans", (np.bool_,)),
    "float": ("floats", (jnp.floating,)),
    "int": ("whole numbers", (jnp.integer,)),
    "real": ("real numbers", (jnp.floating, jnp.integer)),
}
_MAY_BE_EMPTY = ("B", "T")


def require_array(
    name: str, value: Any, axes: str, kind: Kind, sizes: dict[str, int], hint: str = ""
) -> None:
    """Refuses what is no array of these axes and this kind.

    Args:
      axes: one letter per axis, as in the annotations: "B T N H". A letter stands for one size,
        which is entered in `sizes` where it is not known yet; "#B" may be 1 as well. No axis may be
        empty but B and T.
      hint: what may have been meant.

    Raises:
      TypeError: for what is no array.
      ValueError: for another rank, size or kind.
    """
    letters = axes.split()
    words, kinds = _KINDS[kind]
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        allowed = f"an array of {words} [{', '.join(letters)}]"
        raise TypeError(f"{name}: given {shown(value)}; must be {allowed}")
    new = dict(sizes)
    fits = len(value.shape) == len(letters) and any(jnp.issubdtype(value.dtype, k) for k in kinds)
    if not (fits and all(map(functools.partial(_fits, new), letters, value.shape))):
        known = [f"{x} = {sizes[x]}" for x in axes.replace("#", "").split() if x in sizes]
        allowed = f"{words} [{', '.join(letters)}]"
        allowed += f" with {', '.join(known)}" if known else ""
        allowed += f"; {hint}" if hint else ""
        raise ValueError(f"{name}: given {shown(value)}; must be {allowed}")
    sizes |= new


def _fits(sizes: dict[str, int], letter: str, size: int) -> bool:
    bare = letter.removeprefix("#")
    if size == 0 and bare not in _MAY_BE_EMPTY:
        return False
    if size == 1 and bare != letter:
        return True
    return size == sizes.setdefault(bare, size)


def require_below(name: str, values: Array, limit: int) -> None:
    """Refuses numbers outside [0, limit), which JAX would take from the end or turn into NaN; where
    they are known, outside jit."""
    if not isinstance(values, jax.core.Tracer) and values.size:
        known = np.asarray(values)  # of JAX's own functions the results are not, inside jit
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= limit:
            raise ConfigError(name, low if low < 0 else high, f"must be from 0 to {limit - 1}")
