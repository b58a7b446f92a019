"""What nobody foresaw: one line for the user, and a file with the rest for who is to mend it."""

import datetime
import os
import pathlib
import platform
import shlex
import tempfile
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("qkv_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy",
             "pandas", "rich", "absl-py", "ml-collections")  # fmt: skip
_RECORDS = ("study.json", "config.json")  # a folder without them would be refused the next time

_workdir: pathlib.Path | None = None


def keep_in(workdir: pathlib.Path) -> None:
    """Where details are written from here on, if the folder holds a study or a run by then."""
    global _workdir
    _workdir = workdir


def describe(error: BaseException, command: list[str]) -> str:
    """The line, with the name of the file that was written."""
    file = _write(error, command)
    what = " ".join(f"{type(error).__name__}: {error}".splitlines()[0].split()).rstrip(":")
    where = f"details in {file}" if file else "there is no place to write the details to"
    return f"this looks like a defect of qkv_jax or of a library it uses: {what}; {where}"


def out_of_memory(error: BaseException) -> str | None:
    """The line for memory that was used up, of the host or of a device; None for other errors."""
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {message or 'no more can be had'}; what was finished is intact"
    if type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") and (
        "RESOURCE_EXHAUSTED" in message
    ):
        needs = "a smaller model or batch, train.accumulate or model.remat need less"
        return f"out of memory on the device: {message[:200]}; {needs}; what was finished is intact"
    return None


def _write(error: BaseException, command: list[str]) -> pathlib.Path | None:
    now = datetime.datetime.now()
    name = f"defect-{now:%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    text = "\n".join([
        f"command: {shlex.join(command)}",
        f"folder: {os.getcwd()}",
        f"time: {now.isoformat(timespec='seconds')}",
        f"machine: {platform.platform()}, Python {platform.python_version()}",
        f"packages: {', '.join(_versions())}",
        "",
        *traceback.format_exception(error),
    ])  # fmt: skip
    for folder in _places():
        try:
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return None


def _places() -> Iterator[pathlib.Path]:
    if _workdir and any((_workdir / record).is_file() for record in _RECORDS):
        yield _workdir
    yield pathlib.Path()
    yield pathlib.Path(tempfile.gettempdir())


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} from its source"
