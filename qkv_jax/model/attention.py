"""Multi-head attention: a scheme's queries, keys and values, the scores' scale, bias and mask, and
the output projection."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import (
    ConfigError,
    build,
    require_kinds,
    require_positive,
    shown,
)  # fmt: skip
from qkv_jax.model.adapters import Adapters
from qkv_jax.model.cache import Cache, check_cache, gaps
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.dot_product import (
    FORMATS,
    Implementation,
    aggregate,
    attend,
    attention_weights,
    check_format,
    check_scores,
)
from qkv_jax.model.masks import visible
from qkv_jax.model.positions import (
    BASE,
    Positions,
    Positions2D,
    RelativeBias,
    alibi_bias,
)
from qkv_jax.model.probes import Probes
from qkv_jax.model.projections import OutputProjection
from qkv_jax.model.schemes import Scheme, scheme_class, scheme_name
from qkv_jax.model.schemes.base import LatentKind
from qkv_jax.model.value_residual import ValueResidual
from qkv_jax.tie import Tie

Scale = float | Literal["sqrt", "learned_per_head"]
# Fields that a layer and a model's config have alike.
_ALIKE = (
    "latent_dim", "latent_kind", "positions", "positions_2d", "qk_norm", "rotary_dims",
    "rotary_base", "window", "value_residual", "diagonal_mask", "scale", "frozen",
    "output_projection", "use_bias",
)  # fmt: skip


class MultiHeadAttention(nn.Module):
    """Multi-head attention under any scheme; usable alone in any Linen model.

    Parameters: `query/kernel`, `key/kernel`, `value/kernel` [D, heads, H] as the tie needs them,
    `out/kernel` [N, H, D], and those of the options below. They are float32; the arithmetic is done
    in the number format of `x`, the softmax in float32.

    Attributes:
      num_heads: N.
      tie: a tie or its text.
      scheme: what makes queries, keys and values of `x`: a name, a dotted path or a class, see
        `schemes.py`.
      num_kv_heads: K; by default N.
      head_dim: H; by default D / N.
      adapters: of roles that share their source, such as `{"key": "head"}`; see `adapters.py`.
      latent_dim, latent_kind: width and kind of a latent source of keys and values; see `Scheme`.
      positions: `rotary` turns queries and keys, `relative` and `alibi` add a bias to the scores;
        the other kinds are the input's affair.
      positions_2d: the "2D positional" term of the KV-Transformer, see `Positions2D`.
      qk_norm: RMS norm of each query and key over H, with a learned scale for each of the two
        (leaves `query_norm`, `key_norm`), before positions (Henry et al. 2020, Dehghani et al.
        2023).
      rotary_dims: of each head, that `rotary` turns; all by default.
      rotary_base: see `positions.rotate`.
      window: in self-attention hides keys that many places away, or more, see `visible`.
      diagonal_mask: in self-attention hides each token from itself, see `visible`.
      scale: `sqrt` is 1 / sqrt(H); a number; or `learned_per_head`, which starts at 1 / sqrt(H)
        (leaf `log_scale` [N]).
      frozen: sources that stay as initialised.
      output_projection: whether the heads are mixed by W_O; otherwise they are laid side by side.
      use_bias: biases on all projections.
      value_residual: mixes values with those of a first layer, see `ValueResidual`; values are then
        returned as well, last.
      implementation: see `attend`.

    `apply(..., mutable="intermediates")` computes by einsum and collects, under `probes`, the
    arrays `x`, `query`, `key`, `value` and `attention_weights`; queries and keys as the scores see
    them, after norm and rotation. Beside them `scale` [N], and `bias` and `mask` if there are any:
    the weights are softmax(scale Q K^T + bias) over the keys that the mask leaves.
    """

    num_heads: int
    tie: Tie | str = "separate"
    num_kv_heads: int | None = None
    head_dim: int | None = None
    adapters: Adapters | Mapping[str, str] = Adapters()
    latent_dim: int | None = None
    positions: Positions = "none"
    positions_2d: bool = False
    qk_norm: bool = False
    latent_kind: LatentKind = "learned"
    rotary_dims: int | None = None
    window: int | None = None
    diagonal_mask: bool = False
    scale: Scale = "sqrt"
    frozen: tuple[str, ...] = ()
    output_projection: bool = True
    use_bias: bool = False
    implementation: Implementation = "auto"
    scheme: str | type = "tied"
    rotary_base: float = BASE
    value_residual: bool = False

    def __post_init__(self):
        require_kinds(self, MultiHeadAttention)
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "latent_dim", "window")
        require_positive(self, "rotary_base")
        scheme_class(self.scheme)
        require_positive(self, *(() if isinstance(self.scale, str) else ("scale",)))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S E"] | dict[str, Array] | None = None,
        *,
        places: Int[Array, "#B T"] | None = None,
        key_places: Int[Array, "#B S"] | None = None,
        bias: Float[Array, "#B #N #T #S"] | None = None,
        mask: Bool[Array, "#B #N #T #S"] | None = None,
        is_causal: bool = False,
        cache: Cache | None = None,
        valid: Bool[Array, "B T"] | None = None,
        first_values: Float[Array, "B S K H"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Any, ...]:
        """Self-attention over `x`, or cross-attention from `x` to `context`.

        Args:
          context: tokens, or the sources of their keys and values as a cache has them, [B, heads,
            S, width], where many queries come one after another.
          places: of the tokens of `x`, 0 .. T-1 by default. Positions, causal order and diagonal
            mask go by them.
          key_places: of the tokens of `context`, 0 .. S-1 by default.
          bias, mask, is_causal: as in `attend`.
          cache: of the tokens before, see `init_cache`. `x` holds those that come next; their
            places count from there, the order is causal, and what is returned is the output and
            the cache with them in it.
          valid: with a cache, true at tokens of `x`; what is not one stands behind them: else it is
            refused, or inside jit answered with NaN.
          first_values: with `value_residual`, what the first layer returned; it takes none.

        Raises:
          ValueError: for combinations that cannot be, with the reason.
        """
        sizes: dict[str, int] = {"N": self.num_heads}
        require_array("x", x, "B T D", "float", sizes)
        check_format("x", x)
        is_kept = isinstance(context, dict)
        if is_kept:
            self._check_kept(sizes, context, x.shape[-1])
        elif context is not None:
            require_array("context", context, "B S E", "float", sizes)
            if context.dtype != x.dtype:
                raise ValueError(f"context: given {shown(context)}; must be {x.dtype} as x is")
        check_cache(sizes, cache, context, valid)
        if cache is not None and cache.layout != self._layout:
            allowed = f"this layer's has {self._layout}; make one with init_cache"
            raise ConfigError("cache", f"with {cache.layout}", allowed)
        self._check_places(sizes, places, key_places, context, cache)
        if first_values is not None and not (self.value_residual and context is None):
            raise ValueError("first_values: are for self-attention with value_residual")
        scheme = self.make_scheme(x.shape[-1])
        nn.share_scope(self, scheme)  # `query/kernel` lives here, not in a level of its own
        own = np.arange(x.shape[1])[None]
        counted = places is None and key_places is None
        if places is None:
            places = own if cache is None else cache.lengths[:, None] + own
        if key_places is None:
            key_places = places if context is None else np.arange(sizes["S"])[None]
        projected = scheme.project(x, None if is_kept else context)
        # What is kept may be of another number format, the arithmetic is that of the tokens.
        read = lambda array: array.astype(x.dtype).swapaxes(1, 2)
        if is_kept:
            projected = projected._replace(kept=jax.tree.map(read, context))
        else:
            projected = scheme.keep(projected, key_places)
        filled = None
        if cache is not None:
            cache, slots = cache.add(projected.kept, valid, self.window)
            projected = projected._replace(kept=jax.tree.map(read, cache.sources))
            key_places, filled, own, is_causal = *slots, True
        qkv = scheme.roles(projected, places, key_places)
        # Under jit the keys of `qkv` are not computed where there are scores.
        scores = None if cache is None else scheme.scores(projected, places, key_places)
        if first_values is not None:
            sizes = dict(zip("BSKH", qkv.value.shape, strict=True))
            require_array("first_values", first_values, "B S K H", "float", sizes)
            mixed = ValueResidual(name="value_residual")(qkv.value, first_values)
            qkv = qkv._replace(value=mixed)
        finish = functools.partial(scheme.finish, qkv=qkv, places=places)
        places, key_places, own = map(jnp.asarray, (places, key_places, own))
        # Here too, before the mask is joined with others.
        check_scores(sizes | {"S": key_places.shape[1]}, bias, mask, is_causal, None)
        hide_self = self.diagonal_mask and context is None
        window = self.window if context is None else None
        if cache is not None or hide_self or window or not counted:  # else `attend` does it
            hidden = {"is_causal": is_causal, "hide_self": hide_self, "window": window}
            mask, is_causal = visible(places, key_places, **hidden, valid=filled, mask=mask), False
        scale, bias = self._scale_and_bias(scheme.score_dim, places, key_places, bias)
        options = {"bias": bias, "mask": mask, "is_causal": is_causal, "scale": scale}
        # `sow` is a no-op unless the caller asks for intermediates; only then pay for the weights.
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            weights = attention_weights(qkv.query, qkv.key, **options)
            heads = aggregate(weights, qkv.value)
            heads_of = {"x": x, "attention_weights": weights, **qkv._asdict()}
            Probes(name="probes")(heads_of, **options)
        else:
            heads = attend(*qkv, scores=scores, implementation=self.implementation, **options)
        heads = finish(heads, own=own if context is None else None)
        if cache is not None:  # what is refused outside jit
            lost = [] if cache.turns(x.shape[1], self.window) else [cache.overflown]
            lost += [] if valid is None else [gaps(valid)]
            for rows in lost:
                heads = jnp.where(rows[:, None, None, None], jnp.nan, heads)
        made = [self._joined(heads, x.shape[-1])]
        made += [cache] if cache is not None else []
        made += [qkv.value] if self.value_residual else []
        return tuple(made) if len(made) > 1 else made[0]

    def _joined(self, heads: Float[Array, "B T N H"], width: int) -> Float[Array, "B T D"]:
        if not self.output_projection:
            return heads.reshape(*heads.shape[:2], -1)
        return OutputProjection(width, self.use_bias, name="out")(heads)

    @nn.nowrap
    def make_scheme(self, width: int) -> Scheme:
        """What makes queries, keys and values of inputs of that width.

        Raises:
          ConfigError: for what the scheme is not for.
        """
        made, head_dim, tie = scheme_class(self.scheme), self._head_dim(width), Tie.parse(self.tie)
        adapters = self.adapters
        if not isinstance(adapters, Adapters):
            adapters = build(Adapters, adapters, "adapters")
        if made is not Scheme:  # its rules are stated of a model: of one whose layers are as this
            own = {name: getattr(self, name) for name in _ALIKE} | {"adapters": adapters}
            sizes = {"heads": self.num_heads, "kv_heads": self.num_kv_heads, "head_dim": head_dim}
            made.check_config(ModelConfig(str(tie), width=width, **sizes, **own))
        return made(
            self.num_heads,
            self.num_kv_heads or self.num_heads,
            head_dim,
            tie,
            self.frozen,
            self.use_bias,
            adapters,
            self.latent_dim,
            self.positions,
            self.qk_norm,
            self.rotary_dims,
            self.latent_kind,
            self.rotary_base,
        )

    @nn.nowrap
    def init_cache(self, batch: int, slots: int, width: int, dtype=jnp.float32) -> Cache:
        """An empty cache for inputs of that width: as many slots as tokens will come, or, if those
        are fewer, as a `window` is long and one less than the tokens that come at once.

        What comes too much is refused, or inside jit, where lengths are not known, answered with
        NaN.
        """
        for name, size in (("batch", batch), ("slots", slots), ("width", width)):
            arguments.whole(name, size, 1)
        if str(jnp.dtype(dtype)) not in FORMATS:
            raise ConfigError("dtype", dtype, f"allowed: {', '.join(FORMATS)}")
        shapes = self.make_scheme(width).cache_shapes()
        return Cache.empty(shapes, batch, slots, dtype, self._layout)

    @property
    def _layout(self) -> str:
        """What a cache of this layer depends on, beside the names and sizes of its sources."""
        words = [f"scheme {scheme_name(self.scheme)!r}"]
        fields = ("rotary_dims", "rotary_base") if self.positions == "rotary" else ()
        words += ["positions 'rotary'"] * bool(fields)
        fields = (*fields, "latent_dim", "qk_norm")
        given = {name: getattr(self, name) for name in fields}
        words += [f"{name} {value}" for name, value in given.items()
                  if value is not None and value is not False]  # fmt: skip
        return ", ".join(words)

    @nn.nowrap
    def _check_kept(self, sizes, context, width: int) -> None:
        """Refuses sources that are not those of this layer; notes the batch and the length."""
        shapes = self.make_scheme(width).cache_shapes()
        if {*context} != {*shapes}:
            allowed = f"this layer keeps the sources {', '.join(shapes)}"
            raise ConfigError("context", [*context], allowed)
        for name, (heads, features) in shapes.items():
            own = sizes | {"heads": heads, "H": features}
            require_array(f"context.{name}", context[name], "B heads S H", "float", own)
            sizes["S"] = own["S"]

    @nn.nowrap
    def _check_places(self, sizes, places, key_places, context, cache) -> None:
        if places is not None:
            require_array("places", places, "#B T", "int", sizes)
            if cache is not None:
                raise ValueError("places: are counted from the cache")
        if key_places is not None:
            if context is None:
                raise ValueError("key_places: are those of a context; there is none")
            require_array("key_places", key_places, "#B S", "int", sizes)

    @nn.nowrap
    def _head_dim(self, width: int) -> int:
        if self.head_dim is None and width % self.num_heads:
            raise ValueError(f"width {width} is not divisible by {self.num_heads} heads")
        head_dim = self.head_dim or width // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_dim}")
        dims = self.rotary_dims
        if dims is not None and self.positions != "rotary":
            allowed = f"is for positions 'rotary', not {self.positions!r}"
            raise ConfigError("rotary_dims", dims, allowed)
        if dims is not None and (arguments.whole("rotary_dims", dims, 0, head_dim) % 2):
            raise ConfigError("rotary_dims", dims, "must be even")
        if not self.output_projection and self.num_heads * head_dim != width:
            raise ValueError(
                f"without an output projection heads x head width must be the width {width}, "
                f"not {self.num_heads} x {head_dim}"
            )
        return head_dim

    def _scale_and_bias(self, head_dim, queries, keys, bias):
        """What the scores are multiplied by and what is added, positions included."""
        scale = head_dim**-0.5 if self.scale in ("sqrt", "learned_per_head") else float(self.scale)
        if self.scale == "learned_per_head":
            # The logarithm of the factor, so that the temperature stays positive.
            scale *= jnp.exp(self.param("log_scale", nn.initializers.zeros, (self.num_heads,)))
        terms = [] if bias is None else [bias]
        if self.positions == "relative":
            terms.append(RelativeBias(self.num_heads, name="relative")(queries, keys))
        if self.positions == "alibi":
            terms.append(alibi_bias(self.num_heads, queries, keys))
        if self.positions_2d:
            factor, term = Positions2D(name="positions_2d")(queries, keys)
            scale = jnp.broadcast_to(scale * factor, (self.num_heads,))
            terms.append(term)
        return scale, (sum(terms) if terms else None)
