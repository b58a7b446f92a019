"""Where a token stands: additive positions for the input, rotary ones for queries and keys.

Additive positions become part of X; rotary ones act on queries and keys after the tie, so that a
tied value stays unrotated.
"""

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Positions = Literal["none", "sinusoidal", "learned", "rotary"]
POSITIONS: tuple[str, ...] = get_args(Positions)

# The size at which embedded tokens and additive positions start, whatever the stem (Devlin et al.
# 2018). One size for both, so that neither drowns the other; small, so that a few hundred steps of
# Adam move them: at unit size masked bytes of Shakespeare stayed at the unigram loss, 3.2 nats.
EMBEDDING_STD = 0.02

_BASE = 10_000.0


def sinusoidal(length: int, width: int) -> Float[Array, "T D"]:
    """Fixed sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, 3.5).

    Sines fill the first half of the width and cosines the second; an odd width leaves one zero.
    """
    angles = _angles(jnp.arange(length), width // 2)
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(table, ((0, 0), (0, width % 2)))


def rotate(
    x: Float[Array, "*B T N H"], positions: Int[Array, " T"] | None = None
) -> Float[Array, "*B T N H"]:
    """Rotary positions (Su et al. 2021, eq. 34): turns each pair of coordinates by an angle
    proportional to the position, so that scores depend on the distance between tokens only.

    Args:
      x: queries or keys; H must be even. Coordinates i and i + H/2 form a pair.
      positions: the place of each token; 0 .. T-1 by default.
    """
    positions = jnp.arange(x.shape[-3]) if positions is None else positions
    angles = _angles(positions, x.shape[-1] // 2)[:, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class AddPositions(nn.Module):
    """Adds sinusoidal or learned positions to embedded tokens [B, T, D]; else returns them as is.

    Sinusoidal ones are scaled from their root mean square, sqrt(1/2), to `EMBEDDING_STD`.
    """

    kind: Positions
    max_length: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        length, width = x.shape[-2:]
        if self.kind == "sinusoidal":
            return x + (2**0.5 * EMBEDDING_STD * sinusoidal(length, width)).astype(x.dtype)
        if self.kind == "learned":
            init = nn.initializers.normal(EMBEDDING_STD)
            table = self.param("embedding", init, (self.max_length, width))
            return x + table[:length].astype(x.dtype)
        return x


def _angles(positions: Int[Array, " T"], pairs: int) -> Float[Array, "T pairs"]:
    frequencies = _BASE ** (-jnp.arange(pairs) / max(pairs, 1))
    return positions[:, None] * frequencies[None, :]
