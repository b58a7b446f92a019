"""A study at a share of its steps: verdicts on copies of its runs that branched off to cool down.

The protocol is gone through again on the scores of the copies, as far as there are any. A verdict
that it gives is one that a study of runs of so many steps would have given from the same rows, so
it is wrong no more often; where such a study would have asked for other runs, there is none.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import verdicts
from qkv_jax.study.protocol.evaluated import standings
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.record import StudyRecord

BRANCH_COLUMNS = ("task", "arm", "steps", "learning_rate", "n", "mean", "delta", "delta_low",
                  "delta_high", "verdict")  # fmt: skip
# (task, arm, rate, seed) -> {validation, test} of a copy, or None.
Scores = Callable[[str, str, float, int], dict[str, float] | None]


def branch_table(record: StudyRecord, runs: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """`BRANCH_COLUMNS`, as in the summary, of all arms of tasks that have branches.

    Args: record, runs: study.json, with the margins as declared, and runs.csv.
    """
    tables = [pd.DataFrame(columns=BRANCH_COLUMNS)]
    for name, task in record.tasks.items():
        if not task.branch:
            continue
        copies = _copies(record, runs[runs["task"] == name], scores)
        alone = in_force(record.only(name), copies)
        table = summarise(alone, copies, standing=standings(alone, copies, closed=True))
        table["steps"] = [task.branch_steps(arm) for arm in table["arm"]]
        if record.complete:
            table["verdict"] = [
                verdicts.BUDGET if verdict == verdicts.PENDING else verdict
                for verdict in table["verdict"]
            ]
        tables.append(table[list(BRANCH_COLUMNS)])
    return pd.concat([table for table in tables if len(table)] or tables)


def _copies(record: StudyRecord, runs: pd.DataFrame, scores: Scores) -> pd.DataFrame:
    """The rows of a task's runs as those of the copies; a run without one counts as it is if it
    failed, and else not at all."""
    rows = []
    for row in runs.to_dict("records"):
        found = scores(row["task"], row["arm"], row["learning_rate"], row["seed"])
        if found is None and row["status"] == "done":
            continue
        if found is not None:
            task = record.tasks[row["task"]]
            failed = not np.isfinite(list(found.values())).all()
            if failed:
                found = dict.fromkeys(found, float(task.outcome.failure_value))
            row |= found | {"status": "diverged" if failed else "done"}
        rows.append(row)
    return pd.DataFrame(rows, columns=runs.columns).astype(runs.dtypes)
