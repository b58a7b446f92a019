"""The numbers behind the remarks on a walk: which roles are equal, how symmetric scores are, where
tokens look, how far training has moved the matrices."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkv_jax.analysis.layers import Layer
from qkv_jax.explain.walk import Trace

# Up to this share of the largest entry, a difference is rounding.
ROUNDING = 1e-5


class Facts(NamedTuple):
    """What is said of a walk.

    Attributes:
      asymmetry: max |S - S^T| of the scores Q K^T; of the scaled scores with their bias, in
        `asymmetry_biased`, and of the weights, in `asymmetry_weights`; `largest` is max |S|.
      symmetric_share: |S + S^T|^2 / 4 |S|^2 over all heads: 1 for symmetric matrices, 0 for
        antisymmetric ones; `symmetric_chance` is its mean for independent normal entries.
      own: the weight of each token on itself, mean over heads.
      to_itself, to_others: how many tokens give themselves more than anybody else, mean over heads,
        and how many give somebody else more; the rest give both the same.
      reach: exp of the entropy of a row of weights, mean over tokens and heads: as many tokens as
        there are if the weights are equal, 1 if one has it all (a perplexity).
    """

    asymmetry: float
    asymmetry_biased: float
    asymmetry_weights: float
    largest: float
    symmetric_share: float
    symmetric_chance: float
    own: Float[np.ndarray, " T"]
    to_itself: int
    to_others: int
    reach: float

    @property
    def on_itself(self) -> float:
        """The mean weight of a token on itself."""
        return float(self.own.mean())


def facts_of(walk: Trace) -> Facts:
    """The numbers that the remarks are made of."""
    rows, total = walk.weights, len(walk.tokens)
    mean = rows.mean(0)
    own = np.diagonal(mean)
    most = np.where(np.eye(total, dtype=bool), -np.inf, mean).max(-1)  # of the others
    entropy = -np.sum(rows * np.log(np.where(rows > 0, rows, 1.0)), axis=-1)
    return Facts(
        asymmetry=asymmetry(walk.scores),
        asymmetry_biased=asymmetry(walk.scaled),
        asymmetry_weights=asymmetry(rows),
        largest=float(np.abs(walk.scores).max()),
        symmetric_share=symmetric_share(walk.scores),
        symmetric_chance=(total + 1) / (2 * total),
        own=own,
        to_itself=int((own > most + ROUNDING).sum()),
        to_others=int((own < most - ROUNDING).sum()),
        reach=float(np.exp(entropy).mean()),
    )


def asymmetry(scores: Float[np.ndarray, "N T T"]) -> float:
    """max |S_ij - S_ji|."""
    return float(np.abs(scores - scores.swapaxes(1, 2)).max())


def symmetric_share(scores: Float[np.ndarray, "N T T"]) -> float:
    """The share of the squared entries of all heads that the symmetric parts have; zeros count as
    symmetric."""
    whole = np.square(scores).sum()
    part = np.square((scores + scores.swapaxes(1, 2)) / 2).sum()
    return float(part / whole) if whole else 1.0


def equal_roles(walk: Trace) -> tuple[list[tuple[str, ...]], dict[tuple[str, str], float]]:
    """Which of X (cut into heads), Q, K and V hold the same numbers, and how far apart each two
    are: (groups, max |A - B| of each pair that can be compared)."""
    arrays = {"Q": walk.projected.query, "K": walk.projected.key, "V": walk.projected.value}
    if walk.x.size == arrays["Q"].size:
        arrays = {"X": walk.x.reshape(arrays["Q"].shape)} | arrays
    groups, apart = [], {}
    for name, array in arrays.items():
        home = None
        for other in list(arrays)[: list(arrays).index(name)]:
            apart[other, name] = float(np.abs(array - arrays[other]).max())
            if apart[other, name] <= ROUNDING * np.abs(array).max():
                home = home or next(group for group in groups if other in group)
        if home:
            home.append(name)
        else:
            groups.append([name])
    return [tuple(group) for group in groups], apart


def cosines(walk: Trace) -> dict[str, float]:
    """sum(A X) / |A| |X| of Q, K and V with X cut into heads, where they have its size: 1 for a
    copy, up to its size."""
    flat = walk.x.ravel()
    arrays = dict(zip("QKV", (role.ravel() for role in walk.projected), strict=True))
    size = lambda a: np.linalg.norm(a) or 1.0
    return {
        role: float(a @ flat / (size(a) * size(flat)))
        for role, a in arrays.items()
        if a.size == flat.size
    }


def movement(start: Layer, walk: Trace) -> dict[str, float]:
    """|W - W_start| / |W_start| of every matrix that the layer has, by name."""
    fields = {"W_Q": "query", "W_K": "key", "W_V": "value"}
    there = {
        name: field
        for name, field in fields.items()
        if walk.tie.source(name[-1]) != "X" or field in walk.adapters
    }
    if walk.config.output_projection:
        there["W_O"] = "out"
    pairs = {name: (getattr(start, f), getattr(walk.layer, f)) for name, f in there.items()}
    norm = np.linalg.norm
    return {name: float(norm(now - was) / norm(was)) for name, (was, now) in pairs.items()}
