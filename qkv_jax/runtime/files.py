"""Files that survive a crash: replaced as a whole, named in errors; and the lock of a folder."""

import contextlib
import datetime
import errno
import json
import math
import os
import pathlib
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import filelock

from qkv_jax.config import ConfigError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a file system without them says


@contextlib.contextmanager
def with_filename(file: pathlib.Path) -> Iterator[None]:
    """Errors of a full disk come without the name of the file, or of the folder that it is in."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(file)) from None


def write_whole(file: pathlib.Path, content: str | bytes) -> None:
    """Writes or replaces a file: a crash leaves the old one or the new one, whose content is on the
    disk before it has its name."""
    part = file.with_name(file.name + ".part")
    with with_filename(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        _to_disk(part)
        os.replace(part, file)


def json_text(value: Any) -> str:
    """Plain values as JSON that every reader takes: what is no number there, such as the score of
    a run that diverged, is null, and an infinite one its name."""
    return json.dumps(_strict(value), indent=1, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def foreign_files(folder: pathlib.Path, first: str) -> set[str]:
    """The names in a folder, but for what is left of a process that died before its first file
    was there."""
    return {path.name for path in folder.iterdir()} - {LOCK, f"{first}.part"}


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a folder while they ask for it as well; makes it if need be.

    The lock goes with the process that holds it, however that ends (`flock`); what stays of one
    that was killed is a file `.lock`, which holds nothing. Reading needs no lock.

    Raises:
      ConfigError: if another process holds it, saying which, or if the folder is read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        is_link = os.path.islink(error.filename)
        what = "a link to what is not there" if is_link else "no folder"
        raise ConfigError("workdir", str(folder), f"{error.filename} is {what}") from None
    file = folder / LOCK
    if file.exists() and not file.is_file():
        raise ConfigError("workdir", str(folder), f"its {file.name} is no file")
    # A moment to try again in: the last owner removes the file as it ends.
    lock = filelock.UnixFileLock(file, timeout=0.2, poll_interval=0.02, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        allowed = f"is in use by {_owner(file)}; wait for it to end, or name another folder"
        raise ConfigError("workdir", str(folder), allowed) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            allowed = f"cannot be written: {error.strerror}"
            raise ConfigError("workdir", str(folder), allowed) from None
        print(f"warning: {file}: no locks on this file system", file=sys.stderr)
    try:
        since = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with with_filename(file):
            file.write_text(json.dumps(owner))
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def _owner(file: pathlib.Path) -> str:
    try:
        owner = json.loads(file.read_text())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError):  # it has not written its name yet, or is gone
        return "another process"


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
