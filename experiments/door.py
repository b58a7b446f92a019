"""The door of every command: flags and config in, one clear line and exit code 2 for bad input.

Left alone, absl exits 1 on a flag error, an unknown config key prints a traceback, and a missing
config file goes unnoticed until a field is read. Here the config file is read and the names of the
overrides are looked up before absl sees them, and every refusal says the field, what was given and
what is allowed.

Commands that can go on where they stopped ask for a `Watch` here: SIGTERM, SIGINT and a time limit
end them with exit code 75 (EX_TEMPFAIL, "try again") once what they have is saved.
"""

import difflib
import keyword
import os
import pathlib
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from qkv_jax.config import ConfigError
from qkv_jax.training.interruption import Interrupted, Watch

BAD_INPUT = 2
RESUME = os.EX_TEMPFAIL  # 75: stopped as asked; the same command goes on

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
# What ml_collections reads overrides from: nothing before `_parse`, and no default file either.
_ARGV = ["", "--config="]


def enter(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs `main`, and turns what a user can cause into one line."""
    logging.set_verbosity(logging.WARNING)

    def guarded(_argv: list[str]) -> int:
        try:
            return main() or 0
        except ConfigError as error:
            return refuse(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return refuse(f"{where}{error.strerror or error}; what was finished is intact")
        except Interrupted as stopped:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            return RESUME
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded, flags_parser=_parse)


def config_flag(default: str) -> Callable[[], ConfigDict]:
    """Defines --config (a file, whose fields --config.a.b=value override); returns a getter."""
    about = "Config file; override fields by --config.FIELD=VALUE."
    holder = config_flags.DEFINE_config_file("config", default, about, sys_argv=_ARGV)
    return lambda: holder.value


def watch_flags() -> Callable[[], Watch]:
    """Defines --max_hours and --checkpoint_minutes; returns what makes the watch that they and the
    signals of this process govern."""
    hours = flags.DEFINE_float(
        "max_hours", None, "Save and stop after so many hours, with exit code 75.", lower_bound=0.0
    )
    minutes = flags.DEFINE_float(
        "checkpoint_minutes",
        10.0,
        "Save so often what is under way, which kill -9 would cost otherwise.",
        lower_bound=0.0,
    )

    def make() -> Watch:
        watch = Watch(minutes.value, hours.value)

        def handle(number: int, _frame: Any) -> None:
            watch.stop(f"interrupted by {signal.Signals(number).name}")
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends it at once
                if os.isatty(2):
                    # The display may have hidden the cursor.
                    os.write(2, b"\x1b[?25h\nsaving; Ctrl-C once more to end at once\n")

        # Slurm warns of a time limit by the signal that it is told to send, mostly USR1 or USR2.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, handle)
        return watch

    return make


def refuse(line: str) -> int:
    """Prints one line to stderr; returns the exit code of bad input."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return BAD_INPUT


def _parse(argv: list[str]) -> list[str]:
    try:
        if "config" in flags.FLAGS:
            given = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
            path, others = _config_path(given)
            config = _read_config(path)
            # First, since ml_collections knows no field before it has read the file.
            argv = [given[0], f"--config={path}", *(_respelled(flag, config) for flag in others)]
            _ARGV[:] = argv
        left = _read_flags(argv)
        if left[1:]:
            raise ConfigError("command line", " ".join(left[1:]), "flags look like --name=value")
        return left
    except flags.UnrecognizedFlagError as error:
        near = _nearest(f"--{error.flagname}", _own_flags())
        sys.exit(refuse(str(ConfigError("command line", error.flagvalue, f"no such flag; {near}"))))
    except flags.IllegalFlagValueError as error:
        sys.exit(refuse(_reworded(error)))
    except (ConfigError, flags.Error) as error:
        sys.exit(refuse(str(error)))


def _read_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # Whatever ml_collections still finds wrong with an override, in its own words.
        raise ConfigError("command line", " ".join(sys.argv[1:]), str(error)) from None


def _config_path(argv: list[str]) -> tuple[str, list[str]]:
    """What --config names (the last one counts, as in absl), and the other arguments."""
    path = flags.FLAGS["config"].default_as_str.strip("'")
    others = []
    left = iter(argv[1:])
    for flag in left:
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name == "config":
            path = value if equals else next(left, "")
        else:
            others.append(flag)
    return path, others


def _read_config(path: str) -> ConfigDict:
    """What the file's `get_config` returns.

    Raises:
      ConfigError: naming the file and the line, whatever goes wrong in it.
    """
    file, _, argument = path.partition(":")
    if not pathlib.Path(file).is_file():
        raise ConfigError("--config", path, "no such file")
    try:
        get_config = runpy.run_path(file).get("get_config")
        config = get_config(*[argument] if argument else []) if get_config else None
    except Exception as error:  # the file is somebody's program: it may raise anything
        calls = traceback.extract_tb(error.__traceback__)
        lines = [call.lineno for call in calls if call.filename == file]
        what = str(error)
        if isinstance(error, SyntaxError):
            lines, what = [error.lineno], error.msg
        at = f"line {lines[-1]}: " if lines else ""
        raise ConfigError("--config", path, f"{at}{type(error).__name__}: {what}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", path, "must define get_config() that returns a ConfigDict")
    return config


def _respelled(flag: str, config: ConfigDict) -> str:
    """--config.arms.Q=K.model.tie=K=V as `--config.arms["Q\\U0000003dK"].model.tie=K=V`, since absl
    takes the first = for the end of the name, and ml_collections reads a path as Python does.

    Raises:
      ConfigError: where the file has no such field, saying what there is.
    """
    match = re.match(r"(--?(?:no)?config)\.(.*)", flag, re.DOTALL)
    if not match:
        return flag
    spelled, rest = match.groups()
    here: Any = config
    path: list[str] = []
    mark = "."
    while mark == ".":
        names = list(here) if isinstance(here, ConfigDict) else []
        name, mark, rest = _first_name(rest, names)
        path.append(name)
        if name not in names:
            allowed = f"the config file has no such field; {_nearest(name, names)}"
            if not isinstance(here, ConfigDict):
                allowed = f"{'.'.join(path[:-1])} has no fields"
            given = rest if mark == "=" else rest.partition("=")[2]
            raise ConfigError(".".join(path), given, allowed)
        here = here[name]
        plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        escaped = "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in name)
        spelled += f".{name}" if plain else f'["{escaped}"]'
    return f"{spelled}{mark}{rest}"


def _first_name(path: str, names: list[str]) -> tuple[str, str, str]:
    """The first name of a path, the mark that ends it (".", "=" or none), and what follows."""
    # The longest that there is: names like "Q=K" or "model.width" hold the marks that end names.
    for name in sorted(names, key=len, reverse=True):
        if path == name or path.startswith((f"{name}.", f"{name}=")):
            break
    else:
        marks = "." if "." in path and any("=" in name for name in names) else ".="
        name = re.match(f"[^{marks}]*", path)[0]
    return name, path[len(name) :][:1], path[len(name) + 1 :]


def _nearest(name: str, names: Iterable[str]) -> str:
    """The names that there are, after the one that may have been meant."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def _own_flags() -> list[str]:
    # Of the command, of this file, and of what else the command has imported from beside it.
    beside = [name for name in sys.modules if name.startswith("experiments.")]
    modules = [sys.modules[name] for name in ("__main__", *beside)]
    return [f"--{f.name}" for m in modules for f in flags.FLAGS.get_key_flags_for_module(m)]


def _reworded(error: flags.IllegalFlagValueError) -> str:
    """absl's "flag --NAME=VALUE: REASON" as field, given, allowed."""
    match = re.match(r"flag --([^=]+)=(.*?): (.*)", str(error), re.DOTALL)
    if not match or match[1] not in flags.FLAGS:
        return str(error)
    name, given, reason = match.groups()
    parser = flags.FLAGS[name].parser
    allowed = f"must be {_KINDS[parser.flag_type()]}" if parser.flag_type() in _KINDS else reason
    if getattr(parser, "lower_bound", None) is not None:
        allowed = f"allowed: {parser.syntactic_help}"
    field = f"--{name}"
    if name.startswith("config."):
        field = ".".join(config_path.split(name)[1:])
    return str(ConfigError(field, given, allowed))
