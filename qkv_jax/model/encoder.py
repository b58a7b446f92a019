"""The Transformer encoder, its stems (tokens, patches) and readouts.

    pre-norm:   stem -> + positions -> [x += f(norm(x)) for f = attention, mlp] -> norm -> readout
    post-norm:  stem -> + positions -> [x = norm(x + f(x)) for f = attention, mlp] -> readout

With `embedding_norm` a norm follows the positions; an encoder of no classes has no readout. With
`tied_embedding` the readout is the stem's embedding (Press & Wolf 2017), of its first tokens. Half
of an encoder-decoder (`seq2seq.py`) has cross-attention between attention and MLP.

X, the tensor that ties speak of, is what attention receives: additive positions included and, under
pre-norm, after the norm. Parameters are float32; the layers compute in the config's `dtype`.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array, require_below
from qkv_jax.config import (
    ConfigError,
    require_kinds,
    require_positive,
    shown,
)  # fmt: skip
from qkv_jax.model.blocks import BLOCKS, Context, attention_of, normed
from qkv_jax.model.cache import Cache, check_cache
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.linear import Dense, on_rows
from qkv_jax.model.masks import places_within, visible
from qkv_jax.model.positions import AddPositions
from qkv_jax.model.stems import TokenStem
from qkv_jax.tie import Tie

Readout = Literal["token", "class"]


class Encoder(nn.Module):
    """Stem, positions, blocks, norm and readout.

    Attributes:
      config: the encoder's own numbers.
      stem: a module from a task's inputs to tokens [B, T, D].
      classes: the number of outputs; with 0 there is no readout and the output is the last hidden
        state, under pre-norm after the norm.
      max_length: the longest sequence that the stem makes.
      readout: `token` gives logits [B, T, classes]; `class` reads the first token: [B, classes].
      is_causal: no token sees those after it; places, and what is seen, are those within each
        document where several are packed into one row.
      cross: the layers have cross-attention, to the `context` of a call.

    The readout, of width D x classes, is often the dearest part of a small model: `read` [B, R]
    names the only places whose logits are wanted, as in masked language modelling.
    """

    config: ModelConfig
    stem: nn.Module
    classes: int
    max_length: int
    readout: Readout = "token"
    is_causal: bool = False
    cross: bool = False

    def __post_init__(self):
        if not isinstance(self.config, ModelConfig):
            raise ConfigError("config", self.config, "must be a ModelConfig")
        require_kinds(self, Encoder)
        if self.config.cross_tie and not self.cross:
            allowed = "the model of this task has no cross-attention"
            raise ConfigError("cross_tie", self.config.cross_tie, allowed)
        arguments.whole("classes", self.classes)
        require_positive(self, "max_length")
        if self.classes and self.config.tied_embedding:
            self._check_embedding()
        super().__post_init__()

    def _check_embedding(self) -> None:
        stem = self.stem
        if not isinstance(stem, TokenStem) or len(stem.vocabulary) > 1:
            allowed = "needs inputs that are tokens of one field"
            raise ConfigError("tied_embedding", True, allowed)
        if self.classes > stem.vocabulary[0]:
            allowed = f"{self.classes} classes, and {stem.vocabulary[0]} tokens that are embedded"
            raise ConfigError("tied_embedding", True, allowed)

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        valid: Bool[Array, "B T"] | None = None,
        read: Int[Array, "B R"] | None = None,
        cache: Cache | None = None,
        *,
        documents: Int[Array, "B T"] | None = None,
        places: Int[Array, "#B T"] | None = None,
        context: Context | None = None,
        train: bool = False,
    ) -> Float[Array, "B *T outputs"] | tuple[Float[Array, "B *T outputs"], Cache]:
        """With a `cache`, see `init_cache`, the inputs are the tokens that come next, those that
        are not `valid` last, and the cache with them in it is returned beside the outputs.

        `valid` is true at real tokens; padding is hidden from every query. `documents` tells
        texts apart that are packed into one row: none sees another. `places` are those of the
        stem's tokens, by default 0 .. T-1, anew in each document. The `context` of a model with
        cross-attention is in the cache, where there is one."""
        arguments.truth("train", train)
        config = self.config
        self._check_cache(cache, documents, places)
        if cache is not None:
            context = cache.context
        if self.cross != (context is not None):
            raise ValueError("context: is what a model with cross-attention reads, and needs")
        if documents is not None and places is None:
            places = places_within(documents)
        x = self.stem(inputs)
        sizes = dict(zip("BT", x.shape, strict=False))
        if valid is not None:
            require_array("valid", valid, "B T", "bool", sizes)
        if cache is not None:
            check_cache(sizes, cache, None, valid)
            places = cache.lengths[:, None] + jnp.arange(sizes["T"])[None]
            places = places if valid is None else jnp.where(valid, places, 0)
        positions = AddPositions(config.positions, self.max_length, name="positions")
        x = positions(x, places)
        if read is not None:
            require_array("read", read, "B R", "int", sizes)
            require_below("read", read, sizes["T"])
        x = x.astype(config.dtype)
        if config.embedding_norm:
            x = normed(config, "embedding_norm", x)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        mask = None
        if cache is None and (valid is not None or documents is not None):
            here = jnp.arange(sizes["T"])[None]
            pair = None if documents is None else (documents, documents)
            mask = visible(here, here, valid=valid, documents=pair)
        # Parameters are made, and probes read, layer by layer.
        by_layer = self.is_initializing() or self.is_mutable_collection("intermediates")
        kept, values = {}, None
        if config.scan_layers and not by_layer and cache is None:
            x = self._scan(x, mask, train, places, context)
        else:
            for layer, ties in enumerate(self._ties):
                name, own, seen = f"layer_{layer}", None, context
                block = BLOCKS[config.remat](config, ties[0], self.is_causal, ties[1], name=name)
                if cache is not None:
                    own = cache.replace(sources=cache.sources[name])
                    seen = context and context._replace(tokens=context.tokens[name])
                given = (x, mask, train, places, own, valid, seen, values)
                x, kept[name], values = block(*given)
        if read is not None:
            x = jnp.take_along_axis(x, read[:, :, None], axis=1)
        x = x[:, 0] if self.readout == "class" else x
        if config.norm_position == "pre":
            x = normed(config, "norm", x)
        if self.classes and config.tied_embedding:
            x = on_rows(x, self.stem.table[: self.classes].T.astype(x.dtype))
        elif self.classes:
            x = Dense(self.classes, dtype=x.dtype, name="readout")(x)
        x = x.astype(jnp.float32)  # the loss is not to be rounded
        if cache is None:
            return x
        sources = {name: own.sources for name, own in kept.items()}
        return x, cache.replace(sources=sources, lengths=kept["layer_0"].lengths)

    @property
    def _ties(self) -> list[tuple[Tie, Tie | None]]:
        """Those of attention and of cross-attention of each layer."""
        config = self.config
        crossed = config.cross.ties if self.cross else [None] * config.layers
        return [*zip(config.ties, crossed, strict=True)]

    @nn.nowrap
    def init_cache(self, batch: int, slots: int, dtype: Any = None) -> Cache:
        """An empty cache for a causal model, see `MultiHeadAttention.init_cache`; by default in the
        number format of the config."""
        config = self.config
        layers = {
            f"layer_{layer}": attention_of(config, tie).init_cache(
                batch, slots, config.width, dtype or config.dtype
            )
            for layer, tie in enumerate(config.ties)
        }
        sources = {name: own.sources for name, own in layers.items()}
        return layers["layer_0"].replace(sources=sources)

    def _check_cache(self, cache, documents, places) -> None:
        if cache is None:
            return
        if not self.is_causal or self.readout == "class":
            raise ValueError("cache: is for causal models that read out every token")
        if documents is not None or places is not None:
            raise ValueError("cache: holds one text a row, and counts places itself")
        layers = {f"layer_{layer}" for layer in range(self.config.layers)}
        if not isinstance(cache, Cache) or {*cache.sources} != layers:
            raise ConfigError("cache", shown(cache), "make one with init_cache")

    def _scan(
        self, x: Float[Array, "B T D"], mask, train: bool, places, context
    ) -> Float[Array, "B T D"]:
        """The layers as one loop over their parameters, stacked."""
        config, (tie, cross_tie) = self.config, self._ties[0]
        block = BLOCKS[config.remat](config, tie, self.is_causal, cross_tie, parent=None)
        params = self.variables["params"]
        layers = [params[f"layer_{layer}"] for layer in range(config.layers)]
        keys = None
        if train and config.dropout:
            keys = jax.random.split(self.make_rng("dropout"), config.layers)

        def layer(x, own):
            params, key = own
            rngs = None if key is None else {"dropout": key}
            given = (x, mask, train, places, None, None, context)
            return block.apply({"params": params}, *given, rngs=rngs)[0], None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return jax.lax.scan(layer, x, (stacked, keys))[0]
