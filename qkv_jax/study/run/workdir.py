"""A study's folder: what is written, in which order, and how it is read back.

    study.json        what is studied and on what; written first
    runs.csv          one row a run; a row is appended only after the run's other files are there
    parts/            TASK/ARM.csv: likewise, of the jobs of a cluster, until runs.csv has them
    cluster/          jobs.json and the jobs' logs, see `cluster.py`
    waves/            TASK/ARM/...: checkpoints of the wave under way, gone when its rows are there
    .lock             held by the process that writes here; goes with it
    curves/           TASK/ARM/PHASE_lrRATE_seedSEED.csv: step, train_loss, value (validation)
    examples/         TASK/ARM/seedSEED.npy: the metric of every test example
    checkpoints/      TASK/ARM/seedSEED.safetensors: final parameters of evaluation runs
    events/           TASK/ARM/seedSEED/: curves of evaluation runs for TensorBoard
    costs.json, summary.csv, report.html, report.md, figures/
    families.csv      averages over the cells of tasks with axes, where there are such
    breakdown.csv     scores by group of test examples, of tasks that tell them apart
    claims.csv, claims.json, measures.csv: the ledger, where the study states claims

Whole files are replaced atomically and are on the disk before the row that stands for them; a row
cut off by a crash is dropped and its run is repeated.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pandas as pd
import safetensors.numpy

from qkv_jax.config import ConfigError, first_difference
from qkv_jax.runtime.events import Events
from qkv_jax.runtime.files import held, json_text, others, write_whole
from qkv_jax.study.axes import is_number
from qkv_jax.study.plan import Arm, Study
from qkv_jax.study.run.rows import append_runs, read_parts
from qkv_jax.tasks import REGISTRY, Task
from qkv_jax.training.identity import check_same_data
from qkv_jax.training.population import Finished, Run

# Of the summary and the tables beside it; what is neither is a number.
_TEXTS = {
    "family", "task", "arm", "tie", "baseline", "edge", "role", "verdict", "by", "measure", "claim",
    "evidence", "against", "expect", "outcome", "finding", "unit", "seeds_to_decide", "note",
}  # fmt: skip
_TRUTHS = {"control"}
_KEYS = {"format", "baseline", "tasks", "arms", "config"}  # study.json has these, among others
_PHASES = ("tune", "eval")


class Workdir:
    """The folder of one study, opened for writing (and resuming) or for reading."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    @property
    def study_file(self) -> pathlib.Path:
        return self.path / "study.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing here; to be held from before `open` to the end.

        Raises:
          ConfigError: if another process holds it, or the folder holds other files or is read-only.
        """
        self._refuse_other_files()
        with held(self.path):
            yield

    def _refuse_other_files(self) -> None:
        if self.study_file.exists() or not self.path.exists():
            return
        if not self.path.is_dir() or others(self.path, self.study_file.name):
            raise ConfigError("workdir", str(self.path), "holds other files; name a new folder")

    def open(self, study: Mapping[str, Any]) -> dict:
        """Starts the folder, or picks up the same study where it stopped; returns study.json.

        A finished study may be given more evaluation seeds: that is another look at it.

        Raises:
          ConfigError: if the folder holds another study or other files, or was started on other
            devices, if fewer seeds are asked for than were run, or more before it is finished.
        """
        self._refuse_other_files()
        if not self.study_file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            started = {**study, "looks": [len(study["eval_seeds"])], "complete": False}
            self.write_study(started)
            return started
        known = self.read_same(study)
        before, now = known["looks"][-1], len(study["eval_seeds"])
        if now < before:
            allowed = f"the study in {self.path} has {before}; seeds can only be added"
            raise ConfigError("study.eval_seeds", now, allowed)
        if now > before and not known["complete"]:
            allowed = f"finish the study in {self.path} with {before} seeds first, then add more"
            raise ConfigError("study.eval_seeds", now, allowed)
        looks = known["looks"] if now == before else [*known["looks"], now]
        resumed = {
            **known,
            **study,
            "looks": looks,
            "complete": known["complete"] and now == before,
        }
        for task, spec in known["tasks"].items():  # worked out from the data, once
            for name in ("references", "data", "data_notes"):
                if name in spec:
                    resumed["tasks"][task].setdefault(name, spec[name])
        self.write_study(resumed)
        return resumed

    def read_same(self, study: Mapping[str, Any]) -> dict:
        """study.json of the same study, on the same data as far as they are known, started on the
        same devices.

        Raises:
          ConfigError: if it is another one.
        """
        known = self.read_study()
        if _identity(known) != _identity(study):
            different = first_difference(_identity(known), _identity(study))
            allowed = f"holds another study ({different}); name another folder"
            raise ConfigError("workdir", str(self.path), allowed)
        for task, spec in study["tasks"].items():
            before = known["tasks"][task].get("data")
            check_same_data(before, spec.get("data"), f"tasks.{task}", f"the study in {self.path}")
        if known["wave"] != study["wave"]:
            # Other waves give other sums: the tables would no longer be those of one study.
            allowed = (
                f"was started with waves of {known['wave']}, this machine makes {study['wave']}; "
                "use the same devices and packing"
            )
            raise ConfigError("workdir", str(self.path), allowed)
        return known

    def read_study(self) -> dict:
        """study.json.

        Raises:
          ConfigError: if there is none or it cannot be read.
        """
        try:
            found = json.loads(self.study_file.read_text(encoding="utf-8"))
        except OSError as error:
            allowed = f"no study there: {error.strerror}"
            raise ConfigError("workdir", str(self.path), allowed) from None
        except ValueError as error:
            raise ConfigError(str(self.study_file), "damaged JSON", str(error)) from None
        if not isinstance(found, dict) or not _KEYS.issubset(found):
            allowed = f"a study's has the fields {', '.join(sorted(_KEYS))}"
            raise ConfigError(str(self.study_file), "other JSON", allowed)
        return found

    def write_study(self, study: Mapping[str, Any]) -> None:
        self.write("study.json", json_text(study))

    def runs(self) -> pd.DataFrame:
        """runs.csv, and what jobs of a cluster have appended to files of their own, without last
        rows that a crash cut off, or that are being written just now.

        Nothing is changed: other processes may be appending.
        """
        return read_parts(self.path)

    def append_runs(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to the whole ones in one write and waits until the disk has them."""
        append_runs(self.path / "runs.csv", rows)

    def save_run(self, task: str, arm: Arm, phase: str, done: Finished) -> None:
        """The files of a run; its row comes after."""
        curve = pd.DataFrame(
            {"step": done.steps, "train_loss": done.train_loss, "value": done.value}
        )
        name = _curve_name(task, arm.name, phase, done.run.learning_rate, done.run.seed)
        self.write(name, curve.to_csv(index=False))
        if done.scores is not None:
            stem = f"{task}/{arm.name}/seed{done.run.seed}"
            scores = io.BytesIO()
            np.save(scores, done.scores.astype(np.float32))
            self.write(f"examples/{stem}.npy", scores.getvalue())
            leaves = flax.traverse_util.flatten_dict(done.params, sep="/")
            flat = {path: np.asarray(leaf) for path, leaf in leaves.items()}  # scalars too
            self.write(f"checkpoints/{stem}.safetensors", safetensors.numpy.save(flat))
            self._write_events(self.path / "events" / stem, curve)

    def wave_folder(self, task: str, arm: Arm, phase: str, first: Run) -> pathlib.Path:
        """Where the wave that begins with a run keeps its checkpoints while it is under way."""
        name = f"{phase}_lr{first.learning_rate:g}_seed{first.seed}"
        return self.path / "waves" / task / arm.name / name

    def curve(
        self, task: str, arm: str, phase: str, learning_rate: float, seed: int
    ) -> pd.DataFrame | None:
        """step, train_loss, value; None if the run has no curve."""
        file = self.path / _curve_name(task, arm, phase, learning_rate, seed)
        return _read(file, read_table) if file.exists() else None

    def examples(self, task: str, arm: str, seeds: Iterable[int]) -> np.ndarray | None:
        """Test scores [seeds, examples]; None unless all seeds have them."""
        files = [self.path / "examples" / task / arm / f"seed{seed}.npy" for seed in seeds]
        if not files or not all(file.exists() for file in files):
            return None
        return np.stack([_read(file, np.load) for file in files])

    def table(self, name: str) -> pd.DataFrame | None:
        """The summary or one of the tables beside it, as it was written: names are texts, also
        "None", "NA" or "01"; None if the study has none.

        Raises:
          ConfigError: naming a file that is damaged.
        """
        file = self.path / name
        if not file.exists():
            return None
        frame = _read(file, read_table)
        if not _TEXTS.intersection(frame):
            given = ",".join(map(str, frame))
            raise ConfigError(f"{file}: columns", given, "damaged; are not those of a table")
        return frame

    def params(self, task: str, arm: str, seed: int) -> dict:
        """Final parameters of an evaluation run.

        Raises:
          ConfigError: if there are none.
        """
        file = self.path / "checkpoints" / task / arm / f"seed{seed}.safetensors"
        if not file.exists():
            allowed = "no such checkpoint; evaluation runs keep theirs"
            raise ConfigError("checkpoint", str(file), allowed)
        flat = _read(file, lambda file: safetensors.numpy.load(file.read_bytes()))
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


def read_table(file: pathlib.Path) -> pd.DataFrame:
    """A table of a study's folder, equal to the one that was written."""
    frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    for column in frame:
        if column in _TRUTHS:
            frame[column] = frame[column].map({"True": True, "False": False})
        elif column not in _TEXTS:
            frame[column] = _numbers(frame[column])
    return frame


def _numbers(texts: pd.Series) -> pd.Series:
    """Whole numbers if all are, else floats, which Python reads to the bit and pandas does not."""
    try:
        return texts.map(int).astype(int)
    except ValueError:
        return texts.map(lambda text: float(text or "nan")).astype(float)


def _read(file: pathlib.Path, reader: Callable[[pathlib.Path], Any]) -> Any:
    try:
        return reader(file)
    except OSError:
        raise
    except Exception as error:  # what a reader raises depends on what is broken
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ConfigError(str(file), "a damaged file", reason) from None


class StudyResults:
    """A study for a notebook: `study`, `runs`, `summary`, `curve(...)`, `examples(...)`,
    `model(...)`; `families`, `breakdown` and `claims` where the study has them, else None."""

    def __init__(self, path: str | os.PathLike):
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigError("workdir", path, "must be the path of a study's folder")
        if "\0" in os.fspath(path):
            raise ConfigError("workdir", path, "is no path")
        self.workdir = Workdir(path)
        self.study = self.workdir.read_study()
        self.runs = self.workdir.runs()
        self.summary = self.workdir.table("summary.csv")
        self.families = self.workdir.table("families.csv")
        self.breakdown = self.workdir.table("breakdown.csv")
        self.claims = self.workdir.table("claims.csv")

    def curve(
        self,
        task: str,
        arm: str,
        phase: str = "eval",
        learning_rate: float | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """The curve of a run: step, train_loss, value (on validation data).

        Args:
          task: its name in the study.
          arm: likewise.
          phase: `eval`, or `tune` for a run that the choice of a learning rate rests on.
          learning_rate: by default the one that was chosen for the arm.
          seed: by default the first of the phase.

        Raises:
          ConfigError: naming the first of these by which there is no run, and what there is.
        """
        self._check_names(task, arm)
        if phase not in _PHASES:
            raise ConfigError("phase", phase, f"must be one of {', '.join(_PHASES)}")
        rows = self.runs[(self.runs["task"] == task) & (self.runs["arm"] == arm)]
        if learning_rate is None:
            chosen = rows.loc[rows["phase"] == "eval", "learning_rate"]
            learning_rate = next(iter(chosen.tolist()), None)
        elif not is_number(learning_rate) or not 0 < learning_rate < math.inf:
            raise ConfigError("learning_rate", learning_rate, "must be a finite number above 0")
        seed = None if seed is None else _seed(seed)
        run = {"phase": phase, "learning_rate": learning_rate, "seed": seed}
        for field, given in run.items():
            # Rates to as many digits as they have in the names of files.
            there = {f"{value:g}" if isinstance(value, float) else str(value): value
                     for value in rows[field].tolist()}  # fmt: skip
            key = f"{given:g}" if field == "learning_rate" and given else str(given)
            if given is None and there:
                key = next(iter(there))
            if key not in there:
                allowed = f"runs.csv has {', '.join(there) or 'no run yet'}"
                raise ConfigError(field, given, allowed)
            run[field] = there[key]
            rows = rows[rows[field] == run[field]]
        curve = self.workdir.curve(task, arm, **run)
        if curve is None:
            status = rows["status"].iloc[0]
            raise ConfigError("seed", run["seed"], f"that run {status}: it has no curve")
        return curve

    def examples(self, task: str, arm: str, seeds: Iterable[int]) -> np.ndarray | None:
        """Test scores [seeds, examples]; None unless all seeds have them.

        Raises:
          ConfigError: as `curve`.
        """
        self._check_names(task, arm)
        if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
            raise ConfigError("seeds", seeds, "must be whole numbers, 0 or above")
        return self.workdir.examples(task, arm, [_seed(seed) for seed in seeds])

    def model(self, task: str, arm: str, seed: int = 0) -> tuple[Any, dict]:
        """The trained encoder of an evaluation run and its variables:
        `encoder.apply(variables, inputs)`.

        Raises:
          ConfigError: if the study has no such run, or a task of a kind that is not registered.
        """
        _, entry = self.find(task, arm)
        return entry.replica.encoder, {"params": self.workdir.params(task, arm, _seed(seed))}

    def untrained(self, task: str, arm: str, seed: int = 0) -> dict:
        """The variables that an evaluation run started from.

        Raises:
          ConfigError: as `model`.
        """
        _, entry = self.find(task, arm)
        seed = _seed(seed)
        if seed >= 2**32:
            raise ConfigError("seed", seed, "must be below 2**32")
        return {"params": jax.jit(entry.replica.init_params)(np.uint32(seed), entry.salt)}

    def find(self, task: str, arm: str) -> tuple[Task, Arm]:
        """A task of the study and an arm on it.

        Raises:
          ConfigError: as `model`.
        """
        self._check_names(task, arm)
        plan = next(plan for plan in self._plan().tasks if plan.name == task)
        return plan.task, next(entry for entry in plan.arms if entry.name == arm)

    def _check_names(self, task: str, arm: str) -> None:
        tasks = self.study["tasks"]
        if task not in list(tasks):  # what cannot be a key is none of them
            raise ConfigError("task", task, f"this study has: {', '.join(tasks)}")
        if arm not in tasks[task]["arms"]:
            raise ConfigError("arm", arm, f"this study has: {', '.join(tasks[task]['arms'])}")

    def _plan(self) -> Study:
        for name, entry in self.study["config"]["tasks"].items():
            if entry["kind"] not in REGISTRY:
                allowed = (
                    "no task of that kind is registered; import the module that registers it first"
                )
                raise ConfigError(f"tasks.{name}.kind", entry["kind"], allowed)
        return Study(self.study["config"])


def load_study(workdir: str | os.PathLike) -> StudyResults:
    """Opens a study's folder for reading.

    Raises:
      ConfigError: if it holds no study.
    """
    return StudyResults(workdir)


def _seed(seed: Any) -> int:
    """A seed as a plain number.

    Raises:
      ConfigError: if it is none.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ConfigError("seed", seed, "must be a whole number, 0 or above")
    return int(seed)


def _curve_name(task: str, arm: str, phase: str, learning_rate: float, seed: int) -> str:
    return f"curves/{task}/{arm}/{phase}_lr{learning_rate:g}_seed{seed}.csv"


def _identity(study: Mapping[str, Any]) -> Any:
    """What makes two studies the same: all of the config but the number of evaluation seeds."""
    config = json.loads(json_text(study["config"]))
    config["study"].pop("eval_seeds", None)
    config.setdefault("claims", {})  # studies from before there were any
    return {"format": study["format"], **config}
