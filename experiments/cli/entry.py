"""The entry of every command: flags and config in, one clear line and exit code 2 for bad input.

Left alone, absl exits 1 on a flag error. Here every refusal says the field, what was given and what
is allowed; the config file and what the command line says of its fields are read before absl sees
the rest (`config_file.py`).

What nobody foresaw is one line as well, with exit code 1 and the details in a file (`defects.py`).

Commands that can go on where they stopped ask for a `StopSignal`: SIGTERM, SIGINT, SIGHUP and a
time limit end them with exit code 75 (EX_TEMPFAIL, "try again") once what they have is saved.
"""

import contextlib
import functools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from qkv_jax.config import ConfigError, nearest
from qkv_jax.runtime.stopping import Interrupted, StopSignal

from . import config_file, defects, place
from .outlets import long_work, open_outlets

BAD_INPUT, DEFECT = 2, 1
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull", "--helpxml")
RESUME = os.EX_TEMPFAIL  # 75: stopped as asked; the same command goes on

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_config_class: type | None = None  # what a command's config file is read into
_config: ConfigDict | None = None  # what it gives, once the command line is read
_takes_words = False  # whether a command is told by words, before all flags, what to work on


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
        code = _report(error, command)
    sys.exit(code)


def enter_one(what: str, mains: dict[str, Callable[[], int | None]]) -> NoReturn:
    """Likewise for a command whose first word says which `main` is meant."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    enter(mains.get(name) or functools.partial(_refuse_name, what, name, mains))


def words() -> list[str]:
    """Takes what comes before the first flag off the command line, for commands that are told by
    such words what to work on."""
    global _takes_words
    _takes_words = True
    first = next((i for i, word in enumerate(sys.argv[1:]) if word.startswith("-")), None)
    taken = sys.argv[1:] if first is None else sys.argv[1 : first + 1]
    del sys.argv[1 : len(taken) + 1]
    return taken


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """What the library refuses under the names of its arguments is refused under these."""
    try:
        yield
    except ConfigError as error:
        field = names.get(error.field, error.field)
        raise ConfigError(field, error.given, error.allowed) from None


def _refuse_name(what: str, name: str, mains: Iterable[str]) -> NoReturn:
    raise ConfigError(what, name, f"allowed: {', '.join(mains)}")


def _report(error: BaseException, command: list[str]) -> int:
    """Prints the one line that an error comes to; returns the exit code."""
    if isinstance(error, ConfigError):
        # What functions take is named as they name it; here a flag of that name gave it.
        is_flag = error.field in {flag.name for flag in _own_flags()}
        return refuse(f"--{error}" if is_flag else str(error))
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


def config_flag(default: str, cls: type) -> Callable[[], ConfigDict]:
    """Defines --config: a file, or the name of a shipped one, that is read into `cls` and whose
    fields --config.a.b=value give otherwise; returns a getter."""
    global _config_class
    _config_class = cls
    about = "A config below, or a file; its fields by --config.FIELD=VALUE."
    flags.DEFINE_string("config", default, about)
    return lambda: _config


def stop_flags() -> Callable[[], StopSignal]:
    """Defines --max_hours and --checkpoint_minutes; returns what makes the stop signal that they
    and the signals of this process govern."""
    hours = flags.DEFINE_float(
        "max_hours", None, "Save and stop after so many hours, with exit code 75.", lower_bound=0.0
    )
    minutes = flags.DEFINE_float(
        "checkpoint_minutes",
        10.0,
        "Save so often what is under way, which kill -9 would cost otherwise.",
        lower_bound=0.0,
    )

    def make() -> StopSignal:
        stop_signal = StopSignal(minutes.value, hours.value)
        long_work()

        def handle(number: int, _frame: Any) -> None:
            is_first = stop_signal.stop(f"interrupted by {signal.Signals(number).name}")
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one ends it at once
            if stop_signal.is_idle:
                if is_first:
                    raise stop_signal.interruption()
            elif number == signal.SIGINT and os.isatty(2):
                # The display may have hidden the cursor.
                os.write(2, b"\x1b[?25h\nsaving; Ctrl-C once more to end at once\n")

        # Slurm warns of a time limit by the signal that it is told to send, mostly USR1 or USR2.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, handle)
        return stop_signal

    return make


def refuse(line: str) -> int:
    """Prints one line to stderr; returns the exit code of bad input."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return BAD_INPUT


def _parse(argv: list[str]) -> list[str]:
    global _config
    try:
        if any(word in _HELP for word in argv):
            from .help import show

            show(_own_flags(), _config_class)
            sys.exit(0)
        if _config_class:
            program, *words = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
            path, words = config_file.named(words, flags.FLAGS["config"].default)
            _config = config_file.read(path, _config_class)
            argv = [program, *config_file.override(_config, _config_class, words)]
        left = flags.FLAGS(argv)
        _refuse_nan()
        if left[1:]:
            raise ConfigError("command line", " ".join(left[1:]), _meant(left[1]))
        return left
    except flags.UnrecognizedFlagError as error:
        near = nearest(f"--{error.flagname}", [f"--{flag.name}" for flag in _own_flags()])
        sys.exit(refuse(str(ConfigError("command line", error.flagvalue, f"no such flag; {near}"))))
    except flags.IllegalFlagValueError as error:
        sys.exit(refuse(_reworded(error)))
    except (ConfigError, flags.Error) as error:
        sys.exit(refuse(str(error)))
    except UnicodeDecodeError as error:
        sys.exit(refuse(str(ConfigError("--flagfile", " ".join(argv[1:]), f"is no text: {error}"))))


def _refuse_nan() -> None:
    """Refuses flags that are not a number: they are below no bound and above none."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"--{name}", value, "must be a number")


def _meant(word: str) -> str:
    """What is said of a word that is no flag."""
    if _takes_words:
        return "names come first, before all flags"
    own = {flag.name for flag in _own_flags()}
    is_config = _config_class and (".py" in word or word.partition(":")[0] in place.shipped())
    names = ["config"] if is_config else []
    if os.path.isdir(word):
        what = "study" if os.path.exists(os.path.join(word, "study.json")) else "run"
        names = [name for name in (what, "workdir") if name in own]
    meant = f"did you mean --{names[0]}={word}? " if names else ""
    return f"{meant}flags look like --name=value"


def _own_flags() -> list[flags.Flag]:
    # Of the command, of this file, and of what else the command has imported from beside it.
    beside = [name for name in sys.modules if name.startswith(f"{place.PACKAGE}.")]
    modules = [sys.modules[name] for name in ("__main__", *beside)]
    return [flag for m in modules for flag in flags.FLAGS.get_key_flags_for_module(m)]


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
    return str(ConfigError(f"--{name}", given, allowed))
