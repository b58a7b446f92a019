"""What attention shows to whoever asks for intermediates."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from qkv_jax.model.masks import visible


class Probes(nn.Module):
    """Sows what weights were made of; a scope of its own, since `query` beside it names a
    projection."""

    def __call__(self, arrays: dict[str, Array], *, scale, bias, mask, is_causal: bool) -> None:
        """Args: as of `attend`, the arrays by name."""
        query, key = arrays["query"], arrays["key"]
        if is_causal:
            here = (jnp.arange(array.shape[1])[None] for array in (query, key))
            mask = visible(*here, is_causal=True, mask=mask)
        shown = {"scale": jnp.broadcast_to(jnp.float32(scale), query.shape[2:3])}
        shown |= {"bias": bias, "mask": mask, **arrays}
        for name, array in shown.items():
            if array is not None:
                self.sow("intermediates", name, array)
