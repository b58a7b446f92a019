"""A difference between two arms as steps: how many per cent more an arm takes than the baseline.

Both are compared at the value that the worse of them ends with. It took all its steps for that; the
better one's own curve says when that one was there. So nothing is extrapolated, and arm and
baseline are treated alike: who trades places turns a factor c into 1 / c. Pure arithmetic on
arrays; `measured_curves.py` reads the curves of a study.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkv_jax.study.protocol.inference import CONFIDENCE

MIN_REPORTS = 3  # fewer points are no curve
DRAWS = 2000


class Curves(NamedTuple):
    """The curves of an arm's runs: the steps of their reports, above 0 and ascending, and the
    finite values there, a row for each seed."""

    steps: Float[np.ndarray, " P"]
    values: Float[np.ndarray, "S P"]


class MoreSteps(NamedTuple):
    """In per cent, negative where the arm takes fewer; NaN where nothing can be said.

    Infinity and -100 stand for "beyond the curve": the better one had the value at its first
    report already.
    """

    percent: float = math.nan
    low: float = math.nan
    high: float = math.nan


def more_steps(arm: Curves, baseline: Curves, higher_is_better: bool) -> MoreSteps:
    """How many per cent more steps the arm takes, with its 95 % interval.

    By the mean over the seeds, of the better one its best so far, linear between reports in the
    logarithm of the step. The interval holds the middle 95 % of what `draws` of both mean curves
    give, as of independent runs; one that is beyond the curve counts as the least that it can be
    for the lower limit and as the most for the upper one. NaN with a single seed, or without any
    spread.
    """
    if min(len(arm.steps), len(baseline.steps)) < MIN_REPORTS:
        return MoreSteps()
    arm, baseline = (
        Curves(np.log(c.steps), c.values if higher_is_better else -c.values)
        for c in (arm, baseline)
    )
    means = (c.values.mean(0, keepdims=True) for c in (arm, baseline))
    low, high = _log_ratio(arm.steps, baseline.steps, *means)
    found = MoreSteps(_percent(high[0] if high[0] > 0 else low[0]))
    spread = any(np.ptp(c.values, axis=0).any() for c in (arm, baseline))
    if min(len(arm.values), len(baseline.values)) < 2 or not spread:
        return found
    rng = np.random.default_rng(0)
    low, high = _log_ratio(arm.steps, baseline.steps, *(draws(c.values, rng)
                                                        for c in (arm, baseline)))  # fmt: skip
    ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    low, high = (np.quantile(x, q, method="inverted_cdf")
                 for x, q in zip((low, high), ends, strict=True))  # fmt: skip
    return found._replace(low=_percent(low), high=_percent(high))


def draws(
    values: Float[np.ndarray, "S P"], rng: np.random.Generator
) -> Float[np.ndarray, "draws P"]:
    """Mean curves that could be the true one: the multivariate t about the mean of the seeds.

    Of anything linear in a curve the quantiles are Student's interval. Seeds drawn with replacement
    would cover far less: four of them have no more than 35 different means.
    """
    n, mean = len(values), values.mean(0)
    weights = rng.standard_normal((DRAWS, n)) / np.sqrt(n * rng.chisquare(n - 1, (DRAWS, 1)))
    return mean + np.einsum("ds,sp->dp", weights, values - mean)


def _log_ratio(steps, base_steps, values, base_values):
    """Logarithms of the ratio of steps, [N] by curves [N, P] and [N, Q]: the least and the most
    that it can be. They are the same but beyond the curve.

    Args: steps, base_steps: logarithms, [P] and [Q]. Higher values are better.
    """
    ends = values[:, -1], base_values[:, -1]
    worse, better = ends[0] < ends[1], ends[0] > ends[1]
    latest, earliest = _reached(base_steps, base_values, ends[0])
    own_latest, own_earliest = _reached(steps, values, ends[1])
    least = steps[-1] - latest, own_earliest - base_steps[-1]
    most = steps[-1] - earliest, own_latest - base_steps[-1]
    alike = steps[-1] - base_steps[-1]
    return tuple(np.select((worse, better), ratio, alike) for ratio in (least, most))


def _reached(steps, values, goals):
    """At which log steps the best so far reaches the goals [N]: the latest and the earliest that
    can be. A goal that is reached at the first report may have been so at any time before."""
    best = np.maximum.accumulate(values, axis=1)
    rows, place = np.arange(len(best)), (best >= goals[:, None]).argmax(1)
    before = np.maximum(place - 1, 0)
    below, above = best[rows, before], best[rows, place]
    share = (goals - below) / np.where(above > below, above - below, 1.0)
    at = steps[before] + share * (steps[place] - steps[before])
    first = place == 0
    return np.where(first, steps[0], at), np.where(first, -np.inf, at)


def _percent(log_ratio: float) -> float:
    return float(100 * np.expm1(log_ratio))
