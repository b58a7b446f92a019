"""What a side of a benchmark is, and how sides are timed: in turns, block by block.

On a machine that others use too, speed drifts by the minute. Each block of one side therefore has a
block of every other side beside it, ratios are taken within such a round, and every side goes first
as often as the others.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from qkv_jax.output import formats

Side = Callable[[], float]  # runs one block and says how many seconds it took


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median with the least and the most that was seen; NaN where nothing was."""

    median: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values)) if values else cls()

    def columns(self, name: str) -> dict[str, float]:
        """Three columns of a row."""
        return {name: self.median, f"{name}_low": self.low, f"{name}_high": self.high}

    def cell(self, digits: int | None = None) -> str:
        """Two lines of a table: the median, and below it the range; by default in three
        significant digits."""
        if math.isnan(self.median):
            return formats.MISSING
        middle, low, high = (_short(x, digits) for x in (self.median, self.low, self.high))
        return f"{middle}\n{low}–{high}"


def _short(value: float, digits: int | None) -> str:
    if digits is None:
        digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return formats.number(value, digits)


def interleaved(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Seconds of every block of every side, after one block of each that is not counted."""
    names = list(sides)
    for name in names:
        sides[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(sides[name]())
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of two sides, round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
