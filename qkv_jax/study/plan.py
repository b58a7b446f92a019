"""What a study is: arms x tasks x learning rates x seeds, resolved and checked before any run."""

import dataclasses
import functools
import random
from collections.abc import Mapping
from typing import Any

import jax

from qkv_jax.analysis.layers import require_circuits
from qkv_jax.config import ConfigError, as_dict, build, check_plain
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.arms import Arm, same_programs, traceable, widen
from qkv_jax.study.axes import PARTS, Cell, check_arm, expand
from qkv_jax.study.claims import read_claims
from qkv_jax.study.config import (
    _FIRST_TUNE_SEED,
    PLACEBO,
    ArmEntry,
    StudyFile,
    TaskEntry,
    _check_published,
    check_budget,
)
from qkv_jax.study.names import check_apart, check_name, folded
from qkv_jax.study.rates import check_rates
from qkv_jax.study.record import ArmRecord, StudyRecord, TaskRecord
from qkv_jax.study.resolved import describe_resolved
from qkv_jax.tasks import REGISTRY, Task, make_task
from qkv_jax.tie import Tie
from qkv_jax.training.device_data import wave_shape
from qkv_jax.training.population import branch_step
from qkv_jax.training.rehearsal import first_batch, rehearse, rehearse_model
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

ALPHA = 0.05
_PLACEBO_SALT = 1
_TRACED = 200  # programs, of a larger grid, that are traced before it starts


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """A task with its arms, the baseline first; `family` is the name of the config's entry and
    `cell` the place in its grid."""

    name: str
    task: Task
    arms: tuple[Arm, ...]
    learning_rates: tuple[float, ...]
    family: str
    cell: Cell
    published: dict[str, dict[str, float]]
    branch: float = 0.0

    @property
    def baseline(self) -> Arm:
        return self.arms[0]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a task's data are.

    Attributes:
      shapes: of what `Task.load` gives.
      fingerprint, notes: of `Task`.
    """

    shapes: Any
    fingerprint: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields of a `TaskRecord` that say what they are."""
        return {"data": self.fingerprint, "data_notes": self.notes}


class Study:
    """A checked study: every (task, arm) is a `Trainer` that can be built.

    Args:
      values: the mapping a config file returns, see `StudyFile`.

    Raises:
      ConfigError: naming the field, for anything that cannot be run.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.file: StudyFile = build(StudyFile, values)
        check_plain(as_dict(self.file))  # some of it may be overridden by all that reads it
        self.config = self.file.study
        self._facts: dict[Task, Facts] = {}
        self.arm_entries = {
            name: build(ArmEntry, entry, f"arms.{name}") for name, entry in self.file.arms.items()
        }
        self._check_arms()
        check_name("name", self.file.name)
        if not self.file.tasks:
            raise ConfigError("tasks", {}, "must hold at least one task")
        for name in self.file.tasks:
            check_name("tasks", name)
        self.tasks = tuple(plan for name in self.file.tasks for plan in self._plan_family(name))
        check_apart("tasks", [plan.name for plan in self.tasks])
        for plan in self.tasks:
            check_budget(self.config, plan.name, len(plan.arms) - 1, len(plan.learning_rates))
        self._named = {(p.name, arm.name): (p, arm) for p in self.tasks for arm in p.arms}
        arms = {plan.name: (plan.task, [arm.name for arm in plan.arms]) for plan in self.tasks}
        self.claims = read_claims(self.file.claims, arms, self.config.baseline)
        self._check_measured()

    @property
    def tune_seeds(self) -> tuple[int, ...]:
        return tuple(_FIRST_TUNE_SEED + i for i in range(self.config.tune_seeds or 0))

    @property
    def eval_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.config.eval_seeds or self.config.max_seeds))

    def find(self, task: str, arm: str) -> tuple[TaskPlan, Arm]:
        """The task and arm of these names.

        Raises:
          ConfigError: if the study has none.
        """
        if (task, arm) not in self._named:
            raise ConfigError("part", f"{task}/{arm}", "the study has no such task and arm")
        return self._named[task, arm]

    def check_platform(self, platform: str | None = None) -> None:
        """Refuses models that a platform cannot compute, see `Trainer.check_platform`.

        Raises:
          ConfigError: naming task, arm and field.
        """
        for plan in self.tasks:
            for arm in plan.arms:
                try:
                    arm.trainer.check_platform(platform)
                except ConfigError as error:
                    where = f"tasks.{plan.name}, arm {arm.name!r}: {error.field}"
                    raise ConfigError(where, error.given, error.allowed) from None

    def check_data(self) -> None:
        """Reads every task's data and traces its batches and programs, so that no study stops half
        way.

        Raises:
          ConfigError: naming the field or file that is at fault.
        """
        batches: dict[tuple[Task, TrainConfig], Any] = {}
        programs: dict[tuple[Task, Trainer], str] = {}
        for plan in self.tasks:
            shapes = self.facts(plan).shapes
            for arm in plan.arms:
                where = f"tasks.{plan.name}, arm {arm.name!r}"
                programs.setdefault((plan.task, arm.trainer), where)
                if (plan.task, arm.trainer.train_config) in batches:
                    continue
                try:
                    batch = first_batch(arm.trainer, shapes)
                except ConfigError as error:
                    raise error.under(f"{where}: train") from None
                batches[plan.task, arm.trainer.train_config] = batch
        chosen = list(programs)
        if len(chosen) > _TRACED:
            chosen = random.Random(0).sample(chosen, _TRACED)
        stepped = set()
        for task, trainer in chosen:
            batch, where = batches[task, trainer.train_config], programs[task, trainer]
            trainer = traceable(trainer)
            model = trainer.model_config
            kind = (task, trainer.train_config, model.implementation, model.dtype, model.remat)
            try:
                if kind in stepped:
                    rehearse_model(trainer, batch)
                else:
                    rehearse(trainer, batch, self._facts[task].shapes)
            except ConfigError as error:
                field = f"{where}: {error.field}"
                raise ConfigError(field, error.given, error.allowed) from error
            stepped.add(kind)

    def facts(self, plan: TaskPlan) -> "Facts":
        """What the data of a task are; they are read for it once.

        Raises:
          ConfigError: naming the field or file that is at fault.
        """
        if plan.task not in self._facts:  # the cells of a grid often share their data
            try:
                data = plan.task.load()
                self._facts[plan.task] = Facts(
                    jax.eval_shape(lambda: data),
                    as_dict(plan.task.fingerprint(data)),
                    tuple(plan.task.notes(data)),
                )
            except ConfigError as error:
                raise error.under(f"tasks.{plan.name}.options") from None
        return self._facts[plan.task]

    def describe(self) -> StudyRecord:
        """What the config and the machine determine of the record, and the data, as far as they
        have been read."""
        arms: dict[str, ArmRecord] = {}
        notes: dict[str, dict[str, str]] = {}  # of an arm, by task: sizes differ between tasks
        for plan in self.tasks:
            for arm in plan.arms:
                arms.setdefault(arm.name, self._describe_arm(arm))
                notes.setdefault(arm.name, {})[plan.name] = arm.note
        for name, by_task in notes.items():
            if len(set(by_task.values())) > 1:
                note = "; ".join(f"{t}: {note}" for t, note in by_task.items())
                arms[name] = dataclasses.replace(arms[name], note=note)
        return StudyRecord(
            name=self.file.name,
            baseline=self.config.baseline,
            placebo=PLACEBO,
            alpha=ALPHA,
            protocol=self.config.protocol,
            tune_seeds=self.tune_seeds,
            eval_seeds=self.eval_seeds,
            max_runs=self.config.max_runs,
            max_minutes=self.config.max_minutes,
            wave=wave_shape(self.config.packing),
            arms=arms,
            tasks={plan.name: self._describe_task(plan) for plan in self.tasks},
            claims=self.claims,
            config=as_dict(self.file),
        )

    def _check_arms(self) -> None:
        baseline = self.config.baseline
        if baseline not in self.arm_entries:
            raise ConfigError("study.baseline", baseline, f"arms: {', '.join(self.arm_entries)}")
        for name, entry in self.arm_entries.items():
            check_name("arms", name)
            if folded(name) == PLACEBO:
                raise ConfigError("arms", name, f"{PLACEBO!r} is what the study adds itself")
            if folded(name).endswith(".csv"):
                # The rows of arm ARM are in a file ARM.csv, beside folders that are named as arms.
                raise ConfigError("arms", name, "must not end as a file's name does, with .csv")
            if entry.against:
                self._check_contrast(name, entry.against)
        check_apart("arms", self.arm_entries)

    def _check_measured(self) -> None:
        """Refuses to measure arms of which there is nothing to measure, before any is trained."""
        for key, claim in self.claims.items():
            for name, entry in claim.evidence.items():
                for arm in entry.measured_arms:
                    for task in entry.tasks:
                        try:
                            require_circuits(self._named[task, arm][1].trainer.model_config)
                        except ConfigError as error:
                            raise error.under(f"claims.{key}.evidence.{name}: {arm}") from None

    def _check_contrast(self, name: str, against: str) -> None:
        """Refuses another arm that is none, or that no task has beside this one."""
        field, baseline = f"arms.{name}.against", self.config.baseline
        if against not in self.arm_entries or against == name or baseline in (name, against):
            allowed = "must be another arm that is not the baseline"
            raise ConfigError(field, against, allowed)
        arms = (entry.get("arms") or self.arm_entries for entry in self.file.tasks.values())
        if not any({name, against} <= {*of_task} for of_task in arms):
            raise ConfigError(field, against, "no task has both of these arms")

    def _plan_family(self, name: str) -> list[TaskPlan]:
        """The tasks of one entry: one, or a cell each of its grid."""
        prefix = f"tasks.{name}"
        entry: TaskEntry = build(TaskEntry, self.file.tasks[name], prefix)
        if not entry.axes or entry.kind not in REGISTRY:
            make_task(entry.kind, entry.options, prefix)  # refuses what there is not
        for arm in entry.arms:
            if arm not in self.arm_entries:
                raise ConfigError(f"{prefix}.arms", arm, f"arms: {', '.join(self.arm_entries)}")
        _check_published(entry, entry.arms or tuple(self.arm_entries), prefix)
        cells = expand(entry.axes, REGISTRY[entry.kind], prefix)
        for arm in dict.fromkeys((self.config.baseline, *(entry.arms or self.arm_entries))):
            own = self.arm_entries[arm]
            check_arm(cells, arm, own.model, own.train, prefix)
        return [self._plan_cell(name, entry, cell) for cell in cells]

    def _plan_cell(self, family: str, entry: TaskEntry, cell: Cell) -> TaskPlan:
        name = cell.name(family)
        prefix = f"tasks.{name}"
        check_name("tasks", name)
        merged = {part: getattr(entry, part) | cell.part(part) for part in PARTS}
        entry = dataclasses.replace(entry, **merged)
        task = make_task(entry.kind, entry.options, prefix)
        baseline = self.config.baseline
        others = [n for n in self.arm_entries if n != baseline and n in (entry.arms or [n])]
        make = functools.partial(self._arm, task, entry, prefix)
        arms = [make(baseline, "baseline")]
        for other in others:
            arm, what = make(other, self.arm_entries[other].role), self.arm_entries[other].match
            arms.append(widen(arm, arms[0], what))
        arms += self._matched(arms)
        for arm in arms:
            check_name("arms", arm.name)  # with what matching has added
        check_apart("arms", [arm.name for arm in arms])
        race = self.config.protocol == "race"
        arms.append(dataclasses.replace(
            arms[0], name=PLACEBO, role="placebo", salt=_PLACEBO_SALT,
            note=f"{baseline} again, {'on other seeds' if race else 'with other initial values'}",
        ))  # fmt: skip
        rates = entry.learning_rates or self.config.learning_rates
        check_rates(rates, f"{prefix}.learning_rates")
        if entry.branch:
            self._check_branch(entry.branch, arms, prefix)
        return TaskPlan(name, task, tuple(arms), rates, family, cell, entry.published, entry.branch)

    @staticmethod
    def _check_branch(share: float, arms: list[Arm], prefix: str) -> None:
        """Refuses branches of runs that cannot have any."""
        for arm in arms:
            try:
                branch_step(arm.trainer.train_config, share)
            except ConfigError as error:
                raise error.under(prefix) from None

    def _arm(self, task: Task, entry: TaskEntry, prefix: str, name: str, role) -> Arm:
        arm = self.arm_entries[name]
        model = {**self.file.model, **entry.model, **arm.model}
        train = {**self.file.train, **entry.train, **arm.train}
        where = f"{prefix}, arm {name!r}: "
        for part, given in (("", self.file.train), (f"{prefix}.", entry.train),
                            (f"arms.{name}.", arm.train)):  # fmt: skip
            if "learning_rate" in given:
                field = f"{part}train.learning_rate"
                allowed = "the study tunes it in every cell; give learning_rates"
                raise ConfigError(field, given["learning_rate"], allowed)
        trainer = Trainer(
            build(ModelConfig, model, f"{where}model"),
            task,
            build(TrainConfig, train, f"{where}train"),
        )
        return Arm(name, role, trainer, note=arm.note)

    def _matched(self, arms: list[Arm]) -> list[Arm]:
        """Each smaller arm again, its MLP widened to the baseline's parameters or FLOPs."""
        what = self.config.match
        matched = [widen(arm, arms[0], what) for arm in arms[1:]]
        return [
            dataclasses.replace(wide, name=f"{arm.name} ({what} matched)", role="matched")
            for arm, wide in zip(arms[1:], matched, strict=True)
            if wide.trainer != arm.trainer
        ]

    def _describe_arm(self, arm: Arm) -> ArmRecord:
        ties = set(arm.trainer.model_config.ties)
        entry = self.arm_entries.get(self.config.baseline if arm.salt else arm.name)
        return ArmRecord(
            str(ties.pop()) if len(ties) == 1 else arm.trainer.model_config.tie,
            arm.role,
            arm.note,
            as_dict({"model": entry.model, "train": entry.train}) if entry else {},
            entry.against if entry and not arm.salt else "",
        )

    def _title(self, plan: TaskPlan) -> str:
        """The task's, with the name that the study gives it where another one has the same."""
        title = plan.task.title
        alike = {other.family for other in self.tasks if other.task.title == title}
        return title if len(alike) == 1 else f"{title} ({plan.family})"

    def _describe_task(self, plan: TaskPlan) -> TaskRecord:
        title, label = self._title(plan), plan.cell.label
        steps = plan.baseline.trainer.train_config.steps
        steps_of = {arm.name: arm.trainer.train_config.steps for arm in plan.arms}
        return TaskRecord(
            title=f"{title}, {label}" if label else title,
            description=plan.task.description,
            outcome=plan.task.outcome,
            steps=steps,
            steps_of={name: own for name, own in steps_of.items() if own != steps},
            same_program=same_programs(plan.arms),
            branch=plan.branch,
            arms=tuple(arm.name for arm in plan.arms),
            resolved=describe_resolved({arm.name: arm.trainer for arm in plan.arms}),
            learning_rates=plan.learning_rates,
            family=plan.family,
            family_title=title,
            cell=label,
            axes=as_dict(plan.cell.values),
            published=as_dict(plan.published),
            **(self.facts(plan).recorded if plan.task in self._facts else {}),
        )


def tie_arms(*ties: str | Tie) -> dict[str, dict]:
    """Arms of a config file, one per tie, named as it is written here."""
    return {str(tie): {"model": {"tie": str(Tie.parse(tie))}} for tie in ties}
