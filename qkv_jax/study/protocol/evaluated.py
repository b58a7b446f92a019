"""The runs by which an arm is compared on a task: its scores by seed, whatever the protocol."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import verdicts
from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_rules import chosen
from qkv_jax.study.protocol.racing import Field
from qkv_jax.study.protocol.selection import Choice, Run, Runs, by_arm, choices
from qkv_jax.study.rates import same_rate
from qkv_jax.study.record import StudyRecord, TaskRecord


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """An arm on a task.

    Attributes:
      values: [S] scores by seed: the failure value where a run failed, NaN where there is none.
      status: [S] of done, diverged, failed, or "".
      steps: [S] to solve the task.
      rate: its best; a race's run at a seed may be of another, which the other seeds chose.
      seeds: of the runs at that rate, in the order of the arrays.
      edge: `low` or `high` where the rate is at that end of all that were tried.
      lead: of the rate over the next best, validation mean; over so many seeds, `tuned`.
      lost: the number of all its runs if every one failed; else 0.
    """

    values: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    rate: float
    seeds: tuple[int, ...]
    edge: str
    lead: float
    tuned: int
    lost: int

    def solved(self, task: TaskRecord) -> np.ndarray:
        """[S] 1 where a seed solved the task, 0 where it did not, NaN where there is none. Not by
        the score alone: a failure value may lie beyond the threshold by mistake."""
        sign = 1 if task.higher_is_better else -1
        reached = sign * self.values >= sign * task.outcome.threshold
        return np.where(np.isnan(self.values), np.nan, (self.status == "done") & reached)


@dataclasses.dataclass(frozen=True)
class Standing:
    """How the race on a task stands."""

    field: Field
    race: Race


def standings(
    record: StudyRecord, runs: pd.DataFrame, *, closed: bool = False
) -> dict[str, Standing]:
    """{task: how its race stands}; none where the protocol is another.

    Args: closed: as in `Rules`.
    """
    if record.protocol != "race":
        return {}
    fields = {name: Field.of(record, name, runs) for name in record.tasks}
    return {name: Standing(field, field.race(closed)) for name, field in fields.items()}


def evaluations(
    record: StudyRecord, runs: pd.DataFrame, standing: dict[str, Standing] | None = None
) -> dict[tuple[str, str], Evaluated]:
    """{(task, arm): the runs by which it is compared}; `standing` if that is known."""
    if standing is None:
        standing = standings(record, runs)
    if standing:
        return {
            (name, arm): found
            for name, own in standing.items()
            for arm, found in of_race(record, name, own).items()
        }
    table = by_arm(record, runs)
    best = choices(record, table)
    return {(name, arm): of_seeds(record, name, arm, table[name, arm], best.get((name, arm)))
            for name, task in record.tasks.items() for arm in task.arms}  # fmt: skip


def seed_scores(record: StudyRecord, runs: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """{task: {arm: [S] scores by seed}}."""
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in record.tasks}
    for (task, arm), evaluated in evaluations(record, runs).items():
        scores[task][arm] = evaluated.values
    return scores


def of_seeds(
    record: StudyRecord, name: str, arm: str, own: Runs, choice: Choice | None
) -> Evaluated:
    """With seeds that were fixed: those of evaluation at the rate that tuning chose."""
    seeds = {seed: place for place, seed in enumerate(record.eval_seeds)}
    values = np.full(len(seeds), np.nan)
    steps, status = values.copy(), np.full(len(seeds), "", object)
    if choice is None:
        # A grid of one rate may skip tuning: then the runs themselves say what was chosen.
        only = {run.learning_rate for run in own.evaluated} or {*record.tasks[name].learning_rates}
        choice = Choice(only.pop() if len(only) == 1 else math.nan, "", math.nan, math.inf, 1)
    for run in own.evaluated:
        if run.seed in seeds and same_rate(run.learning_rate, choice.learning_rate):
            place = seeds[run.seed]
            values[place], steps[place], status[place] = run.test, run.steps_to_solve, run.status
    return Evaluated(
        values, status, steps, choice.learning_rate, record.eval_seeds, choice.edge, choice.lead,
        choice.seeds, _lost([*own.tuned, *own.evaluated], status),
    )  # fmt: skip


def of_race(record: StudyRecord, name: str, standing: Standing) -> dict[str, Evaluated]:
    """Of a race: each score at the rate that the other seeds chose by validation. The placebo is
    the second half of the baseline's seeds."""
    field, race = standing.field, standing.race
    found = {
        arm: _of_cells(field, race, number, 0, None) for number, arm in enumerate(field.arms)
    }
    if record.placebo in record.tasks[name].arms:
        half = int(np.isfinite(found[record.baseline].values).sum()) // 2
        second = _of_cells(field, race, 0, half, 2 * half)
        # Its seeds were scored at rates that each other chose; of none it has runs of its own.
        found[record.placebo] = dataclasses.replace(second, rate=math.nan, edge="")
    return {arm: found[arm] for arm in record.tasks[name].arms}


def _of_cells(field: Field, race: Race, number: int, first: int, end: int | None) -> Evaluated:
    """Of the seeds of an arm from the first to the last but one that the race has used."""
    state, sign = race.arms[number], -1 if field.record.tasks[field.name].higher_is_better else 1
    # A closed race stops where a run is lacking: what it did not get to is there all the same.
    used = {} if race.rules.closed else race.used
    cells: dict[int, list[Run]] = {
        place: field.cells.get((number, place), [])[: used.get((number, place))][first:end]
        for place in state.live
        if race.rules.closed or (number, place) in used
    }
    cells = {place: runs for place, runs in cells.items() if runs}
    size = 2 * field.record.analyses[-1]  # of all arms and tasks, so that arrays fit together
    values = np.full(size, np.nan)
    steps, status = values.copy(), np.full(size, "", object)
    tried = [run for (arm, _), runs in field.cells.items() if arm == number for run in runs]
    own = cells.get(state.lead, [])
    if not own:
        return Evaluated(values, status, steps, math.nan, (), "", math.nan, 1, 0)
    validation = [np.array([sign * run.validation for run in runs]) for runs in cells.values()]
    lead = list(cells).index(state.lead)
    rates = [list(cells.values())[rate] for rate in chosen(validation, lead)]
    for seed, runs in enumerate(rates):
        run = runs[seed]
        values[seed], steps[seed], status[seed] = run.test, run.steps_to_solve, run.status
    common = min(map(len, validation))
    means = sorted(losses[:common].mean() for losses in validation)
    edge = ""
    if state.verdict == verdicts.EDGE and state.lead in (state.live[0], state.live[-1]):
        edge = "low" if state.lead == state.live[0] else "high"
    return Evaluated(
        values, status, steps, field.rate(state.lead), tuple(run.seed for run in own), edge,
        means[1] - means[0] if len(means) > 1 else math.inf, common, _lost(tried, status),
    )  # fmt: skip


def _lost(runs: list[Run], status: np.ndarray) -> int:
    """How many runs there are, if some are compared and every one failed."""
    return len(runs) if any(status) and all(run.status != "done" for run in runs) else 0
