"""Attention: `attend`, the one place of softmax(Q K^T / sqrt(d)) V, and the module around it."""

import functools
from collections.abc import Mapping
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qkv_jax import arguments
from qkv_jax.adapters import Adapters
from qkv_jax.arrays import require_array
from qkv_jax.config import (
    ConfigError,
    build,
    require_choice,
    require_kinds,
    require_positive,
    shown,
)  # fmt: skip
from qkv_jax.positions import (
    POSITIONS,
    Positions,
    Positions2D,
    RelativeBias,
    alibi_bias,
    rotate,
)  # fmt: skip
from qkv_jax.projections import CONTEXT, OutputProjection, QKVProjection, Sources, kept_sources
from qkv_jax.tie import Tie

Implementation = Literal["auto", "einsum", "xla", "cudnn"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
Scale = float | Literal["sqrt", "learned_per_head"]

# Without float16: gradients of inputs of 1e4 overflow in it.
_FORMATS = ("float32", "bfloat16", "float64")
_PADDING = "padding [B, S] is mask[:, None, None, :], and numbers to be added are a bias"


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    scale: float | Float[Array, " N"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(scale * Q K^T + bias) V over the visible keys (Vaswani et al. 2017, eq. 1).

    Args:
      query, key, value: K divides N; query head n reads key/value head n // (N / K).
      bias: added to the scaled scores.
      mask: true where a query may look. A query that sees no key gets the output 0.
      is_causal: hides keys to the right of the query, positions counted from the start of both.
      scale: 1 / sqrt(H) by default; a vector scales each head by its own number.
      implementation: `einsum` is the specification; `xla` and `cudnn` are those of
        `jax.nn.dot_product_attention`, see `unsupported`; `cudnn` rounds the bias to the number
        format of the query. `auto`: see `resolved`.

    Raises:
      ValueError: for an implementation that does not exist or cannot do this, for float16, and for
        shapes and kinds other than these.
      TypeError: for what is no array.
    """
    if implementation not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise ConfigError("implementation", implementation, f"allowed: {allowed}")
    sizes: dict[str, int] = {}
    _check_heads(sizes, query=query, key=key, value=value)
    _check_scores(sizes, bias, mask, is_causal, scale)
    implementation = resolved(implementation)
    here = jax.default_backend()
    if reason := unsupported(implementation, query.dtype.name, query.shape[-1], here):
        raise ConfigError("implementation", implementation, reason)
    if scale is not None and jnp.ndim(scale):  # jax.nn.dot_product_attention takes a number
        query, scale = query * scale[:, None].astype(query.dtype), 1.0
    if implementation == "einsum":
        options = {"bias": bias, "mask": mask, "is_causal": is_causal, "scale": scale}
        return aggregate(attention_weights(query, key, **options), value)
    if implementation == "cudnn":  # takes one number format, and no axis of 1 for lengths
        fill = lambda x: jnp.broadcast_to(x, (*x.shape[:2], query.shape[1], key.shape[1]))
        bias = None if bias is None else fill(bias.astype(query.dtype))
        mask = None if mask is None else fill(mask)
    options = {"scale": scale, "is_causal": is_causal, "implementation": implementation}
    try:
        output = jax.nn.dot_product_attention(query, key, value, bias, mask, **options)
    except NotImplementedError as error:  # of cuDNN: sizes that it has no kernel for
        raise ConfigError("implementation", implementation, f"has no kernel: {error}") from None
    if mask is None:  # with the causal mask alone every query sees at least the first key
        return output
    visible = mask & _causal_mask(query.shape[1], key.shape[1]) if is_causal else mask
    seen = jnp.moveaxis(visible.any(-1, keepdims=True), 1, 2)
    return jnp.where(seen, output, 0)


def resolved(implementation: Implementation, platform: str | None = None) -> Implementation:
    """What `auto` stands for on a platform (by default the one of this process): `einsum` on CPUs,
    where it is the faster, and `xla` elsewhere. The others stand for themselves."""
    if implementation != "auto":
        return implementation
    return "einsum" if (platform or jax.default_backend()) == "cpu" else "xla"


def unsupported(
    implementation: Implementation, dtype: str, head_dim: int, platform: str | None = None
) -> str | None:
    """Why an implementation cannot be used for heads of this width in this number format, on a
    platform (`cpu`, `gpu`, `tpu`) if one is named; None if it can.

    `cudnn` computes in bfloat16 on NVIDIA GPUs; whether cuDNN is there and takes the heads is asked
    on the machine itself.
    """
    if implementation != "cudnn":
        return None
    if dtype != "bfloat16":
        return f"cuDNN computes in bfloat16, not in {dtype}"
    if head_dim % 8:
        return f"cuDNN needs heads whose width is a multiple of 8, not {head_dim}"
    if platform not in (None, "gpu"):
        return f"cuDNN needs an NVIDIA GPU, and the platform is {platform}"
    if platform is None or platform != jax.default_backend():
        return None
    heads = jax.ShapeDtypeStruct((1, 2, 1, head_dim), dtype)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(lambda heads: jax.vjp(attention, heads, heads, heads)[0], heads)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"cannot be used here: {str(error).strip().splitlines()[0]}"
    return None


def attention_weights(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    *,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    scale: float | Float[Array, " N"] | None = None,
) -> Float[Array, "B N T S"]:
    """softmax(scale * Q K^T + bias): each row sums to 1, or to 0 where no key is visible.

    The softmax is computed in float32 at least. Arguments and refusals as in `attend`.
    """
    sizes: dict[str, int] = {}
    _check_heads(sizes, query=query, key=key)
    _check_scores(sizes, bias, mask, is_causal, scale)
    batch, length, num_heads, head_dim = query.shape
    scale = head_dim**-0.5 if scale is None else scale
    scale = scale[:, None].astype(query.dtype) if jnp.ndim(scale) else scale
    grouped = (query * scale).reshape(batch, length, key.shape[2], -1, head_dim)
    precise = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=precise)
    scores = scores.reshape(batch, num_heads, length, key.shape[1])
    if bias is not None:
        scores += bias
    if is_causal:
        causal = _causal_mask(length, key.shape[1])
        mask = causal if mask is None else mask & causal
    if mask is None:
        return jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    # A finite number: minus infinity all along a row without visible keys would make it NaN.
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0).astype(query.dtype)


def aggregate(
    weights: Float[Array, "B N T S"], value: Float[Array, "B S K H"]
) -> Float[Array, "B T N H"]:
    """The weighted sum of values for every query head."""
    sizes: dict[str, int] = {}
    require_array("weights", weights, "B N T S", "float", sizes)
    require_array("value", value, "B S K H", "float", sizes)
    _check_groups(sizes)
    batch, num_heads, length, sources = weights.shape
    grouped = weights.reshape(batch, value.shape[2], -1, length, sources)
    output = jnp.einsum("bkgts,bskh->btkgh", grouped, value)
    return output.reshape(batch, length, num_heads, value.shape[-1])


def hide_self(
    mask: Bool[Array, "#B #N #T #S"] | None,
    queries: Int[Array, " T"],
    keys: Int[Array, " S"],
    is_causal: bool = False,
) -> Bool[Array, "#B #N T S"]:
    """The mask without the diagonal, for scores that are largest with oneself, as under Q=K
    (Kitaev et al. 2020, Reformer). A query that sees none but itself goes on seeing itself.

    Args:
      mask, is_causal: as in `attend`; the causal order is part of the result.
      queries, keys: the places of queries and keys.
    """
    sizes: dict[str, int] = {}
    require_array("queries", queries, "T", "int", sizes)
    require_array("keys", keys, "S", "int", sizes)
    arguments.truth("is_causal", is_causal)
    if mask is not None:
        require_array("mask", mask, "#B #N #T #S", "bool", sizes, _PADDING)
    own = (queries[:, None] == keys[None, :])[None, None]
    seen = jnp.ones_like(own) if mask is None else mask
    if is_causal:
        seen = seen & (keys[None, :] <= queries[:, None])
    others = seen & ~own
    return jnp.where(others.any(-1, keepdims=True), others, seen)


class MultiHeadAttention(nn.Module):
    """Multi-head attention under any scheme; usable alone in any Linen model.

    Parameters: `query/kernel`, `key/kernel`, `value/kernel` [D, heads, H] as the tie needs them,
    `out/kernel` [N, H, D], and those of the options below. They are float32; the arithmetic is done
    in the number format of `x`, the softmax in float32.

    Attributes:
      num_heads: N.
      tie: a tie or its text.
      num_kv_heads: K; by default N.
      head_dim: H; by default D / N.
      adapters: of roles that share their source, such as `{"key": "head"}`; see `qkv_jax.adapters`.
      latent_dim: width of a latent source of keys and values; see `QKVProjection`.
      positions: `rotary` turns queries and keys, `relative` and `alibi` add a bias to the scores;
        the other kinds are the input's affair.
      positions_2d: the "2D positional" term of the KV-Transformer, see `Positions2D`.
      qk_norm: RMS norm of each query and key over H, with a learned scale for each of the two
        (leaves `query_norm`, `key_norm`), before positions (Henry et al. 2020, Dehghani et al.
        2023).
      diagonal_mask: in self-attention hides each token from itself, see `hide_self`.
      scale: `sqrt` is 1 / sqrt(H); a number; or `learned_per_head`, which starts at 1 / sqrt(H)
        (leaf `log_scale` [N]).
      frozen: sources that stay as initialised.
      output_projection: whether the heads are mixed by W_O; otherwise they are laid side by side.
      use_bias: biases on all projections.
      implementation: see `attend`.

    `apply(..., mutable="intermediates")` computes by einsum and collects, under `probes`, the
    arrays `x`, `query`, `key`, `value` and `attention_weights`; queries and keys as the scores see
    them, after norm and rotation.
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
    diagonal_mask: bool = False
    scale: Scale = "sqrt"
    frozen: tuple[str, ...] = ()
    output_projection: bool = True
    use_bias: bool = False
    implementation: Implementation = "auto"

    def __post_init__(self):
        require_kinds(self, MultiHeadAttention)
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "latent_dim")
        require_choice(self, "positions", POSITIONS)
        require_choice(self, "implementation", IMPLEMENTATIONS)
        if isinstance(self.scale, str):
            require_choice(self, "scale", ("sqrt", "learned_per_head"))
        require_positive(self, *(() if isinstance(self.scale, str) else ("scale",)))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Float[Array, "B S E"] | None = None,
        *,
        bias: Float[Array, "#B #N #T #S"] | None = None,
        mask: Bool[Array, "#B #N #T #S"] | None = None,
        is_causal: bool = False,
        decode: bool = False,
    ) -> Float[Array, "B T D"]:
        """Self-attention over `x`, or cross-attention from `x` to `context`.

        With `decode`, `x` holds the next tokens of a sequence whose earlier keys and values are
        read from the collection `cache`; make room first with `init_cache`. Positions and causal
        order then count from the start of the cached sequence.

        Raises:
          ValueError: for combinations that cannot be, with the reason.
        """
        sizes: dict[str, int] = {"N": self.num_heads}
        require_array("x", x, "B T D", "float", sizes)
        _check_format("x", x)
        if context is not None:
            require_array("context", context, "B S E", "float", sizes)
            if context.dtype != x.dtype:
                raise ValueError(f"context: given {shown(context)}; must be {x.dtype} as x is")
        arguments.truth("decode", decode)
        projection = self.projection(x.shape[-1])
        nn.share_scope(self, projection)  # `query/kernel` lives here, not in a level of its own
        sources = projection.project(x, context)
        query, key, value = projection.roles(sources)
        places = jnp.arange(x.shape[1])
        if decode:
            start, cached = self._update_cache(sources)
            places += start
            _, key, value = projection.roles(sources | cached)
        key_places = jnp.arange(key.shape[1])
        # Here too, before the mask is joined with others.
        _check_scores(sizes | {"S": key.shape[1]}, bias, mask, is_causal, None)
        if decode:
            earlier = (key_places[None, :] <= places[:, None])[None, None]
            mask, is_causal = (earlier if mask is None else mask & earlier), False
        if self.diagonal_mask and context is None:
            mask, is_causal = hide_self(mask, places, key_places, is_causal), False
        if self.qk_norm:
            query = nn.RMSNorm(dtype=x.dtype, name="query_norm")(query)
            key = nn.RMSNorm(dtype=x.dtype, name="key_norm")(key)
        if self.positions == "rotary":
            query, key = rotate(query, places), rotate(key, key_places)
        scale, bias = self._scale_and_bias(projection.head_dim, places, key_places, bias)
        # `sow` is a no-op unless the caller asks for intermediates; only then pay for the weights.
        options = {"bias": bias, "mask": mask, "is_causal": is_causal, "scale": scale}
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            weights = attention_weights(query, key, **options)
            Probes(name="probes")(x=x, query=query, key=key, value=value, attention_weights=weights)
            heads = aggregate(weights, value)
        else:
            heads = attend(query, key, value, implementation=self.implementation, **options)
        if not self.output_projection:
            return heads.reshape(*heads.shape[:2], -1)
        return OutputProjection(x.shape[-1], self.use_bias, name="out")(heads)

    def projection(self, width: int) -> QKVProjection:
        """What makes queries, keys and values of inputs of that width; a subclass may change it."""
        adapters = self.adapters
        return QKVProjection(
            self.num_heads,
            self.num_kv_heads or self.num_heads,
            self._head_dim(width),
            Tie.parse(self.tie),
            self.frozen,
            self.use_bias,
            adapters if isinstance(adapters, Adapters) else build(Adapters, adapters, "adapters"),
            self.latent_dim,
        )

    def init_cache(self, batch: int, length: int, width: int, dtype=jnp.float32) -> dict:
        """An empty cache for `length` tokens: each source of keys and values once.

        Pass it as the collection `cache` together with the parameters, and apply with
        `decode=True, mutable="cache"`. Do not decode more than `length` tokens: inside jit, where
        the place is not known, a write past the end is clamped onto the last places.
        """
        for name, size in (("batch", batch), ("length", length), ("width", width)):
            arguments.whole(name, size, 1)
        if str(jnp.dtype(dtype)) not in _FORMATS:
            raise ConfigError("dtype", dtype, f"allowed: {', '.join(_FORMATS)}")
        heads, head_dim = self.num_kv_heads or self.num_heads, self._head_dim(width)
        shape = (1, self.latent_dim) if self.latent_dim else (heads, head_dim)
        names = kept_sources(Tie.parse(self.tie), self.latent_dim)
        sources = {name: jnp.zeros((batch, length, *shape), dtype) for name in names}
        return {"sources": sources, "index": jnp.int32(0)}

    def _update_cache(self, sources: Sources) -> tuple[Int[Array, ""], Sources]:
        """Writes the new tokens; returns where they start and the sources of the whole sequence."""
        if any(name.startswith(CONTEXT) for name in sources):
            raise ValueError("decode=True is for self-attention; a context needs no cache")
        if not self.has_variable("cache", "sources"):
            raise ValueError("decode=True needs the collection 'cache'; make one with init_cache")
        cached, start = self.get_variable("cache", "sources"), self.get_variable("cache", "index")
        for name in kept_sources(Tie.parse(self.tie), self.latent_dim):
            old, new = cached.get(name), sources[name]
            if old is None or (old.shape[0], *old.shape[2:]) != (new.shape[0], *new.shape[2:]):
                allowed = f"the tokens need {name} {shown(new)}; make one with init_cache"
                raise ConfigError("cache", shown(old), allowed)
            end = new.shape[1] + (0 if isinstance(start, jax.core.Tracer) else int(start))
            if end > old.shape[1]:
                raise ConfigError("cache", shown(old), f"has no room for {end} tokens")
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        cached = {name: write(old, sources[name].astype(old.dtype)) for name, old in cached.items()}
        self.put_variable("cache", "sources", cached)
        self.put_variable("cache", "index", start + next(iter(sources.values())).shape[1])
        # The cache may be of another number format, the arithmetic is that of the tokens.
        return start, {name: new.astype(sources[name].dtype) for name, new in cached.items()}

    def _head_dim(self, width: int) -> int:
        if self.head_dim is None and width % self.num_heads:
            raise ValueError(f"width {width} is not divisible by {self.num_heads} heads")
        head_dim = self.head_dim or width // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_dim}")
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


class Probes(nn.Module):
    """Sows what it is given; a scope of its own, since `query` beside it names a projection."""

    def __call__(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            self.sow("intermediates", name, array)


def _check_heads(sizes: dict[str, int], **heads: Array) -> None:
    """Refuses queries, keys and values that are not what `attend` says."""
    first = next(iter(heads.values()))
    for name, array in heads.items():
        axes = "B T N H" if name == "query" else "B S K H"
        require_array(name, array, axes, "float", sizes)
        _check_format(name, array)
        if array.dtype != first.dtype:
            raise ValueError(f"{name}: given {shown(array)}; must be {first.dtype} as the query is")
    _check_groups(sizes)


def _check_groups(sizes: dict[str, int]) -> None:
    if sizes["N"] % sizes["K"]:
        heads = f"{sizes['K']} key/value heads do not divide {sizes['N']} query heads"
        raise ValueError(f"key: {heads}")


def _check_format(name: str, array: Array) -> None:
    if str(array.dtype) not in _FORMATS:
        allowed = f"{', '.join(_FORMATS)}; in float16 gradients overflow"
        raise ValueError(f"{name}: given {shown(array)}; must be one of {allowed}")


def _check_scores(sizes: dict[str, int], bias, mask, is_causal, scale) -> None:
    """Refuses what cannot be added to the scores, hide some or multiply them."""
    arguments.truth("is_causal", is_causal)
    if bias is not None:
        require_array("bias", bias, "#B #N #T #S", "float", sizes)
    if mask is not None:
        require_array("mask", mask, "#B #N #T #S", "bool", sizes, _PADDING)
    if getattr(scale, "shape", None):
        require_array("scale", scale, "N", "float", sizes)
    elif hasattr(scale, "dtype"):
        require_array("scale", scale, "", "real", sizes)
    elif scale is not None:
        arguments.number("scale", scale)


def _causal_mask(queries: int, keys: int) -> Bool[Array, "1 1 T S"]:
    return jnp.tril(jnp.ones((queries, keys), bool))[None, None]
