"""A study's runs as a race takes them, and what the race asks for as runs of the study.

The rows of a task become losses of cells by seed; what comes out is read off the same race: its
arms, and for each seed the rate whose run counts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from qkv_jax.study.config import PILOT
from qkv_jax.study.protocol import selection, verdicts
from qkv_jax.study.protocol.due import Due, Kind, Protocol
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.race import Cell, Race
from qkv_jax.study.protocol.race_rules import Rules
from qkv_jax.study.protocol.selection import Run
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.rates import rate_at, same_rate
from qkv_jax.study.record import StudyRecord

KINDS = (
    Kind("pilot", "trying rates of", True, False),
    Kind("bracket", "trying rates of", True, False),
    Kind("look", "racing", True, True),
)


@dataclasses.dataclass
class Field:
    """The cells of a task.

    Attributes:
      name: of the task.
      arms: those that race, the baseline first; the placebo is the baseline's second half and has
        no runs of its own.
      grid: the rates that were declared.
      cells: {(arm, place): its runs by seed, from 0 without a gap}, see `race.Cell`.
      runs: how many there are.
      minutes: they took, as far as that is known.
    """

    record: StudyRecord
    name: str
    arms: list[str]
    grid: tuple[float, ...]
    cells: dict[Cell, list[Run]]
    runs: int
    minutes: float

    @classmethod
    def of(cls, record: StudyRecord, name: str, rows: pd.DataFrame) -> Field:
        """The field of a task, whose rows are among those that are given."""
        task = record.tasks[name]
        others = [arm for arm in task.arms if arm not in (record.baseline, record.placebo)]
        rows = rows[rows["task"] == name]
        seconds = rows["seconds"].sum() if "seconds" in rows else 0.0
        minutes = float(seconds) / 60 / record.wave.get("size", 1)
        field = cls(record, name, [record.baseline, *others], tuple(sorted(task.learning_rates)),
                    {}, len(rows), minutes)  # fmt: skip
        table = selection.by_arm(record.only(name), rows)
        for number, arm in enumerate(field.arms):
            for run in table[name, arm].evaluated:
                place = field.place(run.learning_rate)
                if place is not None:
                    field.cells.setdefault((number, place), []).append(run)
        for cell, runs in field.cells.items():
            runs.sort(key=lambda run: run.seed)
            whole = (run.seed == seed for seed, run in enumerate(runs))
            field.cells[cell] = [run for run, there in zip(runs, whole, strict=True) if there]
        return field

    def rate(self, place: int) -> float:
        """The learning rate of a place."""
        return rate_at(self.grid, place)

    def place(self, rate: float) -> int | None:
        """The place of a learning rate; None if it is none of this task."""
        beyond = selection.MAX_EXTENSIONS if len(self.grid) > 1 else 0
        places = range(-beyond, len(self.grid) + beyond)
        return next((place for place in places if same_rate(self.rate(place), rate)), None)

    def race(self, closed: bool = False) -> Race:
        """The race on these runs; `closed` as in `Rules`."""
        task = self.record.tasks[self.name]
        sign, outcome = (-1 if task.higher_is_better else 1), task.outcome

        def loss(run: Run) -> float:
            return float(not self.solved(run)) if task.solving else sign * run.test

        losses = {
            cell: np.array([[sign * run.validation for run in runs], [loss(run) for run in runs]])
            for cell, runs in self.cells.items()
        }
        roles = [self.record.arms[arm].role for arm in self.arms[1:]]
        rules = Rules(
            len(roles), len(self.grid), outcome.margin, asked=roles.count("arm"),
            alpha=self.record.alpha, max_seeds=self.record.analyses[-1],
            failure=sign * outcome.failure_value, solving=task.solving, settled=self._settled(),
            closed=closed,
        )  # fmt: skip
        nothing = np.empty((2, 0))
        return Race(rules, lambda arm, place: losses.get((arm, place), nothing))

    def solved(self, run: Run) -> bool:
        """Whether a run has solved its task. Not by the score alone: a failure value may lie beyond
        the threshold by mistake."""
        return run.status == "done" and self.record.tasks[self.name].outcome.solved(run.test)

    def _settled(self) -> dict[int, Verdict]:
        """Arms that no run can tell from the baseline: those that are its program, and those that
        failed in the whole pilot where it did."""
        task = self.record.tasks[self.name]
        program = task.program_of(self.record.baseline)
        found = {
            number: verdicts.SAME_PROGRAM
            for number, arm in enumerate(self.arms)
            if number and task.program_of(arm) == program
        }
        if self._lost(0):
            found |= {number: verdicts.ALL_FAILED for number in range(1, len(self.arms))
                      if number not in found and self._lost(number)}  # fmt: skip
        return found

    def _lost(self, arm: int) -> bool:
        pilot = [self.cells.get((arm, place), [])[:PILOT] for place in range(len(self.grid))]
        whole = all(len(runs) == PILOT for runs in pilot)
        return whole and all(run.status != "done" for runs in pilot for run in runs)

    def missing(self, race: Race) -> dict[Cell, int]:
        """{cell: how many runs the race lacks there}."""
        return {cell: n - len(self.cells.get(cell, ())) for cell, n in race.wanted.items()}

    def spent(self, race: Race) -> bool:
        """Whether what the race lacks is more than the study may spend on a task."""
        record, more = self.record, sum(self.missing(race).values())
        if not more or race.event == "pilot":
            return False
        over = record.max_runs is not None and self.runs + more > record.max_runs
        return over or (record.max_minutes is not None and self.minutes > record.max_minutes)

    def due(self, race: Race) -> dict[str, tuple]:
        """What the race lacks, by arm; a wave that would not be full is filled with seeds that will
        be asked for next, if any are."""
        found: dict[int, list] = {}
        for (arm, place), more in self.missing(race).items():
            have = len(self.cells.get((arm, place), ()))
            found.setdefault(arm, []).append([place, have, have + more])
        size, most = self.record.wave.get("size", 1), self.record.analyses[-1]
        for arm, cells in found.items():
            lead = max(cells, key=lambda cell: cell[2])
            spare = -sum(end - first for _, first, end in cells) % size
            if race.event.startswith("look"):
                lead[2] = min(lead[2] + spare, max(most * (1 + (not arm)), lead[2]))
        return {
            self.arms[arm]: tuple((self.rate(place), first, end) for place, first, end in cells)
            for arm, cells in sorted(found.items())
        }


def protocol(record: StudyRecord) -> Protocol:
    """What is due of the one task of a record."""
    (name,) = record.tasks
    rows = pd.DataFrame(columns=selection.RUN_COLUMNS)
    for analysis in range(record.analysis):
        asked = dataclasses.replace(record, looks=record.analyses[: analysis + 1])
        while True:
            field = Field.of(in_force(asked, rows), name, rows)
            race = field.race()
            if not race.wanted or field.spent(race):
                break
            rows = yield Due(race.event, field.due(race), analysis)


def surely(record: StudyRecord) -> list[Due]:
    """What is due whatever comes out: the pilot."""
    (name,) = record.tasks
    field = Field.of(record, name, pd.DataFrame(columns=selection.RUN_COLUMNS))
    race = field.race()
    return [Due(race.event, field.due(race))]
