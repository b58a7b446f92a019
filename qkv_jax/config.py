"""Validated configuration: frozen dataclasses whose every refusal is one clear line.

A config is a tree of frozen dataclasses, each beside the code that it configures. `build` makes one
from plain mappings (what an ml_collections file holds) and `ConfigError` carries the line that the
user sees: the field, what was given, what is allowed.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_SHOWN = 80  # characters of a value that is no text
_MOST = 2**31 - 1
_ABSENT = object()  # a field that is not given, which is not one that is given as None
_TINIEST, _HUGEST = 1e-37, 3e38  # of float32, without those that are kept with fewer digits


class ConfigError(ValueError):
    """A field that cannot be: `field` (dotted path), what was given, what is allowed."""

    def __init__(self, field: str, given: Any, allowed: str):
        super().__init__(field, given, allowed)
        self.field, self.given, self.allowed = field, given, allowed

    def __str__(self) -> str:
        return f"{self.field}: given {shown(self.given)}; {self.allowed}"

    def under(self, prefix: str) -> "ConfigError":
        """The same refusal, seen from the config that holds this one under `prefix`."""
        return ConfigError(f"{prefix}.{self.field}", self.given, self.allowed)


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Makes the dataclass `cls` from a mapping, checking names and types.

    Lists become tuples and whole numbers stand for floats; nothing else is converted. Fields that
    are dataclasses themselves are built from nested mappings.

    Raises:
      ConfigError: for an unknown name, a missing one, a wrong type, or whatever `cls` refuses.
    """
    path = f"{prefix}." if prefix else ""
    if not isinstance(values, Mapping):
        raise ConfigError(prefix or cls.__name__, values, "must be a mapping of fields")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in fields:
            allowed = f"unknown key; {nearest(name, fields)}"
            raise ConfigError(f"{path}{name}", values[name], allowed)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = convert(hints[name], values[name], f"{path}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}{name}", None, "must be given")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise (error.under(prefix) if prefix else error) from None


def registers(known: dict[str, type], name: str) -> Callable[[type], type]:
    """Class decorator: makes a class known to configs by name."""

    def enter(cls: type) -> type:
        known[name] = cls
        return cls

    return enter


def settle(config: Any) -> None:
    """Gives every field of a frozen dataclass the kind of its annotation, as `build` does, where
    one is made without `build`.

    Raises:
      ConfigError: naming the first field that is of another kind.
    """
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, _settled(config, field))


def require_kinds(module: Any, cls: type) -> None:
    """Refuses fields of `cls`, one of Linen's modules, that are not of their annotated kind."""
    for field in dataclasses.fields(cls):
        if field.name not in ("parent", "name"):  # Linen's own
            _settled(module, field)


def shown(value: Any) -> str:
    """A value in one line: arrays by number format and shape, texts whole, and of anything else
    that is long the beginning."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"{dtype}[{', '.join(map(str, shape))}]"
    text = repr(value)
    if isinstance(value, str):
        return text
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def require_positive(config: Any, *names: str) -> None:
    """Refuses numbers that are not finite and above zero. None passes: it means the default."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            kind = "whole number" if isinstance(value, int) else "finite number"
            raise ConfigError(name, value, f"must be a {kind} above 0")


def require_32_bits(config: Any) -> None:
    """Refuses numbers that become another one in the 32 bits that they are computed with, such as a
    learning rate of 1e-300, which is 0; None and what is not finite pass."""
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        for value in given if isinstance(given, tuple) else (given,):
            size = abs(value) if isinstance(value, (int, float)) else 0
            if isinstance(value, int) and size > _MOST:
                raise ConfigError(field.name, value, f"must be at most {_MOST}")
            if size and math.isfinite(size) and not _TINIEST <= size <= _HUGEST:
                allowed = f"must be a number that 32 bits can hold, {_TINIEST} to {_HUGEST}"
                raise ConfigError(field.name, value, allowed)


def require_range(config: Any, name: str, low: float, high: float) -> None:
    """Refuses numbers outside [low, high)."""
    value = getattr(config, name)
    if not low <= value < high:
        raise ConfigError(name, value, f"must be at least {low} and below {high}")


def nearest(name: Any, allowed: Iterable[str]) -> str:
    """What is allowed, after the one of it that may have been meant."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(repr(one) if ',' in one else one for one in allowed)}"


def convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type: lists become tuples, whole numbers floats, mappings the
    dataclass.

    Raises:
      ConfigError: if it is of another.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return convert(option, value, path)
            except ConfigError:
                continue
    elif hint is Any:
        return value
    elif hint is type(None):
        if value is None:
            return None
    elif origin is typing.Literal:
        if isinstance(value, str) and value in args:
            return value
        raise ConfigError(path, value, nearest(value, args))
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return dict(value)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, path)
    elif hint in (int, float):
        # NumPy's numbers too; a bool is a number to Python alone.
        kind = numbers.Integral if hint is int else numbers.Real
        if isinstance(value, kind) and not isinstance(value, bool):
            if hint is int and abs(value) >= 2**63:
                raise ConfigError(path, value, "must be a whole number that 64 bits can hold")
            with contextlib.suppress(OverflowError):
                return hint(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ConfigError(path, value, f"must be {_describe(hint)}")


def as_dict(config: Any) -> Any:
    """The config as plain dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: as_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): as_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [as_dict(value) for value in config]
    return config


def check_plain(value: Any, path: str = "") -> None:
    """Refuses what JSON cannot keep, in a tree as `as_dict` returns it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            check_plain(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            check_plain(inner, f"{path}[{place}]")
    elif value is not None and not isinstance(value, (str, int, float)):
        allowed = "must be a number, a text, true, false or None, or a list or mapping of such"
        raise ConfigError(path, value, allowed)


def first_difference(known: Any, asked: Any, path: str = "") -> str:
    """In words, where two trees of plain values differ first."""
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in [*known, *(k for k in asked if k not in known)]:
            if known.get(key, _ABSENT) != asked.get(key, _ABSENT):
                pair = known.get(key, _ABSENT), asked.get(key, _ABSENT)
                return first_difference(*pair, f"{path}.{key}".lstrip("."))
    if known is _ABSENT:
        return f"it does not give {path}, now {asked!r}"
    return f"its {path} is {known!r}, {'now not given' if asked is _ABSENT else f'not {asked!r}'}"


def _settled(config: Any, field: dataclasses.Field) -> Any:
    try:
        return convert(field.type, getattr(config, field.name), field.name)
    except ConfigError as error:  # of an item: the field's own name
        name = error.field.partition("[")[0]
        raise ConfigError(name, error.given, error.allowed) from None


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return f"a list, each item {_describe(args[0])}"
    if origin in (dict, Mapping):
        return "a mapping"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "none" if hint is type(None) else getattr(hint, "__name__", str(hint)))
