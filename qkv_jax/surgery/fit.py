"""The best matrices of an attention layer under a tie, in the sense of least squares.

What a head computes stands still under a change of basis within it: W_Q A with W_K A^-T, and W_V A
with A^-1 W_O, for any invertible A. A shared matrix P must therefore not be compared with W_K or
W_V themselves but by what the head then computes: its scores x (W_Q W_K') y', the QK circuit, and
its outputs x (W_V W_O), the OV circuit (Elhage et al. 2021). Errors are those expected over inputs
x, y drawn independently with the given moments, and each circuit counts as a share of its size.
Whatever the tie leaves free is solved for: the projection that faces P in the scores, and W_O.

    K=V, Q=V     P spans the H leading eigenvectors of the sum of both circuits' second moments on
                 the shared side (Eckart and Young 1936); the rest is linear: exact.
    Q=K          P P' is the positive part of rank H of the symmetric part of W_Q W_K', the
                 nearest symmetric one that a head can have (Higham 1988): exact.
    Q=K=V        first the subspace, as for K=V, from both; then P P' within it: in two steps.
    =X           the role is given; the projection that faces it and W_O are linear: exact. Where
                 the values share that projection both circuits count, by alternation.

Under rotary positions scores are no longer those of one matrix W_Q W_K': see `rotary.py`, where
K=V and Q=V are solved by alternation, =X is exact, and Q=K and Q=K=V by a mean.

A constant that comes out goes into a bias. A model without biases leaves it out: its fit is best
for inputs less their mean.

Grouped keys and values: the query heads that read one key/value head are fitted together, their
rows and outputs side by side; the shares are those of the group.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError
from qkv_jax.surgery import rotary
from qkv_jax.tie import Tie

_RIDGE = 1e-4  # of the mean variance, so that directions without inputs stay defined
_UNSEEN = 1e-3  # weight of a constant that does not show: of all keys, or of all values


class InputMoments(NamedTuple):
    """Of the inputs x of a layer: mean, and covariance about it."""

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]

    @classmethod
    def of(cls, tokens: Float[np.ndarray, "M D"]) -> "InputMoments":
        require_array("tokens", tokens, "M D", "real", {})
        if not np.isfinite(tokens).all():
            raise ConfigError("tokens", "NaN or infinity", "must be finite numbers")
        tokens = np.float64(tokens)
        mean = tokens.mean(0)
        return cls(mean, (tokens - mean).T @ (tokens - mean) / len(tokens))


class Head(NamedTuple):
    """A key/value head and the G query heads that read it; the last row of a projection is its
    constant (0 where there are no biases)."""

    query: Float[np.ndarray, "G D1 H"]
    key: Float[np.ndarray, "D1 H"]
    value: Float[np.ndarray, "D1 H"]
    out: Float[np.ndarray, "G H D"]


def fit_head(head: Head, given: Float[np.ndarray, "G D1 H"], tie: Tie, moments: InputMoments,
             turns: rotary.Turns | None) -> Head:  # fmt: skip
    """The head under the tie that is nearest to it.

    Args:
      head: constants are those at the mean input: W' mean + b.
      given: the same of X cut into heads, for the roles that equal X.
      turns: the rotations between queries and keys, under rotary positions.
    """
    roles = {role: tie.source(role) for role in ("Q", "K", "V")}
    shared = lambda one, other: roles[one] == roles[other] and roles[one] != "X"
    # A constant of all keys or of all values does not show (softmax, the bias of W_O): it counts
    # only where queries share the matrix, or rotation turns it differently at every distance.
    counts = turns is not None or shared("Q", "K") or shared("Q", "V")
    white, back = _whitening(moments, 1.0 if counts else _UNSEEN)
    white_q, back_q = _whitening(moments, 1.0)
    query, key, value = _rows(white_q(head.query)), white(head.key), white(head.value)
    # X as a key or a value has as many heads as X as a query, or the tie is none.
    fixed_q, fixed = _rows(white_q(given)), white(given[0])
    moved = np.concatenate(list(value @ head.out), axis=1)
    values = lambda role: moved if shared(role, "V") else None
    if roles["Q"] == "X" or roles["K"] == "X":
        query, key = (
            fixed_q if roles["Q"] == "X" else
            _facing(query, key, fixed, turns, values("Q")) if roles["K"] == "X" else query,
            fixed if roles["K"] == "X" else
            _facing(key, query, fixed_q, turns and turns.back(), values("K")),
        )  # fmt: skip
    elif shared("Q", "K"):
        query = rotary.balanced(query, key) if turns else _symmetric(query, key, values("K"))
        key = query
    elif shared("K", "V"):
        key, query = _spanning(key, query, moved, turns)
    elif shared("Q", "V"):
        query, key = _spanning(query, key, moved, turns and turns.back())
    for role, matrix in (("Q", query), ("K", key), ("X", fixed)):
        if roles["V"] == (role if role == "X" else roles[role]):
            value = matrix
    out = head.out if value.shape == head.value.shape and roles["V"] == "value" else (
        np.stack(np.split(np.linalg.lstsq(value, moved, rcond=1e-8)[0], len(head.out), axis=1))
    )  # fmt: skip
    return Head(back_q(query.reshape(head.query.shape)), back(key), back(value), out)


def _rows(stacked):
    """[G, D1, H] as [G D1, H]."""
    return stacked.reshape(-1, stacked.shape[-1])


def _whitening(moments: InputMoments, constant: float):
    """To coordinates in which the inputs are white, the constant with a weight; and back."""
    size = len(moments.mean)
    ridge = _RIDGE * np.trace(moments.covariance) / size
    root = np.linalg.cholesky(moments.covariance + ridge * np.eye(size)).T
    whole = np.block([[root, np.zeros((size, 1))], [np.zeros((1, size)), constant]])
    return (lambda matrix: whole @ matrix), (lambda matrix: np.linalg.solve(whole, matrix))


def _facing(own, other, given, turns, moved=None):
    """The matrix F for which F given' is nearest to own other'; where the values share it, the
    outputs count as much."""
    if moved is not None:
        turns = turns or rotary.Turns.none(own.shape[1])
        return rotary.spanning(own, other, moved, turns.back(), given)[0]
    if turns:
        return rotary.facing(own, other, given, turns)
    return np.linalg.lstsq(given, other @ own.T, rcond=1e-8)[0].T


def _spanning(shared, other, moved, turns):
    """P for a role that the values share, and the matrix that faces it in the scores."""
    if turns:
        return rotary.spanning(shared, other, moved, turns)
    scores = shared @ other.T
    basis, _ = np.linalg.qr(np.concatenate([shared, moved_basis(moved, shared.shape[1])], axis=1))
    energy = sum(_energy(basis.T @ circuit, circuit) for circuit in (scores, moved))
    _, vectors = np.linalg.eigh(energy)
    size = np.linalg.norm(shared) / shared.shape[1] ** 0.5
    found = basis @ vectors[:, -shared.shape[1]:] * size
    return found, _facing(other, shared, found, None)


def moved_basis(moved, rank):
    """The directions of the inputs that a head of this width moves."""
    return np.linalg.svd(moved, full_matrices=False)[0][:, :rank]


def _symmetric(query, key, moved):
    """P with P P' nearest to the scores; where the values share it too, within the subspace that
    serves both circuits best."""
    rank = query.shape[1]
    parts = [query, key] + ([] if moved is None else [moved_basis(moved, rank)])
    basis, _ = np.linalg.qr(np.concatenate(parts, axis=1))
    left, right = basis.T @ query, basis.T @ key
    scores = (left @ right.T + right @ left.T) / 2
    if moved is None:
        return basis @ _root(scores, rank)
    positive = _root(scores, len(scores))
    positive = positive @ positive.T
    energy = _energy(positive, left @ right.T) + _energy(basis.T @ moved, moved)
    _, vectors = np.linalg.eigh(energy)
    inner = vectors[:, -rank:]
    core = inner.T @ scores @ inner
    # No direction is lost to the values because the scores have no use for it.
    floor = 1e-3 * np.linalg.norm(core) / rank**0.5 * np.eye(rank)
    root = _root(core, rank)
    return basis @ inner @ np.linalg.cholesky(root @ root.T + floor)


def _root(symmetric, rank):
    """R [n, rank] for which R R' is the nearest positive matrix of that rank."""
    values, vectors = np.linalg.eigh(symmetric)
    return vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))


def _energy(part, whole):
    return part @ part.T / max(np.sum(np.square(whole)), 1e-300)
