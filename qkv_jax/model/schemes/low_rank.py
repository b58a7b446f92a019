"""`low_rank`: keys and values that all heads share, and a low-rank residual of each head's own
(LRKV), 2026, arXiv 2601.11471."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkv_jax.config import ConfigError
from qkv_jax.model.projections import (
    QKV,
    HeadProjection,
    Projected,
    check_scheme,
    kept_sources,
)
from qkv_jax.model.schemes.base import Scheme, register_scheme


class Raised(nn.Module):
    """[B, S, N, r] times `kernel` [N, r, H], which is zero at first, so that heads start alike."""

    head_dim: int

    @nn.compact
    def __call__(self, low: Float[Array, "B S N r"]) -> Float[Array, "B S N H"]:
        shape = (*low.shape[-2:], self.head_dim)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        return jnp.einsum("bsnr,nrh->bsnh", low, kernel.astype(low.dtype))


@register_scheme("low_rank")
class LowRankHeads(Scheme):
    """k_n = X W_key + (X A_key,n) B_key,n, and values likewise; the rank is `latent_dim`, r, and
    there is one shared key/value head. A cache stores H + N r numbers a token for each source of
    keys and values: half of that where K=V."""

    @classmethod
    def check_config(cls, config) -> None:
        if not config.latent_dim or config.kv_heads != 1 or config.latent_kind != "learned":
            allowed = "needs kv_heads=1, and the rank as latent_dim, learned"
            raise ConfigError("scheme", "low_rank", allowed)
        if config.frozen or config.adapters.items():
            field = "frozen" if config.frozen else "adapters"
            raise ConfigError(field, getattr(config, field), "is not for scheme 'low_rank'")

    def setup(self):
        check_scheme(self.tie, self.num_heads, self.num_kv_heads, latent_dim=self.latent_dim)
        for source in self.tie.sources:
            heads = self.num_heads if source == self.tie.source("Q") else 1
            setattr(self, source, HeadProjection(heads, self.head_dim, self.use_bias))
        for source in kept_sources(self.tie):
            setattr(self, f"{source}_low", HeadProjection(self.num_heads, self.latent_dim))
            setattr(self, f"{source}_raised", Raised(self.head_dim))
        if self.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(), nn.RMSNorm()

    def project(self, x, context=None):
        read = x if context is None else context
        query, kept = self._source(self.tie.source("Q"), x), {}
        for source in kept_sources(self.tie):
            kept[source] = getattr(self, source)(read)
            kept[f"{source}_low"] = getattr(self, f"{source}_low")(read)
        return Projected(query, kept)

    def heads(self, projected):
        whole = {}
        for source in kept_sources(self.tie):
            raised = getattr(self, f"{source}_raised")(projected.kept[f"{source}_low"])
            whole[source] = projected.kept[source] + raised
        key, value = (whole[self.tie.source(role)] for role in ("K", "V"))
        return QKV(projected.query, key, value)

    @nn.nowrap
    def cache_shapes(self):
        own = dict.fromkeys(kept_sources(self.tie), (1, self.head_dim))
        return own | {f"{source}_low": (self.num_heads, self.latent_dim) for source in own}
