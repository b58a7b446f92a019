"""What a walk shows, in sentences: every number in them is computed from the walk."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qkv_jax.analysis.layers import Layer
from qkv_jax.analysis.walkthrough import Walk

# Up to this share of the largest entry, a difference is rounding.
ROUNDING = 1e-5


class Facts(NamedTuple):
    """What is said of a walk.

    Attributes:
      asymmetry: max |S - S^T| of the scores Q K^T; of the scaled scores with their bias, in
        `asymmetry_biased`; `largest` is max |S|.
      symmetric_share: |S + S^T|^2 / 4 |S|^2, mean over the heads: 1 for a symmetric matrix, 0 for
        an antisymmetric one, near a half for one at random.
      to_itself: how many tokens give nobody a larger weight than themselves, mean over heads.
      on_itself: the mean weight of a token on itself.
      reach: exp of the entropy of a row of weights, mean over tokens and heads: as many tokens as
        there are if the weights are equal, 1 if one has it all (a perplexity).
    """

    asymmetry: float
    asymmetry_biased: float
    largest: float
    symmetric_share: float
    to_itself: int
    on_itself: float
    reach: float


def facts(walk: Walk) -> Facts:
    """The numbers that the remarks are made of."""
    mean = walk.weights.mean(0)
    rows = walk.weights
    entropy = -np.sum(rows * np.log(np.where(rows > 0, rows, 1.0)), axis=-1)
    return Facts(
        asymmetry=asymmetry(walk.scores),
        asymmetry_biased=asymmetry(walk.scaled),
        largest=float(np.abs(walk.scores).max()),
        symmetric_share=symmetric_share(walk.scores),
        to_itself=int((np.diagonal(mean) >= mean.max(-1) - 1e-9).sum()),
        on_itself=float(np.diagonal(mean).mean()),
        reach=float(np.exp(entropy).mean()),
    )


def asymmetry(scores: Float[np.ndarray, "N T T"]) -> float:
    """max |S_ij - S_ji|."""
    return float(np.abs(scores - scores.swapaxes(1, 2)).max())


def symmetric_share(scores: Float[np.ndarray, "N T T"]) -> float:
    """The share of the squared entries that the symmetric part has, mean over the heads; a head of
    zeros counts as symmetric."""
    symmetric = (scores + scores.swapaxes(1, 2)) / 2
    parts, wholes = (np.square(a).sum((1, 2)) for a in (symmetric, scores))
    return float(np.where(wholes > 0, parts / np.where(wholes > 0, wholes, 1), 1.0).mean())


def equal_roles(walk: Walk) -> tuple[list[tuple[str, ...]], dict[tuple[str, str], float]]:
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


def movement(start: Layer, now: Layer) -> dict[str, float]:
    """|W - W_start| / |W_start| of every matrix that is learned, by name."""
    names = {"W_Q": "query", "W_K": "key", "W_V": "value", "W_O": "out"}
    moved = {}
    for name, field in names.items():
        if field != "out" and now.tie.source(name[-1]) == "X":
            continue
        before, after = getattr(start, field), getattr(now, field)
        moved[name] = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    return moved


def remarks(walks: Sequence[Walk], start: Layer | None = None) -> list[list[str]]:
    """A few sentences on each walk; from the second on also against the first.

    Args:
      start: the layer before training, for walks of a run.
    """
    base = walks[0]
    said = []
    for walk in walks:
        lines = [_same(walk), _symmetry(walk), _itself(walk, base), _reach(walk, base)]
        if start is not None:
            lines.append(_moved(walk, start))
        else:
            lines.append(_parameters(walk, base))
        lines.append(_output(walk, base))
        said.append([line for line in lines if line])
    return said


def at(walk: Walk) -> str:
    """ "under Q=K", "at step 100"."""
    return f"{'at' if walk.name.startswith('step ') else 'under'} {walk.name}"


def small(value: float) -> str:
    """0 only where it is zero: `0`, `3e-16`, `0.42`, `12.3`."""
    if value == 0:
        return "0"
    return f"{value:.0e}" if abs(value) < 5e-4 else f"{value:.3g}"


def _same(walk: Walk) -> str:
    groups, apart = equal_roles(walk)
    shared = [group for group in groups if len(group) > 1]
    if not shared:
        pair = min(apart, key=apart.get)
        return (
            f"{_listed(sum(groups, ()))} all differ; the closest two, {pair[0]} and {pair[1]}, by "
            f"up to {small(apart[pair])}."
        )
    lines = []
    for group in shared:
        most = max(apart[pair] for pair in apart if set(pair) <= set(group))
        difference = f"|{group[0]} − {group[1]}|" if len(group) == 2 else "difference"
        lines.append(f"{_listed(group)} are the same numbers: max {difference} = {small(most)}.")
    return " ".join(lines)


def _symmetry(walk: Walk) -> str:
    if len(walk.tokens) == 1:
        return ""
    found = facts(walk)
    plain = found.asymmetry <= ROUNDING * found.largest
    most = np.abs(walk.scaled).max()
    biased = found.asymmetry_biased <= ROUNDING * most
    if plain and biased:
        return (
            f"The score matrix is symmetric: max |S − Sᵀ| = {small(found.asymmetry)} (largest |S| "
            f"{small(found.largest)}). Token i scores token j as j scores i."
        )
    if plain:
        return (
            f"QKᵀ is symmetric, max |S − Sᵀ| = {small(found.asymmetry)}, but the position bias is "
            f"not: with it the difference is up to {small(found.asymmetry_biased)} (largest scaled "
            f"score {small(most)})."
        )
    return (
        f"The score matrix is not symmetric: max |S − Sᵀ| = {small(found.asymmetry)} (largest |S| "
        f"{small(found.largest)}); its symmetric share is {found.symmetric_share:.2f}."
    )


def _itself(walk: Walk, base: Walk) -> str:
    found, other = facts(walk), facts(base)
    total = len(walk.tokens)
    line = (
        f"{found.to_itself} of {total} token{'s' * (total > 1)} attend{'s' * (total == 1)} most to "
        f"{'itself' if total == 1 else 'themselves'}; mean weight on oneself {found.on_itself:.2f}"
    )
    if walk is not base:
        line += f" against {other.on_itself:.2f} {at(base)}"
    return line + "."


def _reach(walk: Walk, base: Walk) -> str:
    line = (
        f"A token's attention is spread over {facts(walk).reach:.1f} of {len(walk.tokens)} tokens"
    )
    if walk is not base:
        line += f", against {facts(base).reach:.1f} {at(base)}"
    return line + " (exp of the entropy of its weights)."


def _moved(walk: Walk, start: Layer) -> str:
    moved = movement(start, walk.layer)
    if not moved:
        return ""
    if not any(moved.values()):
        return "Its matrices are as they were drawn at the start."
    parts = [f"{name} by {100 * share:.0f} %" for name, share in moved.items()]
    return f"Training has moved {_listed(parts)} of its first size (|W − W_start| / |W_start|)."


def _parameters(walk: Walk, base: Walk) -> str:
    learned = len(walk.tie.sources)
    line = f"{walk.parameters} parameters of attention, {learned} learned projection"
    line += "s" * (learned != 1)
    if walk is not base:
        line += f", against {base.parameters} parameters {at(base)}"
    return line + "."


def _output(walk: Walk, base: Walk) -> str:
    if walk is base or walk.output.shape != base.output.shape:
        return ""
    apart = np.linalg.norm(walk.output - base.output) / np.linalg.norm(base.output)
    return f"Its output differs from that {at(base)} by {100 * apart:.0f} % of the latter's size."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
