"""Tables, page and figures of a study anew: `python -m experiments.report --workdir=runs/quick`.

From its folder alone: no data, no accelerator, and none of the tasks need be registered. Of a study
that is not finished, or was stopped, the report is as far as it goes.
"""

import pathlib

from qkv_jax.config import ConfigError
from qkv_jax.study.report import page, progress
from qkv_jax.study.run.workdir import Workdir

from .cli import defects, entry
from .cli.paths import path_flag

_WORKDIR = path_flag("workdir", None, "Folder of a study, as experiments.ablate has made it.")


def main() -> None:
    if _WORKDIR.value is None:
        raise ConfigError("--workdir", None, "name the folder of a study")
    folder = pathlib.Path(_WORKDIR.value)
    workdir = Workdir(folder)
    workdir.read_study()  # says so if there is none, before a folder is made
    defects.keep_in(folder)
    with workdir.locked():
        outcome, path = page.write_outcomes(workdir)
    progress.print_end(outcome.record, outcome.summary, path)


if __name__ == "__main__":
    entry.enter(main)
