"""The points at which a process can die while it changes a folder, counted from within.

A point is a call that opens a file for writing, writes, syncs, renames, removes or makes something
below the folder. It has a kind and a place, which is the path without numbers and names, so that
the same point is known again in another run. Python's own writes are seen, also in part: a write
can end half way. What C++ writes (the arrays of a checkpoint) is not: that is for kills by time.
"""

import builtins
import collections
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable

Point = tuple[str, str]

_CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# By audit event: the kind, and which argument is the descriptor that the path is relative to.
_EVENTS = {
    "os.rename": ("rename", 2), "os.remove": ("remove", 1), "os.mkdir": ("mkdir", 2),
    "os.rmdir": ("rmdir", 1),
}  # fmt: skip


class Points:
    """Counts the points of this process from now on, for good.

    Args:
      folder: what is watched.
      reached: called at every point with how often it was there; true kills the process, without
        any of its clean-up, before the call has done anything, or in the middle of a write.
      names: a regular expression for what else of a path tells no points apart.
    """

    def __init__(
        self, folder: pathlib.Path, reached: Callable[[Point, int], bool], names: str = "(?!)"
    ):
        self._folder, self._reached = str(folder.absolute()), reached
        self._varying = re.compile(rf"{names}|[0-9a-f]{{12,}}|\d+(\.\d+)?")
        self.seen: collections.Counter[Point] = collections.Counter()
        sys.addaudithook(self._heard)
        self._fsync, os.fsync = os.fsync, self._synced
        self._open = io.open
        builtins.open = io.open = self._opened

    def at(self, kind: str, path: object, half: Callable[[], object] = lambda: None) -> None:
        """Notes a point, and dies there if it is the one; after doing `half` of the call."""
        place = self._place(path)
        if place is None:
            return
        point = (kind, place)
        self.seen[point] += 1
        if self._reached(point, self.seen[point]):
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    def _place(self, path: object) -> str | None:
        """A path below the folder without the numbers in it; None for any other."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        name = os.path.abspath(os.fsdecode(path))
        if not name.startswith(self._folder + os.sep):
            return None
        return self._varying.sub("#", name[len(self._folder) + 1 :])

    def _heard(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & _CREATES and not isinstance(path, int):
                self.at("open", path)
        elif event in _EVENTS:
            kind, relative = _EVENTS[event]
            path, descriptor = arguments[0], arguments[relative]
            if descriptor >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), os.fsdecode(path))
            self.at(kind, path)

    def _synced(self, descriptor: int) -> None:
        self.at("sync", descriptor)
        self._fsync(descriptor)

    def _opened(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **more
    ):
        """`open`, whose writes are points."""
        plain = not set("wax").intersection(mode) or "+" in mode or rest or more
        if plain or self._place(file) is None:
            return self._open(file, mode, buffering, encoding, errors, newline, *rest, **more)
        raw = _Torn(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        stream = io.BufferedWriter(raw)
        if "b" in mode:
            return stream
        return io.TextIOWrapper(stream, encoding, errors, newline, line_buffering=buffering == 1)


class _Torn(io.FileIO):
    """A file whose writes may end half way."""

    def __init__(self, points: Points, file, mode: str):
        self._points = points
        super().__init__(file, mode)

    def write(self, data):
        write = super().write
        self._points.at("write", self.name, lambda: write(bytes(data)[: len(data) // 2]))
        return write(data)
