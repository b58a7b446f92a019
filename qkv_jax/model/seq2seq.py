"""The encoder-decoder: an encoder over the source, and a causal decoder that reads what it makes of
it by cross-attention (Vaswani et al. 2017), of the same blocks and with one embedding for both.

    source -> encoder -> context
    inputs -> [x += f(norm(x)) for f = attention, cross-attention to the context, mlp] -> readout

Cross-attention has a tie of its own, `ModelConfig.cross_tie`. What two texts share under a tie of Q
with K or V is the matrix alone; X is the decoder's for queries and the encoder's for keys and
values. Decoding keeps the sources of the context's keys and values as well, made once.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError
from qkv_jax.model.blocks import Context, attention_of
from qkv_jax.model.cache import Cache
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.masks import visible


class Seq2Seq(nn.Module):
    """Encoder and decoder of `config.layers` blocks each. To whoever trains it or decodes with it,
    it is a causal model of the target that has a source beside it.

    Parameters: `stem`, `encoder/layer_0/…`, `decoder/layer_0/…`, in the latter `cross_attention`.

    Attributes:
      config: of both halves; `cross_tie` is that of the decoder's cross-attention.
      stem: embeds source and target alike.
      classes: the number of outputs.
      max_length: the longest source, and the longest target.
    """

    config: ModelConfig
    stem: nn.Module
    classes: int
    max_length: int

    readout: ClassVar[str] = "token"
    is_causal: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.config, ModelConfig):
            raise ConfigError("config", self.config, "must be a ModelConfig")
        arguments.whole("classes", self.classes, 1)
        self.config.cross  # noqa: B018  (its own checks)
        super().__post_init__()

    def setup(self):
        plain = dataclasses.replace(self.config, cross_tie="", tied_embedding=False)
        self.encoder = Encoder(plain, self.stem, 0, self.max_length)
        self.decoder = self._decoder()

    def __call__(
        self,
        inputs: Int[Array, "B T"],
        valid: Bool[Array, "B T"] | None = None,
        read: Int[Array, "B R"] | None = None,
        cache: Cache | None = None,
        *,
        source: Int[Array, "B S"] | None = None,
        source_valid: Bool[Array, "B S"] | None = None,
        train: bool = False,
    ) -> Float[Array, "B T outputs"] | tuple[Float[Array, "B T outputs"], Cache]:
        """The logits of what follows each token of the target, as `Encoder` gives them. The source
        is in the cache, where there is one."""
        if (source is None) == (cache is None):
            raise ValueError("source: is needed, unless a cache has read it")
        context = None
        if cache is None:
            context = self.encode(source, source_valid, train=train)
        return self.decoder(inputs, valid, read, cache, context=context, train=train)

    def encode(
        self,
        source: Int[Array, "B S"],
        source_valid: Bool[Array, "B S"] | None = None,
        *,
        train: bool = False,
    ) -> Context:
        """What the decoder reads of a source, whose padding, where not `source_valid`, is hidden
        from both."""
        tokens = self.encoder(source, source_valid, train=train).astype(self.config.dtype)
        if source_valid is None:
            return Context(tokens)
        here = jnp.arange(tokens.shape[1])[None]
        return Context(tokens, visible(here[:, :1], here, valid=source_valid))

    @nn.nowrap
    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = None,
        *,
        variables: Any,
        source: Int[Array, "B S"],
        source_valid: Bool[Array, "B S"] | None = None,
    ) -> Cache:
        """A cache that has read the source and none of the target; see `Encoder.init_cache`."""
        require_array("source", source, "B S", "int", {"B": batch})
        unbound = self.clone(parent=None)
        context = unbound.apply(variables, source, source_valid, method="encode")
        tokens, params, kept = context.tokens, variables["params"]["decoder"], {}
        places = np.arange(tokens.shape[1])[None]
        read = lambda scheme: scheme.keep(scheme.project(tokens[:, :1], tokens), places).kept
        for layer, tie in enumerate(self.config.cross.ties):
            own = params[f"layer_{layer}"].get("cross_attention", {})  # of copies there may be none
            scheme = attention_of(self.config.cross, tie).make_scheme(self.config.width)
            made = scheme.apply({"params": own}, method=read)
            as_cached = lambda array: array.astype(dtype or self.config.dtype).swapaxes(1, 2)
            kept[f"layer_{layer}"] = {name: as_cached(array) for name, array in made.items()}
        cache = self._decoder(parent=None).init_cache(batch, slots, dtype)
        return cache.replace(context=context._replace(tokens=kept))

    @nn.nowrap
    def _decoder(self, **options: Any) -> Encoder:
        numbers = (self.config, self.stem, self.classes, self.max_length)
        return Encoder(*numbers, is_causal=True, cross=True, **options)


Model = Encoder | Seq2Seq  # what tasks train
