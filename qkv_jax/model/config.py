"""The encoder's configuration: every axis of a scheme is one field, checked alone and together."""

import contextlib
import dataclasses
import functools
from typing import Literal

from qkv_jax import arguments
from qkv_jax.config import (
    ConfigError,
    require_32_bits,
    require_positive,
    require_range,
    settle,
)
from qkv_jax.model.adapters import PRESETS, Adapters
from qkv_jax.model.dot_product import Implementation, unsupported
from qkv_jax.model.positions import BASE, Positions
from qkv_jax.model.projections import LATENT, check_scheme
from qkv_jax.model.schemes import scheme_class
from qkv_jax.model.schemes.base import LatentKind
from qkv_jax.tie import Tie, TieError, parse_schedule

_MOST_LAYERS = 10_000  # each has its entry in the schedule of ties


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder. Widths are counted in features; `None` stands for what the comment says.

    Adapters act in those layers of a schedule where their role shares its source.

    Raises:
      ConfigError: where the fields cannot be, alone or together.
    """

    tie: str = "separate"  # a tie, or a schedule over layers such as "K=V*2|separate*4"
    cross_tie: str = ""  # of cross-attention, where a task's model has it; that of the layer
    preset: str = ""  # a published tie with its adapters, in place of both: courtois, gao, kowsher
    scheme: str = "tied"  # or package.module.Class: a scheme of one's own, see schemes.py
    adapters: Adapters = Adapters()  # of query, key, value: "diag", "head", "lowrank:RANK"
    layers: int = 2  # blocks of attention and MLP
    width: int = 64  # of the residual stream
    heads: int = 4  # of queries
    kv_heads: int | None = None  # heads of keys and values; as many as of queries
    head_dim: int | None = None  # width / heads
    latent_dim: int | None = None  # no latent source; else the width of that of keys and values
    latent_kind: LatentKind = "learned"  # learned, frozen, or a plain slice of X
    positions: Positions = "learned"  # none, sinusoidal, learned, rotary, relative, alibi
    positions_2d: bool = False  # the "2D positional" term of the KV-Transformer
    qk_norm: bool = False  # a norm of each head's queries and keys
    rotary_dims: int | None = None  # of each head, that rotary positions turn; all
    rotary_base: float = BASE  # of the wavelengths of rotary positions, theta in Llama
    window: int | None = None  # keys that many places away, or more, are hidden; none are
    value_residual: bool = False  # values of the first layer mixed into those of later ones
    diagonal_mask: bool = False  # no token sees itself, unless it sees nothing else
    scale: float | str = "sqrt"  # "sqrt", "learned_per_head" or a number
    frozen: tuple[str, ...] = ()  # of "query", "key", "value"
    output_projection: bool = True  # W_O, after the heads are joined
    use_bias: bool = False  # in the projections of attention
    # gelu (its tanh approximation), gelu_exact, relu, swiglu; none: blocks of attention alone
    mlp: Literal["gelu", "gelu_exact", "relu", "swiglu", "none"] = "gelu"
    mlp_width: int | None = None  # 4 * width; with swiglu two thirds of that (Shazeer 2020)
    norm: Literal["layer", "rms"] = "layer"  # layer, rms
    norm_position: Literal["pre", "post"] = "pre"  # of attention and MLP: pre, post
    norm_epsilon: float = 1e-6  # added to the variance that a norm divides by
    embedding_norm: bool = False  # a norm after stem and positions, as in BERT
    tied_embedding: bool = False  # the embedding of tokens is the readout as well, without a bias
    dropout: float = 0.0  # share of what each block adds that is left out in training
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; parameters are float32
    implementation: Implementation = "auto"  # of attention: auto, einsum, xla, cudnn
    # What the forward pass leaves to be computed again in the backward pass (Chen et al. 2016):
    # nothing; all of a block but its input; or all but its input and its matrix products.
    remat: Literal["none", "block", "dots"] = "none"
    # One block compiled for all layers, for deep models; parameters keep their paths and are
    # stacked in every step. Dropout then draws other numbers.
    scan_layers: bool = False

    def __post_init__(self):
        settle(self)
        sizes = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "latent_dim")
        require_positive(self, "window")
        require_positive(self, *sizes, "norm_epsilon", "rotary_base")
        require_32_bits(self)
        if self.layers > _MOST_LAYERS:
            raise ConfigError("layers", self.layers, f"must be at most {_MOST_LAYERS}")
        require_range(self, "dropout", 0.0, 1.0)
        scheme_class(self.scheme)
        self._check_scale()
        if self.preset:
            self._apply_preset()
        try:
            ties = self.ties
        except TieError as error:
            raise ConfigError("tie", self.tie, str(error)) from None
        self._check_widths(ties)
        for source in self.frozen:
            if source not in ("query", "key", "value"):
                raise ConfigError("frozen", source, "allowed: query, key, value")
        heads = (self.heads, self.kv_heads or self.heads)
        if heads[0] % heads[1]:
            allowed = f"{heads[1]} key/value heads do not divide {heads[0]} query heads"
            raise ConfigError("kv_heads", self.kv_heads, allowed)
        for layer, tie in enumerate(ties):
            try:
                check_scheme(tie, *heads, self.frozen, self.latent_dim)
            except ValueError as error:
                raise ConfigError("tie", self.tie, f"layer {layer}: {error}") from None
        self._check_adapters(ties)
        self._check_latent()
        scheme_class(self.scheme).check_config(self)
        self.check_platform(None)
        crossed = self.cross.ties if self.cross_tie else ties
        if self.value_residual and self.layers == 1:
            raise ConfigError("value_residual", True, "needs a second layer")
        if self.scan_layers and self.value_residual:
            raise ConfigError("scan_layers", True, "value_residual sets the first layer apart")
        if self.scan_layers and len(set(ties)) + len(set(crossed)) > 2:
            given = self.tie if len(set(ties)) > 1 else self.cross_tie
            raise ConfigError("scan_layers", True, f"needs one tie for all layers, not {given}")

    def check_platform(self, platform: str | None) -> None:
        """Refuses an implementation of attention that a platform (`cpu`, `gpu`, `tpu`; none: no
        platform) does not have.

        Raises:
          ConfigError: naming the field.
        """
        reason = unsupported(self.implementation, self.dtype, self.head_width, platform)
        if reason:
            raise ConfigError("implementation", self.implementation, reason)

    @property
    def ties(self) -> tuple[Tie, ...]:
        """One tie per layer, bottom up."""
        return parse_schedule(self.tie, self.layers)

    @functools.cached_property
    def cross(self) -> "ModelConfig":
        """The same for cross-attention: under its own tie, without places, since those of two texts
        have no order between them, and hence without what goes by them. T5 (Raffel et al. 2020) and
        T5Gemma (2025) have it so.

        Raises:
          ConfigError: where it cannot be.
        """
        try:
            ties = parse_schedule(self.cross_tie or self.tie, self.layers)
        except TieError as error:
            raise ConfigError("cross_tie", self.cross_tie, str(error)) from None
        shared = {
            role: spec for role, spec in self.adapters.items()
            if any(Adapters(**{role: spec}).where_shared(tie).items() for tie in ties)
        }  # fmt: skip
        own = {
            "tie": self.cross_tie or self.tie, "cross_tie": "", "preset": "",
            "adapters": Adapters(**shared), "positions": "none", "positions_2d": False,
            "rotary_dims": None, "window": None, "diagonal_mask": False, "value_residual": False,
        }  # fmt: skip
        try:
            return dataclasses.replace(self, **own)
        except ConfigError as error:
            name = "cross_tie" if error.field == "tie" and self.cross_tie else error.field
            allowed = f"{error.allowed}, in cross-attention, which has no places"
            raise ConfigError(name, error.given, allowed) from None

    @property
    def frozen_leaves(self) -> tuple[str, ...]:
        """The projections that do not learn: the frozen sources and a latent only they read."""
        frozen = self.latent_kind == "frozen" or "key" in self.frozen
        return self.frozen + ((LATENT,) if self.latent_dim and frozen else ())

    @property
    def head_width(self) -> int:
        """H, the width of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        """The width of the MLP's hidden layer."""
        usual = round(8 * self.width / 3) if self.mlp == "swiglu" else 4 * self.width
        return self.mlp_width or usual

    def _check_scale(self) -> None:
        if isinstance(self.scale, str):
            with contextlib.suppress(ValueError):  # a number given on the command line
                object.__setattr__(self, "scale", float(self.scale))
        if isinstance(self.scale, str):
            arguments.word("scale", self.scale, ("sqrt", "learned_per_head"))
        else:
            require_positive(self, "scale")

    def _apply_preset(self) -> None:
        arguments.word("preset", self.preset, PRESETS)
        tie, adapters = PRESETS[self.preset]
        sets = f"preset {self.preset!r} sets it; leave it out"
        with contextlib.suppress(TieError):  # another writing of the same tie
            if Tie.parse(self.tie) in (Tie.parse("separate"), Tie.parse(tie)):
                object.__setattr__(self, "tie", tie)
        if self.tie != tie:
            raise ConfigError("tie", self.tie, sets)
        if self.adapters not in (Adapters(), adapters):
            raise ConfigError("adapters", dict(self.adapters.items()), sets)
        object.__setattr__(self, "adapters", adapters)

    def _check_widths(self, ties: tuple[Tie, ...]) -> None:
        if self.head_dim is None and self.width % self.heads:
            raise ConfigError("width", self.width, f"must be divisible by heads = {self.heads}")
        joined = self.heads * self.head_width
        if joined != self.width and any(tie.equates(role, "X") for tie in ties for role in "QKV"):
            raise ConfigError("tie", self.tie, f"=X needs width {self.width} = heads x head width")
        if joined != self.width and not self.output_projection:
            raise ConfigError("output_projection", False, "needs width = heads x head width")
        if self.positions == "rotary" and self.head_width % 2:
            allowed = f"needs an even head width, not {self.head_width}"
            raise ConfigError("positions", "rotary", allowed)
        dims = self.rotary_dims
        if dims is not None and self.positions != "rotary":
            allowed = f"is for positions 'rotary', not {self.positions!r}"
            raise ConfigError("rotary_dims", dims, allowed)
        if dims is not None and not (0 <= dims <= self.head_width and dims % 2 == 0):
            allowed = f"must be even, and at most the head width {self.head_width}"
            raise ConfigError("rotary_dims", dims, allowed)

    def _check_latent(self) -> None:
        if self.latent_kind != "learned" and not self.latent_dim:
            raise ConfigError("latent_kind", self.latent_kind, "needs a latent_dim")
        if self.latent_kind == "slice" and self.latent_dim > self.width:
            allowed = f"a slice of X has at most its width, {self.width}"
            raise ConfigError("latent_dim", self.latent_dim, allowed)

    def _check_adapters(self, ties: tuple[Tie, ...]) -> None:
        for role, spec in self.adapters.items():
            alone = Adapters(**{role: spec})
            sharing = [tie for tie in ties if alone.where_shared(tie).items()]
            alone.check((sharing or ties)[0], self.head_width)
