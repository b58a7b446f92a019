"""One program for all ties: what it trains is what each tie's own program would have."""

import dataclasses

import jax
import numpy as np
import pytest

from qkv_jax.config import build
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from qkv_jax.training import shared
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

MODEL = ModelConfig(layers=2, width=16, heads=2, positions="rotary", qk_norm=True)
CONFIG = TrainConfig(steps=20, report_every=10, batch_size=8)
WAVE = [RunSpec(1e-3, seed=0), RunSpec(3e-3, seed=1)]


@pytest.fixture(scope="module")
def task():
    return make_task("reverse", {"length": 8, "validation_examples": 32, "test_examples": 32})


@pytest.fixture(scope="module")
def data(task):
    return DeviceData(task.load(), jax.local_devices()[:1])


def trainer_of(task, tie, **changes):
    return Trainer(dataclasses.replace(MODEL, tie=str(tie), **changes), task, CONFIG)


def own_program(trainer, data):
    """The same runs by the program of the tie alone."""
    train, schedule = jax.jit(trainer.train), jax.jit(trainer.schedule)
    for run in WAVE:
        state = trainer.init(run.seed, run.learning_rate)
        for _ in range(CONFIG.steps // CONFIG.report_every):
            state, _ = train(state, schedule(state.seed, state.step, data.train), data.train)
        yield state.params


@pytest.mark.parametrize("tie", [*map(str, Tie.all()), "K=V|Q=X"])
def test_twenty_steps_of_the_shared_program_are_those_of_the_tie(task, data, tie):
    trainer = trainer_of(task, tie)
    assert shared.program_of(trainer) == shared.program_of(trainer_of(task, "separate"))
    assert shared.program_of(trainer) != trainer
    finished = Population(trainer, data, packing=2).train(WAVE, test=True)
    for done, params in zip(finished, own_program(trainer, data), strict=True):
        assert jax.tree.structure(done.params) == jax.tree.structure(dict(params))
        for mine, other in zip(*map(jax.tree.leaves, (done.params, params)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
        scores = trainer.evaluate(done.params, data.blocks["test"][0][0])
        np.testing.assert_allclose(np.asarray(scores)[:32], done.scores, atol=1e-6)


@pytest.mark.parametrize("salt", [0, 1])
def test_runs_of_the_shared_program_start_where_the_tie_does(task, data, salt):
    """To the bit, though what all ties have in common is drawn for the first of them alone."""
    run = RunSpec(1e-3, seed=5, salt=salt)
    for tie in ("copies", "K=V", "separate"):
        trainer = trainer_of(task, tie)
        wave = Population(trainer, data, packing=1).start([run]).params
        mine = shared.narrowed(jax.tree.map(lambda leaf: leaf[0, 0], wave), trainer)
        own = dict(trainer.init_params(run.seed, salt))
        assert jax.tree.structure(mine) == jax.tree.structure(own)
        jax.tree.map(np.testing.assert_array_equal, mine, own)


def test_all_ties_are_compiled_once(task, data):
    populations = [Population(trainer_of(task, tie), data, packing=2) for tie in Tie.all()]
    assert len({id(each._programs) for each in populations}) == 1
    for each in populations:
        each.train(WAVE[:1])  # chex refuses a second trace


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": {"key": "head"}, "tie": "K=V"}, {"frozen": ("key",)}, {"latent_dim": 4},
        {"use_bias": True}, {"kv_heads": 1}, {"head_dim": 4}, {"preset": "gao"},
        {"scheme": "qkv_jax.model.schemes.Scheme"},
    ],
)  # fmt: skip
def test_models_that_are_more_than_a_tie_have_programs_of_their_own(task, changes):
    values = {"layers": 2, "width": 16, "heads": 2, "positions": "rotary"} | changes
    trainer = Trainer(build(ModelConfig, values, "model"), task, CONFIG)
    assert shared.program_of(trainer) is trainer


def test_long_runs_have_the_program_that_takes_what_the_tie_needs(task):
    """Which it is depends on the longest of all ties, so that all arms agree."""
    long = dataclasses.replace(CONFIG, steps=200_000)
    for tie in ("separate", "copies"):
        trainer = dataclasses.replace(trainer_of(task, tie), train_config=long)
        assert shared.program_of(trainer) is trainer


def test_widening_and_narrowing_undo_each_other(task):
    for tie in Tie.all():
        trainer = trainer_of(task, tie)
        params = jax.device_get(trainer.init_params(3))
        wide = shared.widened(params, trainer)
        program = shared.program_of(trainer)
        like = jax.eval_shape(lambda program=program: program.init_params(0))
        assert jax.tree.map(np.shape, wide) == jax.tree.map(np.shape, dict(like))
        back = shared.narrowed(wide, trainer)
        assert jax.tree.structure(back) == jax.tree.structure(dict(params))
        jax.tree.map(np.testing.assert_array_equal, back, dict(params))
