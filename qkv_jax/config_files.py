"""Config files: what they are written with, and the fields that a command line may set in them.

A file says what differs from the dataclasses that it is read into, and no more; which fields there
are, and of what kind, the dataclasses alone say. Where one of them holds plain mappings, since they
are merged before anything is built of them, its annotation says what they are read as:

    model: Annotated[dict[str, Any], ModelConfig]                  some fields of it
    tasks: Annotated[dict[str, Any], dict[str, TaskEntry]]         such mappings, by name
    options: Annotated[dict[str, Any], options_class]              a function of its neighbours
"""

import ast
import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from qkv_jax.config import ConfigError, convert, nearest

_TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


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
      ConfigError: with the names that there are.
    """
    if name not in sizes:
        raise ConfigError("size", name, nearest(name, sizes))
    return sizes[name]


@dataclasses.dataclass(frozen=True)
class Place:
    """A field of a config file, whether the file gives it or not.

    Attributes:
      path: its names.
      kind: what the dataclasses say it is.
      value: what follows the path and a "="; None if nothing does.
    """

    path: tuple[str, ...]
    kind: Any
    value: str | None

    @property
    def name(self) -> str:
        return ".".join(self.path)

    def read(self) -> Any:
        """The value, as the field's kind.

        Raises:
          ConfigError: if it is none of that kind.
        """
        if self.value is None:
            raise ConfigError(self.name, None, "a value must follow")
        return read(self.kind, self.value, self.name)


def find(config: ConfigDict, cls: type, text: str) -> Place:
    """The field that `text`, such as "arms.Q=K.model.tie=K=V", begins with.

    Args:
      config: what the file gives; cls: what it is read into.

    Raises:
      ConfigError: if there is no such field, saying what there is.
    """
    here, kind, path, mark = config, cls, [], "."
    while mark == ".":
        known = _names(here, kind)
        name, mark, text = _first_name(text, known)
        path.append(name)
        if name not in known:
            given = text if mark == "=" else text.partition("=")[2]
            allowed = f"unknown key; {nearest(name, known)}" if known else "there are no fields"
            raise ConfigError(".".join(path), given, allowed)
        value = here.get(name) if isinstance(here, (ConfigDict, dict)) else None
        try:
            kind = _kind(kind, name, here, value)
        except ConfigError as error:
            raise error.under(".".join(path[:-1])) from None
        here = value
    return Place(tuple(path), kind, text if mark == "=" else None)


def put(config: ConfigDict, cls: type, place: Place, value: Any) -> None:
    """Gives a field its value.

    Options of a task of another kind, which that one does not have, go when the kind is changed.

    Raises:
      ConfigError: if there is no such kind of task.
    """
    here, kind = config, cls
    with config.ignore_type(), config.unlocked():
        for name in place.path[:-1]:
            if here.get(name) is None:
                here[name] = tree({})
            kind = _kind(kind, name, here, here[name])
            here = here[name]
        name = place.path[-1]
        is_another = here.get(name) != value
        here[name] = tree(value) if isinstance(value, Mapping) else value
        for other, hint in _hints(kind).items():
            if is_another and name != other and _is_function(hint) and here.get(other):
                try:
                    known = _hints(hint(dict(here)))
                except ConfigError as error:
                    raise error.under(".".join(place.path[:-1])) from None
                here[other] = tree({k: v for k, v in here[other].items() if k in known})


def read(kind: Any, text: str, field: str) -> Any:
    """What a command line writes, as the annotated type.

    Raises:
      ConfigError: if it is none.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text == "None" and type(None) in options:
            return None
        for option in options:
            with contextlib.suppress(ConfigError):
                return read(option, text, field)
    if kind is str or origin is typing.Literal:
        return convert(kind, text, field)
    if kind is bool:
        return convert(bool, _TRUTHS.get(text.lower(), text), field)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # nan, inf
            value = float(text)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            value = (text if options[0] is str else value,)
        return convert(kind, tuple(value), field)
    if dataclasses.is_dataclass(kind) or origin is dict:  # some of its fields
        return convert(dict, value, field)
    try:
        return convert(kind, value, field)
    except ConfigError as error:
        raise ConfigError(field, text, error.allowed) from None


def fields(cls: type) -> Iterator[tuple[str, Any, str]]:
    """Name, annotation and default, as it is written, of the fields that a file may give."""
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.init:
            is_open = default is dataclasses.MISSING
            yield field.name, hints[field.name], "" if is_open else repr(default)


def _hints(cls: Any) -> dict[str, Any]:
    """What each field of a dataclass is read as; nothing for what is none."""
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: _meant(hints[f.name]) for f in dataclasses.fields(cls) if f.init}


def _meant(hint: Any) -> Any:
    return hint.__metadata__[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_function(hint: Any) -> bool:
    return isinstance(hint, types.FunctionType)


def _names(here: Any, kind: Any) -> list[str]:
    """The fields of a part: its dataclass's; without one, those that the file gives."""
    return list(_hints(kind)) or (list(here) if isinstance(here, (ConfigDict, dict)) else [])


def _kind(kind: Any, name: str, here: Any, value: Any) -> Any:
    """What the field `name` of a part of this kind is; `value`: what the file gives it."""
    hints = _hints(kind)
    if name in hints:
        hint = hints[name]
        return hint(dict(here or {})) if _is_function(hint) else hint
    if typing.get_origin(kind) is dict and typing.get_args(kind)[1] is not Any:
        return typing.get_args(kind)[1]
    if isinstance(value, (list, tuple)):
        return tuple[Any, ...]
    return (
        Any if value is None else dict[str, Any] if isinstance(value, ConfigDict) else type(value)
    )


def _first_name(path: str, names: list[str]) -> tuple[str, str, str]:
    """The first name of a path, the mark that ends it (".", "=" or none), and what follows."""
    # The longest that there is: names like "Q=K" or "model.width" hold the marks that end names.
    for name in sorted(names, key=len, reverse=True):
        if path == name or path.startswith((f"{name}.", f"{name}=")):
            break
    else:
        marks = "." if "." in path and any("=" in name for name in names) else ".="
        name = re.match(f"[^{marks}]*", path)[0]
    return name, path[len(name) :][:1], path[len(name) + 1 :]
