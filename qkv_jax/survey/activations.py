"""What flows through the layers of a model on real inputs, gathered over many batches."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from qkv_jax import arguments
from qkv_jax.analysis import attention_maps
from qkv_jax.analysis.layers import probe
from qkv_jax.config import ConfigError
from qkv_jax.model.encoder import Encoder

FIGURES = {
    "entropy": attention_maps.entropy,
    "distance": attention_maps.distance,
    "diagonal": attention_maps.diagonal,
}


class InputBatch(NamedTuple):
    """A batch of inputs, of which the first `count` rows are meant and the rest fill it up."""

    inputs: Num[Array, "B ..."]
    count: int
    valid: Bool[Array, "B T"] | None = None
    read: Int[Array, "B R"] | None = None


class Activations(NamedTuple):
    """A layer's inputs, and means over the queries of what its attention weights look like.

    Attributes:
      x: one row per token that is no padding.
      attention: {quantity: mean over all queries, one number per head}.
      uniform: the same of equal weights on all keys that are seen.
    """

    x: Float[np.ndarray, "M D"]
    attention: dict[str, Float[np.ndarray, " N"]]
    uniform: dict[str, float]


def batch_size(encoder: Encoder, length: int, most: int = 32) -> int:
    """How many inputs at a time, so that the attention weights of all layers fit, and logits."""
    config = arguments.instance("encoder", encoder, Encoder).config
    outputs = 0 if encoder.readout == "class" else encoder.classes
    arguments.whole("length", length, 1)
    arguments.whole("most", most, 1)
    weights = 2**25 // (config.layers * config.heads * length**2)
    return int(np.clip(min(weights, 2**24 // max(1, outputs * length)), 1, most))


def gather(
    encoder: Encoder,
    variables: dict,
    batches: Iterable[InputBatch],
    rng: np.random.Generator,
    most: int,
) -> tuple[Activations, ...]:
    """Runs the model on all batches; of more than `most` tokens `most` are drawn for the clouds."""
    layers = arguments.instance("encoder", encoder, Encoder).config.layers
    arguments.whole("most", most, 1)
    arguments.instance("rng", rng, np.random.Generator)
    batches = _checked(batches)
    clouds: list[list] = [[] for _ in range(layers)]
    rows: list[dict] = [{name: [] for name in FIGURES} for _ in range(layers)]
    equal: dict[str, list] = {name: [] for name in FIGURES}
    for batch in batches:
        probed = _probed(encoder, variables, batch.inputs, batch.valid, batch.read)
        some, length = slice(batch.count), probed[0].x.shape[1]
        if batch.valid is None:
            valid = np.ones((batch.count, length), bool)
        else:
            valid = np.asarray(batch.valid)[some]
        even = attention_maps.uniform(valid, encoder.is_causal)
        for name, figure in FIGURES.items():
            equal[name].append(attention_maps.real_queries(figure(even), valid))
        for layer, found in enumerate(probed):
            clouds[layer].append(np.asarray(found.x)[some][valid])
            weights = np.asarray(found.weights)[some]
            for name, figure in FIGURES.items():
                rows[layer][name].append(attention_maps.real_queries(figure(weights), valid))
    tokens = sum(map(len, clouds[0]))
    kept = np.sort(rng.choice(tokens, most, replace=False)) if tokens > most else slice(None)
    uniform = {name: float(np.concatenate(parts).mean()) for name, parts in equal.items()}
    return tuple(
        Activations(
            np.concatenate(clouds[layer])[kept],
            {name: np.concatenate(parts).mean(0) for name, parts in rows[layer].items()},
            uniform,
        )
        for layer in range(layers)
    )


def _checked(batches: Iterable[InputBatch]) -> list[InputBatch]:
    if not isinstance(batches, list | tuple) or not batches:
        raise ConfigError("batches", batches, "must be a list of at least one InputBatch")
    for batch in batches:
        arguments.instance("batches", batch, InputBatch)
        arguments.whole("batches", batch.count, 1, len(batch.inputs))
    return list(batches)


_probed = functools.partial(jax.jit, static_argnums=0)(probe)
