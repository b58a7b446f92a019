"""What a job of a study does on its node: runs one command, and has itself queued again.

When Slurm warns it (before its time limit, or because somebody with more priority comes) the
command saves and ends with exit code 75; the job then asks Slurm to queue it again under the same
id, driver or no driver, and goes on when its turn comes. Nothing heavy is imported here: the
command does that in a process of its own.
"""

import dataclasses
import os
import shlex
import signal
import subprocess
import time
from typing import Any

_STOPPED = os.EX_TEMPFAIL  # 75: the command saved its work and would go on
_ANSWER = 60  # seconds to wait for Slurm's commands
_KILL = 60  # seconds to wait for Slurm to end a job that it has queued again


@dataclasses.dataclass(frozen=True)
class Command:
    """A job: submitit calls it on the node; it returns the command's exit code."""

    line: tuple[str, ...]
    folder: str

    def __call__(self) -> int:
        print("$", shlex.join(self.line), flush=True)
        process = subprocess.Popen(self.line, cwd=self.folder)
        warned = []

        def pass_on(number: int, _frame: Any) -> None:
            warned.append(number)
            process.send_signal(signal.SIGTERM)

        # In place of submitit's own, which would end the job while the command is saving.
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, pass_on)
        code = process.wait()
        if warned and code < 0:
            code = _STOPPED  # before it could save, so there was nothing to save
        if code == _STOPPED and _cancelled():
            code = 128 + signal.SIGTERM  # a failure, so that it does not come back for ever
        elif code == _STOPPED and _queued_again():
            time.sleep(_KILL)
        print(f"exit code {code}", flush=True)
        return code


def _cancelled() -> bool:
    """Whether somebody has cancelled this job. That comes as SIGTERM as well, but the job is then
    ending, and Slurm would even so queue it again."""
    command = ["squeue", "-h", "-j", os.environ.get("SLURM_JOB_ID", ""), "-o", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return not done.returncode and done.stdout.strip() != "RUNNING"


def _queued_again() -> bool:
    """Asks Slurm to queue this job again, which ends it here and now; whether Slurm will."""
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    command = ["scontrol", "requeue", f"{array}_{task}" if array and task else job]
    print("$", shlex.join(command), flush=True)
    try:
        return subprocess.run(command, timeout=_ANSWER).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
