"""What libraries print on their own, kept off the terminal while it says nothing to a user."""

import contextlib
import gc
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import absl.logging


class _NotFromOrbax(logging.Filter):
    """Orbax logs on its own, also from its threads, what it raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in pathlib.Path(record.pathname).parts


class _Quiet:
    """While checkpoints are open, keeps off the terminal what Orbax logs, and TensorStore's answers
    to an Orbax that, after the first error, no longer waits for them; they come from its own
    threads and cannot be raised. After an error it stays. Everything else goes the way that it went
    before."""

    def __init__(self):
        self._users = 0
        self._filter = _NotFromOrbax()
        self._before: Callable[[Any], object] = sys.unraisablehook

    def begin(self) -> None:
        absl.logging.get_absl_logger().addFilter(self._filter)
        if sys.unraisablehook != self._hear:
            self._before, sys.unraisablehook = sys.unraisablehook, self._hear
        self._users += 1

    def end(self) -> None:
        self._users -= 1
        if self._users == 0:
            absl.logging.get_absl_logger().removeFilter(self._filter)
            if sys.unraisablehook == self._hear:  # nobody has put another one in its place
                sys.unraisablehook = self._before

    def _hear(self, unraisable: Any) -> None:
        late = isinstance(unraisable.exc_value, RuntimeError) and unraisable.object is None
        if not (late and str(unraisable.exc_value) == "Event loop is closed"):
            self._before(unraisable)


ORBAX = _Quiet()


@contextlib.contextmanager
def threads() -> Iterator[None]:
    """A read that fails leaves others that nobody waits for; Python would print what they raise."""
    before, tasks = sys.unraisablehook, logging.getLogger("asyncio")
    disabled = tasks.disabled
    sys.unraisablehook, tasks.disabled = lambda _: None, True
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook, tasks.disabled = before, disabled
