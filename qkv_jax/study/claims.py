"""Claims as a config states them: sentences, the evidence that tests each, and the rules by which
evidence becomes a verdict, all fixed before any run.

A piece of evidence is one number per seed, an effect that is zero if there is nothing to the claim:
a difference of two arms, such a difference on one task less that on another or far less near, an
arm's score less a level, or a measure of its trained models less that of the untrained ones. The
tests are in `ledger.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from qkv_jax import arguments
from qkv_jax.config import ConfigError, build, require_positive, settle
from qkv_jax.study.measures import MEASURES
from qkv_jax.tasks import Task

Expect = Literal["worse", "better", "equivalent", "above", "below"]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One test. `None` and the empty text stand for "not used", or for what the comment says.

    The effect is the cost of `arm` over `against`, in the metric of `task`, positive where the arm
    is worse; less the same on `minus_task`; or that in the groups of test examples from `far` on,
    less that in those up to `near`. With `level` it is whether every seed's score reaches that
    level (`above`) or falls short of it (`below`). With
    `measure` it is the measure of the arm's models, above `null` or above the untrained models.
    """

    task: str
    arm: str
    expect: Expect
    against: str = ""  # the study's baseline
    minus_task: str = ""
    near: int | None = None
    far: int | None = None
    level: float | None = None
    measure: str = ""
    null: float | None = None  # the untrained model's value, seed by seed
    margin: float | None = None  # the task's; effects below it do not matter
    control: bool = False  # must come out as expected for the claim to have a verdict at all

    def __post_init__(self):
        settle(self)
        require_positive(self, "margin")
        absolute = self.measure or self.level is not None
        allowed = ("above", "below", *["equivalent"] * bool(self.measure)) if absolute else (
            "worse", "better", "equivalent",
        )  # fmt: skip
        arguments.word("expect", self.expect, allowed)
        if (self.near is None) != (self.far is None):
            raise ConfigError("near", self.near, "near and far are given together")
        if self.near is not None and self.near >= self.far:
            raise ConfigError("near", self.near, f"must be below far = {self.far}")
        if self.measure:
            arguments.word("measure", self.measure, MEASURES)
            if self.margin is None:
                raise ConfigError("margin", None, "evidence from a measure states its own")
        other = {"against": self.against, "near": self.near, "level": self.level}
        kind = "measure" if self.measure else "level" if self.level is not None else ""
        for name, given in other.items() if kind else ():
            if name != kind and given not in ("", None):
                raise ConfigError(name, given, f"has no meaning beside {kind}")
        if kind == "level" and self.minus_task:
            raise ConfigError("minus_task", self.minus_task, "has no meaning beside level")
        if kind == "level" and not self.control:
            raise ConfigError("control", self.control, "a level is read off, not tested: a control")
        if self.null is not None and not self.measure:
            raise ConfigError("null", self.null, "is the null of a measure, which is not given")

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, self.minus_task) if self.minus_task else (self.task,)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: `supported` once a share `enough` of its evidence comes out as expected and none
    against, `refuted` the other way round, and where some is for and some against it `depends`.
    Anything else is `undecided`, and so is a claim one of whose controls fails."""

    text: str
    evidence: Annotated[dict[str, Any], dict[str, Evidence]]  # by what it would depend on
    enough: float = 1.0

    def __post_init__(self):
        entries = {
            name: build(Evidence, entry, f"evidence.{name}")
            for name, entry in self.evidence.items()
        }
        object.__setattr__(self, "evidence", entries)
        tests = [entry for entry in entries.values() if not entry.control]
        if not tests:
            raise ConfigError("evidence", {}, "must hold at least one that is no control")
        if not 0 < self.enough <= 1:
            raise ConfigError("enough", self.enough, "is a share: above 0, at most 1")

    @property
    def needed(self) -> int:
        """How many tests make up the share."""
        tests = sum(not entry.control for entry in self.evidence.values())
        return math.ceil(round(self.enough * tests, 9))


def read_claims(
    claims: Mapping[str, Any], tasks: Mapping[str, tuple[Task, Sequence[str]]], baseline: str
) -> dict[str, Claim]:
    """The claims of a study file.

    Args:
      claims: {key: fields of `Claim`}.
      tasks: {name: (task, names of its arms)} of the study, a cell of a grid each.
      baseline: the arm that evidence is against by default.

    Raises:
      ConfigError: naming the field, for claims that the study cannot test.
    """
    found = {key: build(Claim, entry, f"claims.{key}") for key, entry in claims.items()}
    for key, claim in found.items():
        for name in (key, *claim.evidence):
            if not name.strip() or not name.isprintable():
                field = "claims" if name == key else f"claims.{key}.evidence"
                raise ConfigError(field, name, "must be one line of signs that can be seen")
        for name, entry in claim.evidence.items():
            _check(entry, tasks, baseline, f"claims.{key}.evidence.{name}")
    return found


def _check(entry: Evidence, tasks, baseline: str, where: str) -> None:
    for field in ("task", "minus_task"):
        given = getattr(entry, field)
        if not given:
            continue
        if given not in tasks:
            raise ConfigError(f"{where}.{field}", given, f"this study has: {'; '.join(tasks)}")
        task, arms = tasks[given]
        for side in ("arm", "against"):
            arm = getattr(entry, side) or baseline
            if arm not in arms:
                raise ConfigError(f"{where}.{side}", arm, f"{given} has: {', '.join(arms)}")
        if not entry.measure and task.outcome.kind != "mean":
            raise ConfigError(f"{where}.{field}", given, "its outcome must be 'mean', not 'solve'")
    if entry.arm == (entry.against or baseline) and not entry.measure and entry.level is None:
        raise ConfigError(f"{where}.arm", entry.arm, "is compared with itself; name another")
    if entry.minus_task and not entry.measure:
        units = [dataclasses.astuple(tasks[name][0].outcome)[1:3] for name in entry.tasks]
        if units[0] != units[1]:
            allowed = f"must have the metric and unit of {entry.task}: {', '.join(units[0])}"
            raise ConfigError(f"{where}.minus_task", entry.minus_task, allowed)
    if entry.near is not None:
        for name in entry.tasks:
            if type(tasks[name][0]).breakdown is Task.breakdown:
                allowed = f"{name} does not tell its test examples apart"
                raise ConfigError(f"{where}.near", entry.near, allowed)
