"""What a study comes to: its tables and the ledger of its claims, from its folder alone.

The engine writes down what happened; what can be read off that is worked out here, as often as one
likes: no data, no models, no accelerator.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import json_text
from qkv_jax.study.claims import Claim
from qkv_jax.study.measures import MEASURE_COLUMNS, lookup
from qkv_jax.study.protocol.branches import branch_table
from qkv_jax.study.protocol.breakdown import breakdown_table
from qkv_jax.study.protocol.contrasts import contrast_table, contrasted
from qkv_jax.study.protocol.grids import families, family_table
from qkv_jax.study.protocol.ledger import write_ledger
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.run.workdir import Workdir

Pause = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A study and what it has come to: study.json, runs.csv and summary.csv."""

    record: StudyRecord
    runs: pd.DataFrame
    summary: pd.DataFrame


def write_tables(workdir: Workdir, pause: Pause = lambda: None) -> Outcome:
    """Writes summary.csv and, of a study that has them, families.csv, branches.csv, contrasts.csv,
    breakdown.csv, claims.csv and claims.json. Of an unfinished study they are as far as it goes;
    claims wait for its end.

    Args:
      workdir: an existing folder of a study, locked.
      pause: is called now and then; whoever wants to stop may raise there.

    Raises:
      ConfigError: if the folder holds no study, or one without runs.
    """
    runs = workdir.runs()
    study = workdir.read_study()
    record = in_force(study, runs)
    if runs.empty:
        raise ConfigError("workdir", str(workdir.path), "no run of the study there has ended yet")
    examples = _examples(workdir, record, pause)
    summary = summary_of(workdir, record, runs, pause, _points(workdir, pause))
    workdir.write("summary.csv", summary.to_csv(index=False))
    pause()
    if families(record):
        workdir.write("families.csv", family_table(record, runs).to_csv(index=False))
    if any(task.branch for task in record.tasks.values()):
        table = branch_table(study, runs, workdir.branch)
        workdir.write("branches.csv", table.to_csv(index=False))
    if any(contrasted(record, task) for task in record.tasks):
        workdir.write("contrasts.csv", contrast_table(record, runs).to_csv(index=False))
    breakdowns = workdir.breakdowns(record.tasks)
    if breakdowns:
        table = breakdown_table(record, runs, breakdowns, examples)
        workdir.write("breakdown.csv", table.to_csv(index=False))
    pause()
    claims = record.claims
    if claims and record.complete:
        groups = {task: breakdown.groups for task, breakdown in breakdowns.items()}
        _check_groups(claims, groups, workdir)
        measures = workdir.table("measures.csv")
        if measures is None:
            measures = pd.DataFrame(columns=MEASURE_COLUMNS)
        table, judgements = write_ledger(
            record, claims, runs, examples, groups, lookup(measures, record.eval_seeds)
        )
        workdir.write("claims.csv", table.to_csv(index=False))
        judged = [dataclasses.asdict(judgement) for judgement in judgements]
        workdir.write("claims.json", json_text(judged))
    return Outcome(record, runs, summary)


def summary_of(
    workdir: Workdir,
    record: StudyRecord,
    runs: pd.DataFrame,
    pause: Pause = lambda: None,
    points: Callable | None = None,
) -> pd.DataFrame:
    """The summary of what has been run so far.

    Args:
      record: with the margins that are in force.
      points: of learning curves, for `more_steps`. While a study runs there are none: to read all
        curves again after every wave would take longer than some waves.
    """
    costs, examples = _costs(workdir, record, runs), _examples(workdir, record, pause)
    return summarise(record, runs, costs, examples, points=points)


def _examples(workdir: Workdir, record: StudyRecord, pause: Pause) -> Callable:
    """(task, arm, rate, seeds) -> test scores [seeds, examples] or None. Tables of many tasks ask
    for many, so this is where one may stop."""

    def find(task: str, arm: str, learning_rate: float, seeds: Sequence[int]) -> Any:
        pause()
        arm = record.baseline if record.protocol == "race" and arm == record.placebo else arm
        return workdir.examples(task, arm, learning_rate, seeds)

    return find


def _points(workdir: Workdir, pause: Pause) -> Callable:
    """As `_examples`, the points of curves."""

    def find(task: str, arm: str, learning_rate: float, seed: int) -> Any:
        pause()
        return workdir.points(task, arm, learning_rate, seed)

    return find


def _costs(workdir: Workdir, record: StudyRecord, runs: pd.DataFrame) -> dict:
    """costs.json with the step times measured so far, as ratios to the baseline's."""
    file = workdir.path / "costs.json"
    if not file.exists():
        raise ConfigError("workdir", str(workdir.path), "holds no costs.json; run the study on")
    table = json.loads(file.read_text(encoding="utf-8"))
    seconds = runs.groupby(["task", "arm"])["seconds"].median()
    for name, task in record.tasks.items():
        reference = seconds.get((name, task.baseline))
        for arm in task.arms:
            own = seconds.get((name, arm))
            both = own is not None and reference is not None
            table[name][arm]["step_time_ratio"] = own / reference if both else None
    return table


def _check_groups(claims: dict[str, Claim], groups: dict, workdir: Workdir) -> None:
    for key, claim in claims.items():
        for name, entry in claim.evidence.items():
            lacking = [task for task in entry.tasks if task not in groups]
            if entry.near is not None and lacking:
                allowed = (
                    f"needs the groups of {lacking[0]!r}, which earlier versions did not write; "
                    "run the study's command again"
                )
                raise ConfigError(f"claims.{key}.evidence.{name}", str(workdir.path), allowed)
