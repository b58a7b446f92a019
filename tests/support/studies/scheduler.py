"""A scheduler that stands in this process, and studies that are driven through it."""

import functools
import random

import numpy as np
import pandas as pd
import pytest

from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster.driver import Driver, merge
from qkv_jax.study.cluster.jobs import STOPPED, State
from qkv_jax.study.cluster.worker import run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training import costs
from qkv_jax.training.population import Population, RunResult
from tests.support.studies.tiny_study import SIZES, TINY, run

VALUES = TINY | {
    "tasks": {**TINY["tasks"], "copy": {"kind": "copy", "options": SIZES, "arms": ("separate",)}},
    "study": {
        "protocol": "fixed",
        "learning_rates": (1e-3, 1e-2),
        "tune_seeds": 2,
        "eval_seeds": 5,
    },
}
# Of this one a program is compiled, once.
TRAINED = VALUES | {"tasks": {"copy": VALUES["tasks"]["copy"]}}
PARTS = 3 + 2  # of a round of both tasks, placebos among them


class Scripted(Population):
    """Stands for a population: a value for every run, best at a rate outside the grid."""

    def __init__(self, trainer, data, packing):
        self.trainer = trainer

    def train(self, wave, *, test, branch, on_report, saves):
        finished = []
        for one in wave:
            rng = np.random.default_rng([one.seed, one.salt, len(str(self.trainer.model_config))])
            value = 0.5 - 0.1 * abs(np.log10(one.learning_rate) + 0.6) + 0.01 * rng.normal()
            curve = np.full(2, value)
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            scores = curve if test else None
            finished.append(
                RunResult(one, np.array([4, 8]), curve, curve, False, scores, params, 0.1)
            )
        return finished


@pytest.fixture(scope="module", autouse=True)
def measured():
    """What an arm costs is worked out once for all studies of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "measure", functools.cache(costs.measure))
        yield


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(engine_module, "Population", Scripted)


class Scheduler:
    """Runs up to two jobs each time it is asked about any, in a random order, in this process.

    Args:
      fate: what becomes of a try: `fate(part, tries)` is None, `fail`, `stop` (within a wave),
        `vanish` (done, but the code is not known) or `lost` (neither done nor known).
    """

    def __init__(self, folder, values=VALUES, fate=lambda part, tries: None, seed=0):
        self.folder, self.values, self.fate = folder, values, fate
        self.rng = random.Random(seed)
        self.jobs = {}  # id: [name, place, part, state]
        self.submissions = []
        self.answers = True
        self.dies = False

    def submit(self, name, commands):
        parts = [Part.parse(line[-1].removeprefix("--part=")) for line in commands]
        living = {job[2] for job in self.jobs.values() if job[3].phase != "ended"}
        assert not living & set(parts), "submitted while its job lives"
        ids = []
        for place, part in enumerate(parts):
            ids.append(f"{len(self.submissions)}_{place}")
            self.jobs[ids[-1]] = [name, place, part, State("waiting")]
        self.submissions.append(parts)
        if self.dies:
            raise KeyboardInterrupt
        return ids

    def find(self, name):
        return {job[1]: job_id for job_id, job in self.jobs.items() if job[0] == name}

    def log(self, job):
        return str(self.folder.absolute() / "cluster" / "jobs" / f"{job}.out")

    def states(self, ids):
        if not self.answers:
            return None
        waiting = [job for job in self.jobs.values() if job[3].phase == "waiting"]
        for job in self.rng.sample(waiting, min(2, len(waiting))):
            tries = sum(job[2] in parts for parts in self.submissions)
            job[3] = State("ended", self.run(job[2], self.fate(job[2], tries)))
        # What is over is soon forgotten.
        return {i: self.jobs[i][3] for i in ids if self.jobs[i][3] != State("ended")}

    def run(self, part, fate):
        if fate in ("fail", "lost"):
            return {"fail": 1, "lost": None}[fate]
        stop_signal = StopSignal()
        if fate == "stop":
            polls = iter([False])
            poll = stop_signal.poll

            def stop_later():
                if not next(polls, True):
                    return poll()
                stop_signal.stop("preempted")
                return poll()

            stop_signal.poll = stop_later
        try:
            run_part(Study(self.values), self.folder, part, stop_signal)
        except Interrupted:
            return STOPPED
        return None if fate == "vanish" else 0


def local(folder, values=VALUES, on_progress=lambda event: None):
    run(folder, values, on_progress)
    return folder


def drive(scheduler, stop_signal=None, on_progress=lambda driver: None, **options):
    """A driver from its start to its end."""
    study, workdir = Study(scheduler.values), Workdir(scheduler.folder)
    with workdir.locked():
        record = workdir.open(study.describe())
        options = {"poll": 0.0, **options}
        stop_signal = stop_signal or StopSignal()
        driver = Driver(
            study, workdir, record, scheduler, ["work"], stop_signal, on_progress, **options
        )
        driver.run()
        merge(workdir, driver.record)
    return local(scheduler.folder, scheduler.values)


def contents(folder):
    """All that a study has written, timing columns, events and study.json apart."""
    runs = pd.read_csv(folder / "runs.csv", dtype=str).drop(columns="seconds").to_csv()
    timing = ["step_time_ratio", "step_time_noise"]
    summary = pd.read_csv(folder / "summary.csv").drop(columns=timing).to_csv()
    others = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not {"events", "cluster"} & set(file.relative_to(folder).parts)
        and file.name not in ("runs.csv", "summary.csv", "study.json")
    }  # fmt: skip
    return runs, summary, others
