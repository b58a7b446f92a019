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


class Feed(NamedTuple):
    """A batch of inputs, of which the first `count` rows are meant and the rest fill it up."""

    inputs: Num[Array, "B ..."]
    count: int
    valid: Bool[Array, "B T"] | None = None
    read: Int[Array, "B R"] | None = None


class Activations(NamedTuple):
    """A layer's inputs, and means over the queries of what its attention weights look like.

    Attributes:
      x: a row a token that is no padding.
      attention: {quantity: mean over all queries, a number a head}.
      uniform: the same of equal weights on all keys that are seen.
    """

    x: Float[np.ndarray, "M D"]
    attention: dict[str, Float[np.ndarray, " N"]]
    uniform: dict[str, float]


def batch_size(encoder: Encoder, length: int, most: int = 32) -> int:
    """How many inputs at a time, so that the attention weights of all layers fit."""
    config = arguments.instance("encoder", encoder, Encoder).config
    arguments.whole("length", length, 1)
    arguments.whole("most", most, 1)
    return int(np.clip(2**25 // (config.layers * config.heads * length**2), 1, most))


def gather(
    encoder: Encoder, variables: dict, feeds: Iterable[Feed], rng: np.random.Generator, most: int
) -> tuple[Activations, ...]:
    """Runs the model on all feeds; of more than `most` tokens, `most` are drawn for the clouds."""
    layers = arguments.instance("encoder", encoder, Encoder).config.layers
    arguments.whole("most", most, 1)
    arguments.instance("rng", rng, np.random.Generator)
    feeds = _checked(feeds)
    clouds: list[list] = [[] for _ in range(layers)]
    rows: list[dict] = [{name: [] for name in FIGURES} for _ in range(layers)]
    equal: dict[str, list] = {name: [] for name in FIGURES}
    for feed in feeds:
        probed = _probed(encoder, variables, feed.inputs, feed.valid, feed.read)
        some, length = slice(feed.count), probed[0].x.shape[1]
        if feed.valid is None:
            valid = np.ones((feed.count, length), bool)
        else:
            valid = np.asarray(feed.valid)[some]
        even = attention_maps.uniform(valid)
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


def _checked(feeds: Iterable[Feed]) -> list[Feed]:
    if not isinstance(feeds, list | tuple) or not feeds:
        raise ConfigError("feeds", feeds, "must be a list of at least one Feed")
    for feed in feeds:
        arguments.instance("feeds", feed, Feed)
        arguments.whole("feeds", feed.count, 1, len(feed.inputs))
    return list(feeds)


_probed = functools.partial(jax.jit, static_argnums=0)(probe)
