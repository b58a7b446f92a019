"""The Transformer encoder, its stems (tokens, patches) and readouts.

    pre-norm:   stem -> + positions -> [x += f(norm(x)) for f = attention, mlp] -> norm -> readout
    post-norm:  stem -> + positions -> [x = norm(x + f(x)) for f = attention, mlp] -> readout

With `embedding_norm` a norm follows the positions; an encoder of no classes has no readout.

X, the tensor that ties speak of, is what attention receives: additive positions included and, under
pre-norm, after the norm. Parameters are float32; the layers compute in the config's `dtype`.
"""

import functools
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.attention import MultiHeadAttention
from qkv_jax.config import (
    ConfigError,
    require_choice,
    require_kinds,
    require_positive,
)  # fmt: skip
from qkv_jax.model_config import ModelConfig
from qkv_jax.positions import EMBEDDING_STD, AddPositions
from qkv_jax.tie import Tie

__all__ = ["Block", "ClassToken", "Encoder", "PatchStem", "TokenStem"]


Readout = Literal["token", "class"]


class TokenStem(nn.Module):
    """Embeds tokens [B, T], or tokens of several fields [B, T, F] whose embeddings are summed."""

    vocabulary: tuple[int, ...]  # the number of symbols of each field
    width: int

    def __post_init__(self):
        require_kinds(self, TokenStem)
        require_positive(self, "width")
        for size in self.vocabulary or (0,):
            arguments.whole("vocabulary", size, 1)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"] | Int[Array, "B T F"]) -> Float[Array, "B T D"]:
        if getattr(tokens, "ndim", 2) == 2:
            require_array("inputs", tokens, "B T", "int", {"F": len(self.vocabulary)})
            tokens = tokens[..., None]
        require_array("inputs", tokens, "B T F", "int", {"F": len(self.vocabulary)})
        for place, size in enumerate(self.vocabulary):
            _require_below("inputs", tokens[..., place], size)
        init = nn.initializers.normal(EMBEDDING_STD * len(self.vocabulary) ** -0.5)
        fields = [
            nn.Embed(size, self.width, embedding_init=init, name=f"field_{i}")(tokens[..., i])
            for i, size in enumerate(self.vocabulary)
        ]
        return sum(fields)


class PatchStem(nn.Module):
    """Cuts images into square patches, projects them, and puts a learned class token in front."""

    patch: int
    width: int

    def __post_init__(self):
        require_kinds(self, PatchStem)
        require_positive(self, "patch", "width")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "B height width C"]) -> Float[Array, "B T D"]:
        require_array("inputs", images, "B height width C", "float", {})
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            allowed = f"height and width must be multiples of the patch, {self.patch}"
            raise ConfigError("inputs", images, allowed)
        batch, height, width, channels = images.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        patches = images.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, rows * columns, p * p * channels)
        init = nn.initializers.variance_scaling(EMBEDDING_STD**2, "fan_in", "normal")
        embedded = nn.Dense(self.width, kernel_init=init, name="patch")(patches)
        return jnp.concatenate([ClassToken(self.width, name="class_token")(batch), embedded], 1)


class ClassToken(nn.Module):
    """One learned token, repeated over the batch."""

    width: int

    @nn.compact
    def __call__(self, batch: int) -> Float[Array, "B 1 D"]:
        token = self.param("embedding", nn.initializers.normal(EMBEDDING_STD), (1, 1, self.width))
        return jnp.broadcast_to(token, (batch, 1, self.width))


ACTIVATIONS = {
    "gelu": nn.gelu,  # the tanh approximation of x Phi(x) (Hendrycks and Gimpel 2016)
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}


class Mlp(nn.Module):
    """Two dense layers with one of `ACTIVATIONS` between."""

    hidden: int
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        dense = functools.partial(nn.Dense, dtype=x.dtype)
        hidden = ACTIVATIONS[self.activation](dense(self.hidden, name="up")(x))
        return dense(x.shape[-1], name="down")(hidden)


class SwiGlu(nn.Module):
    """SwiGLU (Shazeer 2020): one dense layer gates another by silu; a third leads back."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        dense = functools.partial(nn.Dense, dtype=x.dtype)
        hidden = nn.silu(dense(self.hidden, name="gate")(x)) * dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(hidden)


MLPS = {name: functools.partial(Mlp, activation=name) for name in ACTIVATIONS} | {"swiglu": SwiGlu}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def _norm(config: ModelConfig, name: str, dtype) -> nn.Module:
    return NORMS[config.norm](epsilon=config.norm_epsilon, dtype=dtype, name=name)


def _require_below(name: str, values: Array, limit: int) -> None:
    """Refuses numbers outside [0, limit), which JAX would take from the end or turn into NaN; where
    they are known, outside jit."""
    if not isinstance(values, jax.core.Tracer) and values.size:
        known = np.asarray(values)  # of JAX's own functions the results are not, inside jit
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= limit:
            raise ConfigError(name, low if low < 0 else high, f"must be from 0 to {limit - 1}")


class Block(nn.Module):
    """One layer under one tie."""

    config: ModelConfig
    tie: Tie

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask, train: bool) -> Float[Array, "B T D"]:
        config = self.config
        attention = MultiHeadAttention(
            num_heads=config.heads,
            tie=self.tie,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            adapters=config.adapters.where_shared(self.tie),
            latent_dim=config.latent_dim,
            positions=config.positions,
            positions_2d=config.positions_2d,
            qk_norm=config.qk_norm,
            diagonal_mask=config.diagonal_mask,
            scale=config.scale,
            frozen=config.frozen,
            output_projection=config.output_projection,
            use_bias=config.use_bias,
            implementation=config.implementation,
            name="attention",
        )
        mlp = MLPS[config.mlp](config.hidden, name="mlp")
        drop = nn.Dropout(config.dropout, deterministic=not train)
        for part in (functools.partial(attention, mask=mask), mlp):
            norm = _norm(config, "mlp_norm" if part is mlp else "attention_norm", x.dtype)
            if config.norm_position == "pre":
                x = x + drop(part(norm(x)))
            else:
                x = norm(x + drop(part(x)))
        return x


# By what a block leaves for the backward pass to compute again; parameters are the same.
_TRAIN = 3  # the place of `train` among a block's arguments: a number of Python, not of JAX
BLOCKS = {
    "none": Block,
    "block": nn.remat(Block, static_argnums=_TRAIN),
    "dots": nn.remat(
        Block,
        static_argnums=_TRAIN,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
}


class Encoder(nn.Module):
    """Stem, positions, blocks, norm and readout.

    Attributes:
      config: the encoder's own numbers.
      stem: a module from a task's inputs to tokens [B, T, D].
      classes: the number of outputs; with 0 there is no readout and the output is the last hidden
        state, under pre-norm after the norm.
      max_length: the longest sequence that the stem makes.
      readout: `token` gives logits [B, T, classes]; `class` reads the first token: [B, classes].

    The readout, of width D x classes, is often the dearest part of a small model: `read` [B, R]
    names the only places whose logits are wanted, as in masked language modelling.
    """

    config: ModelConfig
    stem: nn.Module
    classes: int
    max_length: int
    readout: Readout = "token"

    def __post_init__(self):
        if not isinstance(self.config, ModelConfig):
            raise ConfigError("config", self.config, "must be a ModelConfig")
        require_kinds(self, Encoder)
        arguments.whole("classes", self.classes)
        require_positive(self, "max_length")
        require_choice(self, "readout", get_args(Readout))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        padding: Bool[Array, "B T"] | None = None,
        read: Int[Array, "B R"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B *T outputs"]:
        """`padding` is true at real tokens; padded ones are hidden from every query."""
        arguments.truth("train", train)
        config = self.config
        x = AddPositions(config.positions, self.max_length, name="positions")(self.stem(inputs))
        sizes = dict(zip("BT", x.shape, strict=False))
        if padding is not None:
            require_array("padding", padding, "B T", "bool", sizes)
        if read is not None:
            require_array("read", read, "B R", "int", sizes)
            _require_below("read", read, sizes["T"])
        x = x.astype(config.dtype)
        if config.embedding_norm:
            x = _norm(config, "embedding_norm", x.dtype)(x)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        mask = None if padding is None else padding[:, None, None, :]
        # Parameters are made, and probes read, layer by layer.
        by_layer = self.is_initializing() or self.is_mutable_collection("intermediates")
        if config.scan_layers and not by_layer:
            x = self._scan(x, mask, train)
        else:
            for layer, tie in enumerate(config.ties):
                x = BLOCKS[config.remat](config, tie, name=f"layer_{layer}")(x, mask, train)
        if read is not None:
            x = jnp.take_along_axis(x, read[:, :, None], axis=1)
        x = x[:, 0] if self.readout == "class" else x
        if config.norm_position == "pre":
            x = _norm(config, "norm", x.dtype)(x)
        if self.classes:
            x = nn.Dense(self.classes, dtype=x.dtype, name="readout")(x)
        return x.astype(jnp.float32)  # the loss is not to be rounded

    def _scan(self, x: Float[Array, "B T D"], mask, train: bool) -> Float[Array, "B T D"]:
        """The layers as one loop over their parameters, stacked."""
        config = self.config
        block = BLOCKS[config.remat](config, config.ties[0], parent=None)
        params = self.variables["params"]
        layers = [params[f"layer_{layer}"] for layer in range(config.layers)]
        keys = None
        if train and config.dropout:
            keys = jax.random.split(self.make_rng("dropout"), config.layers)

        def layer(x, own):
            params, key = own
            rngs = None if key is None else {"dropout": key}
            return block.apply({"params": params}, x, mask, train, rngs=rngs), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        return jax.lax.scan(layer, x, (stacked, keys))[0]
