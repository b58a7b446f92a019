"""What a big run changes in the program of one device: none of it changes the numbers."""

import dataclasses

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training.costs import matrix_flops
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.untied import assert_close, leaves

pytestmark = pytest.mark.slow

MODEL = ModelConfig(tie="K=V", layers=2, width=16, heads=2)
TASK = make_task("reverse", {"length": 6, "symbols": 6})
CONFIG = TrainConfig(steps=10, report_every=5, batch_size=12)
TRAINER = Trainer(MODEL, TASK, CONFIG)


def after_five_steps(trainer):
    state = trainer.init(1, 1e-2)
    schedule = jax.jit(trainer.schedule)(state.seed, state.step, None)
    return jax.jit(trainer.train)(state, schedule, None)


@pytest.fixture(scope="module")
def plain():
    return after_five_steps(TRAINER)


def changed(**fields):
    model = {name: x for name, x in fields.items() if hasattr(MODEL, name)}
    rest = {name: x for name, x in fields.items() if name not in model}
    moments = rest.pop("moments", "joined")
    return Trainer(
        dataclasses.replace(MODEL, **model), TASK, dataclasses.replace(CONFIG, **rest), moments
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"remat": "block"},
        {"remat": "dots", "scan_layers": True},
        {"scan_layers": True},
        {"accumulate": 3},
        {"moments": "by_leaf"},
    ],
    ids=str,
)
def test_it_trains_as_the_plain_program_does(fields, plain):
    """Loss and gradient norm over five steps to 1e-5, the parameters under the same paths; only
    how the optimiser's state is laid out may differ."""
    state, metrics = after_five_steps(changed(**fields))
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], plain[1][name], rtol=1e-5)
    assert leaves(state.params).keys() == leaves(plain[0].params).keys()
    # Adam divides by the size of a gradient, rounding errors included.
    assert_close(state.params, plain[0].params, 1e-3)
    same = jax.tree.structure(state) == jax.tree.structure(plain[0])
    assert same == ("moments" not in fields)


def test_moments_by_leaf_have_the_shapes_of_their_parameters():
    """And joined ones do not: that is what a mesh could not cut."""
    shapes = jax.eval_shape(lambda: changed(moments="by_leaf").init(0, 1e-2))
    adam = shapes.opt_state[0][1]
    for moment in (adam.mu, adam.nu):
        assert jax.tree.structure(moment) == jax.tree.structure(shapes.params)
        pairs = zip(jax.tree.leaves(moment), jax.tree.leaves(shapes.params), strict=True)
        assert all(a.shape == b.shape for a, b in pairs)
    joined = jax.eval_shape(lambda: TRAINER.init(0, 1e-2)).opt_state[0]
    assert max(len(leaf.shape) for leaf in jax.tree.leaves(joined)) == 1


def test_rematerialisation_computes_again():
    """More matrix products in a traced step: `block` all of a block's, `dots` those of attention's
    scores and sums alone."""
    flops = {}
    for remat in ("none", "dots", "block"):
        trainer = changed(remat=remat)
        state = jax.eval_shape(lambda r=trainer: r.init(0, 1e-2))
        batch = jax.eval_shape(lambda: TASK.generate(jax.random.key(0), 12, "train"))
        flops[remat] = matrix_flops(jax.make_jaxpr(trainer.train_step)(state, batch).jaxpr)
    assert flops["none"] < flops["dots"] < flops["block"] < 4 / 3 * flops["none"]


def test_dropout_differs_between_layers_and_microbatches():
    """Under a scan every layer has a key of its own: with equal parameters in both layers, and the
    same input, two layers would otherwise drop the same units. And a scanned model with dropout
    trains: its loss is finite and not that of the model without."""
    config = {"dropout": 0.5, "scan_layers": True, "accumulate": 2}
    _, metrics = after_five_steps(changed(**config))
    _, other = after_five_steps(changed(**{**config, "accumulate": 1}))
    assert np.isfinite(metrics["loss"])
    assert not np.isclose(metrics["loss"], other["loss"], rtol=1e-4)


def test_scanned_layers_still_show_their_probes():
    """Whoever asks for intermediates gets them by layer."""
    trainer = changed(scan_layers=True)
    params = trainer.init_params(0)
    inputs = TASK.example()
    _, seen = trainer.model.apply({"params": params}, **inputs, mutable=["intermediates"])
    assert {"layer_0", "layer_1"} <= seen["intermediates"].keys()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: TrainConfig(batch_size=12, accumulate=5),
            "accumulate: given 5; must divide batch_size = 12",
        ),
        (
            lambda: ModelConfig(tie="K=V|separate", scan_layers=True),
            "scan_layers: given True; needs one tie for all layers, not K=V|separate",
        ),
        (
            lambda: ModelConfig(remat="blocks"),
            "remat: given 'blocks'; did you mean 'block'? allowed: none, block, dots",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, line, unchecked):
    with pytest.raises(ConfigError) as refusal:
        make()
    assert str(refusal.value) == line
