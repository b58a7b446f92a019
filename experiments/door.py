"""The door of every command: flags and config in, one clear line and exit code 2 for bad input.

Left alone, absl exits 1 on a flag error, an unknown config key prints a traceback, and a missing
config file goes unnoticed until a field is read.
"""

import pathlib
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from qkv_jax.config import ConfigError

BAD_INPUT = 2


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
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded, flags_parser=_parse)


def config_flag(default: str) -> Callable[[], ConfigDict]:
    """Defines --config (a file, whose fields --config.a.b=value override); returns a getter."""
    holder = config_flags.DEFINE_config_file(
        "config", default, "Config file; override fields by --config.FIELD=VALUE.", lock_config=True
    )
    return lambda: holder.value


def refuse(line: str) -> int:
    """Prints one line to stderr; returns the exit code of bad input."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return BAD_INPUT


def _parse(argv: list[str]) -> list[str]:
    try:
        missing = _missing_config(argv)
        if missing:
            raise ConfigError("--config", missing, "no such file")
        left = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            flags.FLAGS.config  # noqa: B018  (read now, so that a broken file is refused here)
        if left[1:]:
            raise ConfigError("command line", " ".join(left[1:]), "flags look like --name=value")
        return left
    except (ConfigError, flags.Error, OSError, SyntaxError) as error:
        sys.exit(refuse(str(error)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What ml_collections raises for unknown keys and wrong types says which, in its own words.
        text = str(error.args[0] if error.args else error)
        sys.exit(refuse(f"--config: {text}"))


def _missing_config(argv: list[str]) -> str | None:
    for flag, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, equals, value = flag.lstrip("-").partition("=")
        if name == "config" and flag.startswith("-"):
            path = value if equals else following
            if not pathlib.Path(path.partition(":")[0]).is_file():
                return path
    return None
