"""The arms of one task against its baseline, over all analyses of a study.

Verdicts are final. An arm's is that of the first analysis that decides; what is added later shows
in its estimates alone. Everything is a function of the scores in the order of their seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.inference import Difference, Doubt, Judged
from qkv_jax.study.protocol.verdicts import Verdict

DECIDED = ("better", "worse", "equivalent")


@dataclasses.dataclass(frozen=True)
class Design:
    """What was fixed before the first run.

    Attributes:
      analyses: seeds at each.
      alpha: of both kinds of error together, over all `arms` and the planned analysis.
      arms: the number of those that the study asks about; controls and the placebo are not.
      margin: in the metric's unit; None where equivalence is not asked for.
    """

    analyses: tuple[int, ...]
    alpha: float
    arms: int
    margin: float | None
    higher_is_better: bool

    def level(self, analysis: int) -> float:
        """What one arm is tested at in an analysis, counted from 0."""
        return self.alpha * inference.shares(analysis + 1)[-1] / self.arms


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a learning rate was chosen: its lead in the mean over so many tuning seeds."""

    lead: float = math.inf
    seeds: int = 1

    def regret(self, scores: np.ndarray, least: float) -> float:
        """What the choice may have cost, see `inference.tuning_regret`."""
        n, _, sd = inference.moments(scores)
        sd = max(float(sd), math.sqrt(least))
        return inference.tuning_regret(sd, int(n), self.lead, self.seeds)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm against the baseline.

    Attributes:
      effect: by all seeds.
      low, high: its 95 % interval; `wide_low`, `wide_high` that at the level of this analysis, for
        all arms together.
      p: of this analysis, plain; `p_adjusted` and `p_equivalence` are the smallest of all analyses,
        each adjusted for the arms and for its analysis: to be compared with alpha.
      decided_at: seeds at which the verdict fell.
      needed: seeds that would decide, NaN where that does not apply or none would.
      would_be: the verdict but for doubt about tuning, where that makes the difference.
    """

    effect: Difference
    verdict: Verdict
    p: float
    p_adjusted: float
    p_equivalence: float = math.nan
    low: float = math.nan
    high: float = math.nan
    wide_low: float = math.nan
    wide_high: float = math.nan
    decided_at: float = math.nan
    needed: float = math.nan
    would_be: Verdict | None = None


def compare_means(
    values: np.ndarray,
    baseline: np.ndarray,
    design: Design,
    tuning: Sequence[Tuning],
    refused: np.ndarray,
) -> tuple[list[Comparison], float]:
    """Compares mean scores.

    Args:
      values: [A, S] scores, NaN where there is none; baseline: [S].
      tuning: of the baseline, then of each arm.
      refused: [A, S] bool, whether an arm may not be called equivalent from that seed on.

    Returns: a comparison for each arm, and the correlation with the baseline at the same seed that
      was reckoned with in the last analysis.
    """
    everything = np.vstack([baseline, values])
    common = [
        (inference.pooled_correlation(values[:, :size], baseline[:size]),
         inference.common_variance(everything[:, :size]))
        for size in design.analyses
    ]  # fmt: skip
    sign = -1 if design.higher_is_better else 1  # towards worse
    found = []
    for row, scores in enumerate(values):
        steps = []
        for size, (correlation, least) in zip(design.analyses, common, strict=True):
            pair = [(1, scores[:size]), (-1, baseline[:size])]
            effect = inference.difference(pair, correlation=correlation, least=least)
            own, base = (
                each.regret(part[:size], least)
                for each, part in ((tuning[1 + row], scores), (tuning[0], baseline))
            )
            # At its best rate an arm is better than it was seen by its regret, at most.
            doubt = Doubt(own, base) if sign > 0 else Doubt(base, own)
            margin = None if refused[row, size - 1] else design.margin
            steps.append((effect, margin, doubt))
        found.append(_in_turn(steps, design))
    return found, common[-1][0]


def _in_turn(steps: Sequence[tuple[Difference, float | None, Doubt]], design: Design) -> Comparison:
    """The verdict of the first analysis that decides, the numbers of the last."""
    alpha, up = design.alpha, design.higher_is_better
    lowest, final = (math.nan, math.nan), None
    for place, (effect, margin, doubt) in enumerate(steps):
        plain = inference.judge(effect, margin, doubt)
        times = alpha / design.level(place)
        adjusted = Judged(*(min(p * times, 1.0) if p == p else p for p in plain))
        lowest = np.fmin(lowest, adjusted[:2])
        verdict = inference.verdict(effect, adjusted, alpha, up)
        if final is None and verdict.kind in DECIDED:
            final = verdict, effect.n
    wide = inference.interval(effect, design.level(place))
    found = Comparison(
        effect, verdict, plain.different, *map(float, lowest), *inference.interval(effect), *wide
    )
    if final is not None:
        return dataclasses.replace(found, verdict=final[0], decided_at=float(final[1]))
    if verdict.reason not in ("few seeds", "tuning", "power"):
        return found
    reason, needed = inference.plan(effect, margin, doubt, design.level(place + 1))
    would_be = None
    if verdict == verdicts.TUNING:
        would_be = inference.verdict(effect, adjusted.beyond_doubt, alpha, up)
    elif verdict == verdicts.POWER:
        verdict = reason
    return dataclasses.replace(found, verdict=verdict, needed=needed, would_be=would_be)


def compare_solved(solved: np.ndarray, baseline: np.ndarray, design: Design) -> list[Comparison]:
    """Compares how many seeds solve a task, by exact tests of independent runs.

    Args: solved [A, S] and baseline [S] of 1, 0 or NaN (no run).
    """
    return [_solved_in_turn(row, np.asarray(baseline, float), design) for row in solved]


def _solved_in_turn(solved: np.ndarray, baseline: np.ndarray, design: Design) -> Comparison:
    lowest, final = math.nan, None
    for place, size in enumerate(design.analyses):
        counts = [(int(np.nansum(x[:size])), int((~np.isnan(x[:size])).sum()))
                  for x in (solved, baseline)]  # fmt: skip
        (won, n), (base_won, base_n) = counts
        fewest = min(n, base_n)
        effect = Difference(fewest, won / n - base_won / base_n if fewest else math.nan)
        p = inference.solved_p(won, base_won, n, base_n) if fewest else math.nan
        level = design.level(place)
        lowest = np.fmin(lowest, min(p * design.alpha / level, 1.0) if fewest else math.nan)
        verdict = verdicts.POWER
        if not fewest:
            verdict = verdicts.PENDING
        elif fewest < inference.MIN_SEEDS or inference.solved_p(n, 0, n, base_n) > level:
            verdict = verdicts.FEW_SEEDS  # not even all against none would be told apart
        elif p <= level:
            verdict = verdicts.BETTER if effect.delta > 0 else verdicts.WORSE
        if final is None and verdict.kind in DECIDED:
            final = verdict, fewest
    found = Comparison(effect, verdict, p, float(lowest))
    if final is not None:
        return dataclasses.replace(found, verdict=final[0], decided_at=float(final[1]))
    if verdict not in (verdicts.POWER, verdicts.FEW_SEEDS):
        return found
    level = design.level(len(design.analyses))
    needed = inference.solved_seeds_needed(won, base_won, n, base_n, level)
    return dataclasses.replace(found, needed=needed)
