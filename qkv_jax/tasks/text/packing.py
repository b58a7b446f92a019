"""Documents packed into rows, and the number format that is enough for them."""

import bisect
from typing import Any

import numpy as np


def best_fit(sizes: list[int], room: int) -> list[list[int]]:
    """Which of some parts share a row of that room: the largest first, each into the row that it
    fills best; in the order in which rows were begun.

    None may be larger than the room.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # room and number of the rows that are not full, ascending
    for part in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect.bisect_left(left, (sizes[part], 0))
        if place < len(left):
            free, row = left.pop(place)
        else:
            free, row = room, len(rows)
            rows.append([])
        rows[row].append(part)
        if (free := free - sizes[part]) > 1:  # a document is two symbols at least
            bisect.insort(left, (free, row))
    return rows


def first_alone(batch: dict[str, Any]) -> dict[str, Any]:
    """Model inputs of which each row of packed `documents` is cut to its first one; others as they
    are. Under a causal mask that is as if it were alone, so that what looks at attention needs to
    know nothing of documents."""
    rest = {name: array for name, array in batch.items() if name != "documents"}
    documents = batch.get("documents")
    return rest if documents is None else rest | {"valid": documents == documents[:, :1]}


def smallest_dtype(most: int) -> type:
    """The smallest kind of whole number that goes up to `most`."""
    return next(t for t in (np.uint8, np.uint16, np.int32) if most <= np.iinfo(t).max)
