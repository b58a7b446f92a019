"""The files that a config names: where they are, that no two are one, and whether they changed."""

import os
import pathlib
import stat
import time
from collections.abc import Iterable

from qkv_jax.config import ConfigError
from qkv_jax.tasks import fingerprint

# Nanoseconds after which a file's time tells a later change: clocks of file systems are coarse.
_SETTLED = 2 * 10**9

Stamp = tuple[tuple, ...]


def expanded(name: str, field: str) -> pathlib.Path:
    """The path that a config names; `~` is the home folder.

    Raises:
      ConfigError: `field`, for what can be no path.
    """
    try:
        if not name.strip() or b"\0" in os.fsencode(name):
            raise ConfigError(field, name, "is no path")
        path = pathlib.Path(name).expanduser()
        path.exists()  # refuses what the file system cannot have, but not what it has not
        return path
    except RuntimeError:
        raise ConfigError(field, name, "the home folder is not known; write it out") from None
    except UnicodeEncodeError:
        raise ConfigError(field, name, "is no path") from None
    except OSError as error:
        raise ConfigError(field, name, f"cannot be read: {error.strerror}") from None


def distinct(paths: Iterable[pathlib.Path], field: str) -> tuple[pathlib.Path, ...]:
    """The paths, if each is a file of its own, however it is spelled or linked.

    Raises:
      ConfigError: `field`, naming two that are the same file.
    """
    seen: dict[tuple, pathlib.Path] = {}
    paths = tuple(paths)
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue  # whoever reads it says what is wrong
        first = seen.setdefault((found.st_dev, found.st_ino), path)
        if first is not path:
            raise ConfigError(field, str(path), f"is the same file as {str(first)!r}")
    return paths


def content(path: pathlib.Path, field: str) -> bytes:
    """All bytes of a file.

    Raises:
      ConfigError: `field`, if it cannot be read or is no file that could be read twice.
    """
    try:
        if not path.is_dir() and path.exists() and not path.is_file():
            raise ConfigError(field, str(path), "is a pipe or a device, no file")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(field, str(path), f"cannot be read: {error.strerror}") from None


def stamp(paths: Iterable[pathlib.Path]) -> Stamp:
    """What tells the present contents of files from others: part of the key of every cache of
    what was read from them."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: pathlib.Path) -> tuple:
    try:
        found = path.stat()
    except OSError:
        return (str(path),)
    content = ""
    if stat.S_ISREG(found.st_mode) and time.time_ns() - found.st_mtime_ns < _SETTLED:
        content = fingerprint.of_file(path)["sha256"]
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (str(path), found.st_dev, found.st_ino, found.st_size, *times, content)
