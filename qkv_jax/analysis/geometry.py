"""How clouds of tokens and the subspaces of projections lie to each other.

Each function says under which changes of basis it stands still. Within a head a basis is arbitrary:
queries W_Q A with keys W_K A^-T give the same scores, and values W_V A with A^-1 W_O the same
output, for any invertible A. Where a quantity depends on that, `nulls` tells what chance gives.

A cloud is [M, D], one row per token. All arithmetic is in float64; an undefined quantity (a cloud
without spread, a matrix of zeros) is NaN.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Real

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, shown


class Cloud(NamedTuple):
    """A cloud made ready for many comparisons: its tokens without their mean, their squared
    lengths, and its `unbiased_hsic` with itself."""

    centred: Float[np.ndarray, "M D"]
    squared: Float[np.ndarray, " M"]
    own: float


def cloud(x: Real[np.ndarray, "M D"]) -> Cloud:
    """The cloud of these tokens."""
    require_array("x", x, "M D", "real", {})
    centred = np.float64(x)
    centred = centred - centred.mean(0)
    found = Cloud(centred, np.sum(np.square(centred), axis=1), np.nan)
    return found._replace(own=_hsic(found, found))


def unbiased_hsic(x: Real[np.ndarray, "M D1"], y: Real[np.ndarray, "M D2"]) -> float:
    """The Hilbert-Schmidt independence criterion of linear kernels, unbiased (Song et al. 2012,
    "Feature selection via dependence maximization", JMLR 13, equation 5).

        [ tr(K L) + 1'K1 1'L1 / ((M-1)(M-2)) - 2 1'K L1 / (M-2) ] / (M (M-3))

    with K = x x', L = y y' and zeros on their diagonals. Neither is formed: the sums are those of
    x'y and of the rows' squared lengths, so M may be large. NaN below 4 tokens.
    """
    _require_pair(x, y, "M D1", "M D2")
    return _hsic(cloud(x), cloud(y))


def linear_cka(x: Real[np.ndarray, "M D1"], y: Real[np.ndarray, "M D2"]) -> float:
    """Similarity of two clouds of the same tokens, at most 1 (Kornblith et al. 2019, "Similarity of
    neural network representations revisited"), by the unbiased estimator of HSIC: 0 on average for
    clouds that have nothing to do with each other, whatever D1 and D2 (the biased one grows with
    D / M). It can therefore be slightly negative.

    Invariant to rotation, shift and scale of either cloud and to the order of the tokens, not to
    other changes of basis.
    """
    _require_pair(x, y, "M D1", "M D2")
    return cka(cloud(x), cloud(y))


def cka(x: Cloud, y: Cloud) -> float:
    """`linear_cka` of clouds that are compared with several others."""
    for name, given in (("x", x), ("y", y)):
        if not isinstance(given, Cloud):
            raise TypeError(f"{name}: given {shown(given)}; must be a Cloud")
    if len(x.centred) != len(y.centred):
        allowed = f"must be a cloud of the same tokens, {len(x.centred)}"
        raise ConfigError("y", y.centred, allowed)
    own = x.own * y.own
    return _hsic(x, y) / np.sqrt(own) if own > 0 else float("nan")


def mean_cosine(x: Real[np.ndarray, "M D"], y: Real[np.ndarray, "M D"]) -> float:
    """The cosine of the angle between a token's two vectors, mean over the tokens that have both.
    Depends on the basis of each cloud: turned at random, it is 0 on average."""
    _require_pair(x, y, "M D", "M D")
    return float(np.trace(mean_cosines(x, y)))


def mean_cosines(
    x: Real[np.ndarray, "M D1"], y: Real[np.ndarray, "M D2"]
) -> Float[np.ndarray, "D1 D2"]:
    """The mean over the tokens of u'v, with u and v of unit length. Its trace is `mean_cosine`, and
    with y turned to y R it is multiplied by R."""
    _require_pair(x, y, "M D1", "M D2")
    x, y = np.float64(x), np.float64(y)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    seen = lengths > 0
    if not seen.any():
        return np.full((x.shape[1], y.shape[1]), np.nan)
    return (x[seen] / lengths[seen, None]).T @ y[seen] / seen.sum()


def cosine(a: Real[np.ndarray, "D H"], b: Real[np.ndarray, "D H"]) -> float:
    """The cosine of the angle between two matrices as long vectors: <A, B> / |A||B|. Depends on the
    basis within the head: turned at random, it is 0 on average."""
    _require_pair(a, b, "D H", "D H", "ab")
    return float(np.trace(cosines(a, b)))


def cosines(a: Real[np.ndarray, "D H1"], b: Real[np.ndarray, "D H2"]) -> Float[np.ndarray, "H1 H2"]:
    """A'B / |A||B|. Its trace is `cosine`; with B turned to B R it is multiplied by R."""
    _require_pair(a, b, "D H1", "D H2", "ab")
    a, b = np.float64(a), np.float64(b)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return a.T @ b / lengths if lengths > 0 else np.full((a.shape[1], b.shape[1]), np.nan)


def aligned_cosine(a: Real[np.ndarray, "D H"], b: Real[np.ndarray, "D H"]) -> float:
    """`cosine` after the rotation of b within the head that makes it largest: the sum of the
    singular values of A'B / |A||B| (orthogonal Procrustes, Schönemann 1966). Invariant to rotation
    within either; above 0 for random matrices too."""
    _require_pair(a, b, "D H", "D H", "ab")
    crossed = cosines(a, b)
    return float(np.linalg.norm(crossed, "nuc")) if np.isfinite(crossed).all() else float("nan")


def rms_ratio(x: Real[np.ndarray, "M D1"], y: Real[np.ndarray, "M D2"]) -> float:
    """Root mean square of the numbers of x over that of y. Invariant to rotation of either; Q and K
    may trade scale (c Q, K / c) without a change of their scores."""
    _require_pair(x, y, "M D1", "M D2")
    x, y = (np.sqrt(np.mean(np.square(np.float64(a)))) for a in (x, y))
    return float(x / y) if y > 0 else float("nan")


def principal_angles(
    a: Real[np.ndarray, "D H1"], b: Real[np.ndarray, "D H2"]
) -> Float[np.ndarray, " angles"]:
    """The angles between the column spaces of two matrices, in radians, smallest first, as many as
    the smaller space has dimensions (Björck and Golub 1973; `scipy.linalg.subspace_angles`).

    Invariant to any invertible change of basis within the columns, and to a common rotation of D.
    """
    _require_pair(a, b, "D H1", "D H2", "ab")
    if not all(np.any(matrix) and np.all(np.isfinite(matrix)) for matrix in (a, b)):
        return np.empty(0)
    return scipy.linalg.subspace_angles(np.float64(a), np.float64(b))[::-1]


def subspace_overlap(a: Real[np.ndarray, "D H1"], b: Real[np.ndarray, "D H2"]) -> float:
    """The mean of cos^2 of the principal angles: 1 where one column space holds the other, 0 where
    they are orthogonal, max(H1, H2) / D on average for subspaces at random. Invariances as of
    `principal_angles`."""
    angles = principal_angles(a, b)
    return float(np.mean(np.cos(angles) ** 2)) if angles.size else float("nan")


def effective_rank(x: Real[np.ndarray, "M D"]) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality"): from 1 to the rank.

    Invariant to rotation and scale. Of the matrix as it is: take the mean off a cloud beforehand,
    if its spread is meant.
    """
    require_array("x", x, "M D", "real", {})
    if not np.all(np.isfinite(x)):
        return float("nan")
    return spectrum_rank(np.linalg.svd(np.float64(x), compute_uv=False))


def spectrum_rank(singular_values: Real[np.ndarray, " n"]) -> float:
    """`effective_rank` of a matrix with these singular values."""
    require_array("singular_values", singular_values, "n", "real", {})
    values = np.float64(singular_values)
    if np.any(values < 0):
        raise ConfigError("singular_values", float(values.min()), "must not be below 0")
    if not values.sum() > 0:
        return float("nan")
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def leading_directions(x: Real[np.ndarray, "M D"], count: int) -> Float[np.ndarray, "D count"]:
    """The first principal components of a cloud, as columns: where it spreads most; NaN where a
    token is not finite."""
    require_array("x", x, "M D", "real", {})
    arguments.whole("count", count, 1, x.shape[1])
    if not np.all(np.isfinite(x)):
        return np.full((x.shape[1], count), np.nan)
    centred = cloud(x).centred
    # The eigenvectors of the covariance, which is D x D however many tokens there are.
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, ::-1][:, :count]


def _require_pair(first, second, axes: str, others: str, names: str = "xy") -> None:
    """Refuses what are no two matrices of these axes, equal letters standing for equal sizes."""
    sizes: dict[str, int] = {}
    require_array(names[0], first, axes, "real", sizes)
    require_array(names[1], second, others, "real", sizes)


def _hsic(x: Cloud, y: Cloud) -> float:
    """`unbiased_hsic`. Of centred clouds K1, without its diagonal, is minus that diagonal."""
    tokens, k, l = len(x.centred), x.squared, y.squared  # noqa: E741 (the paper's letters)
    if tokens < 4:
        return float("nan")
    total = np.sum(np.square(x.centred.T @ y.centred)) - k @ l
    total += k.sum() * l.sum() / ((tokens - 1) * (tokens - 2)) - 2 * (k @ l) / (tokens - 2)
    return float(total / (tokens * (tokens - 3)))
