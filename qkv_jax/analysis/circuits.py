"""The two circuits of a head: what attends to what (QK), and what is then moved (OV).

    scores = x (W_Q W_K') x'        output = weights x (W_V W_O)

(Elhage et al. 2021, "A mathematical framework for Transformer circuits"). Both are [D, D] of rank H
and are never formed: everything is computed from the factors. All quantities here are those of the
products, so no change of basis within the head touches them. Biases, norms and rotations are left
out; several heads side by side ([D, N·H]) are the circuit of the whole layer.

A circuit is written left right', both [D, H]: W_Q and W_K, or W_V and W_O'.
"""

import numpy as np
from jaxtyping import Complex, Float, Real

from qkv_jax import arguments
from qkv_jax.analysis import geometry
from qkv_jax.arrays import require_array


def singular_values(
    left: Real[np.ndarray, "D H"], right: Real[np.ndarray, "D H"]
) -> Float[np.ndarray, " n"]:
    """Of left right', largest first: those that can differ from 0, at most H; NaN where a number
    is not finite."""
    if not _finite(left=left, right=right):
        return np.full(min(left.shape), np.nan)
    left, right = (np.linalg.qr(np.float64(a), mode="r") for a in (left, right))
    return np.linalg.svd(left @ right.T, compute_uv=False)


def eigenvalues(
    left: Real[np.ndarray, "D H"], right: Real[np.ndarray, "D H"]
) -> Complex[np.ndarray, " H"]:
    """Of left right', largest first: those of right' left [H, H], the rest being 0; NaN where a
    number is not finite."""
    if not _finite(left=left, right=right):
        return np.full(left.shape[1], np.nan, complex)
    found = np.linalg.eigvals(np.float64(right).T @ np.float64(left)).astype(complex)
    return found[np.argsort(-np.abs(found), kind="stable")]


def effective_rank(left: Real[np.ndarray, "D H"], right: Real[np.ndarray, "D H"]) -> float:
    """Of left right', see `geometry.effective_rank`: at most H."""
    return geometry.spectrum_rank(singular_values(left, right))


def antisymmetric_share(
    query_kernel: Real[np.ndarray, "D H"], key_kernel: Real[np.ndarray, "D H"]
) -> float:
    """|A|^2 / (|S|^2 + |A|^2) of M = W_Q W_K', with S = (M + M')/2 and A = (M - M')/2.

    0 for a symmetric circuit (Q=K: i scores j as j scores i), 1 for an antisymmetric one,
    (1 - 1/D) / 2 on average at random. By |M|^2 = |S|^2 + |A|^2 and tr(M M) = |S|^2 - |A|^2 it is
    (1 - tr(M M) / |M|^2) / 2.

    1 - 2 of it is the symmetry score s = (|S|^2 - |A|^2) / |M|^2, from -1 to 1 (symmetric), 1/D at
    random (Saponati et al. 2025, "The underlying structures of self-attention").
    That is the paper's definition, and its tables fit it; the published code returns instead
    r = |S|^2 / |M|^2 in [0, 1], so that s = 2 r - 1.
    """
    _finite(query_kernel=query_kernel, key_kernel=key_kernel)
    query, key = np.float64(query_kernel), np.float64(key_kernel)
    crossed = key.T @ query
    squared = np.sum((query.T @ query) * (key.T @ key))
    if not squared > 0:
        return float("nan")
    share = (1 - np.sum(crossed * crossed.T) / squared) / 2
    return float(np.clip(share, 0.0, 1.0))


def directionality_score(
    query_kernel: Real[np.ndarray, "D H"],
    key_kernel: Real[np.ndarray, "D H"],
    deviations: float = 2.0,
) -> float:
    """d = (c - r) / (c + r), from -1 (a few large rows) to 1 (a few large columns) (Saponati et al.
    2025, as their code computes it).

    c sums how far the norms of the columns of W_Q W_K' exceed their mean by more than `deviations`
    of their standard deviations (D - 1 in the denominator); r the same of the rows. 0 where nothing
    does. Rows belong to the query's input, columns to the key's. It depends on the basis of X, not
    on that within the head.
    """
    arguments.number("deviations", deviations)
    if not _finite(query_kernel=query_kernel, key_kernel=key_kernel):
        return float("nan")
    query, key = np.float64(query_kernel), np.float64(key_kernel)
    # |row i|^2 = q_i (W_K' W_K) q_i', a row q_i of W_Q at a time.
    rows = np.sqrt(np.maximum(np.sum((query @ (key.T @ key)) * query, axis=1), 0))
    columns = np.sqrt(np.maximum(np.sum((key @ (query.T @ query)) * key, axis=1), 0))
    r, c = _excess(rows, deviations), _excess(columns, deviations)
    return float((c - r) / (c + r)) if c + r > 0 else 0.0


def copying_score(
    value_kernel: Real[np.ndarray, "D H"], out_kernel: Real[np.ndarray, "H D"]
) -> float:
    """sum of the eigenvalues / sum of their absolute values, of W_V W_O: 1 where all are positive,
    so that what is attended to is written back as it is, -1 where all are negative, 0 on average at
    random (Elhage et al. 2021, who include embedding and unembedding; here it is that of the
    residual stream).
    """
    sizes: dict[str, int] = {}
    require_array("value_kernel", value_kernel, "D H", "real", sizes)
    require_array("out_kernel", out_kernel, "H D", "real", sizes)
    return _positive_share(eigenvalues(value_kernel, np.asarray(out_kernel).T))


def matching_score(
    query_kernel: Real[np.ndarray, "D H"], key_kernel: Real[np.ndarray, "D H"]
) -> float:
    """The same of W_Q W_K': 1 where a token scores what is like itself highest (the "matching" of
    Elhage et al. 2021); 1 under Q=K."""
    _finite(query_kernel=query_kernel, key_kernel=key_kernel)
    return _positive_share(eigenvalues(query_kernel, key_kernel))


def _positive_share(values: Complex[np.ndarray, " H"]) -> float:
    """sum / sum of absolute values of eigenvalues of a real matrix."""
    size = np.sum(np.abs(values))
    return float(np.sum(values.real) / size) if size > 0 else float("nan")


def _finite(**factors: Real[np.ndarray, "D H"]) -> bool:
    """Whether all numbers of the two factors of a circuit are finite; refuses what are none."""
    sizes: dict[str, int] = {}
    for name, factor in factors.items():
        require_array(name, factor, "D H", "real", sizes)
    return all(np.all(np.isfinite(factor)) for factor in factors.values())


def _excess(norms: Float[np.ndarray, " D"], deviations: float) -> float:
    if len(norms) < 2:
        return 0.0
    threshold = norms.mean() + deviations * norms.std(ddof=1)
    return float(np.sum(np.maximum(norms - threshold, 0)))
