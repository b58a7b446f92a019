"""The order of a study's events: what is run, what can be run at the same time, and what has to
wait for what. The only place that knows; all others walk it.

A task goes through rounds, of a part for every arm that has runs in it: the unit that jobs of a
cluster take. Parts of a round do not wait for one another, nor do tasks. What is due follows from
the rows of the runs alone, by the protocol of the study, so nothing about it is kept.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol import fixed, racing
from qkv_jax.study.protocol.due import Cell, Due, Kind
from qkv_jax.study.record import KEY, StudyRecord

PROTOCOLS = {"race": racing.protocol, "fixed": fixed.protocol}
_CELL = re.compile(r"(.+):(\d+)-(\d+)")


@dataclasses.dataclass(frozen=True)
class Part:
    """One arm's share of a round. Its text, TASK/ARM/ROUND/RATE:SEED-SEED,..., is what a job is
    given.

    Attributes:
      round: `pilot`, `bracket`, `look4`, ...; or `tune`, `extend1`, ..., `evaluate`.
      cells: its learning rates and the seeds at each.
    """

    task: str
    arm: str
    round: str
    cells: tuple[Cell, ...]

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Reads what `str` gives.

        Raises:
          ConfigError: if it is nothing of the kind.
        """
        try:
            task, arm, round_, cells = text.split("/")
            found = [_CELL.fullmatch(cell).groups() for cell in cells.split(",")]
            cells = tuple((float(rate), int(first), int(last) + 1) for rate, first, last in found)
            part = cls(task, arm, round_, cells)
            part.kind  # noqa: B018  (there is one)
        except (ValueError, KeyError, AttributeError):
            allowed = "must be TASK/ARM/ROUND/RATE:SEED-SEED,..."
            raise ConfigError("part", text, allowed) from None
        return part

    def __str__(self) -> str:
        cells = ",".join(f"{rate!r}:{first}-{end - 1}" for rate, first, end in self.cells)
        return "/".join((self.task, self.arm, self.round, cells))

    @property
    def kind(self) -> Kind:
        kinds = {kind.name: kind for kind in (*racing.KINDS, *fixed.STAGES)}
        return kinds[self.round.rstrip("0123456789")]

    @property
    def runs(self) -> list[tuple[float, int]]:
        """Its runs, (learning rate, seed), in the order in which they are run."""
        return [(rate, seed) for rate, first, end in self.cells for seed in range(first, end)]

    def waves(self, record: StudyRecord) -> list[list[tuple[float, int]]]:
        """Its runs by what is trained at once; a wave always has the same members."""
        size, runs = record.wave["size"], self.runs
        return [runs[start : start + size] for start in range(0, len(runs), size)]

    def key(self, rate: float, seed: int) -> tuple:
        """What tells the row of a run from others, see `record.KEY`."""
        return (self.task, self.arm, float(rate), seed)

    @property
    def keys(self) -> list[tuple]:
        """The keys of its rows in runs.csv."""
        return [self.key(*run) for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Round:
    """The parts of a round, of all arms; `missing` are those that lack a run, `analysis` is that
    of `Due`."""

    name: str
    parts: tuple[Part, ...]
    missing: tuple[Part, ...] = ()
    analysis: int = 0


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
    seen: list[tuple] = []
    protocol = PROTOCOLS[record.protocol](record.only(task))
    due = next(protocol, None)
    while due is not None:
        parts = _parts(task, due)
        keys = {part: part.keys for part in parts}
        rows, places = _runs_of(task, read())
        missing = _missing(keys, places)
        yield Round(due.name, parts, missing, due.analysis)
        if missing:
            rows, places = _runs_of(task, read())
            if _missing(keys, places):
                return
        # Whole rounds only, in the order of one process: nothing here depends on which job of a
        # later round was first.
        seen += [key for part in parts for key in keys[part]]
        try:
            due = protocol.send(rows.iloc[[places[key] for key in seen]])
        except StopIteration:
            return


def _parts(task: str, due: Due) -> tuple[Part, ...]:
    return tuple(Part(task, arm, due.name, cells) for arm, cells in due.cells.items())


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
    dues = racing.surely(alone) if record.protocol == "race" else fixed.surely(alone)
    return [Round(due.name, _parts(task, due)) for due in dues]


def wave_count(record: StudyRecord, parts: Sequence[Part]) -> int:
    """How many waves parts of rounds are."""
    return sum(len(part.waves(record)) for part in parts)
