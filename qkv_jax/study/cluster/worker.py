"""One job of a study on a cluster: runs one part of it, in a folder that others write to as well.

It is the engine of a whole study with another view of the folder: rows go to `parts/TASK/ARM.csv`,
and of what concerns the study as a whole it writes nothing. Its other files are of its own runs.
"""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from qkv_jax.config import as_dict
from qkv_jax.runtime.files import folder_lock, json_text
from qkv_jax.runtime.stopping import StopSignal
from qkv_jax.study.plan import Arm, Study
from qkv_jax.study.protocol.rounds import Part
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.resolved import changes, refuse_changes
from qkv_jax.study.run.engine import Engine, this_machine
from qkv_jax.study.run.rows import append_runs, read_runs
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training.population import RunSpec


class PartWorkdir(Workdir):
    """The folder of a study as the job of one part sees it."""

    def __init__(self, path: Any, task: str, arm: str):
        super().__init__(path)
        self.task, self.arm = task, arm
        self.rows = self.path / "parts" / task / f"{arm}.csv"
        self.own = self.path / "parts" / task / arm  # lock, machine, wave under way

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other jobs of the same arm out, and the driver that would write for it.

        Raises:
          ConfigError: if another process holds it.
        """
        with folder_lock(self.own):
            yield

    def runs(self) -> pd.DataFrame:
        """The rows of this task and arm."""
        rows = read_runs([self.path / "runs.csv", self.rows])
        return rows[(rows["task"] == self.task) & (rows["arm"] == self.arm)].reset_index(drop=True)

    def append_runs(self, rows: Iterable[Mapping[str, Any]]) -> None:
        append_runs(self.rows, rows)

    def wave_folder(self, task: str, arm: Arm, first: RunSpec) -> pathlib.Path:
        """Not in the folder of all waves, which jobs would clear away from under each other."""
        return self.own / super().wave_folder(task, arm, first).name

    def write_study(self, record: StudyRecord) -> None:
        """Nothing: study.json is the driver's."""


def run_part(study: Study, path: pathlib.Path, part: Part, stop_signal: StopSignal) -> None:
    """Runs what is missing of a part of the study in a folder.

    Raises:
      ConfigError: if the folder holds another study, its waves are not what these devices make, or
        another process is at it.
      Interrupted: when the stop signal says so, all saved.
    """
    study.find(part.task, part.arm)
    workdir = PartWorkdir(path, part.task, part.arm)
    described = study.describe()
    record = workdir.read_same(described)
    refuse_changes(changes(record, described))
    with workdir.locked():
        machine = json_text(as_dict(this_machine()))
        workdir.write(f"parts/{part.task}/{part.arm}/machine.json", machine)
        Engine(study, workdir, record, lambda event: None, stop_signal).run_part(part)
