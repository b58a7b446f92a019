"""All commands by one name: `qkv COMMAND --help` says what a command does.

In a clone, `python -m experiments.COMMAND` is the same.
"""

import ast
import os
import pathlib
import runpy
import sys

from qkv_jax.config import nearest

from .cli import place

_HELP = ("", "help", "--help", "-help", "-h")


def main() -> None:
    """Runs the command that the first word names, as `python -m` would."""
    there_are = commands()
    name, words = (sys.argv + [""])[1], sys.argv[2:]
    if name in _HELP:
        print(_overview(there_are))
    elif name not in there_are:
        sys.exit(_refuse(name, there_are))
    else:
        # A console script's own folder comes first; adapters, schemes and tasks of a study lie in
        # this one.
        if os.getcwd() not in sys.path[:1] and not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        sys.argv[:] = [there_are[name], *words]
        runpy.run_module(place.module(name), run_name="__main__", alter_sys=True)


def commands() -> dict[str, str]:
    """Name and file of each."""
    files = [*place.COMMANDS.glob("[a-z]*.py"), *place.COMMANDS.glob("*/__main__.py")]
    names = [file.parent.name if file.stem == "__main__" else file.stem for file in files]
    return dict(sorted(zip(names, map(str, files), strict=True)))


def _overview(there_are: dict[str, str]) -> str:
    lines = [f"  {name:<12}{_about(file)}" for name, file in there_are.items()]
    return "\n".join([__doc__.partition("\n")[0], "", *lines])


def _about(file: str) -> str:
    """The first sentence of a command's docstring, without the example that follows it."""
    about = ast.get_docstring(ast.parse(pathlib.Path(file).read_text(encoding="utf-8")))
    return " ".join(about.partition("\n\n")[0].split()).partition(": `")[0].rstrip(".:")


def _refuse(name: str, there_are: dict[str, str]) -> int:
    given = f"command: given {name!r}; {nearest(name, there_are)}"
    print(f"error: {given}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
