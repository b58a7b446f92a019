"""From scores to verdicts: the tests of one task, on plain arrays.

`summary.py` turns the table of runs into arrays [arms, seeds] and calls the functions here;
nothing below knows about DataFrames, files or learning rates. NaN marks a missing run.

Arms are compared as independent runs (Welch 1947): at one seed they share initial values and the
order of batches, but real runs hardly share their luck. What they do share is measured, and pooled
over the arms of a task. Of "the means are equal" and "they differ by the margin or more" at most
one is true, so alpha / A for each of A arms bounds both kinds of error together (Shaffer 1986).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats
from statsmodels.stats.proportion import proportion_confint

from qkv_jax.study.protocol import verdicts
from qkv_jax.study.protocol.verdicts import Verdict

CONFIDENCE = 0.95  # of every interval that is not called simultaneous
MIN_SEEDS = 5  # fewer seeds give no verdict
POWER = 0.80  # with which the number of seeds that is said to decide would do so


def shares(analyses: int) -> list[float]:
    """How much of alpha each analysis of a study tests at: the one that was planned all of it, each
    that seeds are added for afterwards half as much as the one before.

    So all of them together err at most twice as often as the planned one alone.
    """
    return [2.0**-place for place in range(analyses)]


def t_interval(mean, sd, n, alpha=1 - CONFIDENCE):
    """Two-sided Student interval at level `alpha`; NaN where fewer than two values or no spread.

    No spread among seeds is no knowledge of the spread: an interval of width zero would be a lie.
    """
    mean, sd, n = (np.asarray(x, float) for x in (mean, sd, n))
    known = (n >= 2) & (sd > 0)
    size = np.where(known, n, 2.0)
    half = np.where(known, stats.t.ppf(1 - alpha / 2, size - 1) * sd / np.sqrt(size), np.nan)
    return mean - half, mean + half


def moments(values):
    """(n, mean, sd) over the last axis, NaN left out; rounding noise counts as no spread."""
    values = np.asarray(values, float)
    seen = ~np.isnan(values)
    n = seen.sum(-1)
    filled = np.where(seen, values, 0.0)
    mean = np.where(n > 0, filled.sum(-1) / np.maximum(n, 1), np.nan)
    deviation = np.where(seen, filled - np.where(n > 0, mean, 0.0)[..., None], 0.0)
    sd = np.sqrt((deviation**2).sum(-1) / np.maximum(n - 1, 1))
    scale = np.abs(filled).max(-1, initial=0.0)
    sd = np.where(sd <= 1e-12 * scale, 0.0, sd)
    return n, mean, np.where(n >= 2, sd, np.nan)


def holm(p):
    """Holm-adjusted p-values of one family; a test that could not be made (NaN) counts as p = 1.

    Equal to statsmodels' `multipletests(p, method="holm")` (a test holds the two together), which
    runs a full garbage collection on every call: 50 ms, a hundred times the whole task.
    """
    p = np.asarray(p, float)
    order = np.argsort(np.where(np.isnan(p), 1.0, p), kind="stable")
    steps = np.where(np.isnan(p), 1.0, p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return np.where(np.isnan(p), np.nan, adjusted)


def pooled_correlation(values, baseline) -> float:
    """How far arms share the luck of a seed with the baseline: a cautious estimate, at least 0.

    The mean of Fisher's z over arms, each with the weight n - 3, less its standard error; so it
    makes a test bolder only where the correlation is certain.

    Args: values [A, S], baseline [S].
    """
    total = weight = 0.0
    for row in np.asarray(values, float):
        both = ~np.isnan(row) & ~np.isnan(baseline)
        x, y = row[both], np.asarray(baseline, float)[both]
        if both.sum() > 3 and min(moments(x)[2], moments(y)[2]) > 0:
            r = np.clip(np.corrcoef(x, y)[0, 1], -0.99, 0.99)
            total += (len(x) - 3) * math.atanh(r)
            weight += len(x) - 3
    return max(0.0, math.tanh(total / weight - weight**-0.5)) if weight else 0.0


def common_variance(values) -> float:
    """The median of the variances of rows [A, S], each over what the median of its chi-square is
    short of its mean; rows without spread are left out. 0 where there are none.

    Few seeds that lie together by chance make a test bold: no row's variance is taken for less.
    """
    n, _, sd = moments(values)
    known = (n >= 2) & (sd > 0)
    if not known.any():
        return 0.0
    df = n[known] - 1.0
    return float(np.median(sd[known] ** 2 * df / special.chdtri(df, 0.5)))


class Difference(NamedTuple):
    """An effect: a difference, or a sum of differences, of means of independent runs.

    Attributes:
      n: runs of the smallest sample.
      error: standard error of `delta`; 0 where no sample has any spread.
      df: its degrees of freedom (Satterthwaite).
      exact: two-sided p where `error` is 0 and `delta` is not.
      alike: why no number of seeds could tell, or None.
    """

    n: int
    delta: float
    error: float = 0.0
    df: float = 1.0
    exact: float = math.nan
    alike: Verdict | None = None


def difference(
    samples: Sequence[tuple[int, np.ndarray]], *, correlation: float = 0.0, least: float = 0.0
) -> Difference:
    """The sum of the means of samples [S] with their signs; a place in them is a seed.

    SE² = Σ v / n, for two samples less 2 r √(v w) / max(n, m); a variance v is taken for `least`
    at the least, unless no sample has any spread.
    """
    rows = np.full((len(samples), max(len(values) for _, values in samples)), np.nan)
    for row, (_, values) in zip(rows, samples, strict=True):
        row[: len(values)] = values
    signs = np.array([sign for sign, _ in samples])
    n, mean, sd = moments(rows)
    if n.min() < 2:
        return Difference(int(n.min()), float(signs @ mean))
    scale = max(np.nanmax(np.abs(rows)), 1e-300)
    delta = float(signs @ mean)
    by_seed = signs @ rows
    if (np.abs(by_seed[~np.isnan(by_seed)]) <= 1e-12 * scale).all() and abs(delta) <= 1e-12 * scale:
        alike = verdicts.SAME_SCORES if sd.any() else verdicts.CEILING
        return Difference(int(n.min()), 0.0, alike=alike)
    if not sd.any():
        # All against none, and independent runs; against a constant it is the sign test.
        exact = 2.0 * 0.5 ** int(n[0])
        if len(rows) > 1:
            exact = solved_p(int(n[0]), 0, int(n[0]), int(n[1]))
        return Difference(int(n.min()), delta, exact=exact)
    variance = np.maximum(sd**2, least)
    parts = variance / n
    squared = parts.sum()
    if len(rows) == 2:
        squared -= 2 * correlation * math.sqrt(variance.prod()) / n.max()
    df = parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
    return Difference(int(n.min()), delta, math.sqrt(squared), float(df))


def p_difference(effect: Difference, beyond: float = 0.0) -> float:
    """Two-sided p of the effect, or of what it has beyond a size; NaN where nothing can be told."""
    if effect.n < 2 or effect.alike:
        return math.nan
    size = max(abs(effect.delta) - beyond, 0.0)
    if not effect.error:
        return effect.exact if size else 1.0
    return float(2 * special.stdtr(effect.df, -size / effect.error))


def p_equivalence(effect: Difference, low: float, high: float) -> float:
    """The larger p of two one-sided tests (Schuirmann 1987) that the effect is above `low` and
    below `high`; NaN where there is no spread to tell by."""
    if effect.n < 2 or not effect.error:
        return math.nan
    nearest = min(high - effect.delta, effect.delta - low)
    return float(special.stdtr(effect.df, -nearest / effect.error))


def interval(effect: Difference, alpha: float = 1 - CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval of the effect at a level; NaN where there is no spread to tell by."""
    if effect.n < 2 or not effect.error:
        return math.nan, math.nan
    half = special.stdtrit(effect.df, 1 - alpha / 2) * effect.error
    return effect.delta - half, effect.delta + half


def seeds_needed(effect: Difference, gap: float, alpha: float) -> float:
    """Seeds at which a test at two-sided `alpha` tells an effect from one that is `gap` away, with
    probability `POWER` and if the estimates hold; NaN if no number does."""
    if not (effect.n >= 2 and effect.error and gap > 0):
        return math.nan
    z = special.ndtri(1 - alpha / 2) + special.ndtri(POWER)
    return float(max(math.ceil(effect.n * (z * effect.error / gap) ** 2), effect.n + 1))


# --- doubt about tuning ------------------------------------------------------------------------


def tuning_regret(sd: float, n: int, lead: float, seeds: int) -> float:
    """Upper 95 % limit of what a choice of learning rate on few seeds may have cost.

    The chosen rate beat every other by at least `lead` in the mean over `seeds` tuning seeds. If
    another rate is better by g in truth, that comparison was off by g + lead or more; its standard
    error is sd √(2 / seeds), with the `sd` of `n` evaluation runs. So g <= t sd √(2 / seeds) - lead
    at the 95 % of t.
    """
    if not (n >= 2 and sd > 0):
        return 0.0
    return max(float(special.stdtrit(n - 1, CONFIDENCE)) * sd * math.sqrt(2 / seeds) - lead, 0.0)


class Doubt(NamedTuple):
    """How much lower and higher an effect may be at the best learning rates of all involved."""

    down: float = 0.0
    up: float = 0.0

    def against(self, effect: Difference) -> float:
        """What of a difference it may explain."""
        return self.down if effect.delta > 0 else self.up


class Judged(NamedTuple):
    """p-values of an effect, plain and beyond all doubt about tuning, not adjusted for anything."""

    different: float
    equivalent: float
    surely_different: float
    surely_equivalent: float

    @property
    def beyond_doubt(self) -> Judged:
        """As if there were no doubt about tuning."""
        return Judged(self.different, self.equivalent, self.different, self.equivalent)


def judge(effect: Difference, margin: float | None, doubt: Doubt) -> Judged:
    """The p-values of an effect; those of equivalence are NaN without a margin."""
    p = p_difference(effect), p_difference(effect, doubt.against(effect))
    if not margin:
        return Judged(p[0], math.nan, p[1], math.nan)
    plain = p_equivalence(effect, -margin, margin)
    return Judged(p[0], plain, p[1], p_equivalence(effect, doubt.down - margin, margin - doubt.up))


def verdict(effect: Difference, p: Judged, alpha: float, higher_is_better: bool) -> Verdict:
    """What p-values that are adjusted say of an effect.

    Equivalence comes first: a difference can be certain and yet be within the margin.
    """
    if effect.n == 0:
        return verdicts.PENDING
    if effect.n < MIN_SEEDS:
        return verdicts.FEW_SEEDS
    if effect.alike:
        return effect.alike
    if p.surely_equivalent <= alpha:
        return verdicts.EQUIVALENT
    if p.surely_different <= alpha:
        return verdicts.BETTER if (effect.delta > 0) == higher_is_better else verdicts.WORSE
    if p.equivalent <= alpha or p.different <= alpha:
        return verdicts.TUNING
    return verdicts.POWER


def plan(
    effect: Difference, margin: float | None, doubt: Doubt, alpha: float
) -> tuple[Verdict, float]:
    """Whether more seeds can decide an undecided effect, and how many it would take: `TUNING` where
    doubt about learning rates is as large as the effect, else `POWER`."""
    gap = abs(effect.delta) - doubt.against(effect)
    if margin:
        inside = min(margin - doubt.up - effect.delta, effect.delta - doubt.down + margin)
        gap = max(gap, inside)
    if effect.error and gap <= 0 and (doubt.up or doubt.down):
        return verdicts.TUNING, math.nan
    return verdicts.POWER, seeds_needed(effect, gap, alpha)


# --- runs that solve a task --------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def solved_p(solved: int, other: int, n: int, n_other: int, side: str = "two-sided") -> float:
    """p that two shares differ, or that the first is the `greater`: Boschloo's unconditional exact
    test (1970)."""
    table = [[int(solved), int(other)], [int(n) - int(solved), int(n_other) - int(other)]]
    if not any(table[0]) or not any(table[1]):
        return 1.0
    return float(stats.boschloo_exact(table, alternative=side).pvalue)


def solved_seeds_needed(solved: int, other: int, n: int, n_other: int, alpha: float) -> float:
    """Seeds at which shares like these would be told apart, see `seeds_needed`; by the arcsine
    approximation (Cohen 1988). NaN where they are equal."""
    angles = [2 * math.asin(math.sqrt(k / m)) for k, m in ((solved, n), (other, n_other))]
    apart = abs(angles[0] - angles[1])
    if not apart:
        return math.nan
    z = special.ndtri(1 - alpha / 2) + special.ndtri(POWER)
    return float(max(math.ceil(2 * (z / apart) ** 2), min(n, n_other) + 1))


def solve_interval(count, n):
    """Clopper-Pearson 95 % interval of a share; NaN where n is 0."""
    count, n = np.asarray(count, float), np.asarray(n, float)
    low, high = proportion_confint(count, np.maximum(n, 1), alpha=1 - CONFIDENCE, method="beta")
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def restricted_steps(steps, budget):
    """(mean, low, high) of steps to solve, restricted at the budget; [A, S] -> three [A].

    The budget is one number or one for each arm. The runs of an arm share it and none is lost
    before it, so the restricted mean survival time is the plain mean of min(steps, budget). The
    interval is Student's, cut at 0 and the budget, and NaN where all seeds agree. `steps` is inf
    for a run that never solved, NaN for no run.
    """
    budget = np.broadcast_to(budget, np.shape(steps)[:-1])
    n, mean, sd = moments(np.minimum(steps, budget[..., None]))
    low, high = t_interval(mean, sd, n)
    return mean, np.clip(low, 0, budget), np.clip(high, 0, budget)


def sampling_error(arm, baseline) -> float:
    """Standard error that the finite test set leaves in the difference of two arms.

    Args:
      arm, baseline: [seeds, examples] per-example scores, the same examples in both; a seed with a
        score that is not finite is left out (in both, where the seeds correspond).

    Returns: the standard error over examples of the seed-averaged difference; NaN if unknown.
    """
    if arm is None or baseline is None:
        return np.nan
    arm, baseline = np.asarray(arm, float), np.asarray(baseline, float)
    if arm.ndim != 2 or baseline.ndim != 2 or arm.shape[1] != baseline.shape[1]:
        return np.nan
    good_arm, good_base = np.isfinite(arm).all(1), np.isfinite(baseline).all(1)
    if len(arm) == len(baseline):
        good_arm = good_base = good_arm & good_base
    if arm.shape[1] < 2 or not good_arm.any() or not good_base.any():
        return np.nan
    return float(stats.sem(arm[good_arm].mean(0) - baseline[good_base].mean(0)))
