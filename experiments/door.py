"""The door of every command: flags and config in, one clear line and exit code 2 for bad input.

Left alone, absl exits 1 on a flag error, an unknown config key prints a traceback, and a missing
config file goes unnoticed until a field is read. Here the config file is read and the names of the
overrides are looked up before absl sees them, and every refusal says the field, what was given and
what is allowed.

What nobody foresaw is one line as well, with exit code 1 and the details in a file (`defects.py`).

Commands that can go on where they stopped ask for a `Watch` here: SIGTERM, SIGINT, SIGHUP and a
time limit end them with exit code 75 (EX_TEMPFAIL, "try again") once what they have is saved.
"""

import difflib
import functools
import keyword
import math
import operator
import os
import pathlib
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from experiments import defects
from experiments.outlets import long_work, open_outlets
from qkv_jax.config import ConfigError
from qkv_jax.training.interruption import Interrupted, Watch

BAD_INPUT, DEFECT = 2, 1
RESUME = os.EX_TEMPFAIL  # 75: stopped as asked; the same command goes on

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
# What ml_collections reads overrides from: nothing before `_parse`, and no default file either.
_ARGV = ["", "--config="]


def enter(main: Callable[[], int | None]) -> NoReturn:
    """Parses the flags, runs `main`, turns what goes wrong into one line, and exits."""
    command = list(sys.argv)
    open_outlets()
    logging.set_verbosity(logging.WARNING)
    try:
        try:
            app.run(lambda _: main(), flags_parser=_parse)
        except SystemExit as exit:
            sys.stdout.flush()
            code = exit.code
    except BaseException as error:
        code = _said(error, command)
    sys.exit(code)


def enter_one(what: str, mains: dict[str, Callable[[], int | None]]) -> NoReturn:
    """Likewise for a command whose first word says which `main` is meant."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    enter(mains.get(name) or functools.partial(_refuse_name, what, name, mains))


def _refuse_name(what: str, name: str, mains: Iterable[str]) -> NoReturn:
    raise ConfigError(what, name, f"allowed: {', '.join(mains)}")


def _said(error: BaseException, command: list[str]) -> int:
    """Prints the one line that an error comes to; returns the exit code."""
    if isinstance(error, ConfigError):
        return refuse(str(error))
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return refuse(f"{where}{error.strerror or error}; what was finished is intact")
    if isinstance(error, Interrupted):
        print(f"{error}; the same command goes on from here", file=sys.stderr)
        return RESUME
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    if line := defects.out_of_memory(error):
        return refuse(line)
    refuse(defects.describe(error, command))
    return DEFECT


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
        long_work()

        def handle(number: int, _frame: Any) -> None:
            is_first = watch.stop(f"interrupted by {signal.Signals(number).name}")
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends it at once
            if watch.is_idle:
                if is_first:
                    raise watch.interruption()
            elif number == signal.SIGINT and os.isatty(2):
                # The display may have hidden the cursor.
                os.write(2, b"\x1b[?25h\nsaving; Ctrl-C once more to end at once\n")

        # Slurm warns of a time limit by the signal that it is told to send, mostly USR1 or USR2.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, handle)
        return watch

    return make


def refuse(line: str) -> int:
    """Prints one line to stderr; returns the exit code of bad input."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return BAD_INPUT


def _parse(argv: list[str]) -> list[str]:
    try:
        nones: list[tuple[str, ...]] = []
        if "config" in flags.FLAGS:
            given = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
            path, others = _config_path(given)
            config = _read_config(path)
            overrides, nones = _overrides(others, config)
            # First, since ml_collections knows no field before it has read the file.
            argv = [given[0], f"--config={path}", *overrides]
            _ARGV[:] = argv
        left = _read_flags(argv)
        _refuse_nan()
        if left[1:]:
            raise ConfigError("command line", " ".join(left[1:]), "flags look like --name=value")
        for *above, name in nones:
            holder = functools.reduce(operator.getitem, above, flags.FLAGS["config"].value)
            holder[name] = None
        return left
    except flags.UnrecognizedFlagError as error:
        near = _nearest(f"--{error.flagname}", _own_flags())
        sys.exit(refuse(str(ConfigError("command line", error.flagvalue, f"no such flag; {near}"))))
    except flags.IllegalFlagValueError as error:
        sys.exit(refuse(_reworded(error)))
    except (ConfigError, flags.Error) as error:
        sys.exit(refuse(str(error)))
    except UnicodeDecodeError as error:
        sys.exit(refuse(str(ConfigError("--flagfile", " ".join(argv[1:]), f"is no text: {error}"))))


def _read_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # of --help, which is no failure
        sys.exit(0)
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        # Whatever ml_collections still finds wrong with an override, in its own words.
        raise ConfigError("command line", " ".join(sys.argv[1:]), str(error)) from None


def _refuse_nan() -> None:
    """Refuses flags that are not a number: they are below no bound and above none."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and math.isnan(value) and not name.startswith("config."):
            raise ConfigError(f"--{name}", value, "must be a number")


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
    file = os.path.expanduser(file)
    if not pathlib.Path(file).is_file():
        raise ConfigError("--config", path, "no such file")
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
        raise ConfigError("--config", path, f"{at}{type(error).__name__}: {what}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", path, "must define get_config() that returns a ConfigDict")
    return config


class _Override(NamedTuple):
    """One `--config.FIELD=VALUE`.

    Attributes:
      flag: as absl and ml_collections read it, without the value.
      value: None where it is a word of its own, or there is none.
      path: the names of the field.
      holds: what the file gives it.
    """

    flag: str
    value: str | None
    path: tuple[str, ...]
    holds: Any


def _overrides(words: list[str], config: ConfigDict) -> tuple[list[str], list[tuple[str, ...]]]:
    """The words as ml_collections reads them, and the fields that are None in the end.

    It has no way to write None: `--config.model.kv_heads=None` would have to be a number. Where the
    file gives a text, it is one."""
    read: list[str] = []
    nones: dict[tuple[str, ...], None] = {}
    left = iter(words)
    for word in left:
        found = _override(word, config)
        if found is None:
            read.append(word)
            continue
        value = found.value
        if value is None and not isinstance(found.holds, bool):
            value = next(left, None)
        nones.pop(found.path, None)
        if value == "None" and not isinstance(found.holds, str):
            nones[found.path] = None
        else:
            read.append(found.flag if value is None else f"{found.flag}={value}")
    return read, list(nones)


def _override(flag: str, config: ConfigDict) -> _Override | None:
    """Reads --config.arms.Q=K.model.tie=K=V, whose flag is --config.arms["Q\\U0000003dK"].model.tie
    since absl takes the first = for the end of the name, and ml_collections reads a path as Python
    does.

    Raises:
      ConfigError: where the file has no such field, saying what there is.
    """
    match = re.match(r"(--?(?:no)?config)\.(.*)", flag, re.DOTALL)
    if not match:
        return None
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
    return _Override(spelled, rest if mark == "=" else None, tuple(path), here)


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
