"""X -> (query, key, value): the one place that knows about ties.

A projection runs in two halves. `project` computes every learned source once; `roles` hands the
sources out as query, key and value. Attention sees only the result of `roles`; a cache stores what
`project` returned for keys and values, so that a tie which shares them needs half the memory.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkv_jax.tie import Tie

# Lengths and heads differ inside one dict (context, grouped heads, cache): the underscore leaves
# them unchecked.
Sources = dict[str, Float[Array, "B _L _heads H"]]

# A source of queries that keys or values share is, under cross-attention, applied to the context
# too: the matrix is shared, the result is not.
CONTEXT = "context:"


class QKV(NamedTuple):
    """What attention works on."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]


class HeadProjection(nn.Module):
    """X W (+ b), cut into heads: the leaves `kernel` [D, heads, H] and, if asked, `bias`."""

    num_heads: int
    head_dim: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L heads H"]:
        # The fans of the matrix [D, heads * H]; by default lecun_normal on three axes takes the
        # heads for a receptive field and draws weights that are too small.
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (x.shape[-1], self.num_heads, self.head_dim))
        # One flat matrix product: the same numbers as einsum("bld,dnh->blnh"), 1.3 times as fast
        # on CPUs at these sizes.
        heads = (x @ kernel.reshape(x.shape[-1], -1)).reshape(*x.shape[:-1], *kernel.shape[1:])
        if self.use_bias:
            heads += self.param("bias", nn.initializers.zeros, kernel.shape[1:])
        return heads


class QKVProjection(nn.Module):
    """Queries, keys and values of X under a tie. Parameters: `query`, `key`, `value`, as needed.

    Attributes:
      num_heads: N, heads of the queries.
      num_kv_heads: K, heads of keys and values; divides N.
      head_dim: H.
      tie: the scheme, see `qkv_jax.tie`.
      frozen: the sources that stay as initialised: no gradient reaches them.
      use_bias: adds a bias to each projection, shared where its kernel is.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie: Tie
    frozen: tuple[str, ...] = ()
    use_bias: bool = False

    def setup(self):
        check_scheme(self.tie, self.num_heads, self.num_kv_heads, self.frozen)
        for source in self.tie.sources:
            projection = HeadProjection(self._heads(source), self.head_dim, self.use_bias)
            setattr(self, source, projection)

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
        if context is None:
            wanted = dict.fromkeys(self.tie.source(role) for role in ("Q", "K", "V"))
            return {source: self._apply(source, x) for source in wanted}
        query = self.tie.source("Q")
        rest = dict.fromkeys(self.tie.source(role) for role in ("K", "V"))
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
        return QKV(
            query=sources[self.tie.source("Q")],
            key=sources[prefix + self.tie.source("K")],
            value=sources[prefix + self.tie.source("V")],
        )

    def __call__(self, x, context=None) -> QKV:
        return self.roles(self.project(x, context))

    def _apply(self, source: str, x: Float[Array, "B L D"]) -> Float[Array, "B L heads H"]:
        if source == "X":
            if x.shape[-1] != self.num_heads * self.head_dim:
                raise ValueError(
                    f"tie {self.tie} uses the input itself, so its width must be heads x head "
                    f"width = {self.num_heads} x {self.head_dim}, not {x.shape[-1]}"
                )
            return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        heads = getattr(self, source)(x)
        return jax.lax.stop_gradient(heads) if source in self.frozen else heads

    def _heads(self, source: str) -> int:
        return self.num_heads if source == self.tie.source("Q") else self.num_kv_heads


def check_scheme(tie: Tie, num_heads: int, num_kv_heads: int, frozen: tuple[str, ...] = ()) -> None:
    """Refuses what cannot be.

    Raises:
      ValueError: with the reason, for head counts that do not divide, for ties that need as many
        key/value heads as query heads, and for frozen sources that the tie does not have.
    """
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{num_kv_heads} key/value heads do not divide {num_heads} query heads")
    if num_kv_heads != num_heads:
        for pair in (("Q", "K"), ("Q", "V"), ("K", "X"), ("V", "X")):
            if tie.equates(*pair):
                raise ValueError(
                    f"tie {tie} asks for {'='.join(pair)}, which needs as many key/value heads "
                    f"as query heads, not {num_kv_heads} and {num_heads}"
                )
    for source in frozen:
        if source not in tie.sources:
            allowed = ", ".join(tie.sources) or "none"
            raise ValueError(f"frozen source {source!r}: tie {tie} has the sources: {allowed}")
