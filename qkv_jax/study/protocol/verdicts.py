"""What the protocol says of an arm: a verdict, and notes on how it came about.

Both are data within the program. Their words are those of the tables: `str` gives a cell of them.
"""

import dataclasses
import enum
from typing import Any, Literal, get_args

from qkv_jax.config import ConfigError

Kind = Literal["better", "worse", "equivalent", "undecided", "baseline", "pending"]
Reason = Literal[
    "", "power", "tuning", "few seeds", "edge", "ceiling", "same scores", "same program",
    "all failed", "collapses", "budget",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How an arm compares with the baseline.

    Attributes:
      kind: `pending` where nothing has been run that could be judged.
      reason: why an undecided one is no other: `power` where more seeds would decide, `tuning`
        where luck in the choice of learning rates could explain what was seen.
    """

    kind: Kind
    reason: Reason = ""

    @classmethod
    def read(cls, cell: str) -> "Verdict":
        """The verdict that a cell of summary.csv stands for.

        Raises:
          ConfigError: if it stands for none.
        """
        undecided = [cls("undecided", reason) for reason in get_args(Reason)]
        for verdict in (*map(cls, get_args(Kind)), *undecided):
            if str(verdict) == cell:
                return verdict
        raise ConfigError("verdict", cell, f"is none; the kinds are {', '.join(get_args(Kind))}")

    def __str__(self) -> str:
        if self.kind == "pending":
            return ""
        return f"{self.kind} ({self.reason})" if self.reason else self.kind


PENDING, BASELINE = Verdict("pending"), Verdict("baseline")
POWER, TUNING = Verdict("undecided", "power"), Verdict("undecided", "tuning")
BETTER, WORSE, EQUIVALENT = Verdict("better"), Verdict("worse"), Verdict("equivalent")
FEW_SEEDS, EDGE = Verdict("undecided", "few seeds"), Verdict("undecided", "edge")
# Why two arms cannot be told apart, however many seeds there are: all scores of both are one value,
# or both so near the best that a margin in log-odds is as good as none; each seed's are the same,
# which two programs hardly ever have; their configs say the same; or neither has a run that came
# through.
CEILING, SAME_SCORES = Verdict("undecided", "ceiling"), Verdict("undecided", "same scores")
SAME_PROGRAM = Verdict("undecided", "same program")
ALL_FAILED = Verdict("undecided", "all failed")
# It would be equivalent, but some of its runs, or the baseline's, ended near failing; and the runs
# or minutes that a study may take were spent.
COLLAPSES, BUDGET = Verdict("undecided", "collapses"), Verdict("undecided", "budget")


class What(enum.StrEnum):
    """What a note says; the braces stand for its values."""

    OTHER_RATE = "learning rate {}, of {} seeds, may yet be its best"
    COARSE = "margin is under twice the sampling error of the test set"
    NARROW = (
        "margin is {:.2g} standard deviations of a run: equivalence is offered from 0.3 on, a "
        "margin of {:.2g}; at this one it would take about {} seeds"
    )
    AT_CEILING = "the baseline is at the ceiling: in log-odds the margin is as good as none"
    FAILED = "runs failed"
    FAILED_NOT_EQUIVALENT = "runs failed, which rules out 'equivalent'"
    LOST = "{} failed at every rate tried ({} of {})"
    DOUBT = "would be '{}', but for doubt about the choice of learning rates"
    EDGE = "best learning rate is at the edge of the grid"
    EDGE_OF_BASELINE = "the baseline's best learning rate is at the edge of the grid"
    EDGE_OF_SOME = "a best learning rate is at the edge of the grid"
    WHEN_IT_TRAINS = "when it trains: {} of {} runs collapsed, at most {:.0f} %"
    COLLAPSED = "{} of {} runs collapsed"
    SO_FAR = "{} of {} seeds so far"
    UNTUNED = "one learning rate, not tuned"
    REACHED = "{} of {} seeds reach {:g}"
    BEFORE_TRAINING = "{:.2f} on {}, {:.2f} before training"


@dataclasses.dataclass(frozen=True)
class Note:
    """A remark on a verdict: what it says, of which values."""

    what: What
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return self.what.value.format(*self.values)


class Notes(tuple[Note, ...]):
    """All that is noted of an arm or a test; as text one line."""

    def __str__(self) -> str:
        return "; ".join(map(str, self))
