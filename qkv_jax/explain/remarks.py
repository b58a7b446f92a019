"""What a walk shows, in sentences: every number in them is computed from the walk."""

from collections.abc import Sequence

import numpy as np

from qkv_jax.analysis.layers import Layer
from qkv_jax.explain.facts import ROUNDING, cosines, equal_roles, facts_of, movement
from qkv_jax.explain.walk import Trace

_NAMED = 6  # tokens up to which each is named


def remarks_on(walks: Sequence[Trace], start: Layer | None = None) -> list[list[str]]:
    """A few sentences on each walk; from the second on also against the first.

    Args:
      start: the layer before training, for walks of a run.
    """
    base = walks[0]
    remarks = []
    for walk in walks:
        lines = [_same(walk), _symmetry(walk), _itself(walk, base), _reach(walk, base)]
        lines.append(_parameters(walk, base) if start is None else _moved(walk, start))
        lines.append(_output(walk, base))
        remarks.append([line for line in lines if line])
    return remarks


def compared(walks: Sequence[Trace], start: Layer | None = None) -> list[tuple[str, ...]]:
    """A heading and one row per walk, for those who would rather compare than read. Cells are short
    and without spaces, so that a narrow terminal breaks headings only."""
    heading = ("", "same numbers", "max |S−Sᵀ|", "most to itself", "weight on itself",
               "spread over")  # fmt: skip
    rows = [(*heading, "parameters" if start is None else "Q, K, V moved, %")]
    for walk in walks:
        found = facts_of(walk)
        groups = ["=".join(group) for group in equal_roles(walk)[0] if len(group) > 1]
        moved = {} if start is None else movement(start, walk)
        shares = (f"{100 * moved[w]:.0f}" if w in moved else "–" for w in ("W_Q", "W_K", "W_V"))
        row = (
            walk.name,
            ", ".join(groups) or "none",
            small(found.asymmetry),
            f"{found.to_itself}/{len(walk.tokens)}",
            f"{found.on_itself:.2f}",
            f"{found.reach:.1f}",
            f"{walk.parameters}" if start is None else "/".join(shares),
        )
        rows.append(row)
    return rows


def answers(walks: Sequence[Trace]) -> list[str]:
    """Whether Q, K and V are copies of X, one line per walk."""
    several = len(walks) > 1
    return [f"{walk.name}: {_answer(walk)}" if several else _answer(walk) for walk in walks]


def at(walk: Trace) -> str:
    """ "under Q=K", "at step 100"."""
    return f"{'at' if walk.name.startswith('step ') else 'under'} {walk.name}"


def small(value: float) -> str:
    """0 only where it is zero: `0`, `3e-16`, `0.42`, `12.3`."""
    if value == 0:
        return "0"
    return f"{value:.0e}" if abs(value) < 5e-4 else f"{value:.3g}"


def _answer(walk: Trace) -> str:
    groups, _ = equal_roles(walk)
    copies = [role for role in next((g for g in groups if "X" in g), ()) if role != "X"]
    others = [role for role in "QKV" if role not in copies]
    if not others:
        return "Yes. All three are X itself, cut into heads."
    equal = [_listed(g) for g in groups if len(g) > 1 and "X" not in g]
    same = f"{equal[0]} are the same numbers as each other" if equal else ""
    if copies:
        line = f"In part. {_listed(copies)} {_is(copies)} X itself"
        line += f"; {_listed(others)} {_is(others)} not" + (f": {same}." if equal else ".")
    else:
        line = "No. None of them is X"
        line += f", but {same}." if equal else ", and no two are the same numbers."
    measured = {role: value for role, value in cosines(walk).items() if role in others}
    if measured:
        parts = ", ".join(f"{role} {value:.2f}" for role, value in measured.items())
        line += f" Cosine with X: {parts} (a copy has 1, an unrelated array one near 0)."
    return line.replace(" -", " −")


def _same(walk: Trace) -> str:
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


def _symmetry(walk: Trace) -> str:
    if len(walk.tokens) == 1:
        return ""
    found, heads = facts_of(walk), len(walk.scores)
    where = "" if heads == 1 else " in both heads" if heads == 2 else f" in all {heads} heads"
    if found.asymmetry > ROUNDING * found.largest:
        return (
            f"Scores are not symmetric: max |S − Sᵀ| = {small(found.asymmetry)} (largest "
            f"|S| {small(found.largest)}). The symmetric part has {found.symmetric_share:.2f} of "
            f"their squares; of numbers drawn independently it would have "
            f"{found.symmetric_chance:.2f} on average."
        )
    most = np.abs(walk.scaled).max()
    if found.asymmetry_biased > ROUNDING * most:
        return (
            f"QKᵀ is symmetric{where}, max |S − Sᵀ| = {small(found.asymmetry)}, but the position "
            f"bias is not: with it the difference is up to {small(found.asymmetry_biased)} "
            f"(largest scaled score {small(most)})."
        )
    line = (
        f"Scores are symmetric{where}: max |S − Sᵀ| = {small(found.asymmetry)} (largest |S| "
        f"{small(found.largest)}). Token i scores token j as j scores i"
    )
    if "rotary" in walk.between:
        line += ", also after rotary positions"
    if found.asymmetry_weights > ROUNDING:
        line += (
            f"; their weights still differ, by up to {small(found.asymmetry_weights)}, since each "
            "row of the softmax has its own sum"
        )
    return f"{line}."


def _itself(walk: Trace, base: Trace) -> str:
    found, total = facts_of(walk), len(walk.tokens)
    if total == 1:
        return "The only token has nobody to attend to but itself."
    if walk.config.diagonal_mask:
        return "The diagonal mask hides every token from itself."
    line = "" if len(walk.weights) == 1 else "Averaged over the heads, "
    most = "attends most to itself" if found.to_itself == 1 else "attend most to themselves"
    line += f"{found.to_itself} of {total} tokens {most}"
    equal = total - found.to_itself - found.to_others
    if equal:
        line += f", {equal} as much to another"
    line += "; weight on oneself: "
    if total <= _NAMED:
        own = zip(walk.tokens, found.own, strict=True)
        line += f"{', '.join(f'{token} {weight:.2f}' for token, weight in own)}, "
    line += f"on average {found.on_itself:.2f}"
    if walk is not base:
        line += f" against {facts_of(base).on_itself:.2f} {at(base)}"
    return f"{line} ({1 / total:.2f} if all weights were equal)."


def _reach(walk: Trace, base: Trace) -> str:
    total = len(walk.tokens)
    if total == 1:
        return ""
    line = f"On average a token spreads its attention over {facts_of(walk).reach:.1f} of {total}"
    line += " tokens (exp of the entropy of its weights)"
    if walk is not base:
        line += f", against {facts_of(base).reach:.1f} {at(base)}"
    return f"{line}."


def _moved(walk: Trace, start: Layer) -> str:
    moved = movement(start, walk)
    if not moved:
        return ""
    if not any(moved.values()):
        return "Its matrices are as they were drawn at the start."
    parts = [f"{name} by {_percent(share)}" for name, share in moved.items()]
    return f"Training has moved {_listed(parts)} of what they were (|W − W_start| / |W_start|)."


def _parameters(walk: Trace, base: Trace) -> str:
    count = len(walk.tie.sources)
    line = f"{walk.parameters} parameters of attention, {count or 'no'} projection"
    line += f"{'s' * (count != 1)} for Q, K and V"
    if walk is not base:
        line += f"; {base.parameters} parameters {at(base)}"
    return f"{line}."


def _output(walk: Trace, base: Trace) -> str:
    if walk is base or walk.output.shape != base.output.shape:
        return ""
    apart = np.linalg.norm(walk.output - base.output) / np.linalg.norm(base.output)
    return f"Its output differs from that {at(base)} by {_percent(apart)} of the latter's size."


def _percent(share: float) -> str:
    """Zero only where it is zero."""
    return f"{100 * share:.0f} %" if share >= 0.1 or not share else f"{100 * share:.1g} %"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
