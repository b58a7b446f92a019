"""`mla`: multi-head latent attention with its decoupled rotary part (DeepSeek-V2, 2024)."""

import flax.linen as nn
import jax.numpy as jnp

from qkv_jax.config import ConfigError
from qkv_jax.model.positions import rotate
from qkv_jax.model.projections import LATENT, QKV, HeadProjection, Projected
from qkv_jax.model.schemes.base import Scheme, normed, register_scheme

ROTARY = "rotary"


@register_scheme("mla")
class MultiHeadLatent(Scheme):
    """Keys and values are projections of one latent source, which cannot carry rotary positions;
    these have coordinates of their own, P = `rotary_dims` of them, one key for all heads:

        c = norm(X W_latent),   k_n = [c W_key,n ; R X W_rotary],   v_n = c W_value,n,
        q_n = [X W_query,n ; R X W_query_rotary,n]        (sections 2.1.2, 2.1.3, 3.1.2)

    A cache stores c and R X W_rotary: R + P numbers a token. The latent may be learned, frozen or a
    slice of X, the tie `separate` or K=V. Queries are not compressed.

    Where few queries read many latents, as in decoding, W_key is applied to the queries instead and
    W_value to the weighted sums: one head, [c ; rotary], is key and value.
    """

    has_circuits = False

    @classmethod
    def check_config(cls, config) -> None:
        if not config.latent_dim:
            raise ConfigError("scheme", "mla", "needs a latent_dim")
        if config.positions != "rotary" or not config.rotary_dims:
            raise ConfigError("scheme", "mla", "needs positions 'rotary' and rotary_dims above 0")
        if config.value_residual:
            allowed = "does not go with scheme 'mla', which may read latents for values"
            raise ConfigError("value_residual", True, allowed)
        if config.qk_norm:
            raise ConfigError("qk_norm", True, "scheme 'mla' norms its latent source instead")
        if config.frozen:
            allowed = "is not for scheme 'mla', whose rotary part would learn; see latent_kind"
            raise ConfigError("frozen", config.frozen, allowed)

    def setup(self):
        super().setup()
        self.latent_norm = nn.RMSNorm()
        self.rotary = HeadProjection(1, self.rotary_dims)
        self.query_rotary = HeadProjection(self.num_heads, self.rotary_dims)

    def project(self, x, context=None):
        query, kept = super().project(x, context)
        query = jnp.concatenate([query, self.query_rotary(x)], -1)
        rotary = self.rotary(x if context is None else context)
        return Projected(query, {LATENT: normed(self.latent_norm, kept[LATENT]), ROTARY: rotary})

    def keep(self, projected, places=None):
        """One tensor of both, so that it can be read as it lies."""
        rotary = rotate(projected.kept[ROTARY], places, base=self.rotary_base)
        both = jnp.concatenate([projected.kept[LATENT], rotary], -1)
        return projected._replace(kept={LATENT: both})

    @property
    def score_dim(self):
        return self.head_dim + self.rotary_dims

    def roles(self, projected, places=None, key_places=None):
        both = projected.kept[LATENT]
        plain, turned = jnp.split(projected.query, [self.head_dim], -1)
        turned = rotate(turned, places, base=self.rotary_base)
        if self._absorbs(plain.shape[1], both.shape[1]):
            query = jnp.einsum("btnh,rnh->btnr", plain, self._kernel("K").astype(plain.dtype))
            return QKV(jnp.concatenate([query, turned], -1), both, both)
        latent, rotary = jnp.split(both, [self.latent_dim], -1)
        qkv = self.heads(Projected(plain, {LATENT: latent}))
        shared = jnp.broadcast_to(rotary, (*qkv.key.shape[:-1], self.rotary_dims))
        query = jnp.concatenate([qkv.query, turned], -1)
        return QKV(query, jnp.concatenate([qkv.key, shared], -1), qkv.value)

    def finish(self, heads, qkv, places, own):
        if not self._absorbs(heads.shape[1], qkv.key.shape[1]):
            return heads
        latent = heads[..., : self.latent_dim]
        return jnp.einsum("btnr,rnh->btnh", latent, self._kernel("V").astype(heads.dtype))

    @nn.nowrap
    def _absorbs(self, queries: int, keys: int) -> bool:
        """Whether that takes fewer products."""
        plain = not (self.use_bias or self.adapters.items())
        fewer = queries * self.latent_dim < keys * self.head_dim and queries < keys
        return plain and fewer and not self.is_initializing()  # which makes what is absorbed

    def _kernel(self, role: str):
        """[R, N, H], by which the latent becomes keys or values of every query head."""
        kernel = getattr(self, self.tie.source(role)).variables["params"]["kernel"]
        return kernel.repeat(self.num_heads // self.num_kv_heads, axis=1)

    @nn.nowrap
    def cache_shapes(self):
        return {LATENT: (1, self.latent_dim + self.rotary_dims)}
