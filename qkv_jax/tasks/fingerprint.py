"""What data are, as plain values for JSON: sizes and hashes of files, rows and hashes of splits.

Two equal fingerprints are the same data, whatever the names of the files; a study or run that goes
on compares them. Files are read in blocks, so a fingerprint costs a pass over the files and no
memory.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from qkv_jax.config import ConfigError

_BLOCK = 2**20  # bytes of a file read at a time
_PACKAGES = "site-packages"


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
    for path, leaf in jax.tree.leaves_with_path(split):
        values = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape};".encode())
        found.update(values.view(np.uint8).data if values.size else b"")
        lengths += values.shape[:1]
    targets = split.get("targets") if isinstance(split, Mapping) else None
    rows = max(lengths) if targets is None else len(targets)
    return {"rows": rows, "sha256": found.hexdigest()}
