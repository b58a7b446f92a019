"""Time cut into parts: what a process noted down as intervals, as seconds that add up."""

from collections.abc import Sequence

Interval = tuple[float, float]

PARTS = ("set-up", "compilation", "training", "files, report")


def split(
    began: float,
    ended: float,
    compiling: Sequence[Interval],
    training: Sequence[Interval],
    first: float | None,
) -> dict[str, float]:
    """Seconds of `PARTS`, which add up to the whole.

    Args:
      began, ended: of the whole.
      compiling, training: what went on when; of what met, training has the time.
      first: when the first training was asked for, if any was.
    """
    compiling = union(compiling)
    trained, busy = length(union(training)), length(union([*compiling, *training]))
    set_up = 0.0
    if first is not None:
        before = [(low, min(high, first)) for low, high in compiling if low < first]
        set_up = first - began - length(before)
    seconds = (set_up, busy - trained, trained, ended - began - set_up - busy)
    return dict(zip(PARTS, seconds, strict=True))


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same time as intervals that do not meet: programs are traced within programs."""
    merged: list[Interval] = []
    for low, high in sorted(map(tuple, intervals)):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def length(intervals: Sequence[Interval]) -> float:
    return sum((high - low for low, high in intervals), 0.0)
