"""A study as rounds of parts: what can be run at the same time, and what has to wait for what.

A task is tuned on its grid, then on each extension of it, then evaluated: its rounds. A part is one
arm's share of a round, and the unit that jobs of a cluster take. Parts of a round do not wait for
one another, nor do tasks. The rounds that there are follow from the rows of the runs alone, so
nothing about them is kept.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Arm, Study, TaskPlan
from qkv_jax.study.protocol import selection
from qkv_jax.study.protocol.summary import MAX_ROUNDS
from qkv_jax.study.record import KEY, StudyRecord
from qkv_jax.training.population import Run

EVALUATE = "evaluate"


@dataclasses.dataclass(frozen=True)
class Part:
    """One arm's share of a round. Its text, TASK/ARM/ROUND/RATES, is what a job is given.

    Attributes:
      round: `tune`, `extend1`, `extend2`, ... or `evaluate`.
      rates: the learning rates of the round; the chosen one for evaluation.
    """

    task: str
    arm: str
    round: str
    rates: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Reads what `str` gives.

        Raises:
          ConfigError: if it is nothing of the kind.
        """
        try:
            task, arm, round_, rates = text.split("/")
            return cls(task, arm, round_, tuple(float(rate) for rate in rates.split(",")))
        except ValueError:
            raise ConfigError("--part", text, "must be TASK/ARM/ROUND/RATE,RATE,...") from None

    def __str__(self) -> str:
        return "/".join((self.task, self.arm, self.round, ",".join(map(repr, self.rates))))

    @property
    def phase(self) -> str:
        return "eval" if self.round == EVALUATE else "tune"

    def find(self, study: Study) -> tuple[TaskPlan, Arm]:
        """Its task and arm.

        Raises:
          ConfigError: if the study has none of these names.
        """
        for plan in study.tasks:
            for arm in plan.arms:
                if (plan.name, arm.name) == (self.task, self.arm):
                    return plan, arm
        raise ConfigError("--part", str(self), "the study has no such task and arm")

    def runs(self, study: Study) -> list[Run]:
        """Its runs, in the order in which they are run."""
        _, arm = self.find(study)
        if self.phase == "tune":
            return study.tune_runs(arm, self.rates)
        return study.eval_runs(arm, self.rates[0], study.eval_seeds)

    def keys(self, study: Study) -> list[tuple]:
        """The keys of its rows in runs.csv."""
        plan, arm = self.find(study)
        return [run_key(plan, arm, self.phase, run) for run in self.runs(study)]


@dataclasses.dataclass(frozen=True)
class Round:
    """The parts of a round, of all arms; `missing` are those that lack a run."""

    name: str
    parts: tuple[Part, ...]
    missing: tuple[Part, ...]


def run_key(plan: TaskPlan, arm: Arm, phase: str, run: Run) -> tuple:
    """What tells the row of a run from others, see `parts.KEY`."""
    return (plan.name, arm.name, phase, float(run.learning_rate), run.seed)


def rounds(
    study: Study, record: StudyRecord, plan: TaskPlan, runs: pd.DataFrame
) -> Iterator[Round]:
    """The rounds of a task, as far as its runs say what they are: the last one given is the first
    that lacks a run, or else the evaluation, and then the task is done.

    Args:
      record: of the study.
      runs: rows of this task, or of all.
    """
    mine = runs[runs["task"] == plan.name]
    places = {key: place for place, key in enumerate(mine[list(KEY)].itertuples(index=False))}
    alone = record.only(plan.name)
    seen: list[tuple] = []

    def look(name: str, rates_of: Mapping[str, tuple[float, ...]]) -> Round:
        parts = tuple(Part(plan.name, arm.name, name, rates_of[arm.name]) for arm in plan.arms)
        keys = {part: part.keys(study) for part in parts}
        seen.extend(key for part in parts for key in keys[part])
        missing = tuple(part for part in parts if any(key not in places for key in keys[part]))
        return Round(name, parts, missing)

    rates: tuple[float, ...] = plan.learning_rates
    table = mine[:0]
    for extensions in range(MAX_ROUNDS + 1):
        if not rates:
            break
        if extensions == MAX_ROUNDS:
            raise RuntimeError(f"{plan.name}: the grid of rates grows without an end, by {rates}")
        name = f"extend{extensions}" if extensions else "tune"
        found = look(name, dict.fromkeys((arm.name for arm in plan.arms), rates))
        yield found
        if found.missing:
            return
        # Whole rounds only, in the order of one process: nothing here depends on which job of a
        # later round was first.
        table = mine.iloc[[places[key] for key in seen]]
        rates = tuple(selection.extension_needed(alone, table, plan.name))
    chosen = selection.choose_rates(alone, table)["learning_rate"]
    yield look(EVALUATE, {a.name: (float(chosen[plan.name, a.name]),) for a in plan.arms})
