"""Matrices read off a model are those it computes with, whatever its scheme."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis.layers import heads, layer_weights, probe
from qkv_jax.config import build
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
