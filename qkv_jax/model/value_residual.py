"""The value residual: later layers' values are mixed with the first layer's (ResFormer, Zhou et al.
2024, arXiv 2410.17897)."""

import flax.linen as nn
from jaxtyping import Array, Float


class ValueResidual(nn.Module):
    """V'_n = a_n V_n + b_n V_1, of layers n > 1; a_n and b_n are learned and start at one half.

    Keys are left as they are: under K=V a key and its value differ from the second layer on. A
    cache keeps nothing more, since the first layer's values are in it.
    """

    @nn.compact
    def __call__(
        self, values: Float[Array, "B S K H"], first: Float[Array, "B S K H"]
    ) -> Float[Array, "B S K H"]:
        own, of_first = self.param("mix", nn.initializers.constant(0.5), (2,)).astype(values.dtype)
        return own * values + of_first * first
