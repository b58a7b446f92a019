"""A study's folder: what is written, in which order, and how it is read back.

    study.json        what is studied and on what; written first
    runs.csv          one row per run; a row is appended only after the run's other files are there
    parts/            TASK/ARM.csv: likewise, of the jobs of a cluster, until runs.csv has them
    cluster/          jobs.json and the jobs' logs, see `cluster.py`
    waves/            TASK/ARM/...: checkpoints of the wave under way, gone when its rows are there
    .lock             held by the process that writes here; goes with it
    curves/           TASK/ARM/lrRATE_seedSEED.csv: step, train_loss, value (validation)
    examples/         TASK/ARM/lrRATE_seedSEED.npy: the metric of every test example
    checkpoints/      TASK/ARM/lrRATE_seedSEED.safetensors: final parameters of runs that are tested
    events/           TASK/ARM/lrRATE_seedSEED/: curves of these runs for TensorBoard
    branches/         TASK/ARM/lrRATE_seedSEED.json: scores of copies of runs that branched off
    costs.json, summary.csv, report.html, report.md, figures/, tables/
    families.csv      averages over the cells of tasks with axes, where there are such
    groups/           TASK.json: the group of each test example, of tasks that tell them apart
    branches.csv      verdicts on such copies
    breakdown.csv     scores by such groups
    measures.csv      what the claims ask of trained models, where the study states claims
    claims.csv, claims.json: the ledger of these claims

Whole files are replaced atomically and are on the disk before the row that stands for them; a row
cut off by a crash is dropped and its run is repeated.
"""

import contextlib
import dataclasses
import datetime
import difflib
import io
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import pandas as pd
import safetensors.numpy

from qkv_jax.config import ConfigError, first_difference
from qkv_jax.runtime.events import Events
from qkv_jax.runtime.files import folder_lock, foreign_files, json_text, write_whole
from qkv_jax.study.dating import amended, amendments, dated, refuse_amendments
from qkv_jax.study.plan import Arm
from qkv_jax.study.record import FORMAT, Accepted, StudyRecord, TaskRecord
from qkv_jax.study.resolved import changes, refuse_changes
from qkv_jax.study.run.rows import append_runs, read_parts
from qkv_jax.study.run.tables import read_checked, read_file, read_points, read_table
from qkv_jax.tasks.base import Breakdown
from qkv_jax.tasks.fingerprint import check_same_data
from qkv_jax.training.population import RunResult, RunSpec

# Fields of a record that the config and the machine determine, each time anew.
_ASKED = (
    "name", "baseline", "placebo", "alpha", "protocol", "tune_seeds", "eval_seeds", "max_runs",
    "max_minutes", "wave", "arms", "claims", "config",
)  # fmt: skip
BRANCH_SCORES = ("validation", "test")
_BUDGET = ("max_runs", "max_minutes")
_MOST_POINTS = 100  # of a curve that numbers are read off


class Workdir:
    """The folder of one study, opened for writing (and resuming) or for reading."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    @property
    def study_file(self) -> pathlib.Path:
        return self.path / "study.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing here; to be locked from before `open` to the end.

        Raises:
          ConfigError: if another process holds it, or the folder holds other files or is read-only.
        """
        self._refuse_other_files()
        with folder_lock(self.path):
            yield

    def _refuse_other_files(self) -> None:
        if self.study_file.exists() or not self.path.exists():
            return
        if not self.path.is_dir() or foreign_files(self.path, self.study_file.name):
            raise ConfigError("workdir", str(self.path), "holds other files; name a new folder")

    def open(self, asked: StudyRecord) -> StudyRecord:
        """Starts the folder, or picks up the same study where it stopped; the record of it.

        A finished study may be given more seeds, and a race more to spend.

        Raises:
          ConfigError: if the folder holds another study or other files, or was started on other
            devices, if fewer seeds are asked for than were run, or more before it is finished; if
            its configs are resolved to others.
        """
        self._refuse_other_files()
        if not self.study_file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            started = dataclasses.replace(asked, looks=(len(asked.eval_seeds),))
            started = dated(started, now_text())
            self.write_study(started)
            return started
        known = self.read_same(asked)
        refuse_changes(changes(known, asked))
        refuse_amendments(amendments(known, asked))
        before, now = known.looks[-1], len(asked.eval_seeds)
        seeds = "study.max_seeds" if asked.protocol == "race" else "study.eval_seeds"
        if now < before:
            allowed = f"the study in {self.path} has {before}; seeds can only be added"
            raise ConfigError(seeds, now, allowed)
        if now > before and not known.complete:
            allowed = f"finish the study in {self.path} with {before} seeds first, then add more"
            raise ConfigError(seeds, now, allowed)
        more = any(getattr(asked, name) != getattr(known, name) for name in _BUDGET)
        resumed = dataclasses.replace(
            known,
            looks=known.looks if now == before else (*known.looks, now),
            complete=known.complete and now == before and not more,
            tasks={n: _with_facts(task, known.tasks[n]) for n, task in asked.tasks.items()},
            **{name: getattr(asked, name) for name in _ASKED},
        )
        self.write_study(resumed)
        return resumed

    def accept_changes(self, asked: StudyRecord) -> None:
        """Takes note of what the configs of the study in this folder, if there is one, are resolved
        to now, and that this or its claims are other things than at its start: `open` then goes on
        with them.

        Raises:
          ConfigError: as `read_same`.
        """
        if not self.study_file.exists():
            return
        known = self.read_same(asked)
        if changed := changes(known, asked):
            accepted = *known.accepted, Accepted(now_text(), tuple(changed))
            for name, task in asked.tasks.items():
                known = known.with_task(name, resolved=task.resolved)
            known = dataclasses.replace(known, accepted=accepted)
        now = amended(known, asked, now_text())
        if changed or now is not known:
            self.write_study(now)

    def read_same(self, asked: StudyRecord) -> StudyRecord:
        """The record of the same study, on the same data as far as they are known, started on the
        same devices.

        Raises:
          ConfigError: if it is another one.
        """
        known = self.read_study()
        if _identity(known) != _identity(asked):
            different = first_difference(_identity(known), _identity(asked))
            allowed = f"holds another study ({different}); name another folder"
            raise ConfigError("workdir", str(self.path), allowed)
        for name, task in asked.tasks.items():
            before = known.tasks[name].data
            check_same_data(before, task.data, f"tasks.{name}", f"the study in {self.path}")
        if known.wave != asked.wave:
            # Other waves give other sums: the tables would no longer be those of one study.
            allowed = (
                f"was started with waves of {known.wave}, this machine makes {asked.wave}; "
                "use the same devices and packing"
            )
            raise ConfigError("workdir", str(self.path), allowed)
        return known

    def read_study(self) -> StudyRecord:
        """What study.json says.

        Raises:
          ConfigError: if there is none or it cannot be read; naming the field that is at fault.
        """
        try:
            found = json.loads(self.study_file.read_text(encoding="utf-8"))
        except OSError as error:
            none = isinstance(error, FileNotFoundError) and self.path.is_dir()
            why = "it holds no study.json" if none else error.strerror
            allowed = f"no study there: {why}{self._meant()}"
            raise ConfigError("workdir", str(self.path), allowed) from None
        except ValueError as error:
            raise ConfigError(str(self.study_file), "damaged JSON", str(error)) from None
        if not isinstance(found, dict) or "format" not in found:
            raise ConfigError(str(self.study_file), "other JSON", "a study's has the field format")
        if found["format"] != FORMAT:
            allowed = f"was written by another version of qkv_jax; this one reads format {FORMAT}"
            raise ConfigError(f"{self.study_file}: format", found["format"], allowed)
        try:
            return StudyRecord.read(found)
        except ConfigError as error:
            field = f"{self.study_file}: {error.field}"
            raise ConfigError(field, error.given, error.allowed) from None

    def _meant(self) -> str:
        """The folder of a study beside this one that may have been meant."""
        there_are = (file.parent.name for file in self.path.parent.glob("*/study.json"))
        near = difflib.get_close_matches(self.path.name, there_are, n=1)
        return f"; did you mean {str(self.path.with_name(near[0]))!r}?" if near else ""

    def write_study(self, record: StudyRecord) -> None:
        self.write("study.json", json_text(record.as_dict()))

    def runs(self) -> pd.DataFrame:
        """runs.csv, and what jobs of a cluster have appended to files of their own, without last
        rows that a crash cut off, or that are being written just now.

        Nothing is changed: other processes may be appending.
        """
        return read_parts(self.path)

    def append_runs(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to the whole ones in one write and waits until the disk has them."""
        append_runs(self.path / "runs.csv", rows)

    def save_run(self, task: str, arm: Arm, done: RunResult) -> None:
        """The files of a run; its row comes after."""
        curve = pd.DataFrame(
            {"step": done.steps, "train_loss": done.train_loss, "value": done.value}
        )
        stem = f"{task}/{arm.name}/{_run_name(done.run.learning_rate, done.run.seed)}"
        self.write(f"curves/{stem}.csv", curve.to_csv(index=False))
        if done.scores is not None:
            scores = io.BytesIO()
            np.save(scores, done.scores.astype(np.float32))
            self.write(f"examples/{stem}.npy", scores.getvalue())
            leaves = flax.traverse_util.flatten_dict(done.params, sep="/")
            flat = {path: np.asarray(leaf) for path, leaf in leaves.items()}  # scalars too
            self.write(f"checkpoints/{stem}.safetensors", safetensors.numpy.save(flat))
            self._write_events(self.path / "events" / stem, curve)
        if done.branch is not None:
            scores = dict(zip(BRANCH_SCORES, done.branch, strict=True))
            self.write(f"branches/{stem}.json", json_text(scores))

    def wave_folder(self, task: str, arm: Arm, first: RunSpec) -> pathlib.Path:
        """Where the wave that begins with a run keeps its checkpoints while it is under way."""
        name = _run_name(first.learning_rate, first.seed)
        return self.path / "waves" / task / arm.name / name

    def curve(self, task: str, arm: str, learning_rate: float, seed: int) -> pd.DataFrame | None:
        """step, train_loss, value; None if the run has no curve."""
        file = self._curve(task, arm, learning_rate, seed)
        return read_file(file, read_table) if file.exists() else None

    def points(self, task: str, arm: str, learning_rate: float, seed: int) -> np.ndarray | None:
        """[2, P] steps and values of a curve, a long one thinned; None if the run has none."""
        file = self._curve(task, arm, learning_rate, seed)
        if not file.exists():
            return None
        return read_file(file, lambda file: read_points(file, _MOST_POINTS))

    def _curve(self, task: str, arm: str, learning_rate: float, seed: int) -> pathlib.Path:
        return self.path / "curves" / task / arm / f"{_run_name(learning_rate, seed)}.csv"

    def branch(self, task: str, arm: str, learning_rate: float, seed: int) -> dict | None:
        """{validation, test} of the copy of a run that branched off; None if it has none."""
        name = f"{_run_name(learning_rate, seed)}.json"
        file = self.path / "branches" / task / arm / name
        if not file.exists():
            return None
        found = read_file(file, lambda file: json.loads(file.read_text(encoding="utf-8")))
        return {name: math.nan if found[name] is None else found[name] for name in BRANCH_SCORES}

    def examples(
        self, task: str, arm: str, learning_rate: float, seeds: Iterable[int]
    ) -> np.ndarray | None:
        """Test scores [seeds, examples]; None unless all seeds have them."""
        folder = self.path / "examples" / task / arm
        files = [folder / f"{_run_name(learning_rate, seed)}.npy" for seed in seeds]
        if not files or not all(file.exists() for file in files):
            return None
        return np.stack([read_file(file, np.load) for file in files])

    def table(self, name: str) -> pd.DataFrame | None:
        """The summary or one of the tables beside it, as it was written: names are texts, also
        "None", "NA" or "01"; None if the study has none.

        Raises:
          ConfigError: naming a file that is damaged.
        """
        file = self.path / name
        if not file.exists():
            return None
        return read_checked(file)

    def write_breakdown(self, task: str, breakdown: Breakdown | None) -> None:
        """Keeps how a task tells its test examples apart, for the tables."""
        if breakdown is None:
            self._groups(task).unlink(missing_ok=True)
        else:
            text = json_text(dataclasses.asdict(breakdown))
            self.write(str(self._groups(task).relative_to(self.path)), text)

    def breakdowns(self, tasks: Iterable[str]) -> dict[str, Breakdown]:
        """Those of the tasks that have one."""
        files = {task: self._groups(task) for task in tasks}
        read = lambda file: Breakdown(**json.loads(file.read_text(encoding="utf-8")))
        return {task: read_file(file, read) for task, file in files.items() if file.exists()}

    def _groups(self, task: str) -> pathlib.Path:
        return self.path / "groups" / f"{task}.json"

    def params(self, task: str, arm: str, learning_rate: float, seed: int) -> dict:
        """Final parameters of a run that was tested.

        Raises:
          ConfigError: if there are none.
        """
        name = f"{_run_name(learning_rate, seed)}.safetensors"
        file = self.path / "checkpoints" / task / arm / name
        if not file.exists():
            allowed = f"no such checkpoint: {file}; runs that are tested keep theirs"
            raise ConfigError("seed", seed, allowed)
        flat = read_file(file, lambda file: safetensors.numpy.load(file.read_bytes()))
        return flax.traverse_util.unflatten_dict(flat, sep="/")

    @staticmethod
    def _write_events(folder: pathlib.Path, curve: pd.DataFrame) -> None:
        """The curve for TensorBoard. Steps stand for wall times, so that reruns write the same."""
        shutil.rmtree(folder, ignore_errors=True)
        with Events(folder) as events:
            for step, loss, value in curve.itertuples(index=False):
                events.add("train/loss", loss, step, time=float(step))
                events.add("validation/value", value, step, time=float(step))

    def write(self, name: str, content: str | bytes) -> None:
        """Writes or replaces a file as a whole: a crash leaves the old one or the new one."""
        write_whole(self.path / name, content)


def now_text() -> str:
    """The time as records have it."""
    return datetime.datetime.now().isoformat(timespec="seconds")


def _run_name(learning_rate: float, seed: int) -> str:
    return f"lr{learning_rate:g}_seed{seed}"


def _with_facts(task: TaskRecord, known: TaskRecord) -> TaskRecord:
    """With what was worked out from the data, once."""
    names = [name for name in ("references", "data", "data_notes") if getattr(task, name) is None]
    return dataclasses.replace(task, **{name: getattr(known, name) for name in names})


def _identity(record: StudyRecord) -> Any:
    """What makes two studies the same: all of the config but how far it goes, the claims, which can
    be amended, and what its report is called and says of its extent."""
    config = json.loads(json_text(record.config))
    for name in ("eval_seeds", "max_seeds", *_BUDGET):
        config["study"].pop(name, None)
    for name in ("claims", "title", "question", "part"):
        config.pop(name, None)
    return config
