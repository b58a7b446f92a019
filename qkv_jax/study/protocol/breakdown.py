"""A task's score by group of its test examples, such as the distance of what is asked for."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.record import StudyRecord
from qkv_jax.tasks import Data, Task
from qkv_jax.tasks.base import Breakdown

BREAKDOWN_COLUMNS = ("task", "arm", "by", "group", "n", "mean", "ci_low", "ci_high")
# (task, arm, rate, seeds) -> test scores [seeds, examples], or None.
Examples = Callable[[str, str, float, list[int]], np.ndarray | None]


def read_breakdown(task: Task, data: Data, name: str) -> Breakdown | None:
    """How a task tells its test examples apart, or None.

    Raises:
      ConfigError: if there is not one group per example.
    """
    found = task.breakdown({field: jnp.asarray(x) for field, x in data.test.items()})
    if found is None:
        return None
    examples = len(data.test["targets"])
    groups = np.asarray(found.groups)
    if groups.shape != (examples,):
        allowed = f"must hold one whole number for each of the {examples} test examples"
        raise ConfigError(f"tasks.{name}: breakdown", groups.shape, allowed)
    return Breakdown(found.name, [int(group) for group in groups])


def breakdown_table(
    record: StudyRecord, runs: pd.DataFrame, breakdowns: Mapping[str, Breakdown], examples: Examples
) -> pd.DataFrame:
    """Mean and 95 % t-interval over the evaluation seeds, a row per task, arm and group.

    A run that diverged or failed counts with the task's failure value in every group, as it does
    in the summary.
    """
    rows = []
    evaluated = evaluations(record, runs)
    for name, breakdown in breakdowns.items():
        task = record.tasks[name]
        groups, places = np.unique(np.asarray(breakdown.groups), return_inverse=True)
        sizes = np.bincount(places)
        for arm in task.arms:
            mine = evaluated[name, arm]
            table = np.full((len(groups), len(mine.seeds)), np.nan)
            for column, (seed, status) in enumerate(zip(mine.seeds, mine.status, strict=False)):
                if status in ("diverged", "failed"):
                    table[:, column] = task.outcome.failure_value
                    continue
                scores = examples(name, arm, mine.rate, [seed]) if status else None
                if scores is not None:
                    sums = np.bincount(places, np.asarray(scores[0], float), len(groups))
                    table[:, column] = sums / sizes
            n, mean, sd = inference.moments(table)
            low, high = inference.t_interval(mean, sd, n)
            columns = zip(groups.tolist(), n.tolist(), mean, low, high, strict=True)
            rows += [(name, arm, breakdown.name, *values) for values in columns]
    return pd.DataFrame(rows, columns=BREAKDOWN_COLUMNS)
