"""Which learning rate an arm takes, and when its grid is extended."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from qkv_jax.study.rates import is_among, rate_at, same_rate
from qkv_jax.study.record import StudyRecord, TaskRecord

RUN_COLUMNS = (
    "task", "arm", "learning_rate", "seed", "status", "validation", "test", "steps_to_solve",
)  # fmt: skip


MAX_EXTENSIONS = 2  # rates added on a side of the grid


class Choice(NamedTuple):
    learning_rate: float
    edge: str
    mean: float
    lead: float  # by how much the validation mean beats that of the best other rate
    seeds: int  # tuning seeds at the chosen rate


class Run(NamedTuple):
    """A run; one that did not finish has its task's failure value for all scores."""

    learning_rate: float
    seed: int
    status: str
    validation: float
    test: float  # NaN where it was not asked for
    steps_to_solve: float  # inf for one that never solved


class Runs(NamedTuple):
    """The runs of an arm on a task."""

    tuned: list[Run]
    evaluated: list[Run]


def by_arm(record: StudyRecord, runs: pd.DataFrame) -> dict[tuple[str, str], Runs]:
    """Runs by (task, arm)."""
    table: dict[tuple[str, str], Runs] = {
        (name, arm): Runs([], []) for name, task in record.tasks.items() for arm in task.arms
    }
    if runs is None or not len(runs):
        return table
    tuning = set(record.tune_seeds)
    columns = (runs[name].to_list() for name in RUN_COLUMNS)
    for task, arm, rate, seed, status, validation, test, steps in zip(*columns, strict=True):
        if (task, arm) not in table:
            continue
        scores = (validation,) if seed in tuning else (validation, test)
        if status != "done" or any(x is None or not math.isfinite(x) for x in scores):
            # A "done" run with a score that is no number has failed all the same.
            status = "failed" if status == "done" else status
            validation = test = record.tasks[task].outcome.failure_value
            steps = math.inf
        elif steps is None or math.isnan(steps):
            steps = math.inf
        run = Run(float(rate), seed, status, float(validation), float(test), float(steps))
        table[task, arm][seed not in tuning].append(run)
    return table


def tuning_runs(record: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by whose validation scores rates are chosen: of a race all."""
    return runs[runs["seed"].isin(record.tune_seeds)] if record.tune_seeds else runs


def _grid(task: TaskRecord, tuned: dict[str, list[Run]]) -> list[float]:
    """All rates of a task, ascending: those declared and those run beyond them."""
    rates = [float(rate) for rate in task.learning_rates]
    for run in {run.learning_rate for runs in tuned.values() for run in runs}:
        if not is_among(run, rates):
            rates.append(run)
    return sorted(rates)


def _choose(task: TaskRecord, arm: str, tuned: list[Run], grid: list[float]) -> Choice | None:
    """Best rate of one arm: mean, then steps to solve, then the lower rate."""
    sign = -1.0 if task.higher_is_better else 1.0
    budget = task.steps_for(arm)
    scores = []
    for place, rate in enumerate(grid):
        runs = [run for run in tuned if same_rate(run.learning_rate, rate)]
        if runs:
            mean = math.fsum(run.validation for run in runs) / len(runs)
            steps = math.fsum(min(run.steps_to_solve, budget) for run in runs) / len(runs)
            works = any(run.status == "done" for run in runs)
            # Twelve digits, so that the order of a sum cannot break a tie.
            key = float(f"{sign * mean:.12g}")
            scores.append((key, steps, place, mean, works, len(runs)))
    if not scores:
        return None
    best = min(scores)
    place = best[2]
    edge = ""
    if not any(s[4] for s in scores):
        # No rate is better than another, so none is at an edge nor could have been missed.
        return Choice(grid[place], edge, best[3], math.inf, best[5])
    if len(grid) > 1 and place in (0, len(grid) - 1):
        edge = "low" if place == 0 else "high"
        # A plateau that reaches into the grid (every rate solves the task equally fast) does not
        # point beyond its edge.
        inner = (s for s in scores if 0 < s[2] < len(grid) - 1)
        if best[4] and any(s[:2] == best[:2] for s in inner):
            edge = ""
    lead = min((s[0] for s in scores if s is not best), default=math.inf) - best[0]
    return Choice(grid[place], edge, best[3], lead, best[5])


def choices(record: StudyRecord, table: dict) -> dict[tuple[str, str], Choice]:
    chosen = {}
    for name, task in record.tasks.items():
        tuned = {arm: table[name, arm].tuned for arm in task.arms}
        grid = _grid(task, tuned)
        for arm in task.arms:
            choice = _choose(task, arm, tuned[arm], grid)
            if choice is not None:
                chosen[name, arm] = choice
    return chosen


def choose_rates(record: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of every arm of every task, from its tuning runs (validation data).

    Returns: a DataFrame indexed by (task, arm), an arm without tuning runs left out:
      `learning_rate`; `edge`, "low" or "high" where that is the end of all rates that the task
      has been tuned on, else "" (always "" for a grid of one rate); `mean`, the validation mean
      there. Runs that diverged or failed count with the task's failure value.
    """
    chosen = choices(record, by_arm(record, runs))
    index = pd.MultiIndex.from_tuples(list(chosen), names=["task", "arm"]) if chosen else None
    if index is None:
        index = pd.MultiIndex.from_arrays([[], []], names=["task", "arm"])
    rows = [(choice.learning_rate, choice.edge, choice.mean) for choice in chosen.values()]
    return pd.DataFrame(rows, index=index, columns=["learning_rate", "edge", "mean"])


def extension_needed(record: StudyRecord, runs: pd.DataFrame, name: str) -> list[float]:
    """Rates to run next, on every arm of a task, because some arm's best rate is at the edge.

    One rate is added on each side that needs it, with the geometric spacing of the declared grid
    and four significant digits, at most `MAX_EXTENSIONS` times a side.

    Returns: ascending rates; empty when the tuning of this task is complete.
    """
    task = record.tasks[name]
    declared = sorted(float(rate) for rate in task.learning_rates)
    if len(declared) < 2:
        return []
    table = by_arm(record, runs)
    tuned = {arm: table[name, arm].tuned for arm in task.arms}
    grid = _grid(task, tuned)
    extra = [rate for rate in grid if not is_among(rate, declared)]
    choices = (_choose(task, arm, runs, grid) for arm, runs in tuned.items())
    edges = {choice.edge for choice in choices if choice is not None}
    new = []
    below = sum(rate < declared[0] for rate in extra)
    if "low" in edges and below < MAX_EXTENSIONS:
        new.append(rate_at(declared, -below - 1))
    above = sum(rate > declared[-1] for rate in extra)
    if "high" in edges and above < MAX_EXTENSIONS:
        new.append(rate_at(declared, len(declared) + above))
    return new
