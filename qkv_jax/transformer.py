"""The pre-norm Transformer encoder, its stems (tokens, patches) and readouts.

    stem -> + positions -> [x += attention(norm(x)); x += mlp(norm(x))] * layers -> norm -> readout

X, the tensor that ties speak of, is what attention receives: after the norm, additive positions
included.
"""

import contextlib
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qkv_jax.attention import IMPLEMENTATIONS, MultiHeadAttention
from qkv_jax.config import ConfigError, require_choice, require_positive, require_range
from qkv_jax.positions import EMBEDDING_STD, POSITIONS, AddPositions, Positions
from qkv_jax.projections import check_scheme
from qkv_jax.tie import Tie, TieError, parse_schedule


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder. Widths are counted in features; `None` stands for what the comment says.

    Raises:
      ConfigError: where the fields cannot be, alone or together.
    """

    tie: str = "separate"  # a tie, or a schedule over layers such as "K=V*2|separate*4"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None  # heads
    head_dim: int | None = None  # width / heads
    mlp_width: int | None = None  # 4 * width
    positions: Positions = "learned"
    scale: float | str = "sqrt"  # "sqrt", "learned_per_head" or a number
    frozen: tuple[str, ...] = ()  # of "query", "key", "value"
    output_projection: bool = True
    dropout: float = 0.0
    implementation: str = "auto"  # of attention: auto, einsum, xla, cudnn

    def __post_init__(self):
        sizes = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")
        require_positive(self, *sizes)
        require_range(self, "dropout", 0.0, 1.0)
        require_choice(self, "positions", POSITIONS)
        require_choice(self, "implementation", IMPLEMENTATIONS)
        if isinstance(self.scale, str):
            with contextlib.suppress(ValueError):  # a number given on the command line
                object.__setattr__(self, "scale", float(self.scale))
        if isinstance(self.scale, str):
            require_choice(self, "scale", ("sqrt", "learned_per_head"))
        else:
            require_positive(self, "scale")
        try:
            ties = self.ties
        except TieError as error:
            raise ConfigError("tie", self.tie, str(error)) from None
        if self.head_dim is None and self.width % self.heads:
            raise ConfigError("width", self.width, f"must be divisible by heads = {self.heads}")
        head_dim = self.head_dim or self.width // self.heads
        joined = self.heads * head_dim
        if joined != self.width and any(tie.equates(role, "X") for tie in ties for role in "QKV"):
            raise ConfigError("tie", self.tie, f"=X needs width {self.width} = heads x head width")
        if joined != self.width and not self.output_projection:
            raise ConfigError("output_projection", False, "needs width = heads x head width")
        if self.positions == "rotary" and head_dim % 2:
            raise ConfigError("positions", "rotary", f"needs an even head width, not {head_dim}")
        for source in self.frozen:
            if source not in ("query", "key", "value"):
                raise ConfigError("frozen", source, "allowed: query, key, value")
        for layer, tie in enumerate(ties):
            try:
                check_scheme(tie, self.heads, self.kv_heads or self.heads, self.frozen)
            except ValueError as error:
                raise ConfigError("tie", self.tie, f"layer {layer}: {error}") from None

    @property
    def ties(self) -> tuple[Tie, ...]:
        """One tie a layer, bottom up."""
        return parse_schedule(self.tie, self.layers)


class TokenStem(nn.Module):
    """Embeds tokens [B, T], or tokens of several fields [B, T, F] whose embeddings are summed."""

    vocabulary: tuple[int, ...]  # the number of symbols of each field
    width: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"] | Int[Array, "B T F"]) -> Float[Array, "B T D"]:
        tokens = tokens[..., None] if tokens.ndim == 2 else tokens
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

    @nn.compact
    def __call__(self, images: Float[Array, "B height width C"]) -> Float[Array, "B T D"]:
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


class Mlp(nn.Module):
    """Two dense layers with a GELU between."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(hidden)


class Block(nn.Module):
    """One pre-norm layer under one tie."""

    config: ModelConfig
    tie: Tie

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask, *, train: bool) -> Float[Array, "B T D"]:
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=not train)
        attention = MultiHeadAttention(
            num_heads=config.heads,
            tie=self.tie,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            positions=config.positions,
            scale=config.scale,
            frozen=config.frozen,
            output_projection=config.output_projection,
            implementation=config.implementation,
            name="attention",
        )
        x = x + drop(attention(nn.LayerNorm(name="attention_norm")(x), mask=mask))
        mlp = Mlp(config.mlp_width or 4 * config.width, name="mlp")
        return x + drop(mlp(nn.LayerNorm(name="mlp_norm")(x)))


class Encoder(nn.Module):
    """Stem, positions, blocks, norm and readout.

    Attributes:
      config: the encoder's own numbers.
      stem: a module from a task's inputs to tokens [B, T, D].
      classes: the number of outputs.
      max_length: the longest sequence that the stem makes.
      readout: `token` gives logits [B, T, classes]; `class` reads the first token: [B, classes].

    The readout, of width D x classes, is often the dearest part of a small model: `read` [B, R]
    names the only places whose logits are wanted, as in masked language modelling.
    """

    config: ModelConfig
    stem: nn.Module
    classes: int
    max_length: int
    readout: str = "token"

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        padding: Bool[Array, "B T"] | None = None,
        read: Int[Array, "B R"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B *T classes"]:
        """`padding` is true at real tokens; padded ones are hidden from every query."""
        config = self.config
        x = AddPositions(config.positions, self.max_length, name="positions")(self.stem(inputs))
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        mask = None if padding is None else padding[:, None, None, :]
        for layer, tie in enumerate(config.ties):
            x = Block(config, tie, name=f"layer_{layer}")(x, mask, train=train)
        if read is not None:
            x = jnp.take_along_axis(x, read[:, :, None], axis=1)
        x = x[:, 0] if self.readout == "class" else x
        return nn.Dense(self.classes, name="readout")(nn.LayerNorm(name="norm")(x))
