"""A population that is made up, and reports of one small picture a task."""

import functools
import math

import numpy as np
import pytest

from qkv_jax.output.style import new_figure, save
from qkv_jax.study.report import page
from qkv_jax.study.run import engine as engine_module
from qkv_jax.training import costs
from qkv_jax.training.population import Population, RunResult


class Made(Population):
    """Stands for a population: scores by arm and seed; `None` diverges at some seeds."""

    def __init__(self, trainer, data, packing):
        self.trainer, self.data = trainer, data

    def train(self, wave, *, test, branch, on_report, saves):
        finished, steps = [], np.array([4, 8])
        examples = sum(real for _, real in self.data.blocks["test"])
        for one in wave:
            on_report(4)
            rng = np.random.default_rng([one.seed, one.salt, len(str(self.trainer.model_config))])
            value = 0.5 - 0.1 * abs(math.log10(one.learning_rate) + 2.4) + 0.01 * rng.normal()
            gone = str(self.trainer.model_config.ties[0]) == "K=V" and one.seed % 3 == 1
            curve = np.array([value, math.nan if gone else value])
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            scores = np.full(examples, value) if test else None
            finished.append(RunResult(one, steps, curve, curve, gone, scores, params, rng.random()))
        return finished


def draw(folder, record, runs, results, task, *_args, **_options):
    """One small picture a task, in place of all."""
    save(new_figure(1.0, 1.0), folder / task["slug"], dpi=10)
    return []


@pytest.fixture(scope="module", autouse=True)
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_task", draw)
        patch.setattr(page, "draw_family", lambda *args, **options: [])
        patch.setattr(engine_module, "Population", Made)
        measured = {"antisymmetry": (0.5, 0.25)}
        patch.setattr(engine_module, "measure", lambda *_: measured)
        patch.setattr(costs, "measure", functools.cache(costs.measure))
        yield
