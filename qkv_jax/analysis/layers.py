"""The attention layers of a model as plain matrices, and what flows through them.

Whatever the tie, the adapters or the source, a layer's query is x W_Q + b_Q for one matrix, and so
are key and value; here they are read off by applying the model's own projection.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, shown
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.projections import QKV, QKVProjection
from qkv_jax.tie import Tie


class Layer(NamedTuple):
    """One attention layer. Grouped keys and values are repeated, so that each head has its own;
    where the model has no output projection, `out` lays the heads side by side."""

    tie: Tie
    query: Float[np.ndarray, "D N H"]
    key: Float[np.ndarray, "D N H"]
    value: Float[np.ndarray, "D N H"]
    out: Float[np.ndarray, "N H D"]
    query_bias: Float[np.ndarray, "N H"]
    key_bias: Float[np.ndarray, "N H"]
    value_bias: Float[np.ndarray, "N H"]
    out_bias: Float[np.ndarray, " D"]


class LayerProbe(NamedTuple):
    """What flows through a layer: its input, what the scores see (after adapter, norm and
    rotation), and the attention weights."""

    x: Float[Array, "B T D"]
    query: Float[Array, "B T N H"]
    key: Float[Array, "B T N H"]
    value: Float[Array, "B T N H"]
    weights: Float[Array, "B N T T"]


def layer_weights(encoder: Encoder, variables: dict) -> tuple[Layer, ...]:
    """The matrices of every layer, bottom up."""
    config, found = require_variables(encoder, variables), []
    for layer, tie in enumerate(config.ties):
        params = variables["params"][f"layer_{layer}"].get("attention", {})
        projection = QKVProjection(
            config.heads,
            config.kv_heads or config.heads,
            config.features,
            tie,
            use_bias=config.use_bias,
            adapters=config.adapters.where_shared(tie),
            latent_dim=config.latent_dim,
        )
        # The projection is affine: the unit vectors and zero tell it.
        probes = jnp.concatenate([jnp.eye(config.width), jnp.zeros((1, config.width))])
        applied = projection.apply({"params": params}, probes[None])
        roles = [_per_query_head(role[0], config.heads) for role in applied]
        biases = [role[-1] for role in roles]
        kernels = [role[:-1] - role[-1] for role in roles]
        out, out_bias = _output(config, params)
        arrays = (np.asarray(a, np.float32) for a in (*kernels, out, *biases, out_bias))
        found.append(Layer(tie, *arrays))
    return tuple(found)


def heads(layer: Layer, x: Float[Array, "B T D"]) -> QKV:
    """Queries, keys and values of x [B T N H], before qk-norm and rotation."""
    arguments.instance("layer", layer, Layer)
    require_array("x", x, "B T D", "real", {"D": len(layer.query)})
    pairs = zip(layer[1:4], layer[5:8], strict=True)
    return QKV(*(np.einsum("btd,dnh->btnh", x, kernel) + bias for kernel, bias in pairs))


def probe(
    encoder: Encoder,
    variables: dict,
    inputs: Num[Array, "..."],
    padding: Bool[Array, "B T"] | None = None,
    read: Int[Array, "B R"] | None = None,
) -> tuple[LayerProbe, ...]:
    """Runs the model, without dropout, and returns what flowed through every layer, bottom up."""
    require_variables(encoder, variables)
    _, collected = encoder.apply(variables, inputs, padding, read, mutable="intermediates")
    found = []
    for layer in range(encoder.config.layers):
        sown = collected["intermediates"][f"layer_{layer}"]["attention"]["probes"]
        arrays = {name: sown[name][0].astype(jnp.float32) for name in sown}
        keys, values = (_per_query_head(arrays[n], encoder.config.heads) for n in ("key", "value"))
        weights = arrays["attention_weights"]
        found.append(LayerProbe(arrays["x"], arrays["query"], keys, values, weights))
    return tuple(found)


def require_variables(encoder: Encoder, variables: dict) -> ModelConfig:
    """The encoder's config; refuses variables that are not its own."""
    config = arguments.instance("encoder", encoder, Encoder).config
    params = variables.get("params") if isinstance(variables, Mapping) else None
    layers = [f"layer_{layer}" for layer in range(config.layers)]
    if not isinstance(params, Mapping) or not {*layers} <= {*params}:
        given = list(variables) if isinstance(variables, Mapping) else shown(variables)
        allowed = f"must be {{'params': ...}} with {', '.join(layers)}"
        raise ConfigError("variables", given, allowed)
    return config


def _per_query_head(array, num_heads: int):
    """Repeats key/value heads [.., K, H] for the query heads that read them [.., N, H]."""
    return array.repeat(num_heads // array.shape[-2], axis=-2)


def _output(config, params) -> tuple[Num[Any, "N H D"], Num[Any, " D"]]:
    """W_O [N, H, D] and its bias [D]."""
    shape = (config.heads, config.features, config.width)
    if config.output_projection:
        out, out_bias = params["out"]["kernel"], params["out"].get("bias", np.zeros(config.width))
    else:
        out, out_bias = np.eye(config.width).reshape(shape), np.zeros(config.width)
    return out, out_bias
