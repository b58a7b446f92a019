"""Which margin of equivalence is in force.

A share of right answers near its ceiling makes any declared margin vacuous: ten times the errors
can lie within it. Above `_USUAL` a margin of accuracy therefore shrinks with p (1 - p), p being the
baseline's score on validation data: it is the same in log-odds as the declared one is there. And
where runs scatter by more than `margin / LEAST_SDS`, no affordable number of seeds could show
equivalence, so that none is offered.
"""

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import special

from qkv_jax.study.config import PILOT
from qkv_jax.study.protocol import inference, selection
from qkv_jax.study.rates import is_among
from qkv_jax.study.record import StudyRecord

_USUAL = 0.9
_NEAREST = 1e-6  # to the ceiling that a score is taken to be
LEAST_SDS = 0.3


def in_force(record: StudyRecord, runs: pd.DataFrame) -> StudyRecord:
    """The record with the margins that its runs leave in force; `declared_margin` of a task keeps
    one that is not.

    Args: record, runs: study.json and runs.csv.
    """
    for name, task in record.tasks.items():
        if task.outcome.metric != "accuracy" or task.solving:
            continue
        score = _score(record.only(name), name, runs)
        if score > _USUAL:
            score = min(score, 1 - _NEAREST)
            share = score * (1 - score) / (_USUAL * (1 - _USUAL))
            margin = float(f"{task.outcome.margin * share:.3g}")
            outcome = dataclasses.replace(task.outcome, margin=margin)
            declared = task.outcome.margin
            record = record.with_task(name, outcome=outcome, declared_margin=declared)
    return record


def _score(record: StudyRecord, name: str, runs: pd.DataFrame) -> float:
    """The baseline's validation score at the rate that is best by it; NaN before it is known.

    Of a race that of the pilot, so that it is one number from then on.
    """
    table = selection.by_arm(record, runs)
    if record.protocol == "fixed":
        choice = selection.choices(record, table).get((name, record.baseline))
        return math.nan if choice is None else choice.mean
    grid = record.tasks[name].learning_rates
    pilot: dict[float, list[float]] = {}
    for run in table[name, record.baseline].evaluated:
        if run.seed < PILOT and is_among(run.learning_rate, grid):
            pilot.setdefault(run.learning_rate, []).append(run.validation)
    whole = len(pilot) == len(grid) and all(len(scores) == PILOT for scores in pilot.values())
    return max(float(np.mean(scores)) for scores in pilot.values()) if whole else math.nan


def is_narrow(margin: float, variance: float) -> bool:
    """Whether a margin is too small to be shown, for runs of this variance."""
    return margin < LEAST_SDS * math.sqrt(variance)


def seeds_for(margin: float, variance: float, level: float) -> int:
    """Seeds of both arms at which two one-sided tests at `level` would show the equivalence of
    arms that are equal, with probability `inference.POWER`."""
    z = special.ndtri(1 - level) + special.ndtri((1 + inference.POWER) / 2)
    return math.ceil(2 * variance * (z / margin) ** 2)
