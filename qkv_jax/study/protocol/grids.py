"""Families: the cells of a task's grid taken together, and averages over some of them.

An average over cells is descriptive: the mean over the cells at one seed, then over the seeds, and
two arms compared as independent runs. Verdicts belong to cells alone, each with its own tuning and
its own adjustment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qkv_jax.study.axes import is_number
from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.evaluated import seed_scores
from qkv_jax.study.protocol.summary import bounded
from qkv_jax.study.record import StudyRecord

FAMILY_COLUMNS = (
    "family", "arm", "cells", "n", "mean", "ci_low", "ci_high", "delta", "delta_low", "delta_high",
)  # fmt: skip
Scores = Mapping[str, Mapping[str, np.ndarray]]  # {task: {arm: [S]}}


def families(record: StudyRecord) -> dict[str, list[str]]:
    """{family: its tasks} in the order of the study, for the entries that have axes."""
    found: dict[str, list[str]] = {}
    for name, task in record.tasks.items():
        if task.grid is not None:
            found.setdefault(task.grid, []).append(name)
    return found


def axis_values(record: StudyRecord, tasks: Sequence[str]) -> dict[str, list]:
    """{dotted field: its values} of a family, in the order given."""
    found: dict[str, list] = {}
    for task in tasks:
        for field, value in record.tasks[task].axes.items():
            known = found.setdefault(field, [])
            if value not in known:
                known.append(value)
    return found


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether an axis can be drawn along a scale: numbers, two at least."""
    return len(values) > 1 and all(is_number(value) for value in values)


def family_arms(record: StudyRecord, tasks: Sequence[str]) -> list[str]:
    """The arms of a family in the study's order."""
    present = {arm for task in tasks for arm in record.tasks[task].arms}
    return [arm for arm in record.arms if arm in present]


def comparable(record: StudyRecord, tasks: Sequence[str]) -> bool:
    """Whether scores of these cells may be averaged: one metric, one unit."""
    outcomes = (record.tasks[task].outcome for task in tasks)
    return len({(outcome.metric, outcome.unit) for outcome in outcomes}) == 1


def average(
    record: StudyRecord, scores: Scores, tasks: Sequence[str], arm: str
) -> dict[str, float]:
    """An arm's mean over cells and its difference to the baseline's, both over seeds.

    Only cells that have the arm count (arms of matched size may be missing from some), and only
    seeds that have run in all of them, since means over other cells would be of something else.

    Returns: cells, n, mean, ci_low, ci_high, delta, delta_low, delta_high; t-intervals at 95 %,
      NaN where not known (the baseline has no difference).
    """
    base = record.baseline
    with_arm = [task for task in tasks if arm in scores.get(task, {})]
    found = dict.fromkeys(FAMILY_COLUMNS[4:], float("nan")) | {"cells": len(with_arm), "n": 0}
    if not with_arm:
        return found
    own = np.mean([scores[task][arm] for task in with_arm], axis=0)
    reference = np.mean([scores[task][base] for task in with_arm], axis=0)
    if record.protocol == "race" and arm == record.placebo:  # it is the rest of the same seeds
        reference[np.isnan(own)] = np.nan
    n, mean, sd = inference.moments(own)
    low, high = inference.t_interval(mean, sd, n)
    found |= {"n": int(n), "mean": float(mean), "ci_low": float(low), "ci_high": float(high)}
    if arm != base:
        effect = inference.difference([(1, own), (-1, reference)])
        low, high = inference.interval(effect)
        found |= {"delta": effect.delta, "delta_low": low, "delta_high": high}
    return found | bounded(found, record.tasks[tasks[0]].outcome)


def family_table(record: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """A row per family and arm: averages over the whole grid, without verdicts."""
    scores = seed_scores(record, runs)
    rows = [
        {"family": family, "arm": arm} | average(record, scores, tasks, arm)
        for family, tasks in families(record).items()
        if comparable(record, tasks)
        for arm in family_arms(record, tasks)
    ]
    return pd.DataFrame(rows, columns=FAMILY_COLUMNS)
