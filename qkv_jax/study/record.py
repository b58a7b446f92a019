"""What is kept of a study: study.json as frozen dataclasses, and the columns of its runs.

`StudyRecord.read` is the one place where what a file says is believed or refused; all that works on
studies takes the record that it gives.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from qkv_jax.config import ConfigError, as_dict, build, convert, require_range
from qkv_jax.study.claims import Claim
from qkv_jax.study.config import ProtocolName
from qkv_jax.tasks.base import Outcome, Reference
from qkv_jax.tie import Tie

COPIES = "Are Q, K and V three copies of the input?"  # the question of a study that has that arm
FORMAT = 2

RUN_COLUMNS = (
    "task", "arm", "learning_rate", "seed", "round", "status", "metric", "validation", "test",
    "steps", "steps_to_solve", "seconds",
)  # fmt: skip


KEY = ("task", "arm", "learning_rate", "seed")

Role = Literal["baseline", "arm", "placebo", "control", "matched"]
Config = dict[str, dict[str, Any]]  # {"model": fields of ModelConfig, "train": of TrainConfig}


_mapping = functools.partial(dataclasses.field, default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ArmRecord:
    """An arm: its tie (or schedule of ties), its part in the study, and what it overrides."""

    tie: str
    role: Role
    note: str = ""
    overrides: dict[str, Any] = _mapping()
    against: str = ""  # another arm that it is compared with as well

    @property
    def group(self) -> int:
        """0 baseline and arms, 1 controls and arms of matched size, 2 the placebo."""
        return {"control": 1, "matched": 1, "placebo": 2}.get(self.role, 0)

    @property
    def plain_tie(self) -> bool:
        """Whether it differs from the baseline in the tie alone."""
        return self.group == 0 and _only_tie(self.overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A task of a study, or one cell of a task's grid.

    Attributes:
      steps: of a run; `steps_of` those of arms that train for another number.
      same_program: {arm: the first arm that trains the very same}.
      branch: share of the steps at which copies of runs are compared as well; 0 for none.
      arms: the baseline first.
      resolved: {arm: config}, see `resolved.py`; None in studies from before they were kept.
      family, family_title: of the config's entry, which all cells of a grid have in common.
      cell: the values of the axes as they are read; `axes` as they are; empty without a grid.
      published: {column: {arm: number}}.
      declared_margin: where another margin than the declared one is in force, see `margins.py`.
      data, data_notes, references: of the task's data; None before they were read.
    """

    title: str
    description: str
    outcome: Outcome
    steps: int
    steps_of: dict[str, int] = _mapping()
    same_program: dict[str, str] = _mapping()
    branch: float = 0.0
    arms: tuple[str, ...]
    resolved: dict[str, Config] | None = None
    learning_rates: tuple[float, ...]
    family: str
    family_title: str
    cell: str = ""
    axes: dict[str, Any] = _mapping()
    published: dict[str, dict[str, int | float]] = _mapping()
    declared_margin: float | None = None
    data: dict[str, Any] | None = None
    data_notes: tuple[str, ...] | None = None
    references: tuple[Reference, ...] | None = None

    def __post_init__(self):
        require_range(self, "branch", 0.0, 1.0)

    @property
    def baseline(self) -> str:
        return self.arms[0]

    @property
    def higher_is_better(self) -> bool:
        return self.outcome.higher_is_better

    @property
    def unit(self) -> str:
        return self.outcome.unit or self.outcome.metric

    @property
    def solving(self) -> bool:
        """Whether verdicts are about solving the task, and not about the mean."""
        return self.outcome.kind == "solve"

    @property
    def grid(self) -> str | None:
        """The family that this is a cell of, None for a task of its own."""
        return self.family if self.axes else None

    def steps_for(self, arm: str) -> int:
        """The steps of a run of an arm."""
        return self.steps_of.get(arm, self.steps)

    def branch_steps(self, arm: str) -> int:
        """The steps of the copies of a run of an arm that branch off."""
        return round(self.branch * self.steps_for(arm))

    def program_of(self, arm: str) -> str:
        """The first arm that is the same program, as the configs say; mostly itself."""
        return self.same_program.get(arm, arm)

    def as_dict(self) -> dict[str, Any]:
        """As study.json has it."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = as_dict(getattr(self, field.name))
            if field.name == "outcome":
                found |= value | {"higher_is_better": self.higher_is_better}
            elif value is not None:
                found[field.name] = value
        return found


@dataclasses.dataclass(frozen=True)
class Machine:
    """What ran a study."""

    devices: tuple[str, ...]
    platform: str


@dataclasses.dataclass(frozen=True)
class Start:
    """The packages that a study was started, or gone on, with."""

    at: str | None
    packages: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Change:
    """A field that is resolved to something else than when the study was started."""

    field: str
    before: Any
    now: Any


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Changes with which a study went on, and since when."""

    at: str
    changes: tuple[Change, ...]


@dataclasses.dataclass(frozen=True)
class Dated:
    """Claims and the rules of their verdicts, as they were fixed; with changes, an amendment."""

    at: str
    digest: str
    rules: int
    changes: tuple[Change, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """study.json. What only a run can tell is None or empty before.

    Attributes:
      protocol: by which runs follow from runs; see `protocol/race.py` and `protocol/fixed.py`.
      tune_seeds: none in a race, where every run tunes.
      eval_seeds: on which arms are compared; of a race as many as it may take.
      max_runs, max_minutes: what a race may spend on a task.
      wave: `devices`, `packing` and `size` of the waves of runs.
      looks: the number of evaluation seeds that were asked for, at first and whenever some were
        added.
      config: the study file as it was given.
      seconds: that it took; `compiling` those of them that it waited for the compiler.
      machine: of the jobs of a cluster.
      claims_dated: when the claims were fixed, then their amendments; see `dating.py`.
    """

    name: str
    baseline: str
    placebo: str
    alpha: float
    tune_seeds: tuple[int, ...] = ()
    eval_seeds: tuple[int, ...]
    wave: dict[str, int]
    arms: dict[str, ArmRecord]
    tasks: dict[str, TaskRecord]
    claims: dict[str, Claim]
    config: dict[str, Any]
    looks: tuple[int, ...] = ()
    protocol: ProtocolName = "fixed"
    max_runs: int | None = None
    max_minutes: float | None = None
    complete: bool = False
    claims_dated: tuple[Dated, ...] = ()
    command: str | None = None
    versions: tuple[Start, ...] = ()
    devices: tuple[str, ...] = ()
    platform: str | None = None
    started: str | None = None
    seconds: float | None = None
    compiling: float | None = None
    machine: Machine | None = None
    accepted: tuple[Accepted, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "StudyRecord":
        """The record that study.json holds; keys that this version does not know are left out.

        Raises:
          ConfigError: naming the first field that is missing or cannot be.
        """
        for name in ("looks", "protocol", "complete"):
            if name not in values:
                raise ConfigError(name, None, "must be given")
        record = _read(cls, {"claims": {}, **values, "versions": _starts(values)}, "")
        _check(record)
        return record

    def as_dict(self) -> dict[str, Any]:
        """As study.json has it: what is not known yet is left out."""
        found = {"format": FORMAT} | as_dict(self)
        found["tasks"] = {name: task.as_dict() for name, task in self.tasks.items()}
        return {name: value for name, value in found.items() if value is not None and value != []}

    @property
    def question(self) -> str:
        """What the study asks, as its file says; that of copies, where they are one of its arms."""
        return self.config.get("question") or (COPIES if self.asks_of_copies else "")

    @property
    def asks_of_copies(self) -> bool:
        """Whether its answer is what became of the arm whose Q, K and V are X, three times."""
        plain = (arm.tie for arm in self.arms.values() if arm.plain_tie and "|" not in arm.tie)
        return not self.config.get("question") and Tie.all()[-1] in map(Tie.parse, plain)

    @property
    def title(self) -> str:
        """The largest line of its report."""
        return self.config.get("title") or self.question or f"Study “{self.name}”"

    @property
    def analyses(self) -> tuple[int, ...]:
        """The number of evaluation seeds at first and after each addition; the last is this one."""
        return self.looks or (len(self.eval_seeds),)

    @property
    def analysis(self) -> int:
        """Which interim analysis this is, counted from 1."""
        return len(self.analyses)

    def only(self, task: str) -> "StudyRecord":
        """The record as if the study had that task alone."""
        return dataclasses.replace(self, tasks={task: self.tasks[task]})

    def with_task(self, name: str, **fields: Any) -> "StudyRecord":
        """With other values in some fields of a task."""
        changed = dataclasses.replace(self.tasks[name], **fields)
        return dataclasses.replace(self, tasks=self.tasks | {name: changed})


def _only_tie(overrides: Mapping[str, Any]) -> bool:
    """Whether {"tie": …}, {"model.tie": …} or {"model": {"tie": …}} is all that is overridden."""
    return all(
        _only_tie(value) if isinstance(value, Mapping) else str(key).split(".")[-1] == "tie"
        for key, value in overrides.items()
    )


def _starts(values: Mapping[str, Any]) -> Any:
    """`versions`, a list of starts; it was one entry, and changes stood beside it."""
    versions = values.get("versions", [])
    if not isinstance(versions, Mapping):
        return versions
    starts = values.get("starts") or [{"at": values.get("started"), "versions": versions}]
    if not isinstance(starts, list) or not all(isinstance(start, Mapping) for start in starts):
        raise ConfigError("starts", starts, "must be a list of mappings")
    return [{"at": start.get("at"), "packages": start.get("versions")} for start in starts]


def _read(cls: type, values: Any, path: str) -> Any:
    """A dataclass from a mapping that may hold other keys as well."""
    if not isinstance(values, Mapping):
        raise ConfigError(path, values, "must be a mapping of fields")
    found, hints = {}, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        where = f"{path}.{field.name}".lstrip(".")
        if field.name == "outcome":
            found[field.name] = _read(Outcome, values, path)
        elif field.name in values:
            found[field.name] = _typed(hints[field.name], values[field.name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(where, None, "must be given")
    try:
        return cls(**found)
    except ConfigError as error:
        raise error.under(path) from None


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and types.NoneType in args:
        return None if value is None else _typed(args[0], value, path)
    if origin is dict and isinstance(value, Mapping):
        return {name: _typed(args[1], item, f"{path}.{name}") for name, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is Claim and isinstance(value, Mapping):
        return build(Claim, value, path)
    if hint is Reference and isinstance(value, Mapping) and value.get("value", "") is None:
        value = {**value, "value": math.nan}  # what is no number is null in a file
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, path)
    if hint is float and value in ("inf", "-inf"):  # likewise
        value = float(value)
    return convert(hint, value, path)


def _check(record: StudyRecord) -> None:
    """Refuses a record whose parts do not belong together."""
    for name in ("eval_seeds", "looks", "tasks", *["tune_seeds"] * (record.protocol == "fixed")):
        if not getattr(record, name):
            raise ConfigError(name, as_dict(getattr(record, name)), "must hold at least one")
    for name in ("devices", "packing", "size"):
        if name not in record.wave:
            raise ConfigError(f"wave.{name}", None, "must be given")
    for name, task in record.tasks.items():
        for arm in task.arms:
            if arm not in record.arms:
                raise ConfigError(f"tasks.{name}.arms", arm, f"arms: {', '.join(record.arms)}")
        if record.baseline not in task.arms:
            allowed = f"must hold the baseline, {record.baseline}"
            raise ConfigError(f"tasks.{name}.arms", list(task.arms), allowed)
        for arm in task.arms if task.resolved is not None else ():
            for part in ("model", "train"):
                if part not in task.resolved.get(arm, ()):
                    raise ConfigError(f"tasks.{name}.resolved.{arm}.{part}", None, "must be given")
    if not isinstance(record.config.get("study"), Mapping):
        raise ConfigError("config.study", record.config.get("study"), "must be a mapping")
    entries = record.config.get("tasks")
    if not isinstance(entries, Mapping):
        raise ConfigError("config.tasks", entries, "must be a mapping")
    for name, entry in entries.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("kind"), str):
            raise ConfigError(f"config.tasks.{name}", entry, "must be a mapping with a kind")
