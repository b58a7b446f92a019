"""Matrices read off a model are those it computes with, whatever its scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis.layers import heads, layer_weights, left_out, probe
from qkv_jax.config import build
from qkv_jax.model.blocks import attention_of
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.dot_product import attention_weights
from qkv_jax.tasks import make_task

SCHEMES = {
    "separate": {"use_bias": True},
    "K=V and its output": {"tie": "K=V", "output_projection": False},
    "copies": {"tie": "copies"},
    "an adapter, a schedule": {"tie": "Q=K|separate", "adapters": {"query": "head:1.0"}},
    "latent": {"latent_dim": 3, "use_bias": True},
    "grouped": {"tie": "Q=X", "kv_heads": 2},
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_matrices_reproduce_what_the_layers_compute(scheme):
    config = build(ModelConfig, {"layers": 2, "width": 8, "heads": 4, **scheme})
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    inputs = jnp.arange(10).reshape(2, 5) % 7
    variables = encoder.init(jax.random.key(0), inputs)
    noise = lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape))
    variables = jax.tree.map(noise, variables)  # biases and adapters that do something

    for layer, probed in zip(
        layer_weights(encoder, variables), probe(encoder, variables, inputs), strict=True
    ):
        assert layer.query.shape == (8, 4, 2) and layer.out.shape == (4, 2, 8)
        for ours, seen in zip(heads(layer, probed.x), probed[1:4], strict=True):
            np.testing.assert_allclose(ours, seen, atol=1e-5)
        weights = attention_weights(probed.query, probed.key)
        np.testing.assert_allclose(weights, probed.weights, atol=1e-5)


def test_the_output_matrix_is_that_of_the_layer():
    config = ModelConfig(layers=1, width=8, heads=2, use_bias=True)
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
    (layer,) = layer_weights(encoder, variables)
    own = variables["params"]["layer_0"]["attention"]["out"]
    np.testing.assert_array_equal(layer.out, own["kernel"])
    np.testing.assert_array_equal(layer.out_bias, own["bias"])


TURNED = {"tie": "K=V", "scheme": "rotated", "positions": "rotary"}


@pytest.mark.parametrize(("options", "said"), [
    ({"tie": "K=V", "positions": "rotary"}, ""),
    (TURNED, "OV circuits leave out that values turn with the distance between tokens (the "
             "circuits are of distance 0)."),
    ({"scheme": "exclusive", "value_residual": True},
     "OV circuits leave out that outputs lose their part along the token's own value and that "
     "later layers mix the first one's values in."),
])  # fmt: skip
def test_what_output_circuits_leave_out_is_said(options, said):
    assert left_out(ModelConfig(**options)) == said


def test_turned_values_have_their_circuit_at_distance_0():
    """A token that sees itself alone gets x W_V W_O; beside others it gets something else."""
    config = ModelConfig(layers=1, width=8, heads=2, **TURNED)
    module = attention_of(config, config.ties[0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 8)), jnp.float32)
    params = module.init(jax.random.key(0), x)
    kernel, out = (params["params"][name]["kernel"] for name in ("key", "out"))
    alone = jnp.einsum("btd,dnh,nhe->bte", x, kernel, out)
    see = lambda mask: module.apply(params, x, mask=mask[None, None])
    np.testing.assert_allclose(see(jnp.eye(3, dtype=bool)), alone, atol=1e-5)
    shifted = jnp.roll(jnp.eye(3, dtype=bool), 1, axis=1)  # each sees another one alone
    assert jnp.abs(see(shifted) - alone[:, jnp.array([1, 2, 0])]).max() > 0.1
