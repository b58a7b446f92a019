"""Where a token stands: additive positions for the input, rotary ones for queries and keys, and
biases for the scores.

Additive positions become part of X; the others act after the tie, so that a tied value stays
unrotated.
"""

import math
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array, require_below
from qkv_jax.config import (
    ConfigError,
    require_kinds,
    require_positive,
)

Positions = Literal["none", "sinusoidal", "learned", "rotary", "relative", "alibi"]
POSITIONS: tuple[str, ...] = get_args(Positions)

# The size at which embedded tokens and additive positions start, whatever the stem (Devlin et al.
# 2018). One size for both, so that neither drowns the other; small, so that a few hundred steps of
# Adam move them: at unit size masked bytes of Shakespeare stayed at the unigram loss, 3.2 nats.
EMBEDDING_STD = 0.02

BASE = 10_000.0  # of the wavelengths (Vaswani et al. 2017; Su et al. 2021)
_BUCKETS, _MAX_DISTANCE = 32, 128  # of T5
_LANES = 4  # of `turned_scores`: fewer leave vector units idle, more fill memory
_CHANNELS_2D = 10  # of the KV-Transformer


def sinusoidal(length: int, width: int) -> Float[Array, "T D"]:
    """Fixed sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, 3.5).

    Sines fill the first half of the width and cosines the second; an odd width leaves one zero.
    """
    arguments.whole("length", length)
    arguments.whole("width", width, 1)
    return _waves(jnp.arange(length), width)


def rotate(
    x: Float[Array, "*B T N H"],
    places: Int[Array | np.ndarray, "*#B T"] | None = None,
    dims: int | None = None,
    base: float = BASE,
) -> Float[Array, "*B T N H"]:
    """Rotary positions (Su et al. 2021, eq. 34): turns each pair of coordinates by an angle
    proportional to its place, so that scores depend on the distance between tokens only.

    Args:
      x: queries or keys; H must be even. Coordinates i and i + H/2 form a pair.
      places: of each token, [B or 1, T], or [T] for an x without B; 0 .. T-1 by default.
      dims: turns the first so many coordinates only, an even number (Black et al. 2022, GPT-NeoX);
        all by default.
      base: the slowest pair turns by one radian in nearly so many places.
    """
    if getattr(x, "ndim", 0) < 3 or x.shape[-1] % 2:
        allowed = "must be [..., T, N, H], the head width H even"
        raise ConfigError("x", x, allowed)
    if places is None:
        places = np.arange(x.shape[-3])
    else:
        axes = "#B T" if x.ndim == 4 else "T"
        require_array("places", places, axes, "int", {"B": x.shape[0], "T": x.shape[-3]})
    places = places[(None,) * (x.ndim - 2 - places.ndim)]
    if dims is not None and _checked(dims, x.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([_turned(x[..., :dims], places, base), x[..., dims:]], axis=-1)
    return _turned(x, places, base)


def _turned(
    x: Float[Array, "*B T N H"], places: Int[Array | np.ndarray, "*#B T"], base: float
) -> Float[Array, "*B T N H"]:
    angles = _angles(places, x.shape[-1] // 2, base)[..., None, :]
    # Of places that are known while a program is traced these are constants. XLA would work them
    # out anew for every row and head, which takes ten times as long as reading a cache.
    of = np if isinstance(angles, np.ndarray) else jnp
    cos, sin = (jnp.asarray(turn(angles), x.dtype) for turn in (of.cos, of.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _checked(dims: int, width: int) -> int:
    if arguments.whole("dims", dims, 0, width) % 2:
        raise ConfigError("dims", dims, "must be even")
    return dims


def turned_scores(
    query: Float[Array, "B 1 N H"],
    key: Float[Array, "B S K H"],
    places: Int[np.ndarray, "#B S"],
    dims: int | None = None,
    base: float = BASE,
) -> Float[Array, "B N 1 S"]:
    """A query times `rotate(key, places, dims, base)`, with no rotated copy of the keys: of a pair
    of coordinates (a, b) of the query and (c, d) of the key,

        q . R_j k_j = sum over pairs of (a c + b d) cos_j + (b c - a d) sin_j.

    Each of a few lanes adds up its own pairs in one loop over the keys as they lie, and a product
    adds up the lanes: XLA on CPUs would add up a whole head number by number.
    """
    sizes = {"T": 1}
    require_array("query", query, "B T N H", "float", sizes)
    require_array("key", key, "B S K H", "float", sizes)
    require_array("places", places, "#B S", "int", sizes)
    (batch, _, num_heads, width), length = query.shape, key.shape[1]
    pairs = _checked(width if dims is None else dims, width) // 2
    rest = width // 2 - pairs  # of coordinates that are not turned: pairs of angle 0
    lanes = math.gcd(pairs, rest, _LANES)
    angles = np.pad(_angles(places, pairs, base), ((0, 0), (0, 0), (0, rest)))
    precise = np.promote_types(key.dtype, np.float32)
    cos, sin = (turn(angles).astype(precise)[:, None, None] for turn in (np.cos, np.sin))
    query = query.reshape(batch, key.shape[2], -1, 1, width)
    key = key.swapaxes(1, 2)[:, :, None]
    total = jnp.zeros((), precise)
    for pair in range(0, width // 2, lanes):
        first = pair if pair < pairs else pairs + pair
        second = first + (pairs if pair < pairs else rest)
        lane = lambda x, start: x[..., start : start + lanes].astype(precise)
        a, b, c, d = (lane(x, start) for x in (query, key) for start in (first, second))
        total += (a * c + b * d) * lane(cos, pair) + (b * c - a * d) * lane(sin, pair)
    scores = jnp.matmul(total, jnp.ones(lanes, precise), precision="highest")
    return scores.reshape(batch, num_heads, 1, length)


def relative_buckets(offsets: Int[Array, "*B T S"]) -> Int[Array, "*B T S"]:
    """The bucket of each offset, key place minus query place (Raffel et al. 2020, bidirectional).

    Half of the 32 buckets are for keys to the right. In each half the first 8 hold one distance,
    the others logarithmically growing ranges up to 128, and the last one all that lies beyond.
    """
    axes = "B T S" if getattr(offsets, "ndim", 2) == 3 else "T S"
    require_array("offsets", offsets, axes, "int", {})
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    distance = jnp.abs(offsets)
    growth = jnp.log(jnp.maximum(distance, 1) / exact) / np.log(_MAX_DISTANCE / exact)
    far = jnp.minimum(exact + (growth * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance < exact, distance, far) + half * (offsets > 0).astype(offsets.dtype)


def alibi_slopes(num_heads: int) -> Float[np.ndarray, " N"]:
    """One slope per head, geometric from 2^(-8/N) to 2^-8 (Press et al. 2022).

    Where N is no power of two: the slopes of the power below, then every other one of twice it.
    """
    arguments.whole("num_heads", num_heads, 1)
    power = 2 ** int(np.log2(num_heads))
    of = lambda n: 2.0 ** (-8 * np.arange(1, n + 1) / n)
    return np.concatenate([of(power), of(2 * power)[::2]])[:num_heads].astype(np.float32)


class AddPositions(nn.Module):
    """Adds sinusoidal or learned positions to embedded tokens [B, T, D]; else returns them as is.

    Sinusoidal ones are scaled from their root mean square, sqrt(1/2), to `EMBEDDING_STD`.
    """

    kind: Positions
    max_length: int

    def __post_init__(self):
        require_kinds(self, AddPositions)
        require_positive(self, "max_length")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], places: Int[Array, "#B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """`places` are 0 .. T-1 by default."""
        sizes: dict[str, int] = {}
        require_array("x", x, "B T D", "float", sizes)
        if places is not None:
            require_array("places", places, "#B T", "int", sizes)
        length, width = x.shape[-2:]
        if self.kind == "sinusoidal":
            table = _waves(jnp.arange(length)[None] if places is None else places, width)
            return x + (2**0.5 * EMBEDDING_STD * table).astype(x.dtype)
        if self.kind == "learned":
            if places is None and length > self.max_length:
                allowed = f"learned positions are for {self.max_length} tokens at most"
                raise ConfigError("x", x, allowed)
            init = nn.initializers.normal(EMBEDDING_STD)
            table = self.param("embedding", init, (self.max_length, width))
            if places is None:
                return x + table[None, :length].astype(x.dtype)
            require_below("places", places, self.max_length)
            # Inside jit places are not known: what is beyond the last is NaN. Saved tables are
            # NumPy's.
            found = jnp.asarray(table).at[places].get(mode="fill", fill_value=jnp.nan)
            return x + found.astype(x.dtype)
        return x


class RelativeBias(nn.Module):
    """One learned bias per head and bucket of relative position (Raffel et al. 2020): the leaf
    `buckets` [32, N], zero at first. T5 shares one table among its layers; here each has its own,
    so that an attention layer is whole by itself."""

    num_heads: int

    @nn.compact
    def __call__(
        self, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]
    ) -> Float[Array, "#B N T S"]:
        table = self.param("buckets", nn.initializers.zeros, (_BUCKETS, self.num_heads))
        offsets = keys[:, None, :] - queries[:, :, None]
        return jnp.moveaxis(table[relative_buckets(offsets)], -1, 1)


def alibi_bias(
    num_heads: int, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]
) -> Float[Array, "#B N T S"]:
    """Minus slope times distance: the same to the left and to the right, as for an encoder."""
    sizes: dict[str, int] = {}
    require_array("queries", queries, "#B T", "int", sizes)
    require_array("keys", keys, "#B S", "int", sizes)
    distance = jnp.abs(keys[:, None, None, :] - queries[:, None, :, None]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(num_heads))[None, :, None, None] * distance


class Positions2D(nn.Module):
    """The "2D positional" term of the KV-Transformer line (Borji 2023; "(X)+" in Kayyam et al.
    2026), as published: to every score S_ij the ten channels P_ij = [sinusoid(i), sinusoid(j)] are
    added, and a linear layer, shared by all heads, makes one score of the ten:

        S'_ij = sum_c w_c (S_ij + P_ijc) + b = S_ij sum(w) + f(i) + g(j) + b

    Meant to break the symmetry of Q=K, it cannot tell one direction from the other: the softmax
    over j cancels f(i) and b, and what is left is a temperature 1 / sum(w) and a bias g(j) on keys
    that no query has a say in.

    The weights start as in Borji's code (Xavier, uniform), where sum(w) may have either sign; the
    sinusoids are those of the rerun of Kayyam et al., five channels a side.

    Leaves: `weight` [10] and `offset` [].
    """

    @nn.compact
    def __call__(
        self, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]
    ) -> tuple[Float[Array, ""], Float[Array, "#B 1 T S"]]:
        """The factor on the scores and the bias to add to them."""
        fans = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        init = lambda key, shape: fans(key, (*shape, 1))[:, 0]
        weight = self.param("weight", init, (_CHANNELS_2D,))
        offset = self.param("offset", nn.initializers.zeros, ())
        on_queries, on_keys = jnp.split(weight, 2)

        def term(queries: Int[Array, " T"], keys: Int[Array, " S"]) -> Float[Array, "T S"]:
            f = _interleaved(queries, _CHANNELS_2D // 2) @ on_queries
            g = _interleaved(keys, _CHANNELS_2D // 2) @ on_keys
            return f[:, None] + g[None, :] + offset

        if len(queries) == len(keys) == 1:  # the usual case, and in batches other sums
            return weight.sum(), term(queries[0], keys[0])[None, None]
        rows = max(len(queries), len(keys))
        places = (jnp.broadcast_to(p, (rows, p.shape[1])) for p in (queries, keys))
        return weight.sum(), jax.vmap(term)(*places)[:, None]


def _interleaved(places: Int[Array, " T"], channels: int) -> Float[Array, "T C"]:
    """Sine, cosine, sine, ... of ever longer waves; `channels` may be odd."""
    waves = BASE ** (-2 * (jnp.arange(channels) // 2) / channels)
    angles = places[:, None].astype(waves.dtype) * waves[None, :]
    return jnp.where(jnp.arange(channels)[None] % 2 == 0, jnp.sin(angles), jnp.cos(angles))


def _waves(places: Int[Array, "*B T"], width: int) -> Float[Array, "*B T D"]:
    angles = _angles(places, width // 2)
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(table, [(0, 0)] * places.ndim + [(0, width % 2)])


def _angles(places: Array | np.ndarray, pairs: int, base: float = BASE) -> Array | np.ndarray:
    """[*B, T, pairs], of NumPy if the places are."""
    frequencies = np.float32(base) ** (-np.arange(pairs, dtype=np.float32) / max(pairs, 1))
    return places[..., None].astype(np.float32) * frequencies[(None,) * places.ndim]
