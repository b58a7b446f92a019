"""When training saves and when it stops: asked between two reports, in one place for all kinds."""

import dataclasses
import time

import jax

from qkv_jax.training.distributed import any_process


class Interrupted(Exception):
    """Training was asked to stop, and what is needed to go on is saved; says who asked."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is due between two reports."""

    save: bool
    stop: bool


class Watch:
    """Says what is due. A signal handler, a time limit or a test asks it to `stop`.

    Time is measured by a clock that nobody can set, and decides only when something is saved,
    never what is computed.

    Args:
      save_minutes: how much work may be lost when the process is killed without a warning.
      max_hours: when to stop; never, if None.
    """

    def __init__(self, save_minutes: float = 10.0, max_hours: float | None = None):
        self._interval, self._saved = 60 * save_minutes, time.monotonic()
        self._max_hours, self._started = max_hours, time.monotonic()
        self._reason: str | None = None
        self._is_asked = False  # whether somebody asks, and will again

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that would have to be saved: before the first `look`. Then
        whoever wants an end need not wait for it."""
        return not self._is_asked and not jax.distributed.is_initialized()

    def stop(self, reason: str) -> bool:
        """Asks for an end at the next report; the first reason stands. Returns whether this is it.
        """
        is_first = self._reason is None
        self._reason = self._reason or reason
        return is_first

    def saved(self) -> None:
        """Takes note that nothing would be lost now."""
        self._saved = time.monotonic()

    def look(self) -> Moment:
        """What is due, the same in all processes of a run."""
        self._is_asked, now = True, time.monotonic()
        if self._max_hours is not None and now - self._started >= 3600 * self._max_hours:
            self.stop(f"time limit of {self._max_hours:g} hours reached")
        save = any_process(now - self._saved >= self._interval)
        return Moment(save, any_process(self._reason is not None))

    def interruption(self) -> Interrupted:
        return Interrupted(self._reason or "another process was asked to stop")
