"""The fit where rotary positions stand between queries and keys.

A score is q(x) R_o k(y)', R_o the rotation by the distance o, and a circuit's error is the mean of
||Q R_o K' - W_Q R_o W_K'||^2 over the distances in a sequence. Of the changes of basis between
queries and keys only those that commute with every R_o are left: a phase and a size for each pair
of coordinates. So W_Q and W_K can no longer be solved for by their product alone; but given one of
them, or the matrix that values share, each of the others is linear least squares still.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from qkv_jax.model.positions import BASE, rotate

_ROUNDS = 100  # of alternation; it stops where a round gains less than a millionth
_RIDGE = 1e-9  # of the mean of a Gram matrix's diagonal


class Turns(NamedTuple):
    """The rotations between two places of a sequence, each pair of places counted once.

    With R_o = diag(c) + J diag(s), the mean of R_o A R_o' is A * C + (J A J') * S: the terms in
    c s' cancel, for o and -o are equally frequent. Where no token sees those after it, one of the
    two is: then (A J') * X + (J A) * X' is added, X the mean of c s'.
    """

    cosines: Float[np.ndarray, "H H"]
    sines: Float[np.ndarray, "H H"]
    crossed: Float[np.ndarray, "H H"] | None = None

    @classmethod
    def of(cls, length: int, head_dim: int, base: float = BASE, is_causal: bool = False) -> "Turns":
        """Of sequences of that length under `positions.rotate`."""
        unit = jnp.float32(np.repeat([1.0, 0.0], head_dim // 2))
        turned = rotate(jnp.tile(unit, (length, 1, 1)), base=base)
        turned = np.asarray(turned, np.float64)[:, 0]
        cos, sin = np.split(turned, 2, axis=1)
        count = np.where(np.arange(length) == 0, 1.0, 2.0) * (length - np.arange(length))
        if is_causal:
            count = np.float64(length - np.arange(length))
        mean = lambda one, other: np.tile((one * (count / count.sum())[:, None]).T @ other, (2, 2))
        # The key is the earlier one, so that it is turned back against the query.
        return cls(mean(cos, cos), mean(sin, sin), -mean(cos, sin) if is_causal else None)

    @classmethod
    def none(cls, head_dim: int) -> "Turns":
        """Where nothing is rotated."""
        return cls(np.ones((head_dim, head_dim)), np.zeros((head_dim, head_dim)))

    def back(self) -> "Turns":
        """The rotations R_o', from keys to queries."""
        return self if self.crossed is None else self._replace(crossed=-self.crossed)

    def mean(self, inner: Float[np.ndarray, "H H"]) -> Float[np.ndarray, "H H"]:
        """Of R_o A R_o'."""
        half = len(inner) // 2
        sign = np.repeat([-1.0, 1.0], half)
        both = np.roll(inner, (half, half), axis=(0, 1)) * sign[:, None] * sign
        found = inner * self.cosines + both * self.sines
        if self.crossed is None:
            return found
        right = np.roll(inner, half, axis=1) * sign
        left = np.roll(inner, half, axis=0) * sign[:, None]
        return found + right * self.crossed + left * self.crossed.T

    def size(self, one: Float[np.ndarray, "A H"], other: Float[np.ndarray, "B H"]) -> float:
        """The mean of ||one R_o other'||^2; `one` is on the side of the queries."""
        return float(np.sum((one.T @ one) * self.mean(other.T @ other)))


def facing(
    own: Float[np.ndarray, "A H"],
    other: Float[np.ndarray, "B H"],
    given: Float[np.ndarray, "B H"],
    turns: Turns,
) -> Float[np.ndarray, "A H"]:
    """F for which F R_o given' is nearest to own R_o other' over all distances."""
    return _solved(own @ turns.mean(other.T @ given), turns.mean(given.T @ given))


def spanning(
    shared: Float[np.ndarray, "A H"],
    other: Float[np.ndarray, "B H"],
    moved: Float[np.ndarray, "A D"],
    turns: Turns,
    given: Float[np.ndarray, "B H"] | None = None,
) -> tuple[Float[np.ndarray, "A H"], Float[np.ndarray, "B H"]]:
    """P for a role that the values share, and the matrix that faces it in the scores, where none is
    `given`.

    The role is that of the keys; for queries, give the rotations `back()`. Alternating least
    squares from the P that is best for the scores alone: no round adds to the error.
    """
    # Outputs turned as a whole cost the same: of those of many query heads, H columns are left.
    axes, sizes, _ = np.linalg.svd(moved, full_matrices=False)
    moved = (axes * sizes)[:, sizes > 1e-12 * sizes[0]]
    of_scores = 1 / max(turns.size(other, shared), 1e-300)
    of_outputs = 1 / max(np.sum(np.square(moved)), 1e-300)
    found, before = shared, np.inf
    if given is not None:
        found = facing(shared, other, given, turns.back())
    for _ in range(_ROUNDS):
        faces = facing(other, shared, found, turns) if given is None else given
        out = np.linalg.lstsq(found, moved, rcond=1e-8)[0]
        lost = of_scores * _error(shared, other, found, faces, turns)
        lost += of_outputs * np.sum(np.square(found @ out - moved))
        if lost > before * (1 - 1e-6):
            break
        best, before = (found, faces), lost
        found = _solved(
            of_scores * shared @ turns.back().mean(other.T @ faces) + of_outputs * moved @ out.T,
            of_scores * turns.back().mean(faces.T @ faces) + of_outputs * out @ out.T,
        )
    return best


def balanced(
    query: Float[np.ndarray, "A H"], key: Float[np.ndarray, "A H"]
) -> Float[np.ndarray, "A H"]:
    """One matrix for queries and keys: their mean after their sizes, which scores leave open, are
    made equal pair by pair.

    For each pair of coordinates, a complex number, p p^* is then the nearest to q k^* of all
    positive matrices: nearest to the scores in so far as distances span many turns of each pair.
    """
    norms = [np.sqrt(np.square(m).sum(0).reshape(2, -1).sum(0)) for m in (query, key)]
    ratio = np.tile(np.sqrt(norms[1] / np.maximum(norms[0], 1e-300)), 2)
    return (query * ratio + key / np.maximum(ratio, 1e-300)) / 2


def _error(key, query, found, faces, turns: Turns) -> float:
    """The mean of ||faces R_o found' - query R_o key'||^2."""
    cross = np.sum((faces.T @ query) * turns.mean(found.T @ key))
    return turns.size(faces, found) - 2 * float(cross) + turns.size(query, key)


def _solved(right, gram):
    """right gram^-1, of a Gram matrix."""
    ridge = _RIDGE * np.trace(gram) / len(gram) + 1e-300
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), right.T).T
