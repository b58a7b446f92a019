"""A study in a notebook: `run_study(config, workdir)` runs it; `load_study(workdir)` reads it back,
its tables, curves and models."""

import html
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.output import formats
from qkv_jax.study.axes import is_number
from qkv_jax.study.plan import Arm, Study
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.report.matrix import frame, verdict_matrix
from qkv_jax.study.report.page import write_outcomes
from qkv_jax.study.report.wording import all_rows, digits, rate
from qkv_jax.study.resolved import resolved_config
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks import REGISTRY, Task
from qkv_jax.training.state import model_inputs


class StudyResults:
    """A study for a notebook, which shows it as `matrix()`: `record`, `runs`, `summary`,
    `curve(...)`, `examples(...)`, `model(...)`, `batch(...)`; `families`, `contrasts`, `branches`,
    `breakdown` and `claims` where the study has them, else None."""

    def __init__(self, path: str | os.PathLike):
        self.workdir = _folder(path)
        self.record = self.workdir.read_study()
        self.runs = self.workdir.runs()
        self.summary = self.workdir.table("summary.csv")
        self.families = self.workdir.table("families.csv")
        self.contrasts = self.workdir.table("contrasts.csv")
        self.branches = self.workdir.table("branches.csv")
        self.breakdown = self.workdir.table("breakdown.csv")
        self.claims = self.workdir.table("claims.csv")

    def __repr__(self) -> str:
        record = self.record
        counts = f"{len(record.arms)} arms on {', '.join(record.tasks)}; {len(self.runs)} runs"
        return f"<{record.title} {counts}{'' if record.complete else ', unfinished'}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{self.matrix().to_html()}"

    def matrix(self) -> pd.DataFrame:
        """Arms x tasks: each verdict and the difference to the baseline with its interval, as the
        report shows them."""
        summary = self.summary
        if summary is not None:
            summary = summary.assign(verdict=summary["verdict"].map(Verdict.read))
        averages = self.workdir.table("families.csv")
        return frame(verdict_matrix(self.record, all_rows(self.record, summary), averages))

    def curve(
        self,
        task: str,
        arm: str,
        learning_rate: float | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """The curve of a run: step, train_loss, value (on validation data).

        Args:
          task: its name in the study.
          arm: likewise.
          learning_rate: by default the arm's best.
          seed: by default the first that it is compared with at that rate.

        Raises:
          ConfigError: naming the first of these by which there is no run, and what there is.
        """
        self._check_names(task, arm)
        rows = self.runs[(self.runs["task"] == task) & (self.runs["arm"] == arm)]
        best, seeds = self._best(task, arm)
        if learning_rate is None:
            learning_rate = best
        elif not is_number(learning_rate) or not 0 < learning_rate < math.inf:
            raise ConfigError("learning_rate", learning_rate, "must be a finite number above 0")
        seed = next(iter(seeds), None) if seed is None and learning_rate == best else seed
        seed = None if seed is None else _seed(seed)
        run = {"learning_rate": learning_rate, "seed": seed}
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

    def _best(self, task: str, arm: str) -> tuple[float | None, tuple[int, ...]]:
        """The arm's best rate, and the seeds at it that it is compared with.

        Raises:
          ConfigError: if the arm has no runs of its own.
        """
        if arm not in self._with_runs(task):
            allowed = f"is the second half of {self.record.baseline}'s seeds; name that arm"
            raise ConfigError("arm", arm, allowed)
        record = in_force(self.record.only(task), self.runs)
        found = evaluations(record, self.runs)[task, arm]
        seeds = tuple(seed for seed, status in zip(found.seeds, found.status, strict=False)
                      if status)  # fmt: skip
        return (None, ()) if math.isnan(found.rate) else (found.rate, seeds)

    def examples(self, task: str, arm: str, seeds: Iterable[int]) -> np.ndarray | None:
        """Test scores [seeds, examples] at the arm's best rate; None unless all seeds have them.

        Raises:
          ConfigError: as `curve`.
        """
        self._check_names(task, arm)
        if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
            raise ConfigError("seeds", seeds, "must be whole numbers, 0 or above")
        rate, _ = self._best(task, arm)
        wanted = [_seed(seed) for seed in seeds]
        return None if rate is None else self.workdir.examples(task, arm, rate, wanted)

    def config(self, task: str, arm: str) -> dict[str, dict[str, Any]]:
        """The resolved `model` and `train` fields of an arm on a task, defaults and all.

        Raises:
          ConfigError: as `curve`, or if the study is from before they were kept.
        """
        self._check_names(task, arm)
        if self.record.tasks[task].resolved is None:
            raise ConfigError("task", task, "this study did not keep its resolved configs yet")
        return resolved_config(self.record.tasks[task], arm)

    def model(self, task: str, arm: str, seed: int = 0) -> tuple[Any, dict]:
        """The trained encoder of a run at the arm's best rate, and its variables:
        `encoder.apply(variables, inputs)`.

        Raises:
          ConfigError: if the study has no such run, or a task of a kind that is not registered.
        """
        _, entry = self.find(task, arm)
        rate, _ = self._best(task, arm)
        if rate is None:
            raise ConfigError("arm", arm, f"no run of it on {task} has ended yet")
        return entry.trainer.model, {"params": self.workdir.params(task, arm, rate, _seed(seed))}

    def batch(self, task: str, size: int = 8) -> tuple[dict, dict]:
        """The first test examples of a task: what its models read, for `encoder.apply(variables,
        **inputs)`, and all that the task knows of them, for `task.score(logits, batch)`.

        Raises:
          ConfigError: as `model`, and where its data cannot be read.
        """
        arguments.whole("size", size, 1)
        test = self.find(task, self.record.baseline)[0].load().test
        batch = {name: values[:size] for name, values in test.items()}
        return model_inputs(batch), batch

    def in_words(self, task: str, arm: str, seed: int = 0) -> list[str]:
        """What was measured of an arm on a task, and of the run that `model` gives, in sentences.

        Raises:
          ConfigError: as `curve`.
        """
        self._check_names(task, arm)
        known, rows = self.record.tasks[task], all_rows(self.record, self.summary)
        row, places, unit = rows[task][arm], digits(known), known.unit
        rate_, _ = self._best(task, arm)
        runs = self.runs.query("task == @task and arm == @arm and seed == @seed")
        own = runs[runs["learning_rate"] == rate_]["test"].to_list()
        found = [
            f"this run, of seed {_seed(seed)} at learning rate {rate(rate_)}: "
            f"test {formats.number(own[0] if own else None, places)} {unit}"
        ]  # fmt: skip
        if formats.known(row.get("mean")):
            mean = formats.bracket(row, "mean", "ci_low", "ci_high", places)
            found.append(f"arm {arm}: {mean} {unit}, the mean of {row['n']:.0f} seeds with its "
                         "95 % interval")  # fmt: skip
        if formats.known(row.get("delta")) and arm != self.record.baseline:
            delta = formats.bracket(row, "delta", "delta_low", "delta_high", places, signed=True)
            found.append(f"difference to {self.record.baseline}: {delta} {unit}, with its 95 % "
                         f"interval; verdict: {row['verdict']}")  # fmt: skip
        return found

    def untrained(self, task: str, arm: str, seed: int = 0) -> dict:
        """The variables that a run started from.

        Raises:
          ConfigError: as `model`.
        """
        _, entry = self.find(task, arm)
        seed = _seed(seed)
        if seed >= 2**32:
            raise ConfigError("seed", seed, "must be below 2**32")
        return {"params": jax.jit(entry.trainer.init_params)(np.uint32(seed), entry.salt)}

    def find(self, task: str, arm: str) -> tuple[Task, Arm]:
        """A task of the study and an arm on it.

        Raises:
          ConfigError: as `model`.
        """
        self._check_names(task, arm)
        plan = next(plan for plan in self._plan().tasks if plan.name == task)
        return plan.task, next(entry for entry in plan.arms if entry.name == arm)

    def _check_names(self, task: str, arm: str) -> None:
        tasks = self.record.tasks
        if task not in list(tasks):  # what cannot be a key is none of them
            raise ConfigError("task", task, f"this study has: {', '.join(tasks)}")
        if arm not in tasks[task].arms:
            raise ConfigError("arm", arm, f"this study has: {', '.join(self._with_runs(task))}")

    def _with_runs(self, task: str) -> list[str]:
        """Its arms; the placebo of a race has no runs of its own."""
        race, placebo = self.record.protocol == "race", self.record.placebo
        return [arm for arm in self.record.tasks[task].arms if not (race and arm == placebo)]

    def _plan(self) -> Study:
        for name, entry in self.record.config["tasks"].items():
            if entry["kind"] not in REGISTRY:
                allowed = (
                    "no task of that kind is registered; import the module that registers it first"
                )
                raise ConfigError(f"tasks.{name}.kind", entry["kind"], allowed)
        return Study(self.record.config)


def load_study(workdir: str | os.PathLike) -> StudyResults:
    """Opens a study's folder for reading.

    Raises:
      ConfigError: if it holds no study.
    """
    return StudyResults(workdir)


def run_study(
    config: Mapping[str, Any] | ConfigDict, workdir: str | os.PathLike
) -> StudyResults:
    """Runs a study in this process, on all of its devices, or goes on with the one in the folder;
    writes its tables, figures and report, and opens it. `experiments.ablate` does the same, and
    shows how far it is.

    Args:
      config: what a config file returns, or the same as plain mappings, see `StudyFile`.
      workdir: its folder, new or to go on with.

    Raises:
      ConfigError: naming the field, for what cannot be run; if the folder holds another study or
        another process writes there.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    study, folder = Study(values), _folder(workdir)
    study.check_platform()
    if not folder.study_file.exists():
        study.check_data()
    with folder.locked():
        Engine(study, folder, folder.open(study.describe()), lambda event: None).run()
        write_outcomes(folder)
    return load_study(workdir)


def _folder(path: Any) -> Workdir:
    """The folder of a study.

    Raises:
      ConfigError: if that is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError("workdir", path, "must be the path of a study's folder")
    if "\0" in os.fspath(path):
        raise ConfigError("workdir", path, "is no path")
    return Workdir(path)


def _seed(seed: Any) -> int:
    """A seed as a plain number.

    Raises:
      ConfigError: if it is none.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ConfigError("seed", seed, "must be a whole number, 0 or above")
    return int(seed)
