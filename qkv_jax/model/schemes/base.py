"""Schemes: all that makes queries, keys and values of X, and heads of the values.

    project: X -> Projected        each source once
    keep:    Projected -> Projected  the same as a cache stores it
    heads:   Projected -> QKV      sources handed out as the tie says, through their adapters
    roles:   Projected -> QKV      the same, with norm and rotation: what the scores see
    scores:  Projected -> Q K^T    of the roles, where a cache is read faster without their product
    finish:  heads, QKV -> heads   what becomes of the weighted sums of values

Attention sees only `QKV`; cache, costs, analysis and worked examples ask the scheme. A new one is a
subclass of `Scheme` that overrides some of these. A config names it in `model.scheme`: by its
dotted path, or by the name that `@register_scheme` gave it.
"""

import difflib
import importlib
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, registers, require_kinds, require_positive
from qkv_jax.model.adapters import Adapters
from qkv_jax.model.positions import BASE, Positions, rotate, turned_scores
from qkv_jax.model.projections import (
    LATENT,
    QKV,
    HeadProjection,
    Projected,
    check_scheme,
    kept_sources,
    per_query_head,
)
from qkv_jax.tie import Tie

LatentKind = Literal["learned", "frozen", "slice"]
Places = Int[Array | np.ndarray, "_ _"]  # of B rows or of all; NumPy's are known while traced
SCHEMES: dict[str, type["Scheme"]] = {}


def register_scheme(name: str):
    """Class decorator: makes a scheme known to configs by name."""
    return registers(SCHEMES, name)


def scheme_class(scheme: str | type) -> type["Scheme"]:
    """The class of that name, or at that dotted path; a class stands for itself.

    Raises:
      ConfigError: naming `scheme`, where there is none.
    """
    found = scheme
    if isinstance(scheme, str):
        module, dot, name = scheme.rpartition(".")
        if not dot and scheme not in SCHEMES:
            near = difflib.get_close_matches(scheme, SCHEMES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            allowed = f"{hint}allowed: {', '.join(SCHEMES)}, or package.module.Class"
            raise ConfigError("scheme", scheme, allowed)
        try:
            found = getattr(importlib.import_module(module), name) if dot else SCHEMES[scheme]
        except Exception as error:  # whatever somebody's own module raises
            allowed = f"cannot be imported: {type(error).__name__}: {error}"
            raise ConfigError("scheme", scheme, " ".join(allowed.split())) from error
    if not (isinstance(found, type) and issubclass(found, Scheme)):
        raise ConfigError("scheme", scheme, "must be a subclass of qkv_jax.model.schemes.Scheme")
    return found


def scheme_name(scheme: str | type) -> str:
    """What messages call it."""
    return scheme if isinstance(scheme, str) else scheme.__qualname__


@register_scheme("tied")
class Scheme(nn.Module):
    """Queries, keys and values of X under a tie. Parameters: `query`, `key`, `value`, as needed,
    `{role}_adapter`, with a latent source `latent`, with qk-norm `query_norm` and `key_norm`.

    Attributes:
      num_heads: N, heads of the queries.
      num_kv_heads: K, heads of keys and values; divides N.
      head_dim: H.
      tie: see `qkv_jax.tie`.
      frozen: the sources that stay as initialised: no gradient reaches them, nor a latent source
        that only they read. Adapters go on learning.
      use_bias: adds a bias to each projection, shared where its kernel is.
      adapters: see `qkv_jax.model.adapters`.
      latent_dim: R; keys and values are then projections [R, K, H] of one latent source X W
        [B, S, 1, R], which is what a cache stores (multi-head latent attention, DeepSeek-V2 2024;
        for its decoupled rotary part see `latent.py`).
      latent_kind: whether that W is `learned`, `frozen` as initialised, or none at all: a `slice`
        is the first R features of X.
      positions: `rotary` turns queries and keys; the other kinds are not the scheme's affair.
      qk_norm: RMS norm of each query and key over H, with a learned scale for each of the two,
        before positions (Henry et al. 2020, Dehghani et al. 2023).
      rotary_dims: how many coordinates of a head `rotary` turns; all by default.
      rotary_base: see `positions.rotate`.
    """

    # Whether what the scores are products of, before norm and rotation, is one matrix of X each.
    has_circuits: ClassVar[bool] = True
    # What becomes of the values beside W_V and W_O, which OV circuits do not show; a clause.
    beside_values: ClassVar[str] = ""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie: Tie
    frozen: tuple[str, ...] = ()
    use_bias: bool = False
    adapters: Adapters = Adapters()
    latent_dim: int | None = None
    positions: Positions = "none"
    qk_norm: bool = False
    rotary_dims: int | None = None
    latent_kind: LatentKind = "learned"
    rotary_base: float = BASE

    def __post_init__(self):
        require_kinds(self, Scheme)
        require_positive(self, "num_heads", "num_kv_heads", "head_dim", "latent_dim")
        super().__post_init__()

    def setup(self):
        check_scheme(self.tie, self.num_heads, self.num_kv_heads, self.frozen, self.latent_dim)
        self.adapters.check(self.tie, self.head_dim)
        for source in self.tie.sources:
            heads = self.num_heads if source == self.tie.source("Q") else self.num_kv_heads
            frozen = source in self.frozen
            projection = HeadProjection(heads, self.head_dim, self.use_bias, frozen)
            setattr(self, source, projection)
        if self.latent_dim and self.latent_kind != "slice":
            # With its keys' source, which is then the values' as well: see check_scheme.
            frozen = self.latent_kind == "frozen" or self.tie.source("K") in self.frozen
            setattr(self, LATENT, HeadProjection(1, self.latent_dim, self.use_bias, frozen))
        for role, _ in self.adapters.items():
            setattr(self, f"{role}_adapter", self.adapters.make(role))
        if self.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(), nn.RMSNorm()

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Refuses a `ModelConfig` that this scheme is not for. A layer by itself asks as well, with
        the config of a model of such layers: rules are of what a layer has.

        Raises:
          ConfigError: naming the field.
        """

    def project(
        self, x: Float[Array, "B T D"], context: Float[Array, "B S E"] | None = None
    ) -> Projected:
        """Each source once. Under cross-attention keys and values read `context`; a matrix that
        they share with the queries is then applied to both, and only the matrix is shared.

        Raises:
          ValueError: where X itself is a role and D differs from heads * H, or where a matrix is
            shared across `x` and `context` of different widths.
        """
        sizes: dict[str, int] = {}
        require_array("x", x, "B T D", "float", sizes)
        name, kept = self.tie.source("Q"), kept_sources(self.tie, self.latent_dim)
        if context is not None:
            require_array("context", context, "B S E", "float", sizes)
            if name in kept and name != "X" and x.shape[-1] != context.shape[-1]:
                raise ValueError(
                    f"tie {self.tie} shares a matrix between the input, of width {x.shape[-1]}, "
                    f"and the context, of width {context.shape[-1]}; the widths must be equal"
                )
        query, read = self._source(name, x), x if context is None else context
        made = {name: query} if context is None else {}
        for source in kept:
            if source not in made:
                made[source] = self._source(source, read)
        return Projected(query, {source: made[source] for source in kept})

    def heads(self, projected: Projected) -> QKV:
        """Hands the sources out as query, key and value, through their adapters."""
        sources = projected.kept
        if self.latent_dim:
            latent = sources[LATENT][:, :, 0]
            wanted = dict.fromkeys(self.tie.source(role) for role in ("K", "V"))
            sources = {source: getattr(self, source)(latent) for source in wanted}
        key, value = (sources[self.tie.source(role)] for role in ("K", "V"))
        heads = {"query": projected.query, "key": key, "value": value}
        for role, _ in self.adapters.items():
            heads[role] = getattr(self, f"{role}_adapter")(heads[role])
        return QKV(**heads)

    def keep(self, projected: Projected, places: Places | None = None) -> Projected:
        """With what a cache stores of keys and values, `places` being theirs. A key whose source
        the values do not read is kept as the scores see it, rotated; else the source is, and norm,
        adapters and rotation come whenever it is read."""
        if not self._keeps_keys():
            return projected
        key = self._seen("key", self.heads(projected).key, places)
        return projected._replace(kept=projected.kept | {self.tie.source("K"): key})

    def _keeps_keys(self) -> bool:
        alone = self.tie.source("K") != self.tie.source("V") and not self.latent_dim
        return alone and self.positions == "rotary" and type(self).heads is Scheme.heads

    def _seen(self, role: str, heads: Array, places: Places | None) -> Array:
        """Queries or keys with norm and rotation."""
        heads = self._normed(role, heads)
        return self.rotated(heads, places) if self.positions == "rotary" else heads

    def _normed(self, role: str, heads: Array) -> Array:
        return normed(getattr(self, f"{role}_norm"), heads) if self.qk_norm else heads

    def roles(
        self,
        projected: Projected,
        places: Places | None = None,
        key_places: Places | None = None,
    ) -> QKV:
        """What the scores see, of what `keep` gave; places count from 0 by default."""
        query, key, value = self.heads(projected)
        if self._keeps_keys():
            key = projected.kept[self.tie.source("K")]
        else:
            key = self._seen("key", key, key_places)
        return QKV(self._seen("query", query, places), key, value)

    def scores(
        self, projected: Projected, places: Places, key_places: Places
    ) -> Float[Array, "B N T S"] | None:
        """Q K^T of what `roles` gives, of a cache and the tokens that come next, where there is a
        faster way to it than their product; else None.

        One token is decoded without rotating all keys, as long as few query heads read each:
        rotating a key costs as much as three of them where keys lie in a CPU's cache, as a dozen
        where they lie in memory.
        """
        own = type(self).roles is Scheme.roles and type(self).rotated is Scheme.rotated
        turns = own and self.positions == "rotary" and not self._keeps_keys()
        # Of places that are not known, XLA would work out the sines for every head.
        if not turns or places.shape[1] > 1 or not isinstance(key_places, np.ndarray):
            return None
        query, key, _ = self.heads(projected)
        if query.shape[2] > 4 * key.shape[2]:
            return None
        query, key = self._seen("query", query, places), self._normed("key", key)
        return turned_scores(query, key, key_places, self.rotary_dims, self.rotary_base)

    @nn.nowrap
    def rotated(
        self, x: Float[Array, "B T N H"], places: Places | None = None
    ) -> Float[Array, "B T N H"]:
        """Queries or keys, turned by their places as the config says."""
        return rotate(x, places, self.rotary_dims, self.rotary_base)

    def finish(
        self,
        heads: Float[Array, "B T N H"],
        qkv: QKV,
        places: Places,
        own: Int[Array, "#B T"] | None,
    ) -> Float[Array, "B T N H"]:
        """What becomes of the weighted sums of values: they are the output as they are.

        Args:
          places: of the queries.
          own: the index, among keys and values, of each query's own token; None under
            cross-attention, where it has none.
        """
        return heads

    @property
    def score_dim(self) -> int:
        """The width of queries and keys, whose square root scores are divided by."""
        return self.head_dim

    @nn.nowrap
    def cache_shapes(self) -> dict[str, tuple[int, int]]:
        """Heads and width a token of each tensor that `keep` gives a cache."""
        heads = (1, self.latent_dim) if self.latent_dim else (self.num_kv_heads, self.head_dim)
        return dict.fromkeys(kept_sources(self.tie, self.latent_dim), heads)

    @nn.nowrap
    def own_values(
        self, value: Float[Array, "B S K H"], own: Int[Array, "#B T"]
    ) -> Float[Array, "B T N H"]:
        """The value of each query's own token, for every query head."""
        found = jnp.take_along_axis(value, own[:, :, None, None], axis=1)
        return per_query_head(found, self.num_heads)

    def __call__(self, x, context=None) -> QKV:
        return self.roles(self.keep(self.project(x, context)))

    def _source(self, name: str, x: Float[Array, "B L D"]) -> Float[Array, "B L heads H"]:
        if name == LATENT and self.latent_kind == "slice":
            if x.shape[-1] < self.latent_dim:
                allowed = f"of X's {x.shape[-1]} features there are no first {self.latent_dim}"
                raise ValueError(f"latent_dim: {allowed}")
            return x[..., None, : self.latent_dim]
        if name != "X":
            return getattr(self, name)(x)
        if x.shape[-1] != self.num_heads * self.head_dim:
            raise ValueError(
                f"tie {self.tie} uses the input itself, so its width must be heads x head "
                f"width = {self.num_heads} x {self.head_dim}, not {x.shape[-1]}"
            )
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)


def normed(norm: nn.Module, x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """x through a norm of Flax, which takes means in float32 at least, in its own number format."""
    with jax.numpy_dtype_promotion("standard"):
        return norm(x).astype(x.dtype)
