"""The optimiser: decay, frozen parameters, clipping, the schedule of the rate, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.training.state import (
    TrainConfig,
    decay_mask,
    make_optimizer,
    model_inputs,
    rate_schedule,
)
from tests.support.untied import assert_close, leaves

TREE = {
    "stem": {"field_0": {"embedding": jnp.ones((3, 2))}},
    "layer_0": {
        "attention": {
            "query": {"kernel": jnp.ones((2, 1, 2)), "bias": jnp.ones((1, 2))},
            "key": {"kernel": jnp.ones((2, 1, 2))},
            "scale": jnp.ones(1),
        },
        "mlp_norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "mlp": {"key": {"kernel": jnp.ones((2, 2))}},
    },
}


def test_kernels_decay_and_frozen_ones_do_not():
    """No decay of embeddings, scales, biases and norms, nor of frozen sources of attention; a
    module elsewhere that happens to be called `key` is not frozen with them."""
    decaying = {name for name, decays in leaves(decay_mask(TREE, ("key",))).items() if decays}
    assert decaying == {"layer_0/attention/query/kernel", "layer_0/mlp/key/kernel"}
    decaying = {name for name, decays in leaves(decay_mask(TREE, ())).items() if decays}
    assert "layer_0/attention/key/kernel" in decaying and len(decaying) == 3


def test_without_a_gradient_only_decay_moves_a_parameter():
    """Decoupled: the update is weight decay times the weight, where the mask says so."""
    config = TrainConfig(weight_decay=0.25)
    optimizer = make_optimizer(config, ("key",))
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    with jax.numpy_dtype_promotion("standard"):  # Optax, as in `train_step`
        updates, _ = optimizer.update(zeros, optimizer.init(TREE), TREE)
    for name, update in leaves(updates).items():
        kernel = name in ("layer_0/attention/query/kernel", "layer_0/mlp/key/kernel")
        assert (update == (0.25 if kernel else 0.0)).all(), name


def test_the_first_update_is_that_of_clipped_adam():
    """Against AdamW written out with optax, leaf by leaf, over three steps."""
    config = TrainConfig(weight_decay=0.1, clip_norm=0.5, beta1=0.8, beta2=0.9)
    ours = make_optimizer(config, ())
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(1.0, 0.8, 0.9, weight_decay=0.1, mask=decay_mask(TREE, ())),
    )
    states = [ours.init(TREE), theirs.init(TREE)]
    for step in range(3):
        gradients = jax.tree.map(
            lambda a, s=step: jnp.cos(jnp.arange(a.size) + s).reshape(a.shape), TREE
        )
        with jax.numpy_dtype_promotion("standard"):  # Optax, as in `train_step`
            update, states[0] = ours.update(gradients, states[0], TREE)
            expected, states[1] = theirs.update(gradients, states[1], TREE)
        # optax has the minus of descent in its rate, ours is in the step.
        assert_close(update, jax.tree.map(jnp.negative, expected), 1e-5)


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        ("linear", 0.4, [0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("constant", 0.1, [0.5] + [1.0] * 9),
        ("linear", 0.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("cosine", 0.0, [(1 + np.cos(np.pi * i / 10)) / 2 for i in range(10)]),
    ],
)
def test_the_rate_rises_and_falls_as_stated(decay, warmup, expected):
    """No step is wasted on a rate of zero; the peak is 1, reached when the warm-up is over."""
    schedule = rate_schedule(TrainConfig(steps=10, report_every=1, warmup=warmup, decay=decay))
    actual = [float(schedule(step)) for step in range(10)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"steps": 0}, "given 0; must be a whole number above 0"),
        ({"steps": 10, "report_every": 4}, "given 10; must be a multiple of report_every = 4"),
        ({"learning_rate": float("inf")}, "given inf; must be a finite number above 0"),
        ({"warmup": 1.0}, "given 1.0; must be at least 0.0 and below 1.0"),
        ({"beta2": -0.1}, "given -0.1; must be at least 0.0 and below 1.0"),
        ({"weight_decay": float("nan")}, "given nan; must be at least 0.0 and below inf"),
        (
            {"decay": "linaer"},
            "given 'linaer'; did you mean 'linear'? allowed: linear, cosine, wsd, constant",
        ),
    ],
)
def test_training_that_cannot_be_is_refused(fields, line, unchecked):
    """One line each: the field, what was given, what is allowed."""
    with pytest.raises(ConfigError) as refusal:
        TrainConfig(**fields)
    assert str(refusal.value) == f"{next(iter(fields))}: {line}"


def test_a_mask_by_its_former_name_is_refused():
    batch = {"inputs": np.zeros((2, 3), int), "valid": np.ones((2, 3), bool)}
    assert model_inputs(batch) == batch
    with pytest.raises(ConfigError, match="batch: given 'padding'; the mask of real tokens is"):
        model_inputs({"inputs": batch["inputs"], "padding": batch["valid"]})
