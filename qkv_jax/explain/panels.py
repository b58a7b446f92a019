"""Arrays to show, with their labels, and sums written out."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from qkv_jax.explain.walk import Trace
from qkv_jax.tie import SOURCE_NAMES

Kind = Literal["signed", "weights"]
TERMS = 3  # of a long sum that are written out
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Panel(NamedTuple):
    """One array to show.

    Attributes:
      rows, columns: a label each.
      kind: `weights` are from 0 to 1 and sum to 1 along a row.
      scale: panels of one name have their colours in common.
      head: counted from 0; None for what all heads share.
      of_pairs: rows and columns are both tokens, as of scores and weights.
      same_as: words for an earlier panel of this step that holds the same numbers.
    """

    title: str
    matrix: Float[np.ndarray, "R C"]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    kind: Kind = "signed"
    head: int | None = None
    of_pairs: bool = False
    same_as: str = ""
    scale: str = "the numbers of this step"


def pairs(
    walk: Trace,
    title: str,
    arrays: Float[np.ndarray, "N T T"],
    kind: Kind = "signed",
    first: int = 0,
) -> list[Panel]:
    """One panel per head of what pairs of tokens have; `first` is the head of the first array."""
    rows, columns = token_rows(walk), walk.tokens
    scale = "the weights" if kind == "weights" else Panel._field_defaults["scale"]
    return [
        Panel(f"{title} (head {head + 1})", array, rows, columns, kind, head, True, scale=scale)
        for head, array in enumerate(arrays, first)
    ]


def is_input(walk: Trace, role: str) -> bool:
    """Whether a role is X itself, without even an adapter."""
    return walk.tie.source(role) == "X" and SOURCE_NAMES[role] not in walk.adapters


def shown(walk: Trace) -> int:
    """The token whose sums are written out: the second, where there is one."""
    return min(1, len(walk.tokens) - 1)


def named(walk: Trace, i: int) -> str:
    """A token in quotes."""
    return f"“{walk.tokens[i]}”"


def token_rows(walk: Trace) -> tuple[str, ...]:
    """Labels of rows that are tokens."""
    return tuple(f"{i} {token}" for i, token in enumerate(walk.tokens, 1))


def counted(count: int) -> tuple[str, ...]:
    """Labels from 1 on."""
    return tuple(map(str, range(1, count + 1)))


def head_columns(heads: int, width: int) -> tuple[str, ...]:
    """Labels of heads side by side: head.coordinate."""
    return tuple(f"{n + 1}.{h + 1}" for n in range(heads) for h in range(width))


def subscripted(letter: str, i: int) -> str:
    """`q₂` for i = 1."""
    return letter + str(i + 1).translate(_SUBSCRIPTS)


def number(value: float, limit: float = 1.0) -> str:
    """At most 5 characters, with the digits that an array of that largest entry asks for."""
    if limit and not 0.01 <= limit < 999.5:
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    else:
        digits = next((d for d, top in ((3, 0.0995), (2, 9.995), (1, 99.95)) if limit < top), 0)
        text = f"{value:.{digits}f}"
        text = text.replace("0.", ".", 1) if digits == 3 else text
    return (text[1:] if float(text) == 0 and text[0] == "-" else text).replace("-", "−")


def signed(value: float) -> str:
    """With its sign and a space, to follow a sum."""
    return f"{'−' if value < 0 else '+'} {number(abs(value))}"


def products(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"], bias: float = 0.0) -> str:
    """`0.41·0.12 + −0.30·0.55 + …`, with two digits per number."""
    pairs = [f"{number(x)}·{number(y)}" for x, y in zip(a[:TERMS], b[:TERMS], strict=True)]
    text = " + ".join(pairs) + (" + …" if len(a) > TERMS else "")
    return text + (f" {signed(bias)}" if bias else "")
