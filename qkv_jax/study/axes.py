"""Axes of a task: dotted fields that take several values, and the grid of tasks they make.

`"axes": {"model.width": (16, 32), "train.steps": (250, 500)}` in a task's entry stands for four
tasks, the cells of a family. Each is tuned, compared and judged on its own; reports show them side
by side. In a file whose keys may hold no dots the fields may be nested: `{"model": {"width": …}}`.
"""

import dataclasses
import difflib
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.names import fault_of, folded
from qkv_jax.training.state import TrainConfig

PARTS = ("model", "train", "options")
_LONGEST = 24  # letters of a value in a name


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
      label: the values as they are read, `width=32, steps=500`; empty for a task without axes.
      values: {dotted field: value}.
    """

    label: str
    values: dict[str, Any]

    def name(self, family: str) -> str:
        """The name of the cell's task."""
        return f"{family}, {self.label}" if self.label else family

    def part(self, part: str) -> dict[str, Any]:
        """The values of the fields of `model`, `train` or `options`."""
        dotted = f"{part}."
        return {f.removeprefix(dotted): v for f, v in self.values.items() if f.startswith(dotted)}


def expand(axes: Mapping[str, Any], task_class: type, prefix: str) -> tuple[Cell, ...]:
    """The cells of a grid in the order of its axes, the last one running fastest.

    Args:
      axes: {dotted field: values}, or the same nested; `task_class` has the fields of `options`.
      prefix: the path of the task's entry, for messages.

    Raises:
      ConfigError: for a field that there is not, or an axis without values or with one twice.
    """
    values = {field: _values(field, given, prefix) for field, given in _flat(axes, prefix).items()}
    for field in values:
        _check_field(field, task_class, prefix, values[field])
    columns = []
    names = short_names(values)
    for field, given in values.items():
        labels = _labels(given)
        columns.append(
            [(field, v, f"{names[field]}={t}") for v, t in zip(given, labels, strict=True)]
        )
    return tuple(
        Cell(", ".join(label for *_, label in point), {field: value for field, value, _ in point})
        for point in itertools.product(*columns)
    )


def check_arm(cells: Iterable[Cell], arm: str, model: Mapping, train: Mapping, prefix: str) -> None:
    """Refuses an arm that sets the field of an axis: it would be the same in every cell."""
    own = {f"model.{name}" for name in model} | {f"train.{name}" for name in train}
    if model.get("preset"):
        own |= {"model.tie", "model.adapters"}  # what a preset sets
    for cell in cells:
        for field in cell.values:
            if field in own:
                allowed = f"arm {arm!r} sets {field} itself, which would undo the axis"
                raise ConfigError(f"{prefix}.axes", field, allowed)


def is_number(value: Any) -> bool:
    """Whether an axis value can be placed along a scale."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(axes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, given in axes.items():
        nested = name in PARTS and isinstance(given, Mapping)
        for field, values in given.items() if nested else [("", given)]:
            field = f"{name}.{field}" if nested else name
            if field in flat:
                raise ConfigError(f"{prefix}.axes", field, "is given twice")
            flat[field] = values
    return flat


def _values(field: str, given: Any, prefix: str) -> tuple:
    where = f"{prefix}.axes.{field}"
    if not isinstance(given, (list, tuple)):
        raise ConfigError(where, given, "must be a list of values")
    if not given:
        raise ConfigError(where, given, "must hold at least one value")
    for place, value in enumerate(given):
        if any(value == other and type(value) is type(other) for other in given[:place]):
            raise ConfigError(where, value, "each value once")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(where, value, "must be finite")
    return tuple(given)


def _check_field(field: str, task_class: type, prefix: str, given: tuple) -> None:
    where = f"{prefix}.axes.{field}"
    part, _, name = field.partition(".")
    if part not in PARTS or not name:
        raise ConfigError(where, given, f"an axis is a field of {', '.join(PARTS)}: model.width")
    owner = {"model": ModelConfig, "train": TrainConfig, "options": task_class}[part]
    fields = [f.name for f in dataclasses.fields(owner) if f.init]
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {part + '.' + near[0]!r}? " if near else ""
        raise ConfigError(where, given, f"unknown field; {hint}allowed: {', '.join(fields)}")
    if field == "train.learning_rate":
        raise ConfigError(where, given, "the study tunes it in every cell; give learning_rates")


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """The last component of every field, or the whole where two would read alike."""
    last = [field.rpartition(".")[2] for field in fields]
    return {f: n if last.count(n) == 1 else f for f, n in zip(fields, last, strict=True)}


def _labels(values: tuple) -> list[str]:
    """The values as they stand in names; by number where that is not legible."""
    texts = [_text(value) for value in values]
    keys = [folded(text) for text in texts]
    legible = [
        0 < len(text) <= _LONGEST and keys.count(folded(text)) == 1 and not fault_of(f"={text}")
        for text in texts
    ]
    return [
        t if good else f"#{i + 1}" for i, (t, good) in enumerate(zip(texts, legible, strict=True))
    ]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{name}:{_text(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "+".join(map(_text, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    # A path is known by its last part, and a name may hold no slash.
    text = pathlib.PurePosixPath(str(value).replace("\\", "/")).name
    return " ".join(text.replace(", ", "; ").split())
