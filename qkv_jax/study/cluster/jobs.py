"""The jobs of a study on a cluster: what a launcher has to know, and what is kept of them.

`cluster/jobs.json` holds one job per part. It is written by the driver alone, before a submission
(with the name that the jobs will have) and after it (with their ids), so that a driver that dies in
between finds its jobs again by their name, and submits nothing twice.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import json_text, write_whole
from qkv_jax.study.protocol.rounds import Part

# Exit codes of jobs: saved its work and would go on; refuses what it was given.
STOPPED, REFUSED = os.EX_TEMPFAIL, 2
LIVE = ("submitting", "waiting", "running")


@dataclasses.dataclass(frozen=True)
class State:
    """What a scheduler says of a job; `code` is the exit code of one that is over, if known."""

    phase: Literal["waiting", "running", "ended"]
    code: int | None = None


@runtime_checkable
class Launcher(Protocol):
    """Starts commands as jobs and says how they are."""

    def submit(self, name: str, commands: Sequence[Sequence[str]]) -> list[str]:
        """Submits commands under a name; returns an id each, in their order."""

    def find(self, name: str) -> dict[int, str]:
        """Ids of what was submitted under a name, by place; empty if nothing was."""

    def states(self, ids: Sequence[str]) -> dict[str, State] | None:
        """The states of jobs; those that are not in it are over; None if nobody answers."""

    def log(self, job: str) -> str:
        """The file that holds what a job says."""


@dataclasses.dataclass
class Job:
    """What is known of the latest job of a part.

    Attributes:
      name, place: of its submission.
      state: of `LIVE`, or `done`, `failed`, or `again`: to be submitted once more.
      failures, stops: how often the part has failed, and was stopped after saving.
    """

    part: str
    name: str
    place: int
    id: str = ""
    state: str = "submitting"
    failures: int = 0
    stops: int = 0
    log: str = ""


class Jobs:
    """The jobs of a study by part."""

    def __init__(self, workdir: pathlib.Path):
        self.file = workdir / "cluster" / "jobs.json"
        self.by_part: dict[Part, Job] = {}
        if self.file.exists():
            try:
                stored = json.loads(self.file.read_text(encoding="utf-8"))["jobs"]
                self.by_part = {Part.parse(job["part"]): Job(**job) for job in stored}
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(str(self.file), "damaged JSON", str(error)) from None

    @property
    def live(self) -> dict[Part, Job]:
        return {part: job for part, job in self.by_part.items() if job.state in LIVE}

    def write(self) -> None:
        stored = [dataclasses.asdict(job) for job in self.by_part.values()]
        write_whole(self.file, json_text({"format": 1, "jobs": stored}))

    def refuse_live(self) -> None:
        """Refuses to work beside jobs that may still be running.

        Raises:
          ConfigError: if there are such jobs.
        """
        if self.live:
            allowed = (
                f"{len(self.live)} jobs of this study were not seen to end (--status lists them): "
                f"go on with --launcher=slurm, or, once they are cancelled, remove {self.file}"
            )
            raise ConfigError("launcher", "local", allowed)
