"""Runs a study: `python -m experiments.ablate --config=configs/quick.py --workdir=runs/quick`.

Every arm is tried at every rate; where nothing is decided more seeds are run, and where the best
rate lies at an end more rates. Tables, figures and a report are written into the work directory.
Stopped (SIGTERM, Ctrl-C, `--max_hours`: exit code 75) or killed, it goes on with the same command
and ends with the same tables. `--plan` says what would be run, `--status` how far it is. With
`--launcher=slurm` the runs are jobs of a cluster: docs/cluster.md.
"""

import dataclasses
import pathlib
import shlex
import sys

from absl import flags

from qkv_jax.runtime.compiled import keep_compiled
from qkv_jax.runtime.devices import use_cpu_cores
from qkv_jax.runtime.stopping import StopSignal
from qkv_jax.study.config import StudyFile
from qkv_jax.study.part import listed, part
from qkv_jax.study.plan import Study
from qkv_jax.study.report import estimate, page, progress
from qkv_jax.study.run import engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training import speed

from .cli import defects, entry, launch, place
from .cli.paths import path_flag

_WORKDIR = path_flag("workdir", None, "Folder of results; runs/NAME by default.")
_PLAN = flags.DEFINE_bool("plan", False, "Print runs, compilations and time; start nothing.")
_CONFIG = entry.config_flag("quick", StudyFile)
_ACCEPT = flags.DEFINE_bool(
    "accept_changes", False,
    "Go on though claims were changed, or defaults or versions give other models or training.",
)  # fmt: skip
_TASKS = flags.DEFINE_string("tasks", "", "Only these tasks of the study, with commas.")
_ARMS = flags.DEFINE_string(
    "arms", "",
    "Only these arms, with commas, beside the baseline; 'Q=X,K=V' is the one, 'K=V,Q=X' are two.",
)  # fmt: skip
_STOP_SIGNAL = entry.stop_flags()


def main() -> None:
    launch.check_flags()
    if launch.PART.value:
        launch.work(_study, _folder(_CONFIG().name), _STOP_SIGNAL())
        return
    stop_signal = None if _PLAN.value or launch.STATUS.value else _STOP_SIGNAL()
    use_cpu_cores()
    study = _study()
    workdir = Workdir(_folder(study.file.name))
    if launch.STATUS.value:
        launch.show_status(study, workdir)
        return
    study.check_platform(launch.platform())
    if not workdir.study_file.exists():  # else that was tried at its start
        study.check_data()
    if stop_signal is None:
        estimate.print_plan(study, speed.measure(study.describe().wave["packing"]))
        return
    with workdir.locked():
        if _ACCEPT.value:
            workdir.accept_changes(launch.described(study))
        launch.run_jobs(study, workdir, stop_signal)
        run(study, workdir, stop_signal)


def _study() -> Study:
    values = _CONFIG().to_dict()
    tasks = listed(_TASKS.value, values.get("tasks", {}), "--tasks")
    arms = listed(_ARMS.value, values.get("arms", {}), "--arms")
    return Study(part(values, tasks, arms) if tasks or arms else values)


def _folder(name: str) -> pathlib.Path:
    folder = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    defects.keep_in(folder)
    if not _PLAN.value:  # which measures what compiling takes
        keep_compiled(folder.parent)
    return folder


def run(study: Study, workdir: Workdir, stop_signal: StopSignal) -> None:
    """Starts the study, or goes on with it, to the end."""
    record = workdir.open(launch.described(study))
    command = shlex.join([*place.typed("ablate"), *sys.argv[1:]])
    record = dataclasses.replace(record, command=command)
    with progress.Display(study) as shown:
        work = engine.Engine(study, workdir, record, shown.on_progress, stop_signal)
        shown.follow(work)
        there = len(work.runs)
        work.run()
        if len(work.runs) == there:
            print(f"All {there} runs are there already; tables and report are written anew.")
    outcome, path = page.write_outcomes(workdir, pause=work.stop_if_asked)
    progress.print_end(outcome.record, outcome.summary, path)


if __name__ == "__main__":
    entry.enter(main)
