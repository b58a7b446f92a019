"""Whether a run or study that goes on has the data that it was started with.

The names of files do not count, what is in them does: data that were moved are the same data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from qkv_jax.config import ConfigError

_DIGITS = 12  # of a hash, in messages


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
