"""The learning curves by which an arm is compared: those of its runs at its best rate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from jaxtyping import Float

from qkv_jax.study.protocol.evaluated import Evaluated
from qkv_jax.study.protocol.more_steps import Curves, MoreSteps, more_steps
from qkv_jax.study.record import StudyRecord, TaskRecord

# (task, arm, rate, seed) -> steps and values of a curve, or None.
Points = Callable[[str, str, float, int], Float[np.ndarray, "2 P"] | None]


class MeasuredCurves:
    """The curves of a study and which of its runs failed."""

    def __init__(self, record: StudyRecord, runs: pd.DataFrame, points: Points):
        self.record, self.points = record, points
        failed = runs[runs["status"] != "done"]
        columns = (failed[name] for name in ("task", "arm", "learning_rate", "seed"))
        self.failed = {(task, arm, f"{rate:g}", seed)
                       for task, arm, rate, seed in zip(*columns, strict=True)}  # fmt: skip

    def more_steps(self, name: str, found: dict[str, Evaluated]) -> dict[str, MoreSteps]:
        """{arm: what it takes in steps} of all arms of a task but the baseline.

        Args: found: the runs of the task by which its arms are compared.
        """
        task, base = self.record.tasks[name], self.record.baseline
        table = {}
        for arm in task.arms:
            if arm == base:
                continue
            own, seeds = found[arm], set(found[base].seeds)
            if self._owner(arm) == base:
                seeds -= set(own.seeds)  # the placebo is compared with the rest
            pair = [self._curves(name, arm, own.rate, own.seeds),
                    self._curves(name, base, found[base].rate, sorted(seeds))]  # fmt: skip
            table[arm] = MoreSteps() if None in pair else more_steps(*pair, task.higher_is_better)
        return table

    def _owner(self, arm: str) -> str:
        """The arm whose runs they are: the placebo of a race is made of the baseline's."""
        record = self.record
        return record.baseline if record.protocol == "race" and arm == record.placebo else arm

    def _curves(self, name: str, arm: str, rate: float, seeds: Iterable[int]) -> Curves | None:
        """The curves of an arm's runs; None if no run has one.

        A run that failed has the failure value from first to last, as its scores have.
        """
        arm, task = self._owner(arm), self.record.tasks[name]
        lost = [(name, arm, f"{rate:g}", seed) in self.failed for seed in seeds]
        known = [self.points(name, arm, rate, seed)
                 for seed, failed in zip(seeds, lost, strict=True) if not failed]  # fmt: skip
        known = [points for points in known if points is not None and points.size]
        return _stacked(known, sum(lost), task) if known else None


def _stacked(known: list[np.ndarray], lost: int, task: TaskRecord) -> Curves:
    """Curves at the steps that all have in common."""
    steps = functools.reduce(np.intersect1d, [points[0] for points in known])
    steps = steps[steps > 0]
    values = [value[np.isin(step, steps)] for step, value in known]
    values += [np.full(len(steps), task.outcome.failure_value)] * lost
    values = np.stack(values)
    return Curves(steps, np.where(np.isfinite(values), values, task.outcome.failure_value))
