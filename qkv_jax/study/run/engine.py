"""Runs a study, round by round and wave by wave; interrupted at any point, it goes on where it
stopped, within a wave as well, and ends with equal tables."""

import dataclasses
import itertools
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import pandas as pd

import qkv_jax
from qkv_jax.config import as_dict
from qkv_jax.runtime.compiled import seconds_compiling
from qkv_jax.runtime.files import json_text
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.measures import MEASURE_COLUMNS, measure
from qkv_jax.study.plan import Arm, Study, TaskPlan
from qkv_jax.study.protocol.breakdown import read_breakdown
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.rounds import Part, expected, rounds, wave_count
from qkv_jax.study.record import KEY, Machine, Start, StudyRecord
from qkv_jax.study.run.outcomes import summary_of
from qkv_jax.study.run.rows import run_row
from qkv_jax.study.run.workdir import Workdir, now_text
from qkv_jax.tasks import Data, Task
from qkv_jax.tasks.base import Reference
from qkv_jax.tasks.fingerprint import check_same_data
from qkv_jax.training import costs
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunResult, RunSpec
from qkv_jax.training.programs import programs_of
from qkv_jax.training.wave_checkpoints import WaveSaves

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "statsmodels")


@dataclasses.dataclass
class Progress:
    """What a display needs to know; handed to the listener after every report and wave."""

    task: str = ""
    arm: str = ""
    round: str = ""
    doing: str = ""  # see `due.Kind`, as `compares`
    compares: bool = False
    step: int = 0  # of the wave in progress
    steps: int = 0
    waves_done: int = 0
    waves_total: int = 0  # grows when a grid is extended
    wave_finished: bool = False
    arm_finished: bool = False


Listener = Callable[[Progress], None]


def this_machine() -> Machine:
    """The devices of this process."""
    return Machine(tuple(str(device) for device in jax.local_devices()), jax.default_backend())


def this_start() -> Start:
    """The packages of this process."""
    packages = {"qkv_jax": qkv_jax.__version__, "python": platform.python_version()}
    return Start(now_text(), packages | {name: version(name) for name in _PACKAGES})


def write_costs(study: Study, workdir: Workdir) -> None:
    """What each arm costs, but for its time: that is measured."""
    table = {
        plan.name: {arm.name: dataclasses.asdict(costs.measure(arm.trainer)) for arm in plan.arms}
        for plan in study.tasks
    }
    workdir.write("costs.json", json_text(table))


class Engine:
    """One study in one folder.

    Args:
      study: what to run.
      workdir: an opened `Workdir`.
      record: as `Workdir.open` returned it.
      listener: is called with every event.
      stop_signal: says when to save a wave under way and when to stop.
    """

    def __init__(
        self,
        study: Study,
        workdir: Workdir,
        record: StudyRecord,
        listener: Listener,
        stop_signal: StopSignal | None = None,
    ):
        self.study, self.workdir, self.listener = study, workdir, listener
        self.stop_signal = stop_signal or StopSignal()
        self.runs = workdir.runs()
        self.done = {tuple(row) for row in self.runs[list(KEY)].itertuples(index=False)}
        self.populations: dict[Any, Population] = {}
        self._loaded: tuple[Task, Data, DeviceData] | None = None
        self.progress = Progress()
        self._started, self._before = time.monotonic(), record.seconds or 0.0
        self._compiled = (record.compiling or 0.0) - seconds_compiling()
        machine = record.machine or this_machine()
        self.record = dataclasses.replace(
            record, versions=(*record.versions, this_start()), devices=machine.devices,
            platform=machine.platform, started=record.started or now_text(),
        )  # fmt: skip

    def run(self) -> None:
        """Runs what is missing; what it comes to is left to `outcomes.write_tables`.

        Raises:
          ConfigError: if a task's data are not those that the study was started with.
          Interrupted: when the stop signal says so; the folder holds all that was done.
        """
        self._check_data()
        self.workdir.write_study(self.record)
        write_costs(self.study, self.workdir)
        surely = {
            (plan.name, found.name): wave_count(self.record, found.parts)
            for plan in self.study.tasks
            for found in expected(self.record, plan.name)
        }
        self.progress.waves_total = sum(surely.values())
        for plan in self.study.tasks:
            self.stop_if_asked()
            self._describe_data(plan)
            for found in rounds(self.record, plan.name, lambda: self.runs):
                if (plan.name, found.name) not in surely:
                    self.progress.waves_total += wave_count(self.record, found.parts)
                for part in found.parts:
                    trained = self.run_part(part)
                    if trained and part.kind.compares:
                        self._write_time()
                        self._report(part, arm_finished=True)
            self.populations.clear()  # compiled programs and data of this task
            programs_of.cache_clear()
            self._write_measures(plan)
        self.record = dataclasses.replace(self.record, complete=True)
        self.workdir.write_study(self.record)

    def run_part(self, part: Part) -> bool:
        """Runs what is missing of one arm's share of a round, and says whether anything was; what
        the study writes as a whole is left to the process that handed it out.

        Raises:
          Interrupted: as `run`.
        """
        plan, arm = self.study.find(part.task, part.arm)
        trained = False
        for keys in part.waves(self.record):
            self.stop_if_asked()  # where nothing is missing as well: there may be many of them
            wave = [RunSpec(rate, seed, arm.salt) for rate, seed in keys]
            key = lambda run: part.key(run.learning_rate, run.seed)
            missing = [run for run in wave if key(run) not in self.done]
            folder = self.workdir.wave_folder(plan.name, arm, wave[0])
            with WaveSaves(folder, wave, self.stop_signal) as saves:
                if missing:
                    trained = True
                    self._report(part)
                    finished = self._train(part, plan, arm, wave, self._on_devices(plan), saves)
                    rows = [
                        run_row(plan, arm, part, run, done)
                        for run, done in zip(wave, finished, strict=True)
                        if run in missing
                    ]
                    self._add(rows)
                saves.remove()  # of a wave that was over as well, when the process died
            self.progress.waves_done += 1
            if missing:
                self._report(part, wave_finished=True)
        return trained

    def summary(self, task: str) -> pd.DataFrame:
        """The summary of what has been run so far of a task."""
        return summary_of(self.workdir, self._in_force(task), self.runs)

    def _in_force(self, task: str) -> StudyRecord:
        """The record of one task, with the margin that is in force."""
        return in_force(self.record.only(task), self.runs)

    def _write_measures(self, plan: TaskPlan) -> None:
        """What the claims ask of the trained models of a task, in place of what was known."""
        if not self.study.claims:
            return
        known = self.workdir.table("measures.csv")
        rows = {other.name: [] for other in self.study.tasks}
        for row in [] if known is None else known.to_dict("records"):
            rows[row["task"]].append(row)
        rows[plan.name] = self._measure(plan)
        table = pd.DataFrame(itertools.chain(*rows.values()), columns=MEASURE_COLUMNS)
        self.workdir.write("measures.csv", table.to_csv(index=False))

    def _measure(self, plan: TaskPlan) -> list[dict]:
        """What the claims ask of the trained models of a task."""
        wanted: dict[str, list[str]] = {}
        for claim in self.study.claims.values():
            for entry in claim.evidence.values():
                for arm in entry.measured_arms if plan.name in entry.tasks else ():
                    wanted.setdefault(arm, []).append(entry.measure)
        done = evaluations(self._in_force(plan.name), self.runs)
        self._on_devices(plan)
        rows = []
        for arm in (arm for arm in plan.arms if arm.name in wanted):
            mine = done[plan.name, arm.name]
            for seed, status in zip(mine.seeds, mine.status, strict=False):
                self.stop_if_asked()
                if status != "done":
                    continue
                params = self.workdir.params(plan.name, arm.name, mine.rate, seed)
                names = dict.fromkeys(wanted[arm.name])
                found = measure(arm.trainer, seed, arm.salt, params, self._loaded[1].test, names)
                for name, (trained, untrained) in found.items():
                    values = (plan.name, arm.name, seed, name, trained, untrained)
                    rows.append(dict(zip(MEASURE_COLUMNS, values, strict=True)))
        return rows

    def _check_data(self) -> None:
        """Takes note of what the data of all tasks are, before anything is trained on any."""
        for plan in self.study.tasks:
            self.stop_if_asked()
            facts = self.study.facts(plan)
            self._check_same(plan, facts.fingerprint)
            self.record = self.record.with_task(plan.name, **facts.recorded)

    def _check_same(self, plan: TaskPlan, fingerprint: dict) -> None:
        known = self.record.tasks[plan.name].data
        check_same_data(known, fingerprint, f"tasks.{plan.name}", "this study")

    def _on_devices(self, plan: TaskPlan) -> DeviceData:
        # Cells of a grid that differ in model or training alone share their data.
        if self._loaded is None or self._loaded[0] != plan.task:
            self._loaded = None  # frees the devices first
            data = plan.task.load()
            # They may have changed in the hours since the study began.
            self._check_same(plan, as_dict(plan.task.fingerprint(data)))
            self._loaded = plan.task, data, DeviceData(data)
        return self._loaded[2]

    def _describe_data(self, plan: TaskPlan) -> None:
        """Writes down what a task says of its data for the report, if that is not there yet."""
        known = self.record.tasks[plan.name].references is not None
        if known and len(self.runs) and (self.runs["task"] == plan.name).any():
            return
        self._on_devices(plan)
        data = self._loaded[1]
        self.workdir.write_breakdown(plan.name, read_breakdown(plan.task, data, plan.name))
        if self.record.tasks[plan.name].references is None:
            references = self._references(plan, data)
            self.record = self.record.with_task(plan.name, references=references)
            self.workdir.write_study(self.record)

    def _references(self, plan: TaskPlan, data: Data) -> tuple[Reference, ...]:
        """Other methods' scores, worked out once for all cells with the same data."""
        for other in self.study.tasks:
            known = self.record.tasks[other.name].references
            if known is not None and other.task == plan.task:
                return known
        return tuple(
            dataclasses.replace(reference, value=float(reference.value))
            for reference in plan.task.references(data)
        )

    def _add(self, rows: list[dict]) -> None:
        self.workdir.append_runs(rows)
        self.done |= {tuple(row[name] for name in KEY) for row in rows}
        new = pd.DataFrame(rows)
        self.runs = pd.concat([self.runs, new], ignore_index=True) if len(self.runs) else new

    def stop_if_asked(self) -> None:
        """Ends the study here if that is asked for; the folder holds all that was done.

        Raises:
          Interrupted: then.
        """
        if self.stop_signal.poll().stop:
            self._write_time()
            raise self.stop_signal.interruption()

    def _write_time(self) -> None:
        seconds = self._before + time.monotonic() - self._started
        compiling = self._compiled + seconds_compiling()
        self.record = dataclasses.replace(self.record, seconds=seconds, compiling=compiling)
        self.workdir.write_study(self.record)

    def _train(
        self,
        part: Part,
        plan: TaskPlan,
        arm: Arm,
        wave: list[RunSpec],
        data: DeviceData,
        saves: WaveSaves,
    ) -> list[RunResult | None]:
        """One wave; None for every run of it if the program itself failed."""
        try:
            population = self._population(arm, data)
            report = lambda step: self._report(part, step=step)
            finished = population.train(
                wave, test=part.kind.tested, branch=plan.branch, on_report=report, saves=saves
            )
        except Interrupted:
            self._write_time()
            raise
        except jax.errors.JaxRuntimeError as error:
            name = f"{part.round}_lr{wave[0].learning_rate:g}_seed{wave[0].seed}"
            self.workdir.write(f"failures/{plan.name}/{arm.name}/{name}.txt", str(error))
            return [None] * len(wave)
        for done in finished:
            self.workdir.save_run(plan.name, arm, done)
        return finished

    def _population(self, arm: Arm, data: DeviceData) -> Population:
        # The placebo is the baseline's program with another salt: no second compilation.
        if arm.trainer not in self.populations:
            packing = self.record.wave["packing"]
            self.populations[arm.trainer] = Population(arm.trainer, data, packing=packing)
        return self.populations[arm.trainer]

    def _report(self, part: Part, **event: Any) -> None:
        fresh = {"step": 0, "wave_finished": False, "arm_finished": False} | event
        _, arm = self.study.find(part.task, part.arm)
        self.progress = dataclasses.replace(
            self.progress,
            task=part.task,
            arm=part.arm,
            round=part.round,
            doing=part.kind.doing,
            compares=part.kind.compares,
            steps=arm.trainer.train_config.steps,
            **fresh,
        )
        self.listener(self.progress)
