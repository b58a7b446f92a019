"""Time that a benchmark may take, where a machine is lent for minutes only."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Budget:
    """So many seconds from now; nothing under way is stopped, but nothing is begun in vain.

    Args:
      seconds: from now.
      clock: what says the time, in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._end = clock, clock() + seconds
        self._longest = 0.0

    @property
    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._end - self._clock())

    @property
    def allows_another(self) -> bool:
        """Whether as much is left as the longest piece so far took."""
        return self.left > self._longest

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """A piece of work, however it ends."""
        began = self._clock()
        try:
            yield
        finally:
            self._longest = max(self._longest, self._clock() - began)
