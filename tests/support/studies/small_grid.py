"""A grid of a task that has references and tells its examples apart."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import (
    REGISTRY,
    Breakdown,
    Data,
    Outcome,
    Reference,
    Task,
    keys_schedule,
)
from qkv_jax.training.population import Population, RunResult
from tests.support.studies.tiny_study import TINY

KIND = "first_symbol_of_a_test"


@dataclasses.dataclass(frozen=True)
class First(Task):
    """Say the first of some symbols; has two references and tells its examples apart."""

    length: int = 6
    margin: float = 0.01

    title = "First symbol"
    description = "Say the first symbol at every place."
    classes = 4

    @property
    def outcome(self):
        return Outcome("mean", "accuracy", "accuracy", self.margin, 0.25)

    @property
    def max_length(self):
        return self.length

    def stem(self, width):
        return TokenStem((4,), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length), int)}

    def load(self):
        inputs = np.zeros((4, self.length), np.int32)
        split = {"inputs": inputs, "targets": inputs}
        return Data(validation=split, test=split)

    def schedule(self, train, key, first, steps, batch_size):
        return keys_schedule(key, first, steps)

    def batch(self, train, entry):
        inputs = jnp.zeros((4, self.length), int)
        return {"inputs": inputs, "targets": inputs}

    def references(self, data):
        return (Reference("majority", 0.25, "always the same"), Reference("oracle", 1.0))

    def breakdown(self, test):
        return Breakdown("distance", [2, 1, 1, 2])


AXES = {"options.length": (4, 6), "model.width": (8, 16)}
VALUES = TINY | {
    "name": "grid",
    "model": {"layers": 1, "width": 32, "heads": 2},
    "tasks": {"first": {"kind": KIND, "options": {"length": 5}, "axes": AXES}},
}
CELLS = [f"first, length={n}, width={w}" for n in (4, 6) for w in (8, 16)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(REGISTRY, KIND, First)


def with_entry(values=VALUES, **changes):
    return values | {"tasks": {"first": values["tasks"]["first"] | changes}}


class Scripted(Population):
    """Stands for a population: test scores by rule; None diverges."""

    def __init__(self, rule, trainer, data, packing):
        self.rule, self.trainer = rule, trainer

    def train(self, wave, *, test, branch, on_report, saves):
        finished = []
        for one in wave:
            copies = str(self.trainer.model_config.ties[0]) == "Q=K=V=X"
            value = self.rule(copies, self.trainer.model_config.width, one.seed)
            lost = value is None and test
            curve = np.full(2, np.nan if lost else 0.5 if value is None else value)
            scores = np.array([0.1, 0.3, 0.5, 0.7]) + curve[-1] - 0.4 if test else None
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            steps = np.array([4, 8])
            finished.append(RunResult(one, steps, curve, curve, lost, scores, params, 0.1))
        return finished


def rule(copies, width, seed):
    """`copies` loses less the wider; its seed 3 diverges at width 8."""
    if copies and width == 8 and seed == 3:
        return None
    return 0.8 - copies * (1.6 / width) + 0.01 * (seed % 7) + 0.002 * copies * (seed % 3)
