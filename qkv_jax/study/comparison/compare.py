"""Studies side by side: what each arm of each came to on the tasks that they share.

Only differences to a study's own baseline are shown beside each other, since what seeds share is
shared within a study; nothing is tested across studies.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.output.formats import join
from qkv_jax.study.record import TaskRecord
from qkv_jax.study.resolved import resolved_config
from qkv_jax.study.results import StudyResults

COLUMNS = (
    "task", "arm", "study", "verdict", "n", "mean", "delta", "delta_low", "delta_high",
)  # fmt: skip
MOST = 7  # studies that a figure tells apart


class Comparison(NamedTuple):
    """What was found.

    Attributes:
      studies: {name: study}, in the order given.
      tasks: that all studies have.
      table: a row with `COLUMNS` for each task, arm and study that has it.
      differs: {task: lines}, what the studies' baselines do not have in common there.
      notes: what else to know.
    """

    studies: dict[str, StudyResults]
    tasks: list[str]
    table: pd.DataFrame
    differs: dict[str, list[str]]
    notes: list[str]


def compare(studies: Sequence[StudyResults]) -> Comparison:
    """Puts studies beside each other.

    Raises:
      ConfigError: if there are too few or too many, if they have no task in common, or if a task
        that they share has another outcome, other data or another baseline in one of them.
    """
    if not 2 <= len(studies) <= MOST:
        raise ConfigError("runs", len(studies), f"must be 2 to {MOST} folders of studies")
    named = dict(zip(_names([study.workdir.path for study in studies]), studies, strict=True))
    first, *others = named
    for study in studies:
        if study.summary is None:
            raise ConfigError("runs", str(study.workdir.path), "has no results yet")
    shared = [
        task for task in named[first].record.tasks
        if all(task in named[other].record.tasks for other in others)
    ]  # fmt: skip
    if not shared:
        have = "; ".join(f"{name} has {join([*s.record.tasks])}" for name, s in named.items())
        raise ConfigError("runs", ", ".join(named), f"must share a task; {have}")
    for task in shared:
        for other in others:
            _check_alike(task, first, named[first], other, named[other])
    rows = [row for task in shared for name, study in named.items()
            for row in _rows(task, name, study)]  # fmt: skip
    differs = {task: _differences(task, named) for task in shared}
    table = pd.DataFrame(rows, columns=COLUMNS)
    return Comparison(named, shared, table, differs, _notes(named, shared))


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The ends of the paths that tell them apart."""
    whole = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    for path, parts in zip(paths, whole, strict=True):
        if whole.count(parts) > 1:
            raise ConfigError("runs", str(path), "was given twice")
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different ends")


def _check_alike(task: str, first: str, one: StudyResults, other: str, two: StudyResults) -> None:
    """Refuses a task that is another one in the second study."""
    ours, theirs = one.record.tasks[task], two.record.tasks[task]
    facts: list[tuple[str, Any, Any]] = [
        ("outcome", ours.outcome.kind, theirs.outcome.kind),
        ("metric", ours.outcome.metric, theirs.outcome.metric),
        ("unit", ours.unit, theirs.unit),
        ("margin", _declared(ours), _declared(theirs)),
        ("threshold", ours.outcome.threshold, theirs.outcome.threshold),
        ("baseline", one.record.baseline, two.record.baseline),
    ]
    for field, mine, given in facts:
        if mine != given:
            allowed = f"is {mine!r} in {first}: these cannot be compared"
            raise ConfigError(f"{other}: tasks.{task}.{field}", given, allowed)
    if ours.data is not None and theirs.data is not None and ours.data != theirs.data:
        mine, given = (study.record.config.get("tasks", {}).get(entry.family, {}).get("options")
                       for study, entry in ((one, ours), (two, theirs)))  # fmt: skip
        what = f"has {mine!r} in {first}" if mine != given else f"read other files in {first}"
        allowed = f"{what}: these are other data, which cannot be compared"
        raise ConfigError(f"{other}: tasks.{task}.options", given, allowed)


def _declared(task: TaskRecord) -> float:
    return task.outcome.margin if task.declared_margin is None else task.declared_margin


def _rows(task: str, name: str, study: StudyResults) -> list[dict]:
    summary = study.summary
    mine = summary[summary["task"] == task]
    return [
        {column: row.get(column) for column in COLUMNS} | {"study": name}
        for row in mine.to_dict("records")
    ]


def _differences(task: str, named: dict[str, StudyResults]) -> list[str]:
    """Fields of the baseline's model and training that are not the same in all studies."""
    resolved = {}
    for name, study in named.items():
        entry = study.record.tasks[task]
        if entry.resolved is None:
            return []
        config = resolved_config(entry, study.record.baseline)
        resolved[name] = {
            f"{part}.{field}": value
            for part, values in config.items() for field, value in values.items()
        }  # fmt: skip
    fields = dict.fromkeys(field for config in resolved.values() for field in config)
    lines = []
    for field in fields:
        values = {name: config.get(field) for name, config in resolved.items()}
        if len(set(map(repr, values.values()))) > 1:
            said = ", ".join(f"{value!r} in {name}" for name, value in values.items())
            lines.append(f"{field}: {said}")
    return lines


def _notes(named: dict[str, StudyResults], shared: list[str]) -> list[str]:
    lines = [f"{name} is not finished." for name, s in named.items() if not s.record.complete]
    for name, study in named.items():
        alone = [task for task in study.record.tasks if task not in shared]
        if alone:
            lines.append(f"Only in some: {join(alone)} ({name}).")
    return lines
