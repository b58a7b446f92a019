"""Slurm as a launcher of the parts of a study: job arrays through submitit.

submitit writes the batch script, submits, and keeps what became of each job; whether a job waits,
runs or is over is asked of squeue, all jobs at once, since submitit asks the accounting database,
which smaller clusters do not have. What a job does is in `slurm_job.py`.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import pickle
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from qkv_jax.config import ConfigError
from qkv_jax.study.cluster.jobs import STOPPED, State
from qkv_jax.study.cluster.slurm_job import Command

_ARRAY = 1000  # jobs an array; Slurm takes 1001 unless it is told otherwise
_WARNING = 120  # seconds before the time limit at which a job is told to save
_ANSWER = 60  # seconds to wait for Slurm's commands
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING",
            "STAGE_OUT", "RESIZING"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What jobs ask for; see the flags of `experiments.ablate`.

    Raises:
      ConfigError: for what cannot be.
    """

    partition: str = ""
    account: str = ""
    gpus: int = 0
    cpus: int = 1
    hours: float = 1.0
    parallel: int = 256
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # further ones of sbatch, NAME=VALUE

    def __post_init__(self):
        if not 0 < self.hours < math.inf:
            raise ConfigError("slurm_hours", self.hours, "must be finite and above 0")
        for option in self.options:
            name, equals, _ = option.partition("=")
            if not name.strip("-") or not equals:
                raise ConfigError("slurm_option", option, "must be NAME=VALUE, as sbatch has it")

    def parameters(self) -> dict[str, Any]:
        """As submitit calls them."""
        more = {}
        for option in self.options:
            name, _, value = option.partition("=")
            more[name.lstrip("-")] = value or True
        minutes = math.ceil(60 * self.hours)
        asked = {
            "partition": self.partition,
            "account": self.account,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "time": minutes,
            "signal_delay_s": min(_WARNING, 30 * minutes),
            "array_parallelism": self.parallel,
            # Jobs find the code that the driver runs, installed or not.
            "setup": [*self.setup, _python_path()],
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **more},
        }
        return {name: value for name, value in asked.items() if value}


class SlurmLauncher:
    """See `jobs.Launcher`.

    Args:
      folder: of submitit's files and of logs; every node must see it.
      options: what jobs ask for.

    Raises:
      ConfigError: if there is no Slurm on this machine, or no submitit.
    """

    def __init__(self, folder: pathlib.Path, options: SlurmOptions):
        for command in ("sbatch", "squeue", "srun", "scontrol"):
            if shutil.which(command) is None:
                allowed = f"there is no {command} on the PATH: run this where Slurm can be reached"
                raise ConfigError("launcher", "slurm", allowed)
        try:
            import submitit
        except ImportError:
            allowed = "needs submitit: pip install -e '.[cluster]'"
            raise ConfigError("launcher", "slurm", allowed) from None
        self.folder, self.options, self._submitit = folder.absolute(), options, submitit

    def submit(self, name: str, commands: Sequence[Sequence[str]]) -> list[str]:
        """Submits commands as arrays.

        Raises:
          ConfigError: in Slurm's words, if it refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        executor = self._submitit.SlurmExecutor(self.folder)
        executor.update_parameters(**self.options.parameters())
        ids = []
        for start in range(0, len(commands), _ARRAY):
            executor.update_parameters(job_name=f"{name}-{start}")
            jobs = [Command(tuple(line), os.getcwd()) for line in commands[start : start + _ARRAY]]
            try:
                # submitit prints what sbatch says, and raises it as well.
                with contextlib.redirect_stderr(io.StringIO()):
                    ids += [job.job_id for job in executor.submit_array(jobs)]
            except (subprocess.CalledProcessError, self._submitit.core.utils.FailedSubmissionError,
                    self._submitit.core.utils.FailedJobError) as error:  # fmt: skip
                reason = str(error).strip().splitlines()[-1]
                raise ConfigError("sbatch", name, f"Slurm refuses: {reason}") from None
        return ids

    def find(self, name: str) -> dict[int, str]:
        """Ids of the jobs that Slurm still knows under a name, by place."""
        found = {}
        for job, _, full in self._queue() or ():
            submission, _, start = full.rpartition("-")
            if submission == name:
                _, _, task = job.partition("_")
                found[int(start) + int(task or 0)] = job
        return found

    def states(self, ids: Sequence[str]) -> dict[str, State] | None:
        """What Slurm says of jobs; those that it has forgotten are over."""
        queue = self._queue()
        if queue is None:
            return None
        words = {job: word for job, word, _ in queue}
        return {job: self._state(job, words.get(job, "")) for job in ids}

    def log(self, job: str) -> str:
        return str(self.folder / f"{job}_0_log.out")

    def _state(self, job: str, word: str) -> State:
        if word in _WAITING:
            return State("waiting")
        if word in _RUNNING:
            return State("running")
        return State("ended", STOPPED if word == "PREEMPTED" else self._code(job))

    def _code(self, job: str) -> int | None:
        """What submitit kept of a job that came to its end by itself."""
        file = self.folder / f"{job}_0_result.pkl"
        try:
            outcome, value = pickle.loads(file.read_bytes())
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return value if outcome == "success" else 1

    def _queue(self) -> list[tuple[str, str, str]] | None:
        """Id, state and name of this user's jobs; None if Slurm does not answer."""
        user = str(os.getuid())
        command = ["squeue", "-h", "-r", "-t", "all", "-u", user, "-o", "%i|%T|%j"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            return None
        return [tuple(line.split("|", 2)) for line in done.stdout.splitlines()]


def _python_path() -> str:
    root = pathlib.Path(__file__).parents[3]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return f"export PYTHONPATH={shlex.quote(':'.join(filter(None, paths)))}"

