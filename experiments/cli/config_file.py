"""`--config`: a file, or the name of a shipped one, and what the command line says otherwise by
`--config.FIELD=VALUE`."""

import dataclasses
import os
import pathlib
import re
import runpy
import traceback

from ml_collections import ConfigDict

from qkv_jax.config import ConfigError, nearest
from qkv_jax.config_files import find, put

from . import place

# What only one of the kinds of file has, what that file is, and which command takes it.
_KINDS = {
    "tasks": ("a study", "ablate"),
    "task": ("a single run", "train"),
}


def command_of(cls: type) -> str:
    """The command whose config files are read into `cls`; "" if those have no kind."""
    known = {field.name for field in dataclasses.fields(cls)}
    return next((command for part, (_, command) in _KINDS.items() if part in known), "")


def named(words: list[str], default: str) -> tuple[str, list[str]]:
    """What --config names (the last one counts, as in absl), and the other words."""
    path, others = default, []
    left = iter(words)
    for word in left:
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "config":
            path = value if equals else next(left, "")
        else:
            others.append(word)
    return path, others


def read(path: str, cls: type) -> ConfigDict:
    """What the file's `get_config` returns, to be read into `cls`.

    Raises:
      ConfigError: naming the file and the line, whatever goes wrong in it; or if it is of another
        kind.
    """
    name, _, argument = path.partition(":")
    file = _file(path, os.path.expanduser(name))
    try:
        get_config = runpy.run_path(file).get("get_config")
        config = get_config(*[argument] if argument else []) if get_config else None
    except (Exception, SystemExit) as error:  # the file is somebody's program, which may do all
        calls = traceback.extract_tb(error.__traceback__)
        lines = [call.lineno for call in calls if call.filename == file]
        what = str(error)
        if isinstance(error, SyntaxError):
            lines, what = [error.lineno], error.msg
        at = f"line {lines[-1]}: " if lines else ""
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError("--config", path, f"{at}{kind}{what}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", path, "must define get_config() that returns a ConfigDict")
    known = [field.name for field in dataclasses.fields(cls)]
    for part, (what, command) in _KINDS.items():
        if part in config and part not in known:
            takes = " ".join(place.typed(command))
            raise ConfigError("--config", path, f"this is {what}: {takes} takes it")
    return config


def _file(given: str, name: str) -> str:
    """The file that is named: a path, or else a config that comes with the commands."""
    if name in (names := place.shipped()):
        return str(place.CONFIGS / f"{name}.py")
    if pathlib.Path(name).is_file():
        if not name.endswith(".py"):
            raise ConfigError("--config", given, "is no Python file: its name ends in .py")
        return name
    folder, bare = pathlib.Path(name).parent, name.removeprefix("configs/").removesuffix(".py")
    beside = sorted(str(file) for file in folder.glob("[a-z]*.py")) if "/" in name else []
    hint = nearest(name, beside) if beside else nearest(bare, names)
    raise ConfigError("--config", given, f"no such file; {hint}")


def override(config: ConfigDict, cls: type, words: list[str]) -> list[str]:
    """Gives the config what the words say; returns those that are none of its fields.

    Raises:
      ConfigError: for a field or a value that cannot be.
    """
    # The kind of a task first: it decides which options there are.
    first = [word for word in words if re.match(r"--?config\.(.*\.)?kind=", word, re.DOTALL)]
    left = iter(first + [word for word in words if word not in first])
    others = []
    for word in left:
        match = re.match(r"--?(no)?config\.(.*)", word, re.DOTALL)
        if not match:
            others.append(word)
            continue
        place = find(config, cls, match[2])
        if place.kind is bool and place.value is None:
            put(config, cls, place, not match[1])
            continue
        if match[1]:
            raise ConfigError(place.name, word, "is not true or false")
        if place.value is None:
            place = dataclasses.replace(place, value=next(left, None))
        put(config, cls, place, place.read())
    return others
