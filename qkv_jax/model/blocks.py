"""A block of the encoder, attention and MLP, and how it is recomputed; in the decoder of an
encoder-decoder with cross-attention between them."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.cache import Cache
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.linear import Dense
from qkv_jax.tie import Tie

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
        dense = functools.partial(Dense, dtype=x.dtype)
        hidden = ACTIVATIONS[self.activation](dense(self.hidden, name="up")(x))
        return dense(x.shape[-1], name="down")(hidden)


class SwiGlu(nn.Module):
    """SwiGLU (Shazeer 2020): one dense layer gates another by silu; a third leads back."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        dense = functools.partial(Dense, dtype=x.dtype)
        hidden = nn.silu(dense(self.hidden, name="gate")(x)) * dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(hidden)


MLPS = {name: functools.partial(Mlp, activation=name) for name in ACTIVATIONS} | {"swiglu": SwiGlu}
NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def normed(config: ModelConfig, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x through a norm of the config's kind, a submodule of that name."""
    norm = NORMS[config.norm](epsilon=config.norm_epsilon, dtype=x.dtype, name=name)
    with jax.numpy_dtype_promotion("standard"):  # Flax takes means in float32 at least
        return norm(x)


def attention_of(config: ModelConfig, tie: Tie, name: str | None = None) -> MultiHeadAttention:
    """The attention of a layer under a tie: the one place that reads it off a config."""
    return MultiHeadAttention(
        num_heads=config.heads,
        tie=tie,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        adapters=config.adapters.where_shared(tie),
        latent_dim=config.latent_dim,
        latent_kind=config.latent_kind,
        positions=config.positions,
        positions_2d=config.positions_2d,
        qk_norm=config.qk_norm,
        rotary_dims=config.rotary_dims,
        rotary_base=config.rotary_base,
        window=config.window,
        diagonal_mask=config.diagonal_mask,
        scale=config.scale,
        frozen=config.frozen,
        output_projection=config.output_projection,
        use_bias=config.use_bias,
        implementation=config.implementation,
        scheme=config.scheme,
        value_residual=config.value_residual,
        name=name,
    )


class Context(NamedTuple):
    """What cross-attention reads.

    Attributes:
      tokens: [B, S, D]; or the sources of their keys and values as a cache has them, [B, heads, S,
        width], of one layer or by layer.
      mask: true at tokens, False at padding; all are tokens by default.
    """

    tokens: Any
    mask: Bool[Array, "B 1 1 S"] | None = None


class Block(nn.Module):
    """One layer under one tie, as `MultiHeadAttention` has it: with the layer's cache it takes the
    tokens that come next. With a `cross_tie` it reads a context as well. Returns x, the cache with
    those tokens in it and, under a value residual, the first layer's values; None for what is not.
    """

    config: ModelConfig
    tie: Tie
    is_causal: bool = False
    cross_tie: Tie | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask,
        train: bool,
        places=None,
        cache=None,
        valid=None,
        context: Context | None = None,
        first_values=None,
    ) -> tuple[Float[Array, "B T D"], Cache | None, Array | None]:
        config = self.config
        attention = attention_of(config, self.tie, "attention")
        mlp = None if config.mlp == "none" else MLPS[config.mlp](config.hidden, name="mlp")
        drop = nn.Dropout(config.dropout, deterministic=not train)

        def attend(x):
            nonlocal cache, first_values
            given = {"mask": mask, "places": places, "is_causal": self.is_causal}
            if cache is not None:
                given = {"cache": cache, "valid": valid}
            made = attention(x, first_values=first_values, **given)
            out, *others = made if isinstance(made, tuple) else (made,)
            if cache is not None:
                cache = others.pop(0)
            if others and first_values is None:
                first_values = others[0]
            return out

        parts = {"attention": attend}
        if self.cross_tie is not None:
            reader = attention_of(config.cross, self.cross_tie, "cross_attention")
            parts["cross_attention"] = lambda x: reader(x, context.tokens, mask=context.mask)
        for name, part in (parts | ({"mlp": mlp} if mlp else {})).items():
            name = f"{name}_norm"
            if config.norm_position == "pre":
                x = x + drop(part(normed(config, name, x)))
            else:
                x = normed(config, name, x + drop(part(x)))
        return x, cache, first_values


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
