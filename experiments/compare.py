"""Studies of the same tasks in one table and figure: `python -m experiments.compare runs/a runs/b`.

What cannot be compared is refused: a task of the same name with other data, another metric or
another baseline. Differences are each study's own; nothing is tested across studies.
"""

import pathlib
import shlex
import sys

from rich.console import Console

from qkv_jax.config import ConfigError

from .cli import entry, place
from .cli.paths import path_flag

_RUNS = entry.words()
_WORKDIR = path_flag("workdir", "runs/compared", "Folder to write; must not hold files.")


def main() -> None:
    from qkv_jax.study.comparison.compare import compare
    from qkv_jax.study.comparison.shown import console_table, write_comparison
    from qkv_jax.study.results import load_study

    folder = pathlib.Path(_WORKDIR.value)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--workdir", _WORKDIR.value, "holds files already; name a new folder")
    if len(_RUNS) < 2:
        allowed = "name the folders of two studies or more: compare runs/a runs/b"
        raise ConfigError("command line", " ".join(_RUNS), allowed)
    with entry.renamed(workdir="command line", runs="command line"):
        found = compare([load_study(path) for path in _RUNS])
    command = shlex.join([*place.typed("compare"), *_RUNS, *sys.argv[1:]])
    page = write_comparison(folder, found, command)
    console = Console(highlight=False)
    console.print(console_table(found))
    for line in found.notes:
        console.print(line, markup=False)
    console.print(f"Report: {page}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    entry.enter(main)
