"""What data are, as plain values for JSON: sizes and hashes of files, rows and hashes of splits.

Two equal fingerprints are the same data, whatever the names of the files; a study or run that goes
on compares them (`check_same_data`). Files are read in blocks, so a fingerprint costs a pass over
the files and no memory.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from qkv_jax.config import ConfigError

_BLOCK = 2**20  # bytes of a file read at a time
_PACKAGES = "site-packages"
_DIGITS = 12  # of a hash, in messages
_HASHED_AS = {"valid": "padding"}


def name_of(path: pathlib.Path) -> str:
    """How a file is called in a fingerprint: as the config has it, and, where it came with an
    installed package, from the package's name on, wherever that lies."""
    parts = path.parts
    if _PACKAGES in parts:
        parts = parts[len(parts) - parts[::-1].index(_PACKAGES) :]
    return pathlib.PurePath(*parts).as_posix()


def of_file(path: pathlib.Path) -> dict[str, Any]:
    """`bytes` and `sha256` of a file's content.

    Raises:
      ConfigError: `files`, if it cannot be read.
    """
    found, size = hashlib.sha256(), 0
    try:
        with path.expanduser().open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
                size += len(block)
    except OSError as error:
        raise ConfigError("files", str(path), f"cannot be read: {error.strerror}") from None
    return {"bytes": size, "sha256": found.hexdigest()}


def of_split(split: Any) -> dict[str, Any]:
    """`rows` and `sha256` of a tree of arrays: names, kinds, shapes and values.

    The rows are those of `targets` where there are any, else the most that an array has.
    """
    found = hashlib.sha256()
    lengths = [0]
    if isinstance(split, Mapping):  # by the names that hashes in older folders were taken with
        split = {_HASHED_AS.get(name, name): leaf for name, leaf in split.items()}
    for path, leaf in jax.tree.leaves_with_path(split):
        values = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape};".encode())
        found.update(values.view(np.uint8).data if values.size else b"")
        lengths += values.shape[:1]
    targets = split.get("targets") if isinstance(split, Mapping) else None
    rows = max(lengths) if targets is None else len(targets)
    return {"rows": rows, "sha256": found.hexdigest()}


def check_same_data(
    known: Mapping[str, Any] | None, found: Mapping[str, Any] | None, field: str, what: str
) -> None:
    """Compares fingerprints (`Task.fingerprint`); one that is not there says nothing.

    Args:
      known: of the data that were there at the start; found: of those that are there now.
      field, what: for the message: whose data, and what was started with them.

    Raises:
      ConfigError: naming the file or split that is another one now.
    """
    if known is None or found is None or known == found:
        return
    for given, change in _changes(known, found):
        allowed = (
            f"{change}: {what} was started with other data; give it those, or name another folder"
        )
        raise ConfigError(f"{field}: data", given, allowed)


def _changes(known: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is another one now, and how, the file before the split that it holds."""
    before, now = known.get("files", {}), found.get("files", {})
    kept = [*before.values()]
    fresh = {}  # files whose content was not there
    for name, file in now.items():
        if file in kept:
            kept.remove(file)
        else:
            fresh[name] = file
    for name, file in fresh.items():
        if name in before:
            yield name, f"has {_of(file, 'bytes')} and had {_of(before[name], 'bytes')}"
    for name, file in fresh.items():
        yield name, f"is new, with {_of(file, 'bytes')}"
    for name, file in before.items():
        if file in kept:
            yield name, f"is gone, with {_of(file, 'bytes')}"
    before, now = known.get("splits", {}), found.get("splits", {})
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            change = f"has {_of(now.get(name), 'rows')} and had {_of(before.get(name), 'rows')}"
            yield f"split {name}", change
    if known.get("classes") != found.get("classes"):
        yield "classes", f"are {found.get('classes')} and were {known.get('classes')}"


def _of(part: Mapping[str, Any] | None, unit: str) -> str:
    if part is None:
        return f"no {unit}"
    return f"{part[unit]} {unit} (SHA-256 {part['sha256'][:_DIGITS]}…)"
