"""A tie imposed on trained layers: the layers' new matrices, and the model that has that tie.

    edits = {2: impose(layers[2], Tie.parse("K=V"), "fit", moments[2])}
    encoder, variables = tied(encoder, variables, edits)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from qkv_jax import arguments
from qkv_jax.analysis.layers import Layer, require_variables
from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.projections import check_scheme
from qkv_jax.surgery.fit import Head, InputMoments, fit_head
from qkv_jax.surgery.rotary import Turns
from qkv_jax.tie import SOURCE_NAMES, Tie

KEEP = {"keep_query": "Q", "keep_key": "K", "keep_value": "V"}
METHODS = (*KEEP, "average", "fit")
SCHEMES = ("tied", "exclusive")  # of which any tie may be asked
_ROLES = {"Q": "query", "K": "key", "V": "value"}


def check(encoder: Encoder, tie: Tie, methods: tuple[str, ...]) -> None:
    """Refuses ties that the model's shapes do not allow, and models that surgery does not know.

    Raises:
      ConfigError: naming the flag, with the reason.
    """
    config = arguments.instance("encoder", encoder, Encoder).config
    arguments.instance("tie", tie, Tie)
    if not isinstance(methods, list | tuple) or not methods:
        raise ConfigError("method", methods, "must be a list of methods")
    heads, width = config.heads, config.width
    given = str(tie)
    if config.scheme not in SCHEMES:
        allowed = f"surgery knows {' and '.join(SCHEMES)}"
        raise ConfigError("model", f"scheme = {config.scheme}", allowed)
    for field in ("adapters", "latent_dim", "qk_norm", "rotary_dims"):
        if getattr(config, field) != getattr(type(config), field):
            raise ConfigError("model", f"{field} = {getattr(config, field)}", "surgery knows none")
    try:
        check_scheme(tie, heads, config.kv_heads or heads, config.frozen)
    except ValueError as error:
        raise ConfigError("tie", given, str(error)) from None
    if any(tie.equates(role, "X") for role in "QKV") and width != heads * config.head_width:
        raise ConfigError("tie", given, f"needs a width of heads x head width, not {width}")
    for method in methods:
        arguments.word("method", method, METHODS)
        if method in KEEP and not _shares(tie, KEEP[method]):
            role = KEEP[method]
            raise ConfigError("method", method, f"under {given} {role} shares with no other role")
        if method == "fit" and not config.output_projection:
            raise ConfigError("method", method, "needs a model with an output projection")


def impose(
    layer: Layer,
    tie: Tie,
    method: str,
    moments: InputMoments | None = None,
    *,
    kv_heads: int | None = None,
    turns: Turns | None = None,
) -> Layer:
    """The layer's matrices under a tie.

    Args:
      method: `keep_*` gives a role's matrix to all that share it; `average` gives their mean; `fit`
        is that of `fit.py`. A role that equals X becomes X cut into heads.
      moments: of the layer's inputs, for `fit`; by default mean 0 and variance 1.
      kv_heads: how many heads of keys and values the layer's are repeated from; all by default.
      turns: for `fit`, the rotations between queries and keys, under rotary positions.
    """
    arguments.instance("layer", layer, Layer)
    arguments.instance("tie", tie, Tie)
    arguments.word("method", method, METHODS)
    width, heads, size = layer.query.shape
    if kv_heads is not None and heads % arguments.whole("kv_heads", kv_heads, 1, heads):
        raise ConfigError("kv_heads", kv_heads, f"must divide the {heads} heads")
    _check_given(width, moments, turns)
    if _takes_x(tie) and width != heads * size:
        allowed = f"=X needs a width of heads x head width, {heads * size}, not {width}"
        raise ConfigError("tie", str(tie), allowed)
    own = np.eye(width).reshape(width, heads, -1) if _takes_x(tie) else np.zeros_like(layer.query)
    if method == "fit":
        moments = moments or InputMoments(np.zeros(width), np.eye(width))
        return _fitted(layer, own, tie, moments, kv_heads or heads, turns)
    matrices = {role: (getattr(layer, name), getattr(layer, f"{name}_bias"))
                for role, name in _ROLES.items()}  # fmt: skip
    found = {}
    for role in _ROLES:
        source = tie.source(role)
        group = [r for r in _ROLES if tie.source(r) == source]
        if source == "X":
            found[role] = own, np.zeros_like(layer.query_bias)
        elif method in KEEP and KEEP[method] in group:
            found[role] = matrices[KEEP[method]]
        elif method in KEEP and len(group) > 1:
            found[role] = matrices[group[0]]
        else:
            found[role] = tuple(np.mean([matrices[r][i] for r in group], 0) for i in (0, 1))
    return layer._replace(tie=tie, **_fields(found))


def tied(
    encoder: Encoder, variables: Mapping[str, Any], edits: Mapping[int, Layer]
) -> tuple[Encoder, dict]:
    """The model whose layers in `edits` have those matrices and their tie; a shared matrix is one
    leaf, so that it goes on being shared in training."""
    ties = list(arguments.instance("encoder", encoder, Encoder).config.ties)
    require_variables(encoder, variables)
    if not isinstance(edits, Mapping):
        raise ConfigError("edits", edits, "must be layers by their numbers")
    params = dict(variables["params"])
    for number, layer in edits.items():
        arguments.whole("edits", number, 0, len(ties) - 1)
        arguments.instance("edits", layer, Layer)
        if layer.query.shape != (shape := _shape(encoder.config)):
            raise ConfigError("edits", layer.query.shape, f"the model's layers have {shape}")
        ties[number] = layer.tie
        name = f"layer_{number}"
        old = params[name].get("attention", {})
        params[name] = dict(params[name]) | {"attention": _leaves(old, layer, encoder.config)}
    config = dataclasses.replace(encoder.config, tie="|".join(map(str, ties)), preset="")
    return encoder.clone(config=config), {**variables, "params": params}


def spread(
    encoder: Encoder, variables: Mapping[str, Any], edits: Mapping[int, Layer]
) -> tuple[Encoder, dict]:
    """The same function as `tied` with a leaf for every role, so that one compiled program serves
    all edits. Layers not in `edits` are to be separate already."""
    if not isinstance(edits, Mapping):
        raise ConfigError("edits", edits, "must be layers by their numbers")
    for layer in edits.values():
        arguments.instance("edits", layer, Layer)
    alone = Tie.parse("separate")
    return tied(encoder, variables, {n: layer._replace(tie=alone) for n, layer in edits.items()})


def _shape(config: ModelConfig) -> tuple[int, int, int]:
    return config.width, config.heads, config.head_width


def _check_given(width: int, moments: InputMoments | None, turns: Turns | None) -> None:
    """Refuses moments of inputs, and rotations, of another kind."""
    if moments is not None:
        found = arguments.instance("moments", moments, InputMoments).mean.shape
        if found != (width,):
            raise ConfigError("moments", found, f"must be of inputs of width {width}")
    if turns is not None:
        arguments.instance("turns", turns, Turns)


def _fitted(layer: Layer, own, tie: Tie, moments: InputMoments, kv_heads: int, turns) -> Layer:
    group = layer.query.shape[1] // kv_heads
    constant = lambda kernel, bias: np.concatenate(
        [np.float64(kernel), (moments.mean @ np.float64(kernel) + bias)[None]]
    )
    heads = []
    for first in range(0, layer.query.shape[1], group):
        readers = range(first, first + group)
        query = [constant(layer.query[:, n], layer.query_bias[n]) for n in readers]
        given = [constant(own[:, n], 0.0) for n in readers]
        key = constant(layer.key[:, first], layer.key_bias[first])
        value = constant(layer.value[:, first], layer.value_bias[first])
        head = Head(np.stack(query), key, value, np.float64(layer.out[first : first + group]))
        heads.append((head, fit_head(head, np.stack(given), tie, moments, turns)))
    stacked = {
        "Q": np.concatenate([found.query for _, found in heads]).swapaxes(0, 1),
        "K": np.stack([found.key for _, found in heads], 1).repeat(group, 1),
        "V": np.stack([found.value for _, found in heads], 1).repeat(group, 1),
    }
    fields = {role: (m[:-1], m[-1] - moments.mean @ m[:-1].swapaxes(0, 1))
              for role, m in stacked.items()}  # fmt: skip
    # What all values have in common goes through attention as it is: the bias of W_O makes up.
    change = sum((old.value[-1] @ old.out - new.value[-1] @ new.out).sum(0) for old, new in heads)
    out = np.float32(np.concatenate([found.out for _, found in heads]))
    bias = np.float32(layer.out_bias + change)
    return layer._replace(tie=tie, out=out, out_bias=bias, **_fields(fields))


def _fields(found: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """{role: (kernel, bias)} as fields of `Layer`."""
    fields = {}
    for role, (kernel, bias) in found.items():
        fields |= {_ROLES[role]: np.float32(kernel), f"{_ROLES[role]}_bias": np.float32(bias)}
    return fields


def _leaves(old: Mapping[str, Any], layer: Layer, config) -> dict[str, Any]:
    """The parameters of attention: those of the sources and W_O anew, all others as they were."""
    kept = {name: leaf for name, leaf in old.items() if name not in (*_ROLES.values(), "out")}
    biased = lambda kernel, bias: {"kernel": jnp.asarray(kernel)} | (
        {"bias": jnp.asarray(bias)} if config.use_bias else {}
    )
    group = config.heads // (config.kv_heads or config.heads)
    for source in layer.tie.sources:
        every = 1 if source == layer.tie.source("Q") else group  # `Layer` repeats grouped heads
        kernel, bias = getattr(layer, source), getattr(layer, f"{source}_bias")
        kept[source] = biased(kernel[:, ::every], bias[::every])
    if config.output_projection:
        kept["out"] = biased(layer.out, layer.out_bias)
    return kept


def _shares(tie: Tie, role: str) -> bool:
    others = [r for r in _ROLES if r != role and tie.source(r) == tie.source(role)]
    return bool(others) and tie.source(role) in SOURCE_NAMES.values() and tie.source(role) != "X"


def _takes_x(tie: Tie) -> bool:
    return any(tie.source(role) == "X" for role in _ROLES)
