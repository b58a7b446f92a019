"""The fields of the JSON files beside the weights: each is read, harmless, or refused.

A file may hold fields that nobody here has heard of, and one of them may change every number. So
whoever reads a file lists the fields that it reads, those that change no number, and those of which
one value alone is understood; any other field is refused unless it is switched off.
"""

from collections.abc import Collection, Mapping
from typing import Any

from qkv_jax.config import ConfigError


def check_fields(
    file: str,
    values: Mapping[str, Any],
    read: Collection[str],
    harmless: Collection[str],
    fixed: Mapping[str, Any],
) -> None:
    """Refuses fields that might change numbers and are not read.

    Args:
      file: its name, for the refusal.
      read: fields that the caller reads, and checks.
      harmless: fields that change no number.
      fixed: the one value of a field that is understood; null stands for it.

    Raises:
      ConfigError: naming the file and the field.
    """
    for field, given in values.items():
        name = f"{file} {field}"
        if field in fixed:
            if given is not None and not _same(given, fixed[field]):
                raise ConfigError(name, given, f"understood: {fixed[field]!r}")
        elif field in read or field in harmless or field.startswith("_") or is_off(given):
            continue  # an underscore marks what the library writes for itself
        else:
            what = "is not a known field; if it changes no numbers, take it out of the file"
            raise ConfigError(name, given, what)


def words(names: str) -> frozenset[str]:
    """Names that stand in a text one after the other."""
    return frozenset(names.split())


def is_off(value: Any) -> bool:
    """Null, false, and what is empty."""
    return value is None or value is False or value in ("", [], {})


def _same(given: Any, only: Any) -> bool:
    """Equal, and truth values no numbers."""
    return given == only and isinstance(given, bool) == isinstance(only, bool)
