"""The tie as data: a scheme that is any of the 15 ties, as an array says."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkv_jax.model.linear import on_rows
from qkv_jax.model.projections import Projected
from qkv_jax.model.schemes import Scheme
from qkv_jax.tie import SOURCE_NAMES, Tie

SELECTION = "selection"
_SOURCES = tuple(SOURCE_NAMES.values())  # query, key, value, X


def selection(tie: Tie) -> Float[np.ndarray, "3 4"]:
    """What each of Q, K and V reads of query, key, value and X: a one in each row."""
    read = [_SOURCES.index(tie.source(role)) for role in ("Q", "K", "V")]
    return np.eye(len(_SOURCES), dtype=np.float32)[read]


class _Kernel(nn.Module):
    """The leaf `kernel` [D, N, H], as `HeadProjection` has it."""

    num_heads: int
    head_dim: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "D NH"]:
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        kernel = self.param("kernel", init, (width, self.num_heads, self.head_dim))
        return kernel.reshape(width, -1)


class Selected(Scheme):
    """W_role = S[role] · (W_query, W_key, W_value, I), with the leaf `selection`, S, [3, 4].

    Under the config's tie `separate` it computes whatever tie S stands for; S is not trained. X is
    read through the identity, which is exact. It takes three products for any tie, and is there for
    the compiler's sake: `qkv_jax/training/shared.py`.
    """

    def setup(self):
        for source in _SOURCES[:-1]:
            setattr(self, source, _Kernel(self.num_heads, self.head_dim))
        self.chosen = self.param(SELECTION, lambda _: jnp.asarray(selection(self.tie)))
        if self.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(), nn.RMSNorm()

    def project(
        self, x: Float[Array, "B T D"], context: Float[Array, "B S E"] | None = None
    ) -> Projected:
        if context is not None:
            raise ValueError("this scheme is for self-attention")
        kernels = [getattr(self, source)(x.shape[-1]) for source in _SOURCES[:-1]]
        stacked = jnp.stack([*kernels, jnp.eye(x.shape[-1])])
        read = jnp.einsum("rs,sde->rde", jax.lax.stop_gradient(self.chosen), stacked)
        heads = (*x.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (on_rows(x, kernel.astype(x.dtype)).reshape(heads) for kernel in read)
        return Projected(query, {"key": key, "value": value})
