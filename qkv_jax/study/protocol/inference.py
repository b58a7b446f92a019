"""From scores to verdicts: the tests of one task, on plain arrays.

`summary.py` turns the table of runs into arrays [arms, seeds] and calls the functions here;
nothing below knows about DataFrames, files or learning rates. All arms are compared with one
baseline, paired by seed, and everything is vectorised over arms. NaN marks a missing run.

Notation: A arms (the baseline is not among them), S seeds. The family that Holm's method (1979)
protects is all A arms of the task, whether or not they have been run yet.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from qkv_jax.study.protocol import verdicts

CONFIDENCE = 0.95  # of every interval that is not called simultaneous
MIN_SEEDS = 5  # fewer pairs give no verdict
MAX_SEEDS = 100  # more than this is not planned, only called ">100"
SD_LIMIT = 0.80  # planning uses the upper one-sided limit of the SD at this confidence


@dataclasses.dataclass(frozen=True)
class Level:
    """Error levels of the current analysis and of the next (k-th analysis: alpha * 2**-k)."""

    analysis: int
    alpha: float
    next_alpha: float

    @classmethod
    def of_analysis(cls, alpha: float, analysis: int) -> Level:
        return cls(analysis, alpha * 2.0**-analysis, alpha * 2.0 ** -(analysis + 1))


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


@functools.lru_cache(maxsize=256)
def _half_widths(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of seeds, and the half-width of the interval at `alpha` there, in units of the SD."""
    sizes = np.arange(MIN_SEEDS, MAX_SEEDS + 1)
    return sizes, stats.t.ppf(1 - alpha / 2, sizes - 1) / np.sqrt(sizes)


@functools.lru_cache(maxsize=256)
def _sd_factor(n: int) -> float:
    """Upper limit of the SD over the SD seen in n normal values, at confidence `SD_LIMIT`."""
    return float(np.sqrt((n - 1) / stats.chi2.ppf(1 - SD_LIMIT, n - 1)))


def seeds_to_decide(sd, n, margin, family, alpha) -> str:
    """Seeds at which the simultaneous half-width falls to the margin; "" unknown, ">100" too many.

    The SD is taken at its upper 80 % limit, as an SD from a few seeds is as often too small.
    `alpha` is the level of the next analysis, `family` the number of arms it is divided by.
    """
    if not (n >= 2 and sd > 0 and margin and margin > 0):
        return ""
    sizes, half = _half_widths(alpha / family)
    enough = sizes[(half * sd * _sd_factor(int(n)) <= margin) & (sizes > n)]
    return str(enough[0]) if enough.size else f">{MAX_SEEDS}"


def _exact_p(values, baseline) -> float:
    """Two-sided p when the paired differences are all the same and not zero.

    Student's t would divide by zero. Where both arms are constant (one always at the ceiling, the
    other always failing) this is Barnard's exact test (1945) of n of n against 0 of n, whose
    worst nuisance parameter is 1/2; it holds for pairs that are not negatively correlated.
    Otherwise it is the sign test.
    """
    n = len(values)
    constant = np.ptp(values) == 0 and np.ptp(baseline) == 0
    return 2.0 * 0.25**n if constant else 2.0 * 0.5**n


def compare_means(values, baseline, *, margin, level, higher_is_better, refuse_equivalence=None):
    """Paired comparison of means with a baseline, and the verdict on each arm.

    Args:
      values: [A, S] scores; baseline: [S] scores of the baseline at the same seeds, or [A, S] if
        each arm has one of its own.
      margin: equivalence margin in the metric's unit, or None for no equivalence test.
      level: the `Level` of this analysis.
      higher_is_better: direction of the metric.
      refuse_equivalence: [A] bool, arms that may not be called equivalent (see `summary.py`).

    Returns:
      dict of [A] arrays: n, delta, sd, delta_low, delta_high, the simultaneous pair (Bonferroni
      over the A arms at the level of the analysis), p_value (paired t-test), p_holm, p_equivalence
      (two one-sided tests, Schuirmann 1987, after a Holm of their own), seeds_to_decide, verdict.
    """
    values = np.asarray(values, float)
    baseline = np.broadcast_to(np.asarray(baseline, float), values.shape)
    arms = len(values)
    refuse = np.zeros(arms, bool) if refuse_equivalence is None else np.asarray(refuse_equivalence)
    difference = values - baseline
    n, delta, sd = moments(difference)
    # The scale that says what is rounding noise is that of the scores, not of their difference.
    scale = np.fmax(np.abs(np.nan_to_num(values)).max(-1, initial=0), 1e-300)
    sd = np.where(sd <= 1e-12 * scale, 0.0, sd)
    delta = np.where((sd == 0) & (np.abs(delta) <= 1e-12 * scale), 0.0, delta)

    spread = (n >= 2) & (sd > 0)
    df = np.where(spread, n - 1, 1)
    error = np.where(spread, sd / np.sqrt(np.maximum(n, 1)), 1.0)
    p = np.where(spread, 2 * stats.t.sf(np.abs(delta) / error, df), np.nan)
    for i in np.flatnonzero((n >= 2) & (sd == 0) & (delta != 0)):
        paired = ~np.isnan(difference[i])
        p[i] = _exact_p(values[i, paired], baseline[i, paired])
    p_holm = holm(p)

    p_equivalence = np.full(arms, np.nan)
    if margin is not None and margin > 0:
        above, below = stats.t.sf([(delta + margin) / error, (margin - delta) / error], df)
        p_equivalence = holm(np.where(spread & ~refuse, np.maximum(above, below), np.nan))

    low, high = t_interval(delta, sd, n)
    low_all, high_all = t_interval(delta, sd, n, level.alpha / max(arms, 1))
    gain = delta if higher_is_better else -delta
    verdict, seeds = [], []
    for i in range(arms):
        if n[i] == 0:
            found = verdicts.PENDING
        elif n[i] < MIN_SEEDS:
            found = verdicts.FEW_SEEDS
        elif sd[i] == 0 and delta[i] == 0:
            paired = values[i, ~np.isnan(difference[i])]
            found = verdicts.CEILING if np.ptp(paired) <= 1e-12 * scale[i] else verdicts.SAME_SCORES
        elif p_equivalence[i] <= level.alpha:
            found = verdicts.EQUIVALENT
        elif p_holm[i] <= level.alpha:
            found = verdicts.BETTER if gain[i] > 0 else verdicts.WORSE
        else:
            found = verdicts.UNDECIDED
        open_ = found in (verdicts.UNDECIDED, verdicts.FEW_SEEDS)
        plan = seeds_to_decide(sd[i], n[i], margin, arms, level.next_alpha) if open_ else ""
        verdict.append(found)
        seeds.append(plan)
    return {
        "n": n, "delta": delta, "sd": sd, "delta_low": low, "delta_high": high,
        "delta_low_simultaneous": low_all, "delta_high_simultaneous": high_all,
        "p_value": p, "p_holm": p_holm, "p_equivalence": p_equivalence,
        "seeds_to_decide": np.array(seeds, object), "verdict": np.array(verdict, object),
    }  # fmt: skip


def compare_solved(solved, baseline, *, level):
    """Exact McNemar tests of "this seed is solved" against the baseline, Holm over the arms.

    Args: solved [A, S] and baseline [S] of 1, 0 or NaN (no run); level: that of this analysis.
    Returns: dict of [A] arrays n, p_value, p_holm, seeds_to_decide, verdict. The number of seeds
      is where the test would decide if discordant pairs went on coming as they have so far.
    """
    solved, baseline = np.asarray(solved, float), np.asarray(baseline, float)
    arms = len(solved)
    both = ~np.isnan(solved) & ~np.isnan(baseline)
    n = both.sum(-1)
    gained = (both & (solved > baseline)).sum(-1)
    lost = (both & (solved < baseline)).sum(-1)
    p = np.full(arms, np.nan)
    for i in np.flatnonzero(n):
        agree = n[i] - gained[i] - lost[i]
        p[i] = mcnemar([[agree, gained[i]], [lost[i], 0]], exact=True).pvalue
    p_holm = holm(p)
    verdict, seeds = [], []
    for i in range(arms):
        plan = ""
        if n[i] == 0:
            found = verdicts.PENDING
        elif n[i] < MIN_SEEDS:
            found = verdicts.FEW_SEEDS
        elif p_holm[i] <= level.alpha:
            found = verdicts.BETTER if gained[i] > lost[i] else verdicts.WORSE
        else:
            found = verdicts.UNDECIDED
            sizes = np.arange(n[i] + 1, MAX_SEEDS + 1)
            pairs = np.rint(sizes * (gained[i] + lost[i]) / n[i])
            fewer = np.floor(sizes * min(gained[i], lost[i]) / n[i])
            enough = sizes[2 * stats.binom.cdf(fewer, pairs, 0.5) <= level.next_alpha / arms]
            plan = str(enough[0]) if enough.size else f">{MAX_SEEDS}"
        verdict.append(found)
        seeds.append(plan)
    return {
        "n": n, "p_value": p, "p_holm": p_holm,
        "seeds_to_decide": np.array(seeds, object), "verdict": np.array(verdict, object),
    }  # fmt: skip


def tuning_regret(sd, n, lead, seeds) -> np.ndarray:
    """[A] upper 95 % limit of what a choice of learning rate on few seeds may have cost.

    The chosen rate beat every other by at least `lead` in the mean over `seeds` tuning seeds. If
    another rate is better by g in truth, that comparison was off by g + lead or more, and its
    standard error is about sd / sqrt(seeds), with `sd` [A] that of the paired differences of `n`
    evaluation seeds (the median over arms where that is larger, as one SD of a few seeds is
    easily too small). So g <= t * sd / sqrt(seeds) - lead at the 95 % of t.
    """
    known = (n >= 2) & (sd > 0)
    if not known.any():
        return np.zeros(len(n))
    noise = np.where(known, np.maximum(sd, np.median(sd[known])), 0.0) / np.sqrt(seeds)
    return np.maximum(stats.t.ppf(CONFIDENCE, np.where(known, n - 1, 1)) * noise - lead, 0.0)


def tuning_may_explain(result, *, regret, regret_base, margin, level, higher_is_better):
    """Verdicts of `compare_means` that do not survive doubt about the chosen learning rates.

    A difference must be significant beyond what the losing side may have lost to its own tuning,
    and a claim of equivalence must hold for the difference at the best rates, which lies as far
    away from the one seen as either side's regret. Both repeat the test of `compare_means`, with
    Holm, against hypotheses moved by the regret ([A] each; 0 where there is no doubt).
    """
    n, sd, delta = result["n"], result["sd"], result["delta"]
    loss = -delta if higher_is_better else delta
    known = (n >= 2) & (sd > 0)
    df, error = np.where(known, n - 1, 1), np.where(known, sd, 1.0) / np.sqrt(np.maximum(n, 1))
    beyond = np.maximum(np.abs(delta) - np.where(loss > 0, regret, regret_base), 0.0)
    p = holm(np.where(known, 2 * stats.t.sf(beyond / error, df), np.nan))
    kinds = np.array([verdict.kind for verdict in result["verdict"]])
    claim = np.isin(kinds, ("better", "worse"))
    lost = claim & (p > level.alpha)
    if margin is not None:
        sides = [(margin - regret + loss) / error, (margin - regret_base - loss) / error]
        tested = ~np.isnan(result["p_equivalence"])
        p = holm(np.where(tested, stats.t.sf(sides, df).max(0), np.nan))
        lost |= (kinds == "equivalent") & (p > level.alpha)
    return lost & ((regret > 0) | (regret_base > 0))


def solve_interval(count, n):
    """Clopper-Pearson 95 % interval of a share; NaN where n is 0."""
    count, n = np.asarray(count, float), np.asarray(n, float)
    low, high = proportion_confint(count, np.maximum(n, 1), alpha=1 - CONFIDENCE, method="beta")
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def restricted_steps(steps, budget):
    """(mean, low, high) of steps to solve, restricted at the budget; [A, S] -> three [A].

    The budget is one number or one for each arm. The runs of an arm share it and none is lost
    before it, so the restricted mean survival time is the plain mean of min(steps, budget). The
    interval is Student's, cut at 0 and the budget, and
    NaN where all seeds agree. `steps` is inf for a run that never solved, NaN for no run.
    """
    budget = np.broadcast_to(budget, np.shape(steps)[:-1])
    n, mean, sd = moments(np.minimum(steps, budget[..., None]))
    low, high = t_interval(mean, sd, n)
    return mean, np.clip(low, 0, budget), np.clip(high, 0, budget)


def sampling_error(arm, baseline) -> float:
    """Standard error that the finite test set leaves in the difference of two arms.

    Args: arm, baseline [seeds, examples] per-example scores, the same examples in both; a seed
      with a score that is not finite is left out (in both, where the seeds correspond).
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
