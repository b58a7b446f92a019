"""What chance gives: bases within heads turned at random."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from qkv_jax import arguments
from qkv_jax.arrays import require_array


class Band(NamedTuple):
    """Mean and the middle 95 % of what chance gives."""

    mean: float
    low: float
    high: float


def band(values: Real[np.ndarray, " draws"]) -> Band:
    """The band of some draws."""
    require_array("values", values, "draws", "real", {})
    return Band(float(values.mean()), *map(float, np.quantile(values, (0.025, 0.975))))


def rotation(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """An orthogonal matrix, each equally likely (Haar measure), reflections included: QR of normal
    draws with the signs of R taken out (Mezzadri 2007, "How to generate random matrices from the
    classical compact groups")."""
    arguments.instance("rng", rng, np.random.Generator)
    arguments.whole("size", size, 1)
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))
