"""`exclusive`: exclusive self-attention (XSA), 2026, arXiv 2603.09078."""

import jax.numpy as jnp

from qkv_jax.model.schemes.base import Scheme, register_scheme


@register_scheme("exclusive")
class Exclusive(Scheme):
    """Each head's output less its part along the token's own value: z = y - (y . v) v / |v|^2.

    Attention is left with what the other tokens say. It bears on Q=K, where a token's score with
    itself is the largest. Under any tie; in cross-attention there is no own value, and z = y.
    """

    beside_values = "outputs lose their part along the token's own value"

    def finish(self, heads, qkv, places, own):
        if own is None:
            return heads
        value = self.own_values(qkv.value, own)
        length = (value**2).sum(-1, keepdims=True)
        along = (heads * value).sum(-1, keepdims=True) / jnp.maximum(length, 1e-12)
        return heads - along * value
