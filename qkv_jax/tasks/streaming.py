"""Training data too large for the device: batches read on the host through grain.

`Task.stream` gives a `BatchStream` where the data are above the task's `device_limit_bytes`. Its
batches take the place of what the schedule's indices would have picked on the device; all other
randomness (crops, masks) still comes from the schedule.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from qkv_jax.config import ConfigError

DEVICE_LIMIT = 2**30  # bytes of training data that lie on every device; above, they are streamed

Row = dict[str, Any]  # NumPy values by name


@runtime_checkable
class Rows(Protocol):
    """What grain reads from: examples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class ArrayRows:
    """Some rows of arrays in memory or memory-mapped."""

    def __init__(self, arrays: dict[str, np.ndarray], rows: np.ndarray):
        self._arrays, self._rows = arrays, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return {name: array[self._rows[index]] for name, array in self._arrays.items()}


class WindowRows:
    """Every window of `length` of some texts; none reaches from one into the next."""

    def __init__(self, texts: Sequence[np.ndarray], length: int):
        self._texts, self._length = texts, length
        self._ends = np.cumsum([max(0, len(text) - length + 1) for text in texts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        place = int(np.searchsorted(self._ends, index, side="right"))
        start = index - (int(self._ends[place - 1]) if place else 0)
        return {"windows": np.array(self._texts[place][start : start + self._length])}


class BatchStream(Iterator[Row]):
    """Endless batches [B, ...]: shuffled anew every epoch, what does not fill a batch left out.

    The order depends on the seed only. `get_state` is JSON; an iterator made alike goes on exactly
    there after `set_state`, and so does one with another share.

    Args:
      share: (index, count): of every batch only that of `count` equal parts is read.

    Raises:
      ConfigError: if there are fewer examples than a batch holds.
    """

    def __init__(self, rows: Rows, seed: int, batch_size: int, share: tuple[int, int] = (0, 1)):
        import grain  # a second; only those whose data are large pay for it

        if len(rows) < batch_size:
            allowed = f"must be at most the {len(rows)} examples"
            raise ConfigError("batch_size", batch_size, allowed)
        self._made = (rows, seed, batch_size)
        index, count = share
        dataset = grain.MapDataset.source(rows).seed(seed).shuffle()
        dataset = dataset.batch(batch_size // count, drop_remainder=True)
        if count > 1:
            # Parts of batches, in order; those of a last batch that is not whole are left out.
            dataset = dataset[: len(rows) // batch_size * count][index::count]
        dataset = dataset.repeat()
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # of each replica
        self._iterator = iter(dataset.to_iter_dataset(reading))

    def share(self, index: int, count: int) -> "BatchStream":
        """A stream of one of `count` equal parts of the same batches, from the beginning."""
        return BatchStream(*self._made, (index, count))

    def __next__(self) -> Row:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._iterator.set_state(state)


def next_batches(stream: Iterator[Row], steps: int) -> Row:
    """The next batches, stacked: leaves [steps, B, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(next(stream) for _ in range(steps)))
