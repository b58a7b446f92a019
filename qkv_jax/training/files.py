"""Files that survive a crash: replaced as a whole, named in errors; and the lock of a folder."""

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import pathlib
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from qkv_jax.config import ConfigError

LOCK = ".lock"
_TRIES = 1000  # to lock the file that has its name, and not one that was just removed
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a file system without them says


@contextlib.contextmanager
def named(file: pathlib.Path) -> Iterator[None]:
    """Errors of a full disk come without the name of the file, or of the folder that it is in."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(file)) from None


def write_whole(file: pathlib.Path, content: str | bytes) -> None:
    """Writes or replaces a file: a crash leaves the old one or the new one, whose content is on the
    disk before it has its name."""
    part = file.with_name(file.name + ".part")
    with named(file):
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


def others(folder: pathlib.Path, first: str) -> set[str]:
    """The names in a folder, but for what is left of a process that died before its first file
    was there."""
    return {path.name for path in folder.iterdir()} - {LOCK, f"{first}.part"}


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
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
    lock = _take(file)
    try:
        os.ftruncate(lock, 0)
        since = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with named(file):
            os.write(lock, json.dumps(owner).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(lock)


def _take(file: pathlib.Path) -> int:
    """A file descriptor that holds the lock."""
    for _ in range(_TRIES):
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            allowed = f"cannot be written: {error.strerror}"
            raise ConfigError("workdir", str(file.parent), allowed) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(lock)
            os.close(lock)
            allowed = f"is in use by {owner}; wait for it to end, or name another folder"
            raise ConfigError("workdir", str(file.parent), allowed) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"warning: {file}: no locks on this file system", file=sys.stderr)
            return lock
        # Its last owner may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(file)):
                return lock
        os.close(lock)
    allowed = f"{LOCK} is another file each time it is opened; use another file system"
    raise ConfigError("workdir", str(file.parent), allowed)


def _owner(lock: int) -> str:
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError):  # it has not written its name yet
        return "another process"


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
