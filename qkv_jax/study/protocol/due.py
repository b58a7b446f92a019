"""What a protocol asks for: runs that are due at the same time."""

import dataclasses
from collections.abc import Generator, Mapping

import pandas as pd

Cell = tuple[float, int, int]  # learning rate, first seed, the seed after the last


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of round.

    Attributes:
      name: of its rounds, a number after it where there are several.
      doing: what a display says.
      tested: whether its runs are scored on test data as well.
      compares: whether it leads to results of its arms.
    """

    name: str
    doing: str
    tested: bool
    compares: bool


@dataclasses.dataclass(frozen=True)
class Due:
    """A round that a protocol asks for.

    Attributes:
      name: of the round.
      cells: by arm.
      analysis: of the study's analyses the one that asks for it, counted from 0.
    """

    name: str
    cells: Mapping[str, tuple[Cell, ...]]
    analysis: int = 0


# A protocol of one task: gives what is due and is sent the rows of all that has been run by then,
# whole rounds in their order. It has no other memory, so that whoever walks it anew ends alike.
Protocol = Generator[Due, pd.DataFrame, None]
