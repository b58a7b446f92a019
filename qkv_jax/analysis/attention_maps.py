"""What attention weights look like, a number for each query: how spread, how far, how much on
itself. Padded queries get numbers as well; `real_queries` takes the others.
"""

import numpy as np
from jaxtyping import Bool, Float, Real


def entropy(weights: Real[np.ndarray, "B N T S"]) -> Float[np.ndarray, "B N T"]:
    """- sum_j a_j ln a_j, in nats: 0 where one key has all, ln S for equal weights."""
    weights = np.float64(weights)
    return -np.sum(weights * np.log(np.where(weights > 0, weights, 1.0)), axis=-1)


def distance(weights: Real[np.ndarray, "B N T S"]) -> Float[np.ndarray, "B N T"]:
    """sum_j a_j |i - j|, in tokens: how far from itself a query looks on average (the attention
    distance of Dosovitskiy et al. 2021, of sequences)."""
    queries, keys = (np.arange(n) for n in weights.shape[2:])
    apart = np.abs(queries[:, None] - keys[None, :]).astype(np.float64)
    return np.einsum("bnts,ts->bnt", np.float64(weights), apart)


def diagonal(weights: Real[np.ndarray, "B N T T"]) -> Float[np.ndarray, "B N T"]:
    """a_i, the weight of a token on itself."""
    return np.float64(np.einsum("bntt->bnt", weights))


def uniform(padding: Bool[np.ndarray, "B S"]) -> Float[np.ndarray, "B 1 S S"]:
    """Equal weights on every real key: what looks at nothing in particular."""
    real = np.float64(padding)
    rows = real / np.maximum(real.sum(-1, keepdims=True), 1)
    return np.broadcast_to(rows[:, None, None, :], (len(rows), 1, rows.shape[1], rows.shape[1]))


def real_queries(
    rows: Real[np.ndarray, "B N T"], padding: Bool[np.ndarray, "B T"]
) -> Real[np.ndarray, "M N"]:
    """The numbers of the queries that are no padding, a row each."""
    return np.moveaxis(rows, 1, -1)[padding]
