"""One example through one attention layer, every number on the way.

    X -> Q, K, V -> Q K^T -> times the scale, plus the bias -> softmax -> times V -> W_O

The inputs of each step are the model's own (its parameters, and what its probes collected); the
step itself is multiplied out here in float64, and `Walk.error` says how far the ends lie from what
the model computed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from qkv_jax import arguments
from qkv_jax.analysis.layers import Layer, layer_weights, require_variables
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.blocks import attention_of
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.positions import AddPositions
from qkv_jax.model.projections import QKV
from qkv_jax.model.schemes import Scheme
from qkv_jax.tie import Tie


class Trace(NamedTuple):
    """The numbers of one example in one layer. Keys and values have a row of heads each, grouped
    ones repeated.

    Attributes:
      name: what tells it from others beside it: a tie, a step of training.
      embedded, placed: what the stem makes of the tokens, and that with positions added; None above
        the first layer.
      x: X, what attention receives.
      layer: its matrices, adapters multiplied in.
      config: of the model.
      projected: queries, keys and values as projected.
      query, key: as the scores see them, after that.
      scores: q_i . k_j.
      scale, bias: the scaled scores are `scale * scores + bias`; no bias is None.
      hidden: pairs of a token and one that it cannot see; None if there are none.
      value: values as they are read, which a scheme may turn, and a value residual mix.
      mixed: their weighted sums.
      finished: what the scheme makes of those sums, if it does more; else None.
      output: what the layer returns.
      parameters: of the layer's attention.
      error: the largest difference to the weights and the output that the model itself computed.
    """

    name: str
    tie: Tie
    tokens: tuple[str, ...]
    embedded: Float[np.ndarray, "T D"] | None
    placed: Float[np.ndarray, "T D"] | None
    x: Float[np.ndarray, "T D"]
    layer: Layer
    config: ModelConfig
    projected: QKV
    query: Float[np.ndarray, "T N H"]
    key: Float[np.ndarray, "T N H"]
    scores: Float[np.ndarray, "N T T"]
    scale: Float[np.ndarray, " N"]
    bias: Float[np.ndarray, "N T T"] | None
    hidden: Bool[np.ndarray, "T T"] | None
    scaled: Float[np.ndarray, "N T T"]
    weights: Float[np.ndarray, "N T T"]
    value: Float[np.ndarray, "T N H"]
    mixed: Float[np.ndarray, "T N H"]
    finished: Float[np.ndarray, "T N H"] | None
    output: Float[np.ndarray, "T D"]
    parameters: int
    error: float

    @property
    def adapters(self) -> dict[str, str]:
        """Those of this layer: role to adapter."""
        return dict(attention_of(self.config, self.tie).adapters.items())

    @property
    def between(self) -> tuple[str, ...]:
        """What queries and keys go through before the scores: of "norm" and "rotary"."""
        passed = {"norm": self.config.qk_norm, "rotary": self.config.positions == "rotary"}
        return tuple(name for name, used in passed.items() if used)

    @property
    def heads(self) -> Float[np.ndarray, "T N H"]:
        """What W_O mixes."""
        return self.mixed if self.finished is None else self.finished


def walk_through(
    encoder: Encoder,
    variables: dict,
    inputs: Num[Array, "1 ..."],
    tokens: tuple[str, ...],
    *,
    name: str,
    layer: int = 0,
    valid: Bool[Array, "1 _T"] | None = None,
    documents: Int[Array, "1 _T"] | None = None,
) -> Trace:
    """Walks one example through a layer of a model.

    Args:
      inputs: a batch of one, as the model reads it.
      tokens: a label for each token that the layer sees, padding left out.
      valid: true at real tokens, which come first; the others are not shown.
      documents: which each token is of, as the model reads them.
    """
    config = require_variables(encoder, variables)
    arguments.text("name", name)
    arguments.whole("layer", layer, 0, config.layers - 1)
    _check_example(inputs, tokens, valid)
    if documents is not None:
        require_array("documents", documents, "B T", "int", {"B": 1})
    tie, *kernels = layer_weights(encoder, variables)[layer]
    matrices = Layer(tie, *(kernel.astype(np.float64) for kernel in kernels))
    seen, length = _collected(encoder, variables, inputs, valid, documents), len(tokens)
    of = lambda sown: np.asarray(sown[0][0].astype(jnp.float32), np.float64)
    attention = seen[f"layer_{layer}"]["attention"]
    probes = {key: of(sown) for key, sown in attention["probes"].items()}
    for key in {"bias", "mask"} & set(probes):
        pairs = (config.heads, *2 * (len(probes["x"]),))
        probes[key] = np.broadcast_to(probes[key], pairs)[:, :length, :length]
    if length > len(probes["x"]) or valid is None and length < len(probes["x"]):
        allowed = f"must be a label for each of the {len(probes['x'])} tokens"
        raise ConfigError("tokens", length, allowed)
    x, query = (probes[role][:length] for role in ("x", "query"))
    # As they are read: what turns keys may turn values as well.
    whole = lambda heads: heads[:length].repeat(config.heads // heads.shape[1], axis=1)
    key, value = whole(probes["key"]), whole(probes["value"])
    project = lambda kernel, bias: np.einsum("td,dnh->tnh", x, kernel) + bias
    projected = QKV(*map(project, matrices[1:4], matrices[5:8]))

    params = variables["params"][f"layer_{layer}"].get("attention", {})
    scale, bias = np.asarray(attention["probes"]["scale"][0], np.float64), probes.get("bias")
    hidden = probes["mask"][0] == 0 if "mask" in probes else None
    hidden = hidden if hidden is not None and hidden.any() else None
    scores = np.einsum("tnh,snh->nts", query, key)
    scaled = scale[:, None, None] * scores + (0.0 if bias is None else bias)
    weights = softmax(scaled if hidden is None else np.where(hidden, -np.inf, scaled))
    mixed = np.einsum("nts,snh->tnh", weights, value)
    qkv = QKV(query, key, value)
    finished = _finished(config, tie, params, mixed, qkv)
    heads = mixed if finished is None else finished
    output = np.einsum("tnh,nhd->td", heads, matrices.out) + matrices.out_bias
    ends = (
        (weights, probes["attention_weights"][:, :length, :length]),
        (output, of(jax.tree.leaves(attention["__call__"]))[:length]),
    )
    return Trace(
        name=name,
        tie=tie,
        tokens=tokens,
        embedded=of(seen["stem"]["__call__"])[:length] if layer == 0 else None,
        placed=of(seen["positions"]["__call__"])[:length] if layer == 0 else None,
        x=x,
        layer=matrices,
        config=config,
        projected=projected,
        query=query,
        key=key,
        scores=scores,
        scale=scale,
        bias=bias,
        hidden=hidden,
        scaled=scaled,
        weights=weights,
        value=value,
        mixed=mixed,
        finished=finished,
        output=output,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        error=max(float(np.abs(ours - theirs).max()) for ours, theirs in ends),
    )


def _finished(config: ModelConfig, tie: Tie, params, mixed, qkv: QKV) -> np.ndarray | None:
    """What a scheme makes of the weighted sums of values, if it does more with them; else None."""
    scheme = attention_of(config, tie).make_scheme(config.width)
    if type(scheme).finish is Scheme.finish:
        return None
    of_one = jax.tree.map(lambda array: jnp.float32(array)[None], (mixed, qkv))
    own = jnp.arange(len(qkv.query))[None]
    heads = scheme.apply({"params": params}, *of_one, own, own, method="finish")
    return np.asarray(heads[0], np.float64)


def _check_example(inputs, tokens, valid) -> None:
    """Refuses what is no batch of one with one label per token."""
    shape = getattr(inputs, "shape", ())
    if len(shape) < 2 or shape[0] != 1:
        raise ConfigError("inputs", inputs, "must be a batch of one")
    if not isinstance(tokens, tuple | list) or not tokens:
        raise ConfigError("tokens", tokens, "must be one label per token")
    for token in tokens:
        arguments.text("tokens", token)
    if valid is None:
        return
    require_array("valid", valid, "B T", "bool", {"B": 1})
    real = np.asarray(valid)[0]
    if not real[: len(tokens)].all() or real[len(tokens) :].any():
        what = f"must be true at the first {len(tokens)} places, which have labels, and only there"
        raise ConfigError("valid", int(real.sum()), what)


@functools.partial(jax.jit, static_argnums=0)  # one small program, not hundreds of calls
def _collected(encoder: Encoder, variables: dict, inputs, valid, documents) -> dict:
    """What the model's probes collect, and what stem, positions and attention return."""
    returning = MultiHeadAttention | AddPositions
    ours = lambda module, method: (
        method == "__call__" and (isinstance(module, returning) or module.name == "stem")
    )
    options = {"mutable": "intermediates", "capture_intermediates": ours, "documents": documents}
    return encoder.apply(variables, inputs, valid, **options)[1]["intermediates"]


def softmax(scores: Float[np.ndarray, "*N T S"]) -> Float[np.ndarray, "*N T S"]:
    """exp(s_ij) / sum_j exp(s_ij): rows that sum to 1."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
