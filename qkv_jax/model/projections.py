"""Linear maps from X to heads and back, and which sources a tie keeps.

A source is one learned projection, or X itself cut into heads. `Projected` holds each source once;
`QKV` is what a scheme makes of them (schemes.py).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from qkv_jax.model.linear import on_rows
from qkv_jax.tie import Tie

LATENT = "latent"


class Projected(NamedTuple):
    """The sources of queries, keys and values, each computed once.

    Attributes:
      query: the source of the queries.
      kept: the sources of keys and values by name, of which `Scheme.keep` makes what a cache
        stores. Heads and widths may differ between them, and between them and the queries.
    """

    query: Float[Array, "B T N H"]
    kept: dict[str, Float[Array, "B _S _heads _H"]]


class QKV(NamedTuple):
    """What attention works on."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K E"]


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
        heads = on_rows(x, kernel.reshape(x.shape[-1], -1))
        heads = heads.reshape(*x.shape[:-1], *kernel.shape[1:])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, kernel.shape[1:])
            heads += self._own(bias)[None, None].astype(x.dtype)
        return heads

    def _own(self, parameter):
        return jax.lax.stop_gradient(parameter) if self.frozen else parameter


class OutputProjection(nn.Module):
    """The heads, laid side by side, times W_O: `kernel` [N, H, D]."""

    width: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, heads: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (*heads.shape[-2:], self.width))
        flat = kernel.astype(heads.dtype).reshape(-1, self.width)
        out = on_rows(heads.reshape(*heads.shape[:-2], -1), flat)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,))
            out += bias[None, None].astype(heads.dtype)
        return out


def per_query_head(heads: Float[Array, "*B K H"], num_heads: int) -> Float[Array, "*B N H"]:
    """Key/value heads, each repeated for the query heads that read it."""
    return heads.repeat(num_heads // heads.shape[-2], axis=-2)


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
