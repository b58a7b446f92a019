"""The checkpoints of a wave of a population while it is under way, so that hours are not lost.

A wave that is over has its curves, scores and parameters in the study's own files; then its
checkpoints are removed.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from qkv_jax.config import ConfigError
from qkv_jax.runtime.stopping import StopSignal

_LAST = 2  # the newest, and the one before should that be damaged


class WaveSaves:
    """Where one wave is kept, and when; a context manager.

    Args:
      folder: of this wave alone; it is there while there is something in it.
      runs: the runs of the wave, to know it again.
      stop_signal: says when to save and when to stop.
    """

    def __init__(self, folder: pathlib.Path, runs: Sequence[Any], stop_signal: StopSignal):
        self.folder, self.stop_signal = folder, stop_signal
        self._runs = [list(dataclasses.astuple(run)) for run in runs]
        self._checkpoints: Any = None

    def restore(self, like: Callable[[int], Any]) -> tuple[int, Any, Any] | None:
        """Step, arrays and notes of the newest checkpoint of the wave that is whole, or None.

        Args:
          like: the arrays that are expected at a step.

        Raises:
          ConfigError: if there are checkpoints and none is whole, or of other runs.
        """
        if not self.folder.exists():
            self.stop_signal.saved()  # nothing done, nothing to lose
            return None
        found = self._open().restore_last(like)
        self.stop_signal.saved()
        if found is None:
            return None
        step, arrays, notes = found
        if notes["runs"] != self._runs:
            raise ConfigError("wave", str(self.folder), f"holds other runs: {notes['runs']}")
        return step, arrays, notes["wave"]

    def report(self, step: int, snapshot: Callable[[], tuple[Any, Any]]) -> None:
        """Saves what `snapshot` gives (arrays, notes) if that is due.

        Raises:
          Interrupted: after that, if training is to stop.
        """
        due = self.stop_signal.poll()
        if due.save or due.stop:
            arrays, notes = snapshot()
            self._open().save(arrays, {"runs": self._runs, "wave": notes}, step)
            self.stop_signal.saved()
        if due.stop:
            self.close()
            raise self.stop_signal.interruption()

    def close(self) -> None:
        """Waits for what is being written."""
        if self._checkpoints is not None:
            self._checkpoints.close()
            self._checkpoints = None

    def remove(self) -> None:
        """Leaves nothing of the wave, nor folders that are empty without it."""
        self.close()
        if self.folder.exists():
            shutil.rmtree(self.folder)
            for parent in list(self.folder.parents)[:3]:  # waves/TASK/ARM
                if any(parent.iterdir()):
                    break
                parent.rmdir()

    def __enter__(self) -> "WaveSaves":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def _open(self) -> Any:
        # Orbax takes a second to import; most studies have no wave that is long enough to save.
        from qkv_jax.training.checkpoint import Checkpoints

        if self._checkpoints is None:
            self._checkpoints = Checkpoints(self.folder, lambda steps: steps[-_LAST:])
        return self._checkpoints
