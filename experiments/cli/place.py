"""Where the commands are: beside `qkv_jax` in a clone, within it once installed.

In a clone they are the package `experiments`, as in `python -m experiments.ablate`; an installed
package has them as `qkv_jax.experiments`, behind the console script `qkv`. The configs lie beside
them in both.
"""

import pathlib
import re

PACKAGE = __package__.rpartition(".")[0]
COMMANDS = pathlib.Path(__file__).parents[1]
CONFIGS = COMMANDS.parent / "configs"


def module(command: str) -> str:
    """The module of a command, for `python -m`."""
    return f"{PACKAGE}.{command}"


def typed(command: str) -> list[str]:
    """The words that start a command where this process has found it."""
    return ["python", "-m", module(command)] if PACKAGE == "experiments" else ["qkv", command]


def as_typed(text: str) -> str:
    """A text whose commands are those of a clone, with those of this place."""
    if PACKAGE == "experiments":
        return text
    text = re.sub(r"python -m experiments\.(?=\w)", "qkv ", text)
    return re.sub(r"(--config=)configs/([\w/]+)\.py", r"\1\2", text)


def shipped() -> list[str]:
    """The config files that come with the commands, as --config names them."""
    files = [*sorted(CONFIGS.glob("*.py")), *sorted(CONFIGS.glob("*/*.py"))]
    names = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in files]
    return [name for name in names if not name.endswith("__init__")]
