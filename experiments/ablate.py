"""Runs a study: `python -m experiments.ablate --config=configs/quick.py --workdir=runs/quick`.

Tunes every arm, evaluates it on fresh seeds, and writes tables, figures and a report into the work
directory. Stopped (SIGTERM, Ctrl-C, `--max_hours`: exit code 75) or killed, it goes on with the
same command and ends with the same tables. `--plan` says what would be run, `--status` how far it
is. With `--launcher=slurm` the runs are jobs of a cluster: docs/cluster.md.
"""

import pathlib
import shlex
import sys

from absl import flags

from experiments import defects, door, launch
from experiments.paths import path_flag
from qkv_jax.study import display, engine, report
from qkv_jax.study.plan import Study
from qkv_jax.study.results import Workdir
from qkv_jax.training.devices import use_cpu_cores
from qkv_jax.training.files import named
from qkv_jax.training.interruption import Watch

_WORKDIR = path_flag("workdir", None, "Folder of results; runs/NAME by default.")
_PLAN = flags.DEFINE_bool("plan", False, "Print runs, compilations and time; start nothing.")
_CONFIG = door.config_flag("configs/quick.py")
_WATCH = door.watch_flags()


def main() -> None:
    launch.check_flags()
    if launch.PART.value:
        launch.work(_study, _folder(_CONFIG().name), _WATCH())
        return
    watch = None if _PLAN.value or launch.STATUS.value else _WATCH()
    use_cpu_cores()
    study = _study()
    workdir = Workdir(_folder(study.file.name))
    if launch.STATUS.value:
        launch.show_status(study, workdir)
        return
    study.check_platform(launch.platform())
    study.check_data()
    if watch is None:
        display.print_plan(study)
        return
    with workdir.held():
        launch.run_jobs(study, workdir, watch)
        run(study, workdir, watch)


def _study() -> Study:
    return Study(_CONFIG().to_dict())


def _folder(name: str) -> pathlib.Path:
    folder = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    defects.keep_in(folder)
    return folder


def run(study: Study, workdir: Workdir, watch: Watch) -> None:
    """Starts the study, or goes on with it, to the end."""
    record = workdir.open(launch.described(study))
    record["command"] = shlex.join(["python", "-m", "experiments.ablate", *sys.argv[1:]])
    with display.Display(study) as shown:
        work = engine.Engine(study, workdir, record, shown.hear, watch)
        shown.watch(work)
        summary = work.run()
    with named(workdir.path):
        path = report.write_report(
            workdir.path, work.record, work.runs, summary, workdir.curve, pause=work.stop_if_asked
        )
    display.print_end(work.record, summary, path)


if __name__ == "__main__":
    door.enter(main)
