"""Config files: each returns one ml_collections.ConfigDict; its docstring says its command."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def tree(values: Mapping[str, Any]) -> ConfigDict:
    """Nested mappings as ConfigDicts that keep their order: tasks and arms run as listed.

    Keys may hold dots: `"axes": {"model.width": (16, 32)}`, or the title of a paper.
    """
    config = ConfigDict(sort_keys=False, allow_dotted_keys=True)
    for name, value in values.items():
        config[name] = tree(value) if isinstance(value, Mapping) else value
    return config


def choose(sizes: Mapping[str, Any], name: str) -> Any:
    """The one of a file's sizes that the command names, --config=configs/FILE.py:NAME.

    Raises:
      ValueError: with the names that there are.
    """
    if name not in sizes:
        raise ValueError(f"{name!r}: choose {' or '.join(sizes)}")
    return sizes[name]
