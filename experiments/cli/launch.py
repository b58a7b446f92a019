"""Where the runs of a study run: `--launcher` and its flags, for `experiments.ablate`."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

from absl import flags

from qkv_jax.config import ConfigError
from qkv_jax.runtime.devices import use_cpu_cores
from qkv_jax.runtime.stopping import StopSignal
from qkv_jax.study.cluster.driver import Driver, merge
from qkv_jax.study.cluster.jobs import Jobs
from qkv_jax.study.cluster.slurm import SlurmLauncher, SlurmOptions
from qkv_jax.study.cluster.status import ClusterDisplay, print_status
from qkv_jax.study.cluster.worker import run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training.device_data import PACKING

from . import place

LAUNCHER = flags.DEFINE_enum(
    "launcher", "local", ["local", "slurm"], "local: this process, all local devices. slurm: jobs."
)
STATUS = flags.DEFINE_bool("status", False, "Print how the study is doing; start nothing.")
PART = flags.DEFINE_string("part", "", "What a job is given: TASK/ARM/ROUND/RATE:SEED-SEED,…")
_PARTITION = flags.DEFINE_string("slurm_partition", "", "Partition of the jobs.")
_ACCOUNT = flags.DEFINE_string("slurm_account", "", "Account that pays for them.")
_GPUS = flags.DEFINE_integer("slurm_gpus", 0, "GPUs per job; 0: CPU cores.", lower_bound=0)
_CPUS = flags.DEFINE_integer(
    "slurm_cpus", None, "CPU cores per job; by default 4 per GPU, or 2.", lower_bound=1
)
_HOURS = flags.DEFINE_float(
    "slurm_hours", 4.0, "Time limit of a job, which saves and goes on later.", lower_bound=1 / 60
)
_PARALLEL = flags.DEFINE_integer(
    "slurm_parallel", 256, "Jobs of an array at the same time, at most.", lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
    "slurm_retries", 2, "How often what failed is tried again.", lower_bound=0
)
_SETUP = flags.DEFINE_multi_string("slurm_setup", [], "A shell line to run first; repeatable.")
_OPTION = flags.DEFINE_multi_string(
    "slurm_option", [], "A further option of sbatch, such as mem=16G or qos=low; repeatable."
)
_POLL = flags.DEFINE_float("slurm_poll", 10.0, "Seconds between polls of jobs.", lower_bound=0.1)


def check_flags() -> None:
    """Refuses flags that do not go together.

    Raises:
      ConfigError: naming one.
    """
    slurm = [name for name in flags.FLAGS if name.startswith("slurm_")]
    given = [name for name in slurm if flags.FLAGS[name].present]
    if LAUNCHER.value != "slurm" and given:
        value = flags.FLAGS[given[0]].value
        raise ConfigError(f"--{given[0]}", value, "needs --launcher=slurm")
    if LAUNCHER.value == "slurm" and flags.FLAGS["max_hours"].value is not None:
        allowed = "not beside --launcher=slurm: --slurm_hours limits the jobs"
        raise ConfigError("--max_hours", flags.FLAGS["max_hours"].value, allowed)


def work(make_study: Callable[[], Study], path: pathlib.Path, stop_signal: StopSignal) -> None:
    """Runs `--part` in this process, on the devices that the study has asked for."""
    use_cpu_cores(Workdir(path).read_study().wave["devices"])
    run_part(make_study(), path, Part.parse(PART.value), stop_signal)


def show_status(study: Study, workdir: Workdir) -> None:
    """Prints how a study is doing, asking Slurm where there is one."""
    workdir.read_study()  # says so if there is none
    try:
        launcher = _launcher(workdir) if Jobs(workdir.path).live else None
    except ConfigError:
        launcher = None
    print_status(study, workdir, launcher)


def described(study: Study) -> StudyRecord:
    """`Study.describe`, with the waves of the machines that it will run on."""
    record = study.describe()
    if LAUNCHER.value == "slurm":
        devices = _GPUS.value or _cpus()
        packing = study.config.packing or PACKING["gpu" if _GPUS.value else "cpu"]
        wave = {"devices": devices, "packing": packing, "size": devices * packing}
        record = dataclasses.replace(record, wave=wave)
    return record


def platform() -> str | None:
    """The platform that the runs will compute on; None: that of this process."""
    if LAUNCHER.value == "local":
        return None
    return "gpu" if _GPUS.value else "cpu"


def run_jobs(study: Study, workdir: Workdir, stop_signal: StopSignal) -> None:
    """Runs what is missing of a study as jobs, if jobs were asked for, and merges what jobs wrote.

    Raises:
      ConfigError: if they cannot be started, or others may still be running.
    """
    if LAUNCHER.value == "local":
        Jobs(workdir.path).refuse_live()
        if (workdir.path / "parts").exists():
            merge(workdir, workdir.open(described(study)))
        return
    launcher = _launcher(workdir)
    record = workdir.open(described(study))
    flag = f"--workdir={workdir.path.absolute()}"
    command = [sys.executable, "-m", place.module("ablate"), *sys.argv[1:], flag]
    with ClusterDisplay() as shown:
        driver = Driver(study, workdir, record, launcher, command, stop_signal, shown.on_progress,
                        _RETRIES.value, _POLL.value)  # fmt: skip
        driver.run()
    merge(workdir, driver.record)


def _cpus() -> int:
    return _CPUS.value or 4 * _GPUS.value or 2


def _launcher(workdir: Workdir) -> SlurmLauncher:
    options = SlurmOptions(
        partition=_PARTITION.value,
        account=_ACCOUNT.value,
        gpus=_GPUS.value,
        cpus=_cpus(),
        hours=_HOURS.value,
        parallel=_PARALLEL.value,
        setup=tuple(_SETUP.value),
        options=tuple(_OPTION.value),
    )
    return SlurmLauncher(workdir.path / "cluster" / "jobs", options)
