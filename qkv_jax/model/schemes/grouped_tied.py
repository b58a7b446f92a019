"""`grouped_tied`: grouped tied attention (GTA), Zadouri et al. 2025, arXiv 2505.21487."""

import flax.linen as nn
import jax.numpy as jnp

from qkv_jax.config import ConfigError
from qkv_jax.model.dot_product import products
from qkv_jax.model.positions import rotate
from qkv_jax.model.projections import QKV, HeadProjection, kept_sources
from qkv_jax.model.schemes.base import Scheme, register_scheme

ROTARY = "rotary"


@register_scheme("grouped_tied")
class GroupedTied(Scheme):
    """One tied state a key/value head: all of it is the value, its first half is the first half of
    the key, and the other half of the key is a rotary one that all heads share:

        v = X W_key,   k = [v_1 .. v_H/2 ; R X W_rotary],   q = [q_1 .. q_H/2 ; R q_H/2+1 .. q_H].

    A cache stores K H + H/2 numbers a token. The tie is K=V; with as many key/value heads as query
    heads it may be Q=K=V.
    """

    has_circuits = False

    @classmethod
    def check_config(cls, config) -> None:
        wrong = [tie for tie in config.ties if not tie.equates("K", "V") or tie.equates("V", "X")]
        if wrong:
            allowed = f"needs a tied projection, K=V, in every layer, not {wrong[0]}"
            raise ConfigError("scheme", "grouped_tied", allowed)
        if config.positions != "rotary" or config.head_width % 4:
            allowed = "needs positions 'rotary' and heads whose width is a multiple of 4"
            raise ConfigError("scheme", "grouped_tied", allowed)
        unset = {"latent_dim": None, "qk_norm": False, "rotary_dims": None, "frozen": ()}
        for field, nothing in unset.items():
            if getattr(config, field) != nothing:
                allowed = "is not for scheme 'grouped_tied'"
                raise ConfigError(field, getattr(config, field), allowed)

    def setup(self):
        super().setup()
        self.rotary = HeadProjection(1, self.head_dim // 2)

    def project(self, x, context=None):
        projected = super().project(x, context)
        rotary = self.rotary(x if context is None else context)
        return projected._replace(kept=projected.kept | {ROTARY: rotary})

    def keep(self, projected, places=None):
        rotary = rotate(projected.kept[ROTARY], places, base=self.rotary_base)
        return projected._replace(kept=projected.kept | {ROTARY: rotary})

    def scores(self, projected, places, key_places):
        """The halves apart, as both lie in the cache: side by side they would be a copy of it."""
        query, key, _ = self.heads(projected)
        if query.shape[1] > 1:
            return None
        plain, turned = query.at[..., self.head_dim // 2 :].set(0), self._turned(query, places)
        return products(plain, key) + products(turned, projected.kept[ROTARY])

    def _turned(self, query, places):
        return rotate(query[..., self.head_dim // 2 :], places, base=self.rotary_base)

    def roles(self, projected, places=None, key_places=None):
        query, key, value = self.heads(projected)
        half = self.head_dim // 2
        shared = jnp.broadcast_to(projected.kept[ROTARY], (*key.shape[:-1], half))
        turned = self._turned(query, places)
        query = jnp.concatenate([query[..., :half], turned], -1)
        return QKV(query, jnp.concatenate([key[..., :half], shared], -1), value)

    @nn.nowrap
    def cache_shapes(self):
        (tied,) = kept_sources(self.tie)
        return {tied: (self.num_kv_heads, self.head_dim), ROTARY: (1, self.head_dim // 2)}
