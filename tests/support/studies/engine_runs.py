"""Tiny studies that are run to their end, copied, or trained by a rule."""

import functools
import pathlib
import shutil

import numpy as np
import pytest

from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.training.population import Population, RunResult
from tests.support.small_models import shared_programs
from tests.support.studies.tiny_study import TINY as VALUES
from tests.support.studies.tiny_study import run

ARMS = ("separate", "copies", "placebo")


def tables(folder):
    """The tables as text, timing columns apart."""
    study = load_study(folder)
    runs = study.runs.drop(columns="seconds")
    timing = ["step_time_ratio", "step_time_noise"]
    return runs.to_csv(), study.summary.drop(columns=timing).to_csv()


def with_study(**changes):
    return VALUES | {"study": VALUES["study"] | changes}


def interrupting(events):
    """A listener that lets so many events pass and then presses Ctrl-C."""
    left = iter(range(events))

    def interrupt(event):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return interrupt


def contents(folder):
    """Every file of a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    """Every file of a folder; of TensorBoard's, which carry the time in their names, the number."""
    return sorted(
        path.relative_to(folder).parent if "events" in path.parts else path.relative_to(folder)
        for path in contents(folder)
    )


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The studies of this file share their compiled programs: {(program, packing): population}."""
    with shared_programs() as known:
        yield known


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    run(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to go on with."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


class Scripted(Population):
    """Stands for a population: final values by `rule(arm's tie, rate, seed)`; None diverges."""

    def __init__(self, rule, trainer, data, packing):
        self.rule, self.trainer = rule, trainer

    def train(self, wave, *, test, branch, on_report, saves):
        tie, steps = str(self.trainer.model_config.ties[0]), np.array([4, 8])
        finished = []
        for one in wave:
            value = self.rule(tie, one.learning_rate, one.seed)
            curve = np.full(2, np.nan if value is None else value)
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            finished.append(
                RunResult(
                    one, steps, curve, curve, value is None, curve if test else None, params, 0.1
                )
            )
        return finished


@pytest.fixture
def scripted(monkeypatch):
    """`scripted(rule)`: studies of this test train by rule."""
    return lambda rule: monkeypatch.setattr(
        engine_module, "Population", functools.partial(Scripted, rule)
    )
