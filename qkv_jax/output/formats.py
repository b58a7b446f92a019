"""Numbers and names as text: one format for tables, figures, pages and the terminal."""

import math
import re
from collections.abc import Sequence

import pandas as pd

MISSING = "–"


PENDING = "…"


MINUS = "\u2212"


_SMALL = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip


def known(value) -> bool:
    """Whether there is something to show: not None, not NaN, not the empty string."""
    return value is not None and value != "" and not (value is pd.NA or value != value)


def number(value, digits: int = 3, signed: bool = False) -> str:
    """Fixed digits, a true minus sign, never "−0.000"."""
    if not known(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    text = f"{abs(value):,.{digits}f}"
    zero = not any(c in "123456789" for c in text)
    sign = "" if zero else MINUS if value < 0 else "+" if signed else ""
    return sign + text


def count(value) -> str:
    """A size in three significant digits: "812", "1.23 M", "45.6 G"."""
    if not known(value):
        return MISSING
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            scaled = value / scale
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {unit}"
    return f"{value:.3g}"


def integer(value) -> str:
    """A whole number with thousands separators."""
    return f"{value:,.0f}" if known(value) else MISSING


def interval(low, high, digits: int, signed: bool = False) -> str:
    """ "0.270 to 0.350", or a dash where the interval is not known."""
    if not (known(low) and known(high)):
        return MISSING
    return f"{number(low, digits, signed)} to {number(high, digits, signed)}"


def bracket(row: dict, value: str, low: str, high: str, digits: int, signed: bool = False) -> str:
    """ "0.31 [0.27, 0.35]" from the columns of a row; no brackets where there is no interval."""
    text = number(row.get(value), digits, signed)
    if not (known(row.get(low)) and known(row.get(high))):
        return text
    return f"{text} [{number(row[low], digits)}, {number(row[high], digits)}]"


def slug(text: str) -> str:
    """A name that is safe in file names."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "task"


def shorten(label: str, most: int = 24) -> str:
    """A label that fits its place."""
    return label if len(label) <= most else label[: most - 1] + "…"


def join(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; semicolons where the items have commas themselves."""
    words = list(words)
    if len(words) < 2:
        return "".join(words)
    comma = "; " if any("," in word for word in words) else ", "
    return comma.join(words[:-1]) + (comma + "and " if comma == "; " else " and ") + words[-1]


def small(n: int) -> str:
    """Numbers up to twelve as words."""
    return _SMALL[n] if n < len(_SMALL) else str(n)
