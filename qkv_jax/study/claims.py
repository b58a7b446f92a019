"""Claims as a config states them: sentences, the evidence that tests each, and the rules by which
evidence becomes a verdict, all fixed before any run.

A piece of evidence is one number per seed, an effect that is zero if there is nothing to the claim:
a difference of two arms, such a difference on one task less that on another or far less near, an
arm's score less a level, or a measure of its trained models less that of the untrained ones or of
another arm's. A null should be one that somebody might hold: a measure is tested against models
that have learned nothing in the place where it looks, and not against a value that no network has.

A claim is tested on kinds of task. Of its tests on one kind, cells of a grid for the most part, the
strongest counts, corrected for their number; its verdict is about how many kinds it holds on. The
tests are in `protocol/ledger.py`, what they come to in `protocol/judgements.py`.
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
RULES = 2  # 1 counted tests; raised with every change of how evidence becomes a verdict

# What has no meaning beside a field.
_BESIDE = {
    "measure": ("near", "level"), "level": ("against", "near", "measure", "minus_task"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One test. `None` and the empty text stand for "not used", or for what the comment says.

    The effect is the cost of `arm` over `against`, in the metric of `task`, positive where the arm
    is worse; less the same on `minus_task`; or that in the groups of test examples from `far` on,
    less that in those up to `near`. With `measure` it is the measure of the arm's trained models,
    above `null`, above that of the trained models of `against`, or above the untrained models.

    With `level` it is whether seeds reach that level. It is a control, and no test of a mean: it
    comes out as expected where most of all seeds, not only of those seen, are shown to reach it
    (`above`) or to fall short of it (`below`), one-sided by the binomial distribution, and is
    refuted where the opposite is shown. So the lower Clopper-Pearson limit of their share must be
    above one half: 5 of 5, 6 of 6, 9 of 10. That every seed reaches it is nothing that seeds can
    show (6 of 6 leave up to 39 % failing), and a mean over seeds that fall apart into two heaps
    says less than a majority does.
    """

    task: str
    arm: str
    expect: Expect
    against: str = ""  # the study's baseline; of a measure, no arm
    minus_task: str = ""
    near: int | None = None
    far: int | None = None
    level: float | None = None
    measure: str = ""
    null: float | None = None  # the untrained model's value, seed by seed
    margin: float | None = None  # the task's; effects below it do not matter
    control: bool = False  # if it is refuted, its claim has no verdict
    kind: str = ""  # of task: its entry in the config, which all cells of a grid share

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
        for kind, others in _BESIDE.items() if absolute else ():
            for name in others if getattr(self, kind) not in ("", None) else ():
                if (given := getattr(self, name)) not in ("", None):
                    raise ConfigError(name, given, f"has no meaning beside {kind}")
        if self.level is not None and not self.control:
            raise ConfigError("control", self.control, "a level is read off, not tested: a control")
        if self.null is not None and not self.measure:
            raise ConfigError("null", self.null, "is the null of a measure, which is not given")
        if self.null is not None and self.against:
            raise ConfigError("against", self.against, f"has no meaning beside null = {self.null}")
        if self.kind and not (self.kind.strip() and self.kind.isprintable()):
            raise ConfigError("kind", self.kind, "must be one line of signs that can be seen")

    @property
    def measured_arms(self) -> tuple[str, ...]:
        """Those whose trained models are measured."""
        return tuple(filter(None, (self.arm, self.against))) if self.measure else ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task, self.minus_task) if self.minus_task else (self.task,)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim, judged by on how many of its kinds of task tests are for it and against it.

    `supported` if tests are for it on a share `enough` of them and against it on none, `refuted`
    the other way round, `depends` if they are for it on some and against it on some; else
    `undecided`, and so if one of its controls is refuted. A control that is merely open stands
    in no verdict's way. For all claims of a study together, the chance of any that is false is at
    most alpha; see `protocol/judgements.py`.
    """

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

    def needed(self, kinds: int) -> int:
        """How many of so many kinds of task make up the share."""
        return math.ceil(round(self.enough * kinds, 9))


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
        if entry.measure and task.is_seq2seq:
            allowed = "models with cross-attention are not measured"
            raise ConfigError(f"{where}.{field}", given, allowed)
        if not entry.measure and task.outcome.kind != "mean":
            raise ConfigError(f"{where}.{field}", given, "its outcome must be 'mean', not 'solve'")
    rival = entry.against if entry.measure else entry.against or baseline
    if entry.arm == rival and entry.level is None:
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
