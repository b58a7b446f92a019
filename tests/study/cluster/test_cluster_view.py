"""A study as jobs: what is seen of it, and Slurm as far as it goes without one."""

import io
import pathlib
import pickle
import subprocess
import sys

import pytest
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.runtime.distributed import slurm_settings
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster import slurm
from qkv_jax.study.cluster.jobs import STOPPED, Jobs, State
from qkv_jax.study.cluster.slurm import SlurmLauncher, SlurmOptions
from qkv_jax.study.cluster.slurm_job import Command
from qkv_jax.study.cluster.status import ClusterDisplay, print_status
from qkv_jax.study.plan import Study
from qkv_jax.study.run.workdir import Workdir
from tests.support.studies import scheduler
from tests.support.studies.scheduler import PARTS, VALUES, Scheduler, drive

measured = scheduler.measured
scripted = scheduler.scripted

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]


# --- what is seen


def test_the_status_fits_80_columns_and_changes_nothing(scripted, tmp_path):
    """Counts by task and round, jobs by id, logs of what failed; the folder is held by another."""
    bad = lambda part, tries: "fail" if tries < 2 else None
    scheduler, stop_signal, polls = Scheduler(tmp_path / "jobs", fate=bad), StopSignal(), []

    def on_progress(driver):
        polls.append(driver)
        if len(polls) == 5:
            stop_signal.stop("closed")

    with pytest.raises(Interrupted):
        drive(scheduler, stop_signal, on_progress)
    files = {f: f.stat().st_mtime_ns for f in scheduler.folder.rglob("*")}
    console = Console(width=80, record=True, file=io.StringIO())
    workdir = Workdir(scheduler.folder)
    with workdir.locked():
        print_status(Study(VALUES), workdir, scheduler, console)
        print_status(Study(VALUES), workdir, None, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("Study 'tiny'", "tune", "failed before, tried again: job", "Slurm was not asked"):
        assert words in text
    assert any(job.log.endswith(".out") and "cluster/jobs/" in text
               for job in Jobs(scheduler.folder).by_part.values())  # fmt: skip
    assert {f: f.stat().st_mtime_ns for f in scheduler.folder.rglob("*")}.items() >= {
        item for item in files.items() if item[0].is_file()
    }


def test_the_driver_prints_a_line_when_something_changes(scripted, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    with ClusterDisplay(console) as shown:
        drive(Scheduler(tmp_path / "jobs"), on_progress=shown.on_progress)
    lines = console.export_text().splitlines()
    assert lines[0] == f"{PARTS} waiting; 0 runs done"
    assert len(lines) == len(set(lines)) and "running" not in lines[-1]


# --- Slurm without Slurm


def test_slurm_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on the PATH"):
        SlurmLauncher(tmp_path, SlurmOptions())
    for name in ("sbatch", "squeue", "srun", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[cluster\]'"):
        SlurmLauncher(tmp_path, SlurmOptions())
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        SlurmOptions(options=("exclusive",))


def test_jobs_without_a_time_limit_are_refused():
    with pytest.raises(ConfigError, match="slurm_hours: given inf; must be finite"):
        SlurmOptions(hours=float("inf"))


def test_what_squeue_says(tmp_path, monkeypatch):
    """Waiting, running, over, preempted and unknown jobs; the codes of those that came to an end;
    jobs by the name of their submission; None while it does not answer."""
    launcher = object.__new__(SlurmLauncher)
    launcher.folder = tmp_path
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    queue = "7_0|PENDING|qkv-a-0\\n7_1|RUNNING|qkv-a-0\\n7_2|COMPLETED|qkv-a-0\\n"
    queue += "8|PREEMPTED|qkv-a-1000\\n"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '{queue}'\n")
    (tmp_path / "squeue").chmod(0o755)
    (tmp_path / "7_2_0_result.pkl").write_bytes(pickle.dumps(("success", 3)))
    (tmp_path / "9_0_result.pkl").write_bytes(pickle.dumps(("error", "Traceback")))
    assert launcher.states(["7_0", "7_1", "7_2", "8", "9", "10"]) == {
        "7_0": State("waiting"), "7_1": State("running"), "7_2": State("ended", 3),
        "8": State("ended", STOPPED), "9": State("ended", 1), "10": State("ended"),
    }  # fmt: skip
    assert launcher.find("qkv-a") == {0: "7_0", 1: "7_1", 2: "7_2", 1000: "8"}
    assert launcher.find("qkv") == {}
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert launcher.states(["7_0"]) is None


@pytest.mark.parametrize(("state", "asked"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_warned_job_saves_and_is_queued_again(tmp_path, state, asked):
    """The warning reaches the command as SIGTERM; its exit code 75 asks Slurm to queue the job
    again, but not if somebody has cancelled it."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked; exit 1\n")
    for name in ("squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    saves = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(75))\n"
    saves += "import os; os.kill(os.getppid(), signal.SIGUSR2); time.sleep(30); sys.exit(3)"
    line = (sys.executable, "-c", saves)
    job = "import sys; from qkv_jax.study.cluster.slurm_job import Command; "
    job += f"sys.exit(Command({line!r}, '.')())"
    done = subprocess.run(
        [sys.executable, "-c", job], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7",
             "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (STOPPED if asked else 143), done.stderr
    assert (tmp_path / "asked").exists() == asked
    assert not asked or (tmp_path / "asked").read_text() == "requeue 7_2\n"


def test_jobs_import_no_jax_beside_their_command():
    """They stay small while their command has the devices."""
    code = "import sys, qkv_jax.study.cluster.slurm_job; sys.exit('jax' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode
    assert Command(("true",), ".").line == ("true",)


def test_steps_of_a_job_have_ports_of_their_own_and_all_gpus():
    """One process per node gets all its GPUs; one process per GPU, JAX's own choice."""
    srun = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}  # fmt: skip
    first, second = (slurm_settings(srun | {"SLURM_STEP_ID": step}) for step in "01")
    assert first["JAX_COORDINATOR_PORT"] != second["JAX_COORDINATOR_PORT"]
    assert 61440 <= int(second["JAX_COORDINATOR_PORT"]) < 2**16
    assert first["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    assert "JAX_LOCAL_DEVICE_IDS" not in slurm_settings(srun | {"SLURM_NTASKS": "8"})
    assert slurm_settings({}) == {}


def test_jobs_find_the_package_that_submitted_them(monkeypatch):
    """Also where it is not installed, and before what the environment names."""
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert slurm._python_path() == f"export PYTHONPATH={ROOT}:/mine"
