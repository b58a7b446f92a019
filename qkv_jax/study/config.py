"""A study file as it is given: frozen dataclasses, checked alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from qkv_jax.config import (
    ConfigError,
    require_32_bits,
    require_positive,
    settle,
)
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.axes import is_number
from qkv_jax.study.claims import Claim
from qkv_jax.study.rates import check_rates
from qkv_jax.tasks import options_class
from qkv_jax.training import costs
from qkv_jax.training.state import TrainConfig

PLACEBO = "placebo"
ProtocolName = Literal["race", "fixed"]


# Tuning seeds start here, so that no number of evaluation seeds ever reaches them.
_FIRST_TUNE_SEED = 1_000_000


_MOST_PACKED = 2**16
PILOT, FIRST_LOOK = 2, 4  # seeds of a race
# The fields that one protocol has, and their values where none are given.
_OF = {
    "race": {"max_seeds": 32, "max_runs": None, "max_minutes": None},
    "fixed": {"tune_seeds": 2, "eval_seeds": 6},
}


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The numbers of a protocol, see docs/studies.md, "How it is run"."""

    baseline: str = "separate"  # the arm that the others are compared with
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)  # the grid of every arm
    protocol: ProtocolName = "race"  # race: seeds go where nothing is decided; fixed: as given
    max_seeds: int | None = None  # of a race: the most that an arm is compared on, 32 by default
    max_runs: int | None = None  # of a race: what it may spend on a task
    max_minutes: float | None = None  # likewise, of training
    tune_seeds: int | None = None  # if fixed: runs of each rate that choose among them, 2
    eval_seeds: int | None = None  # if fixed: runs at the chosen rate, on seeds of their own, 6
    match: costs.Match = "none"  # params, flops: adds arms widened to the baseline's
    packing: int | None = None  # replicas per device; by default chosen for the backend

    def __post_init__(self):
        settle(self)
        require_positive(self, "max_seeds", "max_runs", "max_minutes", "tune_seeds", "eval_seeds",
                         "packing")  # fmt: skip
        require_32_bits(self)
        of_others = {name: defaults for name, defaults in _OF.items() if name != self.protocol}
        for protocol, defaults in of_others.items():
            for name in defaults:
                if getattr(self, name) is not None:
                    allowed = f"is of the protocol {protocol!r}; this study's is {self.protocol!r}"
                    raise ConfigError(name, getattr(self, name), allowed)
        for name, default in _OF[self.protocol].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_seeds()
        if self.packing is not None and self.packing > _MOST_PACKED:
            allowed = f"at most {_MOST_PACKED} replicas per device"
            raise ConfigError("packing", self.packing, allowed)
        check_rates(self.learning_rates)

    def _check_seeds(self) -> None:
        if self.protocol == "race":
            if not FIRST_LOOK <= self.max_seeds <= _FIRST_TUNE_SEED // 2:
                allowed = f"from {FIRST_LOOK}, the first look, to {_FIRST_TUNE_SEED // 2}"
                raise ConfigError("max_seeds", self.max_seeds, allowed)
            return
        if self.tune_seeds > _FIRST_TUNE_SEED:
            raise ConfigError("tune_seeds", self.tune_seeds, f"at most {_FIRST_TUNE_SEED}")
        if self.eval_seeds > _FIRST_TUNE_SEED:
            allowed = f"at most {_FIRST_TUNE_SEED}: tuning seeds start there"
            raise ConfigError("eval_seeds", self.eval_seeds, allowed)


def check_budget(config: StudyConfig, task: str, arms: int, rates: int) -> None:
    """Refuses a budget that does not hold the pilot and the first look of a task.

    Args:
      arms: that have runs of their own, the baseline among them; rates: of the grid.

    Raises:
      ConfigError: then.
    """
    # At a look the baseline is run at all its rates, the others at the one that leads.
    least = arms * rates * PILOT + (arms - 1 + rates) * (FIRST_LOOK - PILOT)
    if config.max_runs is not None and config.max_runs < least:
        allowed = f"{task} may take {least} runs to its first look"
        raise ConfigError("study.max_runs", config.max_runs, allowed)


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """One task of a study as the config gives it: overrides of the study's model and training.

    With `branch`, which needs `train.decay="wsd"`, a copy of every run cools down early, so that
    verdicts at a share of the steps stand beside those at all, for the price of a cooldown.

    With `axes` it stands for a grid of tasks, see `axes.py`. `published` holds numbers to print
    beside the arms' own: {column: {arm: number}}.
    """

    kind: str  # of the task, see below
    options: Annotated[dict[str, Any], options_class] = dataclasses.field(default_factory=dict)
    model: Annotated[dict[str, Any], ModelConfig] = dataclasses.field(default_factory=dict)
    train: Annotated[dict[str, Any], TrainConfig] = dataclasses.field(default_factory=dict)
    arms: tuple[str, ...] = ()  # of the study's arms; all by default
    branch: float = 0.0  # share of the steps at which copies of all runs are compared as well
    learning_rates: tuple[float, ...] = ()  # the study's by default
    axes: dict[str, Any] = dataclasses.field(default_factory=dict)  # {part: {field: values}}
    published: dict[str, Any] = dataclasses.field(default_factory=dict)  # {column: {arm: number}}


@dataclasses.dataclass(frozen=True)
class ArmEntry:
    """One arm as the config gives it: overrides, and the part it plays."""

    model: Annotated[dict[str, Any], ModelConfig] = dataclasses.field(default_factory=dict)
    train: Annotated[dict[str, Any], TrainConfig] = dataclasses.field(default_factory=dict)
    role: Literal["arm", "control"] = "arm"  # arm, or control: not part of the question
    note: str = ""  # printed below the table
    match: costs.Match = "none"  # params, flops: widen its MLP to the baseline's
    against: str = ""  # another arm that it is compared with as well, beside the baseline


@dataclasses.dataclass(frozen=True)
class StudyFile:
    """A whole study file: what `configs/*.py` return."""

    name: str  # of its folder, runs/NAME
    tasks: Annotated[dict[str, Any], dict[str, TaskEntry]]
    arms: Annotated[dict[str, Any], dict[str, ArmEntry]]
    model: Annotated[dict[str, Any], ModelConfig] = dataclasses.field(default_factory=dict)
    train: Annotated[dict[str, Any], TrainConfig] = dataclasses.field(default_factory=dict)
    study: StudyConfig = StudyConfig()
    claims: Annotated[dict[str, Any], dict[str, Claim]] = dataclasses.field(default_factory=dict)
    title: str = ""  # of the report, its largest line; by default `question`
    question: str = ""  # what the study asks, in a sentence
    part: str = ""  # what of a larger study this is, as --tasks and --arms have left it


def _check_published(entry: TaskEntry, arms: tuple[str, ...], prefix: str) -> None:
    """Refuses published numbers of arms that the entry does not run, and what is no number."""
    for column, numbers in entry.published.items():
        where = f"{prefix}.published.{column}"
        if not isinstance(numbers, Mapping):
            raise ConfigError(where, numbers, "must be a mapping from arms to numbers")
        for arm, value in numbers.items():
            if arm not in arms:
                raise ConfigError(where, arm, f"arms: {', '.join(arms)}")
            if not is_number(value) or not math.isfinite(value):
                raise ConfigError(f"{where}.{arm}", value, "must be a finite number")
