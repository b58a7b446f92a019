"""Scalars for TensorBoard, written by whoever adds them.

The writer of tensorboardX hands them to a thread. On a full disk that thread dies, and the next but
ten that adds something waits for ever; here a full disk is an error at the place of the call.
"""

import pathlib

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from qkv_jax.runtime.files import with_filename


class Events:
    """A new file of events in a folder; a context manager.

    Raises:
      OSError: from all methods, naming the folder, if nothing can be written.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        with with_filename(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder.absolute() / "events"))

    def add(self, tag: str, value: float, step: int, time: float) -> None:
        """One value of a curve; `time` is what TensorBoard shows as the wall time, in seconds."""
        event = Event(step=step, wall_time=time, summary=scalar(tag, value))
        with with_filename(self._folder):
            self._writer.write_event(event)

    def flush(self) -> None:
        """Returns when all that was added is on the disk."""
        with with_filename(self._folder):
            self._writer.flush()

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_exception) -> None:
        with with_filename(self._folder):
            self._writer.close()
