"""The attention layers of a model as plain matrices, and what flows through them.

Whatever the tie, the adapters or the source, a layer's query is x W_Q + b_Q for one matrix, and so
are key and value; here they are read off by applying the model's own scheme.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, shown
from qkv_jax.model.blocks import attention_of
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.projections import QKV, per_query_head
from qkv_jax.model.schemes import Scheme, scheme_class
from qkv_jax.tie import Tie

_AFFINE = 0.02  # relative; accelerators round products to a few digits


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
    """The matrices of every layer, bottom up.

    Raises:
      ConfigError: of schemes whose queries, keys and values are not x W + b.
    """
    config, found = require_variables(encoder, variables), []
    for layer, tie in enumerate(config.ties):
        params = variables["params"][f"layer_{layer}"].get("attention", {})
        scheme = attention_of(config, tie).make_scheme(config.width)
        kernels, biases = _affine(scheme, params, config)
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
    valid: Bool[Array, "B T"] | None = None,
    read: Int[Array, "B R"] | None = None,
) -> tuple[LayerProbe, ...]:
    """Runs the model, without dropout, and returns what flowed through every layer, bottom up."""
    require_variables(encoder, variables)
    _, collected = encoder.apply(variables, inputs, valid, read, mutable="intermediates")
    found = []
    for layer in range(encoder.config.layers):
        sown = collected["intermediates"][f"layer_{layer}"]["attention"]["probes"]
        arrays = {name: sown[name][0].astype(jnp.float32) for name in sown}
        keys, values = (per_query_head(arrays[n], encoder.config.heads) for n in ("key", "value"))
        weights = arrays["attention_weights"]
        found.append(LayerProbe(arrays["x"], arrays["query"], keys, values, weights))
    return tuple(found)


def require_circuits(config: ModelConfig) -> None:
    """Refuses models whose scores are of more than one matrix for queries and one for keys: what
    `circuits` says of those would be of another model."""
    arguments.instance("config", config, ModelConfig)
    if not scheme_class(config.scheme).has_circuits:
        allowed = "its scores are not those of one matrix for queries and one for keys"
        raise ConfigError("scheme", config.scheme, allowed)


def left_out(config: ModelConfig) -> str:
    """What OV circuits do not show of a model that has them, in a sentence; empty where they are
    all that its values go through."""
    arguments.instance("config", config, ModelConfig)
    clauses = [scheme_class(config.scheme).beside_values]
    clauses += ["later layers mix the first one's values in"] * config.value_residual
    clauses = [clause for clause in clauses if clause]
    return f"OV circuits leave out that {' and that '.join(clauses)}." if clauses else ""


def _affine(scheme: Scheme, params: Mapping, config: ModelConfig) -> tuple[list, list]:
    """W [D, N, H] and b [N, H] of query, key and value: what the scheme itself does to X.

    Raises:
      ConfigError: if it does anything else than x W + b to each token.
    """

    def heads_of(x):
        roles = scheme.apply({"params": params}, x[None], method=_heads)
        return [per_query_head(role[0], config.heads) for role in roles]

    # Unit vectors and zero tell the map; drawn vectors, whether that is all there is to it.
    roles = heads_of(jnp.concatenate([jnp.eye(config.width), jnp.zeros((1, config.width))]))
    biases = [role[-1] for role in roles]
    kernels = [role[:-1] - role[-1:] for role in roles]
    x = jax.random.normal(jax.random.key(0), (4, config.width))
    for seen, kernel, bias in zip(heads_of(x), kernels, biases, strict=True):
        expected = jnp.einsum("td,dnh->tnh", x, kernel) + bias[None]
        if jnp.abs(seen - expected).max() > _AFFINE * jnp.abs(expected).max():
            allowed = "its queries, keys and values are not x W + b: no matrix stands for them"
            raise ConfigError("scheme", config.scheme, allowed)
    return kernels, biases


def _heads(scheme: Scheme, x: Float[Array, "B T D"]) -> QKV:
    return scheme.heads(scheme.project(x))


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


def _output(config, params) -> tuple[Num[Any, "N H D"], Num[Any, " D"]]:
    """W_O [N, H, D] and its bias [D]."""
    shape = (config.heads, config.head_width, config.width)
    if config.output_projection:
        out, out_bias = params["out"]["kernel"], params["out"].get("bias", np.zeros(config.width))
    else:
        out, out_bias = np.eye(config.width).reshape(shape), np.zeros(config.width)
    return out, out_bias
