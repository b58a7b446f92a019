"""What attention weights look like, a number for each query: how spread, how far, how much on
itself. Padded queries get numbers as well; `real_queries` takes the others.
"""

import numpy as np
from jaxtyping import Bool, Float, Real

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError


def entropy(weights: Real[np.ndarray, "B N T S"]) -> Float[np.ndarray, "B N T"]:
    """- sum_j a_j ln a_j, in nats: 0 where one key has all, ln S for equal weights."""
    _require_weights(weights, "B N T S")
    weights = np.float64(weights)
    return -np.sum(weights * np.log(np.where(weights > 0, weights, 1.0)), axis=-1)


def distance(weights: Real[np.ndarray, "B N T S"]) -> Float[np.ndarray, "B N T"]:
    """sum_j a_j |i - j|, in tokens: how far from itself a query looks on average (the attention
    distance of Dosovitskiy et al. 2021, of sequences)."""
    _require_weights(weights, "B N T S")
    queries, keys = (np.arange(n) for n in weights.shape[2:])
    apart = np.abs(queries[:, None] - keys[None, :]).astype(np.float64)
    return np.einsum("bnts,ts->bnt", np.float64(weights), apart)


def diagonal(weights: Real[np.ndarray, "B N T T"]) -> Float[np.ndarray, "B N T"]:
    """a_i, the weight of a token on itself."""
    _require_weights(weights, "B N T T")
    return np.float64(np.einsum("bntt->bnt", weights))


def uniform(
    valid: Bool[np.ndarray, "B S"], is_causal: bool = False
) -> Float[np.ndarray, "B 1 S S"]:
    """Equal weights on every real key that a query sees: what looks at nothing in particular."""
    require_array("valid", valid, "B S", "bool", {})
    arguments.truth("is_causal", is_causal)
    length = valid.shape[1]
    seen = np.tri(length) if is_causal else np.ones((length, length))
    real = np.float64(valid)[:, None, None, :] * seen
    return real / np.maximum(real.sum(-1, keepdims=True), 1)


def real_queries(
    rows: Real[np.ndarray, "B N T"], valid: Bool[np.ndarray, "B T"]
) -> Real[np.ndarray, "M N"]:
    """The numbers of the queries that are no padding, a row each."""
    sizes: dict[str, int] = {}
    require_array("rows", rows, "B N T", "real", sizes)
    require_array("valid", valid, "B T", "bool", sizes)
    return np.moveaxis(rows, 1, -1)[valid]


def _require_weights(weights: Real[np.ndarray, "B N T S"], axes: str) -> None:
    require_array("weights", weights, axes, "real", {})
    if weights.size and np.min(weights) < 0:
        raise ConfigError("weights", float(np.min(weights)), "must not be below 0")
