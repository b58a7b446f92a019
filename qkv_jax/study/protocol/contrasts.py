"""Arms against other arms than the baseline, where the study's file names one (`against`).

The contrasts of a task are a family of their own: alpha is divided by their number. In a race an
arm stops when it is decided against the baseline, which says nothing of others; its contrast is
tested at the last look that both arms have reached, with that look's share of alpha. The shares sum
to one, so whatever look that comes to be, alpha bounds the chance of a false verdict.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import Design, Tuning, compare_means, compare_solved
from qkv_jax.study.protocol.evaluated import Evaluated, Standing, evaluations, standings
from qkv_jax.study.protocol.margins import is_narrow
from qkv_jax.study.record import StudyRecord

COLUMNS = (
    "task", "arm", "against", "verdict", "n", "delta", "delta_low", "delta_high", "p_adjusted",
    "p_equivalence",
)  # fmt: skip


def contrasted(record: StudyRecord, task: str) -> list[tuple[str, str]]:
    """The arms of a task that have another to be compared with there, and that one."""
    arms = record.tasks[task].arms
    named = ((arm, record.arms[arm].against) for arm in arms)
    return [(arm, other) for arm, other in named if other in arms]


def contrast_table(record: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """A row with `COLUMNS` for each contrast of each task: the difference arm less other, with its
    95 % interval, and p's adjusted so that alpha is their level."""
    standing = standings(record, runs)
    found = evaluations(record, runs, standing)
    rows = []
    for task in record.tasks:
        pairs = contrasted(record, task)
        for arm, other in pairs:
            one, two = found[task, arm], found[task, other]
            alpha = record.alpha / len(pairs)
            own = (
                _raced(standing[task], arm, other, one, two, alpha)
                if task in standing
                else _fixed(record, task, arm, other, one, two, len(pairs))
            )
            rows.append({"task": task, "arm": arm, "against": other} | own)
    return pd.DataFrame(rows, columns=COLUMNS)


def _raced(
    standing: Standing, arm: str, other: str, one: Evaluated, two: Evaluated, alpha: float
) -> dict:
    field, race = standing.field, standing.race
    effect = inference.difference([(1, one.values), (-1, two.values)], least=race.least)
    low, high = inference.interval(effect)
    row = {"n": effect.n, "delta": effect.delta, "delta_low": low, "delta_high": high}
    places = [field.arms.index(name) for name in (arm, other)]
    found = race.contrast(*places)
    if found is None:
        verdict = verdicts.FEW_SEEDS if effect.n else verdicts.PENDING
        return row | {"verdict": verdict, "p_adjusted": math.nan, "p_equivalence": math.nan}
    times, states = field.record.alpha / (alpha * found.share), [race.arms[p] for p in places]
    different = min(2 * min(found.worse, found.better) * times, 1.0)
    equal = math.nan if race.rules.solving else min(found.equal * times, 1.0)
    collapsed = any(race.collapsed(p, rate) for p in places for rate in race.arms[p].live)
    verdict = verdicts.POWER
    if verdicts.EDGE in (state.verdict for state in states):
        verdict = verdicts.EDGE
    elif equal <= field.record.alpha and not is_narrow(race.rules.margin, race.least):
        verdict = verdicts.COLLAPSES if collapsed else verdicts.EQUIVALENT
    elif different <= field.record.alpha:
        verdict = verdicts.WORSE if found.worse < found.better else verdicts.BETTER
    return row | {"verdict": verdict, "p_adjusted": different, "p_equivalence": equal}


def _fixed(
    record: StudyRecord, name: str, arm: str, other: str, one: Evaluated, two: Evaluated, count: int
) -> dict:
    task = record.tasks[name]
    margin = None if task.solving else task.outcome.margin
    design = Design(record.analyses, record.alpha, count, margin, task.higher_is_better)
    failed = np.isin([one.status, two.status], ("diverged", "failed")).any(0)
    refused = np.logical_or.accumulate(failed)[None]
    if margin is not None:
        variance = inference.common_variance(np.stack([one.values, two.values]))
        refused |= is_narrow(margin, variance)
    tuning = [Tuning(each.lead, each.tuned) for each in (two, one)]
    ((means,), _) = compare_means(one.values[None], two.values, design, tuning, refused)
    asked = means
    if task.solving:
        solved, reference = (each.solved(task) for each in (one, two))
        (asked,) = compare_solved(solved[None], reference, design)
    edge = asked.effect.n and (one.edge or two.edge)
    return {
        "verdict": verdicts.EDGE if edge else asked.verdict, "n": means.effect.n,
        "delta": means.effect.delta, "delta_low": means.low, "delta_high": means.high,
        "p_adjusted": asked.p_adjusted, "p_equivalence": asked.p_equivalence,
    }  # fmt: skip

