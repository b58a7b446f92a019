"""X -> (query, key, value): the one place that knows about ties.

A projection runs in two halves. `project` computes every learned source once; `roles` hands the
sources out as query, key and value, through their adapters. Attention sees only the result of
`roles`; a cache stores what `project` returned for keys and values, so that a tie which shares them
needs half the memory, and a latent source less still.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkv_jax.arrays import require_array
from qkv_jax.config import require_kinds, require_positive
from qkv_jax.model.adapters import Adapters
from qkv_jax.tie import Tie

# Lengths, heads and widths differ inside one dict (context, grouped heads, latent, cache): the
# underscore leaves them unchecked.
Sources = dict[str, Float[Array, "B _L _heads _H"]]

# A source of queries that keys or values share is, under cross-attention, applied to the context
# too: the matrix is shared, the result is not.
CONTEXT = "context:"
LATENT = "latent"


class QKV(NamedTuple):
    """What attention works on."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]


class HeadProjection(nn.Module):
    """X W (+ b), cut into heads: the leaves `kernel` [D, heads, H] and, if asked, `bias`.

    A frozen one passes gradients on to its input, but takes none for itself. It computes in the
    number format of its input.
    """

    num_heads: int
    head_dim: int
    use_bias: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L heads H"]:
        # The fans of the matrix [D, heads * H]; by default lecun_normal on three axes takes the
        # heads for a receptive field and draws weights that are too small.
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (x.shape[-1], self.num_heads, self.head_dim))
        kernel = self._own(kernel).astype(x.dtype)
        # One flat matrix product: the same numbers as einsum("bld,dnh->blnh"), 1.3 times as fast
        # on CPUs at these sizes.
        heads = (x @ kernel.reshape(x.shape[-1], -1)).reshape(*x.shape[:-1], *kernel.shape[1:])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, kernel.shape[1:])
            heads += self._own(bias).astype(x.dtype)
        return heads

    def _own(self, parameter):
        return jax.lax.stop_gradient(parameter) if self.frozen else parameter


class QKVProjection(nn.Module):
    """Queries, keys and values of X under a tie. Parameters: `query`, `key`, `value`, as needed,
    `{role}_adapter` and, with a latent source, `latent`.

    Attributes:
      num_heads: N, heads of the queries.
      num_kv_heads: K, heads of keys and values; divides N.
      head_dim: H.
      tie: the scheme, see `qkv_jax.tie`.
      frozen: the sources that stay as initialised: no gradient reaches them, nor a latent source
        that only they read. Adapters go on learning.
      use_bias: adds a bias to each projection, shared where its kernel is.
      adapters: see `qkv_jax.model.adapters`.
      latent_dim: R; keys and values are then projections [R, K, H] of one latent source X W
        [B, S, 1, R], which is what a cache stores (multi-head latent attention, DeepSeek-V2 2024,
        without its decoupled rotary part).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie: Tie
    frozen: tuple[str, ...] = ()
    use_bias: bool = False
    adapters: Adapters = Adapters()
    latent_dim: int | None = None

    def __post_init__(self):
        require_kinds(self, QKVProjection)
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
        if self.latent_dim:
            frozen = self.tie.source("K") in self.frozen  # and the values', see check_scheme
            setattr(self, LATENT, HeadProjection(1, self.latent_dim, self.use_bias, frozen))
        for role, _ in self.adapters.items():
            setattr(self, f"{role}_adapter", self.adapters.make(role))

    def project(
        self, x: Float[Array, "B T D"], context: Float[Array, "B S E"] | None = None
    ) -> Sources:
        """Each source once, by name. `context` is given under cross-attention only.

        The queries' source is then applied to `x`; the sources of keys and values are applied to
        `context` and carry the prefix `context:`.

        Raises:
          ValueError: where X itself is a role and D differs from heads * H, or where a matrix is
            shared across `x` and `context` of different widths.
        """
        sizes: dict[str, int] = {}
        require_array("x", x, "B T D", "float", sizes)
        if context is not None:
            require_array("context", context, "B S E", "float", sizes)
        query = self.tie.source("Q")
        rest = kept_sources(self.tie, self.latent_dim)
        if context is None:
            return {source: self._apply(source, x) for source in dict.fromkeys((query, *rest))}
        if query in rest and query != "X" and x.shape[-1] != context.shape[-1]:
            raise ValueError(
                f"tie {self.tie} shares a matrix between the input, of width {x.shape[-1]}, and "
                f"the context, of width {context.shape[-1]}; the widths must be equal"
            )
        on_context = {CONTEXT + source: self._apply(source, context) for source in rest}
        return {query: self._apply(query, x)} | on_context

    def roles(self, sources: Sources) -> QKV:
        """Hands the projected sources out as query, key and value."""
        on_context = any(name.startswith(CONTEXT) for name in sources)
        prefix = CONTEXT if on_context else ""
        heads = {"query": sources[self.tie.source("Q")]}
        if self.latent_dim:
            latent = sources[prefix + LATENT][:, :, 0]
            wanted = dict.fromkeys(self.tie.source(role) for role in ("K", "V"))
            expanded = {source: getattr(self, source)(latent) for source in wanted}
        else:
            expanded = {source: sources[prefix + source] for source in kept_sources(self.tie)}
        heads |= {"key": expanded[self.tie.source("K")], "value": expanded[self.tie.source("V")]}
        for role, _ in self.adapters.items():
            heads[role] = getattr(self, f"{role}_adapter")(heads[role])
        return QKV(**heads)

    def __call__(self, x, context=None) -> QKV:
        return self.roles(self.project(x, context))

    def _apply(self, source: str, x: Float[Array, "B L D"]) -> Float[Array, "B L heads H"]:
        if source != "X":
            return getattr(self, source)(x)
        if x.shape[-1] != self.num_heads * self.head_dim:
            raise ValueError(
                f"tie {self.tie} uses the input itself, so its width must be heads x head "
                f"width = {self.num_heads} x {self.head_dim}, not {x.shape[-1]}"
            )
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)


class OutputProjection(nn.Module):
    """The heads, laid side by side, times W_O: `kernel` [N, H, D]."""

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (*heads.shape[-2:], self.features))
        flat = kernel.astype(heads.dtype).reshape(-1, self.features)
        out = heads.reshape(*heads.shape[:-2], -1) @ flat
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            out += bias.astype(heads.dtype)
        return out


def kept_sources(tie: Tie, latent_dim: int | None = None) -> tuple[str, ...]:
    """The sources of keys and values, each once: what a cache stores."""
    if latent_dim:
        return (LATENT,)
    return tuple(dict.fromkeys(tie.source(role) for role in ("K", "V")))


def check_scheme(
    tie: Tie,
    num_heads: int,
    num_kv_heads: int,
    frozen: tuple[str, ...] = (),
    latent_dim: int | None = None,
) -> None:
    """Refuses what cannot be.

    Raises:
      ValueError: with the reason, for head counts that do not divide, for ties that need as many
        key/value heads as query heads, for frozen sources that the tie does not have, and for a
        latent source beside keys or values that do not come from it.
    """
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{num_kv_heads} key/value heads do not divide {num_heads} query heads")
    pairs = (("Q", "K"), ("Q", "V"), ("K", "X"), ("V", "X"))
    equated = ["=".join(pair) for pair in pairs if tie.equates(*pair)]
    if num_kv_heads != num_heads and equated:
        raise ValueError(
            f"tie {tie} asks for {equated[0]}, which needs as many key/value heads "
            f"as query heads, not {num_kv_heads} and {num_heads}"
        )
    if latent_dim and equated:
        raise ValueError(
            f"tie {tie} asks for {equated[0]}; with a latent source, keys and values are "
            "projections of it: separate, K=V, Q=X, or Q=X,K=V"
        )
    for source in frozen:
        if source not in tie.sources:
            allowed = ", ".join(tie.sources) or "none"
            raise ValueError(f"frozen source {source!r}: tie {tie} has the sources: {allowed}")
    of_latent = {tie.source("K"), tie.source("V")}
    if latent_dim and of_latent & set(frozen) and not of_latent <= set(frozen):
        raise ValueError(
            "keys and values read one latent source: freeze both of them or neither, "
            f"not {', '.join(frozen)}"
        )
