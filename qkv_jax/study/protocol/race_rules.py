"""What a race is about, when it looks, and how an arm of it stands; see `race.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qkv_jax.study.config import FIRST_LOOK
from qkv_jax.study.protocol import verdicts
from qkv_jax.study.protocol.verdicts import Verdict

_LOOKS = ((FIRST_LOOK, 0.08), (6, 0.15), (8, 0.17), (12, 0.20), (16, 0.15), (24, 0.10), (32, 0.075))
DOUBLED_FROM = 2  # the look from which on the baseline has twice the seeds, if several arms wait
DROP_ERRORS = 3.0  # a rate leaves when it is worse by so many standard errors
DROP_SHARE = 0.1  # of the margin, which a rate may be better by and yet leave
PRIOR_DF = 3.0  # that the variances of an arm's rates lend to each of them
PLANNED_ERRORS = 3.2  # between an effect and the nearest bound, for a verdict to be near


def looks() -> Iterator[tuple[int, float]]:
    """Seeds and share of alpha of each look, without an end; the shares come to 1."""
    yield from _LOOKS
    seeds, left = _LOOKS[-1][0], 1 - math.fsum(share for _, share in _LOOKS)
    while True:
        seeds, left = round(1.5 * seeds), left / 2
        yield seeds, left


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a race is about.

    Attributes:
      arms: the number of arms that are compared with the baseline.
      rates: of the declared grid.
      margin: of equivalence, in the unit of the losses.
      asked: how many of the arms the study asks about; the others are raced alike, and alpha is not
        divided by them.
      max_seeds: no look is taken beyond.
      hopeless: an arm that would need more seeds than this is given up.
      failure: the loss of a run that failed. A run past halfway there from the baseline's median
        has collapsed.
      solving: whether test losses are 1 or 0, of runs that do not or do solve the task: shares are
        compared, by exact tests and without a margin.
      settled: verdicts on arms that are not raced, by the arm.
      closed: whether there will be no runs but those that there are: the race does not wait for
        arms that lack some, and one whose best rate may lie beyond has no verdict (edge).
    """

    arms: int
    rates: int
    margin: float
    asked: int | None = None
    alpha: float = 0.05
    max_seeds: int = 32
    hopeless: float = 64.0
    failure: float = math.inf
    solving: bool = False
    settled: Mapping[int, Verdict] = dataclasses.field(default_factory=dict)
    closed: bool = False

    @property
    def level(self) -> float:
        """For one arm and both kinds of error together (Shaffer 1986)."""
        return self.alpha / max(self.arms if self.asked is None else self.asked, 1)


@dataclasses.dataclass
class Arm:
    """How an arm stands.

    Attributes:
      live: places of the rates that may yet be its best; `lead` the one that leads.
      worse, apart, better, within: the smallest p-values so far, over their shares of alpha: a live
        cell is worse than the baseline; a live cell is not better than it by the margin; the arm is
        better than the baseline at each of its live rates; it is not worse by the margin.
      seeds: of the leading cell at the last look that it took part in.
      delta: the cost over the baseline, each at the rates that the other seeds chose.
      low, high: what the cost at best rates is between, over all live rates, for all arms and all
        looks together; as of the last look that it took part in.
      verdict: `PENDING` while there is none; `POWER` where it would need too many seeds, `needed`.
    """

    live: list[int]
    lead: int = 0
    seeds: int = 0
    worse: dict[int, float] = dataclasses.field(default_factory=dict)
    apart: dict[int, float] = dataclasses.field(default_factory=dict)
    tested: dict[int, int] = dataclasses.field(default_factory=dict)  # looks that a cell has had
    better: float = 1.0
    within: float = 1.0
    delta: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    verdict: Verdict = verdicts.PENDING
    needed: float = math.nan


def chosen(validation: Sequence[np.ndarray], lead: int | None = None) -> np.ndarray:
    """Which rate's run counts at each seed [S]: by the mean of the other seeds; of seeds that not
    all rates have, that of the one that leads.

    Args:
      validation: losses [S_r] of each rate.
      lead: the one that leads, by default by the mean of the common seeds.
    """
    common = min(map(len, validation))
    seen = np.stack([losses[:common] for losses in validation])
    others = (seen.sum(1, keepdims=True) - seen) / max(common - 1, 1)
    best = int(seen.mean(1).argmin()) if lead is None else lead
    more = len(validation[best]) - common
    return np.concatenate([others.argmin(0), np.full(more, best)]).astype(int)
