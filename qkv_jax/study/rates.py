"""Learning rates of a study: which can be asked for, and when two are one.

Everybody who compares rates asks `same_rate`, since a rate that one place takes for known and
another for new would be asked for again and again.
"""

import math
from collections.abc import Iterable, Sequence

from qkv_jax.config import ConfigError

_CLOSE = 1e-6  # relative: nearer than this is the same rate
# Rates of a grid lie at least so far apart, so that those that extend it, of four digits, and the
# six digits of a file's name tell them apart.
_APART = 1.01
LOWEST, HIGHEST = 1e-30, 1e30  # beyond, their powers are no numbers any more


def same_rate(a: float, b: float) -> bool:
    """Whether two learning rates are one."""
    return math.isclose(a, b, rel_tol=_CLOSE)


def is_among(rate: float, rates: Iterable[float]) -> bool:
    """Whether one of the rates is this one."""
    return any(same_rate(rate, other) for other in rates)


def check_rates(rates: Sequence[float], field: str = "learning_rates") -> None:
    """Refuses a grid that cannot be tuned on.

    Raises:
      ConfigError: naming the field, unless the rates ascend and can be told apart.
    """
    if not rates:
        raise ConfigError(field, rates, "must hold at least one rate")
    for rate in rates:
        if not 0 < rate < math.inf:
            raise ConfigError(field, rate, "each must be a finite number above 0")
        if not LOWEST <= rate <= HIGHEST:
            raise ConfigError(field, rate, f"each must be from {LOWEST:g} to {HIGHEST:g}")
    if sorted(set(rates)) != list(rates):
        raise ConfigError(field, rates, "must ascend, each rate once")
    for low, high in zip(rates, rates[1:], strict=False):
        if high < _APART * low:
            allowed = "neighbours must differ by one per cent at least, or they are one rate"
            raise ConfigError(field, (low, high), allowed)


def rate_at(grid: Sequence[float], place: int) -> float:
    """The rate at a place of a grid that goes on beyond both ends: in steps of its own where these
    are even among …, 1, 3, 10, 30, …, else with its geometric spacing, to four digits.

    Place 0 is the lowest of the grid."""
    if 0 <= place < len(grid):
        return float(grid[place])
    end, steps = (grid[0], place) if place < 0 else (grid[-1], place - len(grid) + 1)
    halves = [round(2 * math.log10(rate)) for rate in grid]
    spacing = (halves[-1] - halves[0]) / (len(grid) - 1)
    if spacing.is_integer() and all(
        same_rate(rate, _half_decade(halves[0] + round(i * spacing))) for i, rate in enumerate(grid)
    ):
        rate = _half_decade(round(2 * math.log10(end)) + steps * round(spacing))
    else:
        ratio = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
        rate = end / ratio**-steps if steps < 0 else end * ratio**steps
    return float(f"{rate:.4g}")


def _half_decade(place: int) -> float:
    """…, 0.3, 1, 3, 10, …: 1 at place 0."""
    return (3 if place % 2 else 1) * 10.0 ** (place // 2)
