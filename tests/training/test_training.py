"""Training: one pure step that every kind of parallelism runs alike, and what a lone run leaves."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training.checkpoint import load_run
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.state import (
    TrainConfig,
    model_inputs,
    purpose_key,
)
from qkv_jax.training.step import Trainer
from tests.support.untied import assert_close, leaves

MODEL = ModelConfig(tie="K=V", layers=1, width=16, heads=2)
OPTIONS = {"length": 4, "symbols": 4, "validation_examples": 32, "test_examples": 300}
TRAIN = TrainConfig(steps=10, report_every=1, batch_size=8, learning_rate=1e-2)
TRAINER = Trainer(MODEL, make_task("reverse", OPTIONS), TRAIN)
SEEDS = (3, 8)


def config_of(trainer):
    return {
        "task": {"kind": "reverse", "options": OPTIONS},
        "model": as_dict(trainer.model_config),
        "train": as_dict(trainer.train_config),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 300 steps: its folder, its result, and the program."""
    config = TrainConfig(steps=300, report_every=50, batch_size=32, learning_rate=1e-2)
    trainer = dataclasses.replace(TRAINER, train_config=config)
    folder = tmp_path_factory.mktemp("runs") / "deep" / "one"
    reported = []
    result = train_run(
        trainer,
        5,
        folder,
        config=config_of(trainer),
        policy=CheckpointPolicy((100,)),
        on_report=reported.append,
    )
    return folder, result, trainer, reported


def train(program, state, stack=lambda tree: tree):
    """Losses [steps, ...] and parameters after all steps of a compiled `Trainer.train`."""
    losses = []
    for step in range(TRAIN.steps):
        state, metrics = program(state, stack(entries(step)), None)
        losses.append(np.asarray(metrics["loss"]))
    return np.stack(losses), state.params


def entries(step):
    """The schedules of both seeds at a step, [2, 1, ...]."""
    return _both_seeds()(np.asarray(SEEDS, np.uint32), np.full(2, step, np.int32))


@functools.cache
def _both_seeds():
    return jax.jit(jax.vmap(lambda seed, step: TRAINER.schedule(seed, step, None)))


@functools.cache
def initial_states():
    return [TRAINER.init(seed, TRAIN.learning_rate) for seed in SEEDS]


@functools.cache
def lone_runs():
    program = jax.jit(TRAINER.train)
    runs = []
    for lane, state in enumerate(initial_states()):
        pick = lambda tree, lane=lane: jax.tree.map(lambda a: a[lane], tree)
        runs.append(train(program, state, pick))
    return runs


def both_states():
    return jax.tree.map(lambda *parts: jnp.stack(parts), *initial_states())


# --- one step under every transformation


@pytest.mark.parametrize("kind", ["vmap", "pmap"])
def test_runs_side_by_side_agree_with_lone_runs(kind):
    """Ten steps of two seeds under vmap and under pmap: losses to 1e-5, parameters as well."""
    mapped = functools.partial({"vmap": jax.vmap, "pmap": jax.pmap}[kind], in_axes=(0, 0, None))
    program = mapped(TRAINER.train)
    losses, params = train(jax.jit(program) if kind == "vmap" else program, both_states())
    assert len(losses) == 10
    for lane, (alone, params_alone) in enumerate(lone_runs()):
        np.testing.assert_allclose(losses[:, lane], alone, rtol=1e-5)
        assert_close(jax.tree.map(lambda a, k=lane: a[k], params), params_alone, 1e-5)
    assert not np.allclose(losses[:, 0], losses[:, 1], rtol=1e-5)  # the seeds do differ


def test_two_half_batches_with_averaged_gradients_make_one_step_of_the_whole():
    """`axis_name` averages gradients and losses: both devices take the step of the full batch."""
    state = initial_states()[0]
    batch = TRAINER.task.generate(jax.random.key(0), 8, "train")
    whole, metrics = jax.jit(TRAINER.train_step)(state, batch)
    halves = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    step = functools.partial(TRAINER.train_step, axis_name="data")
    parallel = jax.pmap(step, axis_name="data", in_axes=(None, 0))
    split, split_metrics = parallel(state, halves)
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], [value, value], rtol=1e-5)
    # At the first step Adam turns a gradient of rounding errors into a whole step: compare where
    # gradients are more than that, by the first moment.
    moved = jax.tree.map(lambda p, old: p - old, whole.params, state.params)
    for device in range(2):
        mine = jax.tree.map(lambda a, k=device: a[k], split.params)
        mine = jax.tree.map(lambda p, old: p - old, mine, state.params)
        for name, step in leaves(moved).items():
            scale = np.abs(step).max()
            close = np.abs(leaves(mine)[name] - step) <= 1e-3 * scale
            assert close.mean() > 0.99, name


def test_a_bad_half_batch_is_known_on_all_devices():
    """Divergence is averaged with the loss, so that no device trains on alone."""
    state = initial_states()[0]
    broken = jax.tree.map(lambda a: a.at[...].set(jnp.nan), state.params["readout"])
    states = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    bad = jax.tree.map(lambda a, b: a.at[1].set(b), states.params["readout"], broken)
    states = states.replace(params={**states.params, "readout": bad})
    batch = TRAINER.task.generate(jax.random.key(0), 8, "train")
    halves = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    step = functools.partial(TRAINER.train_step, axis_name="data")
    after, _ = jax.pmap(step, axis_name="data")(states, halves)
    assert np.asarray(after.diverged).tolist() == [True, True]
    assert not np.asarray(states.diverged).any()


def test_the_learning_rate_is_an_array_of_the_state():
    """A grid of rates and seeds shares one trace; the first update is proportional to the rate."""
    program = jax.jit(chex.assert_max_traces(TRAINER.train, n=1))
    state = initial_states()[0]
    schedule = jax.tree.map(lambda a: a[0], entries(0))
    moved = {}
    for rate in (1e-3, 2e-3, 0.0):
        after, _ = program(state.replace(learning_rate=jnp.float32(rate)), schedule, None)
        moved[rate] = jax.tree.map(lambda p, old: np.asarray(p - old), after.params, state.params)
    program(initial_states()[1].replace(learning_rate=jnp.float32(0.5)), schedule, None)
    assert_close(jax.tree.map(lambda a: a / 2, moved[2e-3]), moved[1e-3], 1e-3)
    assert max(np.abs(leaf).max() for leaf in leaves(moved[1e-3]).values()) > 1e-5
    assert all((leaf == 0).all() for leaf in leaves(moved[0.0]).values())


def test_a_state_counts_its_steps_and_remembers_divergence():
    """A loss that is not finite marks the run for good, even if the next one is finite."""
    step = jax.jit(TRAINER.train_step)
    state = initial_states()[0]
    batch = TRAINER.task.generate(jax.random.key(0), 8, "train")
    for count in (1, 2):
        state, _ = step(state, batch)
        assert int(state.step) == count and not bool(state.diverged)
    good = state.params
    state, _ = step(state.replace(params=jax.tree.map(lambda a: a * jnp.nan, good)), batch)
    assert bool(state.diverged)
    state, metrics = step(
        state.replace(params=good, opt_state=initial_states()[0].opt_state), batch
    )
    assert np.isfinite(metrics["loss"]) and bool(state.diverged)


def test_no_two_purposes_share_a_stream():
    """Initial values, data and dropout of one seed are drawn from keys of their own."""
    keys = [
        jax.random.key_data(purpose_key(seed, purpose)).tolist()
        for seed in (0, 1)
        for purpose in ("init", "data", "dropout")
    ]
    assert len({tuple(key) for key in keys}) == 6


def test_frozen_sources_stay_as_initialised():
    """Bit for bit after ten steps with strong decay, while all other kernels move."""
    config = dataclasses.replace(TRAIN, weight_decay=0.5, report_every=10)
    model = dataclasses.replace(MODEL, tie="separate", frozen=("query", "value"))
    trainer = Trainer(model, TRAINER.task, config)
    start = trainer.init(0, 1e-2)
    schedule = jax.jit(trainer.schedule)(start.seed, start.step, None)
    end, _ = jax.jit(trainer.train)(start, schedule, None)
    before, after = leaves(start.params), leaves(end.params)
    assert int(end.step) == 10
    for name, leaf in before.items():
        frozen = "query" in name or "value" in name
        assert np.array_equal(leaf, after[name]) == frozen, name


# --- a lone run and its folder


def test_a_tiny_model_learns_to_reverse(finished):
    """Three hundred steps take it from chance, 0.25, to nearly all symbols right."""
    _, result, _, _ = finished
    assert result["status"] == "done"
    assert result["test"] > 0.95


def test_a_run_writes_its_curve_events_and_result(finished):
    """One row per report, equal to what was heard; TensorBoard scalars; result.json as returned."""
    folder, result, trainer, reported = finished
    curve = pd.read_csv(folder / "curve.csv")
    assert curve.columns.tolist() == ["step", "train_loss", "gradient_norm", "value"]
    assert curve["step"].tolist() == [50, 100, 150, 200, 250, 300]
    assert curve.to_dict("records") == reported
    assert curve["train_loss"].iloc[-1] < curve["train_loss"].iloc[0]
    assert curve["value"].iloc[-1] == result["validation"]
    (events,) = folder.glob("events.out.tfevents.*")
    for tag in (b"train/loss", b"train/gradient_norm", b"validation/accuracy"):
        assert events.read_bytes().count(tag) == 6
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["seed"] == 5 and result["metric"] == "accuracy"
    fingerprint = trainer.task.fingerprint(trainer.task.load())
    assert json.loads((folder / "config.json").read_text()) == config_of(trainer) | {
        "data": fingerprint
    }
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [0, 100, 300]


def test_checkpoints_hold_the_run_at_their_steps(finished):
    """Step 0 is the untrained model to the bit; the last is the default and gives the result."""
    folder, result, trainer, _ = finished
    encoder, variables = load_run(folder, step=0)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], trainer.init_params(5))
    encoder, variables = load_run(folder)
    test = trainer.task.load().test
    logits = encoder.apply(variables, **model_inputs(test))
    assert np.isclose(float(trainer.task.score(logits, test).mean()), result["test"], atol=1e-6)
    _, middle = load_run(folder, step=100)
    norms = [
        optax.tree.norm(tree["params"]) for tree in (load_run(folder, 0)[1], middle, variables)
    ]
    assert len({float(norm) for norm in norms}) == 3


def test_a_tied_parameter_is_still_tied_after_training_and_restoring(finished):
    """One leaf for key and value before, after, and after the restore; it has moved; and what the
    restored model computes as keys and as values is the same array."""
    folder, _, trainer, _ = finished
    encoder, variables = load_run(folder)
    names = set(leaves(variables["params"]))
    assert names == set(leaves(trainer.init_params(5)))
    attention = {name.split("/")[2] for name in names if "/attention/" in name}
    assert attention == {"query", "key", "out"}
    assert not np.allclose(
        variables["params"]["layer_0"]["attention"]["key"]["kernel"],
        trainer.init_params(5)["layer_0"]["attention"]["key"]["kernel"],
        atol=1e-2,
    )
    inputs = model_inputs(trainer.task.load().test)
    _, seen = encoder.apply(variables, **inputs, mutable=["intermediates"])
    probes = seen["intermediates"]["layer_0"]["attention"]["probes"]
    np.testing.assert_array_equal(probes["key"][0], probes["value"][0])
    assert not np.allclose(probes["key"][0], probes["query"][0])


def test_a_run_that_diverges_says_so_and_stops(tmp_path):
    """It ends at the report in which the loss ceased to be finite."""
    config = dataclasses.replace(TRAIN, learning_rate=1e30, steps=50, report_every=5)
    trainer = dataclasses.replace(TRAINER, train_config=config)
    result = train_run(trainer, 0, tmp_path / "run", config=config_of(trainer))
    assert result["status"] == "diverged"
    assert len(pd.read_csv(tmp_path / "run" / "curve.csv")) < 10


@pytest.mark.parametrize("step", [1, -5, 25])
def test_checkpoints_between_reports_are_refused(step, tmp_path):
    """Or before the start or after the end; and nothing is written."""
    config = dataclasses.replace(TRAIN, steps=20, report_every=5)
    trainer = dataclasses.replace(TRAINER, train_config=config)
    with pytest.raises(ConfigError, match=f"checkpoint_steps: given {step}; must be a multiple"):
        train_run(trainer, 0, tmp_path / "run", config={}, policy=CheckpointPolicy((5, step)))
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_refused(finished, tmp_path):
    """A run never writes over another one, or over anything else."""
    folder, _, trainer, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "file").write_text("mine")
    for occupied, held in (
        (folder, "another run"), (tmp_path, "other files"), (tmp_path / "file", "other files")
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"workdir: given .*; holds {held}"):
            train_run(trainer, 0, occupied, config={})
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_run_is_not_loaded(finished, tmp_path):
    """Each refusal names the folder, or the steps that are there."""
    with pytest.raises(ConfigError, match="run: .*is no run of experiments.train: no config.json"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="run: .*holds no checkpoints"):
        load_run(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint step: given 50; .*there: 0, 100, 300"):
        load_run(finished[0], step=50)
