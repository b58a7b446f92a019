"""Stems: what makes the tokens [B, T, D] of an encoder from a task's inputs."""


import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array, require_below
from qkv_jax.config import (
    ConfigError,
    require_kinds,
    require_positive,
)  # fmt: skip
from qkv_jax.model.linear import Dense
from qkv_jax.model.positions import EMBEDDING_STD


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
            require_below("inputs", tokens[..., place], size)
        init = nn.initializers.normal(EMBEDDING_STD * len(self.vocabulary) ** -0.5)
        fields = [
            nn.Embed(size, self.width, embedding_init=init, name=f"field_{i}")(tokens[..., i])
            for i, size in enumerate(self.vocabulary)
        ]
        return sum(fields)

    @property
    def table(self) -> Float[Array, "V D"]:
        """The embedding of the first field, once the module was called."""
        return self.variables["params"]["field_0"]["embedding"]


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
        embedded = Dense(self.width, kernel_init=init, name="patch")(patches)
        return jnp.concatenate([ClassToken(self.width, name="class_token")(batch), embedded], 1)


class ClassToken(nn.Module):
    """One learned token, repeated over the batch."""

    width: int

    @nn.compact
    def __call__(self, batch: int) -> Float[Array, "B 1 D"]:
        token = self.param("embedding", nn.initializers.normal(EMBEDDING_STD), (1, 1, self.width))
        return jnp.broadcast_to(token, (batch, 1, self.width))


class TextStem(nn.Module):
    """Embeds tokens [B, T] and puts a learned class token in front: [B, T + 1, D]."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B S D"]:
        embedded = TokenStem((self.vocabulary,), self.width, name="tokens")(tokens)
        front = ClassToken(self.width, name="class_token")(tokens.shape[0])
        return jnp.concatenate([front, embedded], axis=1)
