"""How far training has moved a projection from where it started.

Both matrices come from one run, whose start fixes the basis within each head; distances between
matrices of two runs would depend on it.
"""

import numpy as np
from jaxtyping import Real

# |W' - W| / |W| of two matrices drawn independently: |W' - W|^2 is |W'|^2 + |W|^2 on average.
INDEPENDENT = float(np.sqrt(2))


def relative_movement(start: Real[np.ndarray, "*shape"], end: Real[np.ndarray, "*shape"]) -> float:
    """|end - start| / |start| (Frobenius): 0 where nothing moved, `INDEPENDENT` for a fresh draw of
    the same size. NaN for a start of zeros."""
    start, end = np.float64(start), np.float64(end)
    size = np.linalg.norm(start)
    return float(np.linalg.norm(end - start) / size) if size > 0 else float("nan")
