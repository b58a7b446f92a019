"""Populations: one program for all waves, and replicas that know nothing of each other."""

import dataclasses

import jax
import numpy as np
import pytest

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import Data, make_task
from qkv_jax.training.device_data import DeviceData, wave_shape
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

TASK = make_task("reverse", {"length": 6, "validation_examples": 16, "test_examples": 24})
CONFIG = TrainConfig(steps=10, report_every=2, batch_size=8)
TRAINER = Trainer(ModelConfig(tie="K=V", layers=1, width=8, heads=2), TASK, CONFIG)

A, B, C = RunSpec(1e-2, seed=0), RunSpec(3e-2, seed=1), RunSpec(1e-3, seed=2)
MAD = RunSpec(1e30, seed=1)


@pytest.fixture(scope="module")
def data():
    return DeviceData(TASK.load())


@pytest.fixture(scope="module")
def population(data):
    """One replica per device: every test trains its waves on this one, which may trace once."""
    return Population(TRAINER, data, packing=1)


@pytest.fixture(scope="module")
def pair(population):
    return population.train([A, B], test=True)


def assert_same_bits(some, others):
    """Equal curves, test scores and parameters of two finished runs."""
    for name in ("steps", "train_loss", "value", "scores", "params", "diverged"):
        a, b = getattr(some, name), getattr(others, name)
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_waves_of_any_filling_share_one_trace(population, pair):
    """Full, padded, with test and without: chex would refuse a second trace of train or evaluate.
    A padded wave returns the runs that were asked for and no more."""
    assert population.wave_size == wave_shape(1)["size"] == 2
    assert [done.run for done in population.train([C], test=True)] == [C]
    assert [done.run for done in population.train([B, C])] == [B, C]
    assert [done.run for done in pair] == [A, B]
    for wave in ([], [A, B, C]):
        with pytest.raises(ValueError, match=f"a wave holds 1 to 2 runs, not {len(wave)}"):
            population.train(wave)


def test_a_second_trace_is_refused(data):
    """The assertion that the other tests rest on fires: for another shape of data."""
    small = Population(TRAINER, data, packing=1)
    state = small.start([A, B])
    block, _ = data.blocks["validation"][0]
    small._programs.evaluate(state.params, block)
    small._programs.evaluate(state.params, block)
    with pytest.raises(AssertionError, match="evaluate of population .* is traced > 1 times"):
        small._programs.evaluate(state.params, jax.tree.map(lambda a: a[:5], block))


def test_programs_are_those_of_all_populations_of_a_trainer_on_such_data(data):
    """Other waves and other data are not blamed for the trace of the first."""
    fewer = dataclasses.replace(TASK, validation_examples=8)
    others = [Population(TRAINER, data, packing=1), Population(TRAINER, data, packing=2),
              Population(dataclasses.replace(TRAINER, task=fewer), DeviceData(fewer.load()), 1),
              Population(TRAINER, DeviceData(fewer.load()), packing=1)]  # fmt: skip
    assert others[0]._programs is Population(TRAINER, data, packing=1)._programs
    assert len({id(each._programs) for each in others}) == 4
    for each in others:
        state = each.start([A, B])
        each._programs.evaluate(state.params, each.data.blocks["validation"][0][0])


def test_the_same_wave_gives_the_same_bits(population, pair):
    """Twice on the same devices with the same program: curves, scores and parameters are equal."""
    for first, second in zip(pair, population.train([A, B], test=True), strict=True):
        assert_same_bits(first, second)


def test_a_run_does_not_depend_on_its_mates_or_its_place(population, pair):
    """Bit-equal beside another run, alone in a padded wave, and on the other device."""
    assert_same_bits(pair[0], population.train([A, C], test=True)[0])
    assert_same_bits(pair[0], population.train([A], test=True)[0])
    assert_same_bits(pair[0], population.train([C, A], test=True)[1])
    assert not np.array_equal(pair[0].train_loss, pair[1].train_loss)


def test_a_diverging_run_ends_alone(population, pair):
    """A rate of 1e30 marks its own replica; the neighbour's bits are those it had beside a sane
    mate, to the last report."""
    sane, mad = population.train([A, MAD], test=True)
    assert mad.diverged and not np.isfinite(mad.train_loss[-1])
    assert not sane.diverged
    assert_same_bits(sane, pair[0])


def test_a_wave_of_diverged_runs_stops_early(population):
    """Nothing is left to train; the curves end at the report that told."""
    mad, too = population.train([MAD, dataclasses.replace(MAD, seed=2)])
    assert mad.diverged and too.diverged
    assert len(mad.steps) == len(mad.train_loss) == len(mad.value) < 5


def test_curves_and_scores_have_their_lengths(pair, population):
    """One entry per report; one score per example, without the padding of blocks; `on_report` is
    called with the steps; without `test` there are neither scores nor parameters."""
    reported = []
    (untested,) = population.train([B], on_report=reported.append)
    assert reported == [2, 4, 6, 8, 10]
    assert untested.scores is None and untested.params is None
    for done in pair:
        assert done.steps.tolist() == [2, 4, 6, 8, 10]
        assert len(done.train_loss) == len(done.value) == 5
        assert done.scores.shape == (24,)
        assert done.seconds > 0
    np.testing.assert_array_equal(untested.value, pair[1].value)


def test_values_are_those_of_the_whole_validation_split(pair):
    """The mean over its 16 examples, and the test scores of the final parameters one by one:
    against the encoder applied by itself."""
    for done in pair:
        for split, measured in (("validation", done.value[-1]), ("test", done.scores)):
            batch = TASK.load().held_out[split]
            scores = np.asarray(TRAINER.evaluate(done.params, batch), np.float64)
            expected = scores.mean() if split == "validation" else scores
            np.testing.assert_allclose(measured, expected, atol=1e-6)


def test_splits_longer_than_a_block_are_scored_whole(population):
    """Three hundred examples take two blocks; every example is counted once, in order."""
    numbers = {"inputs": np.arange(300)[:, None], "targets": np.arange(300)}
    held_out = DeviceData(Data(numbers, numbers)).blocks["test"]
    assert [real for _, real in held_out] == [256, 44]
    seen = np.concatenate([np.asarray(block["targets"])[:real] for block, real in held_out])
    np.testing.assert_array_equal(seen, np.arange(300))
    assert {block["targets"].shape for block, _ in held_out} == {(256,)}


def test_a_population_agrees_with_a_lone_run(pair):
    """To 1e-5 over ten steps: one program for one replica or many."""
    state = TRAINER.init(A.seed, A.learning_rate)
    train, schedule, losses = jax.jit(TRAINER.train), jax.jit(TRAINER.schedule), []
    for _ in range(5):
        state, metrics = train(state, schedule(state.seed, state.step, None), None)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(pair[0].train_loss, losses, rtol=1e-5)


def test_packing_several_replicas_on_a_device_changes_nothing(data, pair):
    """Two replicas per device (vmap inside pmap) agree with one to 1e-5, in their order."""
    packed = Population(TRAINER, data, packing=2)
    assert packed.wave_size == 4
    finished = packed.train([A, C, B], test=True)
    for done, alone in ((finished[0], pair[0]), (finished[2], pair[1])):
        assert done.run == alone.run
        np.testing.assert_allclose(done.train_loss, alone.train_loss, rtol=1e-5)
        np.testing.assert_allclose(done.scores, alone.scores, atol=1e-5)


def test_the_salt_is_another_draw_of_the_same_program(population, pair):
    """The placebo: same batches, other initial values, no second trace; salt 0 is no salt."""
    salted = population.train([dataclasses.replace(A, salt=1)], test=True)[0]
    assert not np.array_equal(salted.train_loss, pair[0].train_loss)
    plain, other = (population.start([dataclasses.replace(A, salt=s)]) for s in (0, 1))
    np.testing.assert_array_equal(plain.seed, other.seed)
    embedding = lambda state: np.asarray(state.params["stem"]["field_0"]["embedding"])[0, 0]
    assert not np.array_equal(embedding(plain), embedding(other))
    own = TRAINER.init_params(A.seed)["stem"]["field_0"]["embedding"]
    np.testing.assert_array_equal(embedding(plain), own)


def test_waves_of_the_same_seeds_are_trained_on_one_drawing_of_batches(monkeypatch):
    """To the bit what they would have drawn themselves; and where there is no room, they do."""
    data, tight = DeviceData(TASK.load()), DeviceData(TASK.load())
    monkeypatch.setattr(tight, "_room", 0)
    calls = []

    def counted(population):
        draw = population._schedule
        population._schedule = lambda *state: calls.append(1) or draw(*state)
        return population

    first, other = counted(Population(TRAINER, data, 1)), counted(Population(TRAINER, tight, 1))
    other.train([A, B])
    calls.clear()
    reports = CONFIG.steps // CONFIG.report_every
    alike = first.train([A, B], test=True)
    assert len(calls) == reports
    again = first.train([dataclasses.replace(A, learning_rate=3e-2), B], test=True)
    assert len(calls) == reports  # another rate, the same seeds
    assert_same_bits(alike[1], again[1])
    first.train([B, A])
    assert len(calls) == 2 * reports  # other seeds on the first device
    for mine, theirs in zip(alike, other.train([A, B], test=True), strict=True):
        assert_same_bits(mine, theirs)
    assert len(calls) == 3 * reports and not tight._drawn
