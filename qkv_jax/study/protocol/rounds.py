"""The order of a study's events: what is run, what can be run at the same time, and what has to
wait for what. The only place that knows; all others walk it.

A task goes through `STAGES`: it is tuned on its grid, then on each extension of it, then evaluated.
Each time a stage is due there is a round, of a part for every arm: the unit that jobs of a cluster
take. Parts of a round do not wait for one another, nor do tasks. What is due follows from the rows
of the runs alone, so nothing about it is kept.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol import selection
from qkv_jax.study.record import KEY, StudyRecord

Phase = Literal["tune", "eval"]
Rates = dict[str, tuple[float, ...]]  # by arm


@dataclasses.dataclass(frozen=True)
class Stage:
    """A kind of round.

    Attributes:
      name: of its rounds; those of a stage that repeats are numbered from 1.
      phase: `eval` where the runs are scored on test data, `tune` where they must not be.
      doing: what a display says.
      rates: (record of one task, rows of all rounds before, whole) -> learning rates of every arm;
        none where the stage is not due, or not any more. Without rows, NaN stands for a rate.
      seeds: record -> seeds in blocks. No wave has runs of two, so that seeds that are added later
        make the waves that they would have made then.
      repeats: whether it is asked again and again until it is not due.
    """

    name: str
    phase: Phase
    doing: str
    rates: Callable[[StudyRecord, pd.DataFrame], Rates]
    seeds: Callable[[StudyRecord], Sequence[Sequence[int]]]
    repeats: bool = False


def _of_all(record: StudyRecord, rates: Sequence[float]) -> Rates:
    ((_, task),) = record.tasks.items()
    return dict.fromkeys(task.arms, tuple(rates)) if rates else {}


def declared(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """The grid of the task."""
    ((_, task),) = record.tasks.items()
    return _of_all(record, task.learning_rates)


def beyond(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """What a grid is extended by where some arm's best rate is at its edge."""
    (name,) = record.tasks
    return _of_all(record, selection.extension_needed(record, rows, name))


def chosen(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """Each arm's best."""
    ((name, task),) = record.tasks.items()
    if rows.empty:
        return _of_all(record, (math.nan,))
    rates = selection.choose_rates(record, rows)["learning_rate"]
    return {arm: (float(rates[name, arm]),) for arm in task.arms}


def tuning_seeds(record: StudyRecord) -> Sequence[Sequence[int]]:
    return [record.tune_seeds]


def seeds_by_look(record: StudyRecord) -> Sequence[Sequence[int]]:
    """The evaluation seeds that each interim analysis has added."""
    sizes = record.looks or (len(record.eval_seeds),)
    starts = (0, *sizes[:-1])
    return [record.eval_seeds[start:end] for start, end in zip(starts, sizes, strict=True)]


# A stage that repeats is asked again at most so often: for each side of a grid, every extension.
MAX_REPEATS = 2 * selection.MAX_EXTENSIONS
STAGES = [
    Stage("tune", "tune", "tuning", declared, tuning_seeds),
    Stage("extend", "tune", "tuning", beyond, tuning_seeds, repeats=True),
    Stage("evaluate", "eval", "evaluating", chosen, seeds_by_look),
]


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
            part = cls(task, arm, round_, tuple(float(rate) for rate in rates.split(",")))
            part.stage  # noqa: B018  (there is one)
        except (ValueError, KeyError):
            raise ConfigError("part", text, "must be TASK/ARM/ROUND/RATE,RATE,...") from None
        return part

    def __str__(self) -> str:
        return "/".join((self.task, self.arm, self.round, ",".join(map(repr, self.rates))))

    @property
    def stage(self) -> Stage:
        names = {stage.name: stage for stage in STAGES}
        return names[self.round.rstrip("0123456789")]

    @property
    def phase(self) -> Phase:
        return self.stage.phase

    def blocks(self, record: StudyRecord) -> list[list[tuple[float, int]]]:
        """Its runs, (learning rate, seed), in the order in which they are run."""
        blocks = self.stage.seeds(record)
        return [[(rate, seed) for rate in self.rates for seed in seeds] for seeds in blocks]

    def waves(self, record: StudyRecord) -> list[list[tuple[float, int]]]:
        """Its runs by what is trained at once; a wave always has the same members."""
        size = record.wave["size"]
        return [
            block[start : start + size]
            for block in self.blocks(record)
            for start in range(0, len(block), size)
        ]

    def key(self, rate: float, seed: int) -> tuple:
        """What tells the row of a run from others, see `record.KEY`."""
        return (self.task, self.arm, self.phase, float(rate), seed)

    def keys(self, record: StudyRecord) -> list[tuple]:
        """The keys of its rows in runs.csv."""
        return [self.key(*run) for block in self.blocks(record) for run in block]


@dataclasses.dataclass(frozen=True)
class Round:
    """The parts of a round, of all arms; `missing` are those that lack a run."""

    name: str
    parts: tuple[Part, ...]
    missing: tuple[Part, ...] = ()


def rounds(
    record: StudyRecord, task: str, read: Callable[[], pd.DataFrame]
) -> Iterator[Round]:
    """The rounds of a task, as far as its runs say what they are: the last one given is the first
    that lacks a run, or else the last of all, and then the task is done.

    Args:
      record: of the study.
      read: gives rows of runs, of this task or of all; asked anew after a round that lacks some, so
        that whoever runs them is given the next round.
    """
    alone = record.only(task)
    seen: list[tuple] = []
    whole = pd.DataFrame(columns=selection.RUN_COLUMNS)
    for stage in STAGES:
        for number in itertools.count(1):
            rates = stage.rates(alone, whole)
            if not rates:
                break
            if number > MAX_REPEATS:
                grown = next(iter(rates.values()))
                raise RuntimeError(f"{task}: {stage.name} goes on without an end, now {grown}")
            name = f"{stage.name}{number}" if stage.repeats else stage.name
            parts = tuple(Part(task, arm, name, rates[arm]) for arm in rates)
            keys = {part: part.keys(record) for part in parts}
            rows, places = _runs_of(task, read())
            missing = _missing(keys, places)
            yield Round(name, parts, missing)
            if missing:
                rows, places = _runs_of(task, read())
                if _missing(keys, places):
                    return
            # Whole rounds only, in the order of one process: nothing here depends on which job of a
            # later round was first.
            seen += [key for part in parts for key in keys[part]]
            whole = rows.iloc[[places[key] for key in seen]]
            if not stage.repeats:
                break


def _runs_of(task: str, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple, int]]:
    """The rows of a task, and where that of each run is among them."""
    rows = rows[rows["task"] == task]
    columns = (rows[name].to_list() for name in KEY)
    return rows, {key: place for place, key in enumerate(zip(*columns, strict=True))}


def _missing(keys: Mapping[Part, Sequence[tuple]], places: Mapping) -> tuple[Part, ...]:
    return tuple(part for part, own in keys.items() if any(key not in places for key in own))


def expected(record: StudyRecord, task: str) -> list[Round]:
    """The rounds that a task has whatever comes out of its runs."""
    alone = record.only(task)
    none = pd.DataFrame(columns=selection.RUN_COLUMNS)
    found = ((stage, stage.rates(alone, none)) for stage in STAGES if not stage.repeats)
    return [
        Round(stage.name, tuple(Part(task, arm, stage.name, rates[arm]) for arm in rates))
        for stage, rates in found
    ]


def wave_count(record: StudyRecord, parts: Sequence[Part]) -> int:
    """How many waves parts of rounds are."""
    return sum(len(part.waves(record)) for part in parts)
