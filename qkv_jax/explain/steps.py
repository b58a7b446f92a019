"""The steps of a walk in the order of explaining: a sentence, a formula, one sum written out, and
the arrays. The terminal and the page show the same steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from qkv_jax.explain import views
from qkv_jax.explain.panels import Panel
from qkv_jax.explain.remarks import at
from qkv_jax.explain.walk import Trace

_SCORES = (
    "How well the query of token i fits the key of token j: number by number multiplied and summed "
    "up (a dot product). A row is the token that looks, a column the token looked at."
)
_WEIGHTS = (
    "Each row of scaled scores becomes shares that sum to 1: how much of token j goes into token i."
)
_MIXED = (
    "Each token receives an average of all values, in which value j counts as much as its weight "
    "in the token's row of A."
)
_FINISHED = "The scheme has its own way with what each head outputs: it makes this of the averages."
_OUTPUT = (
    "The heads are laid side by side and mixed by one more matrix, W_O, if the layer has it. This "
    "is what the layer returns."
)


class View(NamedTuple):
    """A step as one walk shows it."""

    name: str
    panels: tuple[Panel, ...]
    lines: tuple[str, ...]  # sums written out, and what there is to say


class Step(NamedTuple):
    key: str
    title: str
    formula: str
    sentence: str
    views: tuple[View, ...]  # one per walk, in their order


def steps_of(walks: Sequence[Trace]) -> tuple[Step, ...]:
    """The steps of walks that have their tokens and their number of heads in common."""
    first = walks[0]
    q, k = views.seen_by_scores(first)
    parts = [
        ("input", _input_title(first), _input_formula(first), _input_text(first), views.of_input),
        (
            "matrices",
            "The matrices W_Q, W_K and W_V",
            "Q = X·W_Q    K = X·W_K    V = X·W_V",
            _matrices_text(first),
            views.of_matrices,
        ),
        (
            "projections",
            "Queries, keys and values",
            "qᵢ = xᵢ·W_Q    kⱼ = xⱼ·W_K    vⱼ = xⱼ·W_V",
            _projections_text(first),
            views.of_projections,
        ),
        (
            "turned",
            "Queries and keys on their way to the scores",
            _turn_formula(first),
            _turn_text(first),
            views.of_turned,
        ),
        ("scores", "Scores", f"Sᵢⱼ = {q}ᵢ·{k}ⱼ", _SCORES, views.of_scores),
        ("scaled", "Scaled scores", _scale_formula(walks), _scale_text(walks), views.of_scaled),
        (
            "weights",
            "Softmax: attention weights",
            "Aᵢⱼ = exp(Sᵢⱼ) / Σₘ exp(Sᵢₘ), of the scaled scores",
            _WEIGHTS,
            views.of_weights,
        ),
        ("mixed", "Weighted values", "zᵢ = Σⱼ Aᵢⱼ·vⱼ", _MIXED, views.of_mixed),
        ("finished", "Heads", "z̃ᵢ = finish(z, q, k, v)ᵢ", _FINISHED, views.of_finished),
        (
            "output",
            "Heads merged",
            "oᵢ = [zᵢ of head 1, head 2, …]·W_O",
            _OUTPUT,
            views.of_output,
        ),
    ]
    left_out = set() if first.between else {"turned"}
    left_out |= {"finished"} if first.finished is None else set()
    return tuple(_step(walks, *step) for step in parts if step[0] not in left_out)


def _step(walks, key, title, formula, sentence, view: Callable[[Trace], views.Shown]) -> Step:
    """One step of all walks; arrays that were shown before say where."""
    made, earlier = [], []
    for walk in walks:
        panels, lines = view(walk)
        marked = []
        for number, panel in enumerate(panels):
            own = next((p for p in panels[:number] if _equal(p, panel)), None)
            twin = next(((w, p) for w, p in earlier if _equal(p, panel)), None)
            if own:
                panel = panel._replace(same_as=f"as {own.title}")
            elif twin:
                what = "" if twin[1].title == panel.title else f"{twin[1].title} "
                panel = panel._replace(same_as=f"as {what}{at(twin[0])}")
            marked.append(panel)
        earlier += [(walk, panel) for panel in panels]
        lines = [] if any(lines == list(other.lines) for other in made) else lines
        made.append(View(walk.name, tuple(marked), tuple(lines)))
    return Step(key, title, formula, sentence, tuple(made))


def _equal(one: Panel, other: Panel) -> bool:
    return one.kind == other.kind and np.array_equal(one.matrix, other.matrix)


def _input_title(walk: Trace) -> str:
    return "What the layer receives" if walk.embedded is None else "Tokens become vectors"


def _input_formula(walk: Trace) -> str:
    if walk.embedded is None:
        return "X = what the layers below hand on"
    inner = "E" if np.array_equal(walk.embedded, walk.placed) else "E + P"
    return f"X = {inner}" if np.array_equal(walk.placed, walk.x) else f"X = norm({inner})"


def _input_text(walk: Trace) -> str:
    tokens, width = walk.x.shape
    size = f"{tokens} token{'s' * (tokens != 1)}, {width} numbers each"
    if walk.embedded is None:
        return f"X is what this layer receives from those below it: {size}."
    inner = "its vector from a table"
    if not np.array_equal(walk.embedded, walk.placed):
        inner += ", and a vector for its place is added"
    if not np.array_equal(walk.placed, walk.x):
        inner += "; a norm evens out the sizes of the rows"
    return f"Each token gets {inner}: {size}."


def _projections_text(walk: Trace) -> str:
    _, heads, width = walk.query.shape
    alone = ", each of which looks on its own" * (heads > 1)
    return (
        f"Each token's vector is multiplied by each matrix and the result cut into {heads} "
        f"head{'s' * (heads != 1)} of {width} numbers{alone}. "
        "The query asks, the key is what a token is found by, the value is what it hands over."
    )


def _matrices_text(walk: Trace) -> str:
    width, heads, head_dim = walk.layer.query.shape
    return (
        f"What X is multiplied by: {width} numbers of a token in, {heads} × {head_dim} out. A tie "
        "makes some of these matrices one and the same, or leaves them out. Column 2.1 is number 1 "
        "of head 2."
    )


def _turn_formula(walk: Trace) -> str:
    inner = "norm({}{})" if "norm" in walk.between else "{}{}"
    turn = "R({})·" if "rotary" in walk.between else ""
    return "    ".join(
        f"{letter}̃{i} = {turn.format(place)}{inner.format(letter, i)}"
        for letter, i, place in (("q", "ᵢ", "i"), ("k", "ⱼ", "j"))
    )


def _turn_text(walk: Trace) -> str:
    sentences = {
        "norm": "A norm evens out the sizes of queries and keys.",
        "rotary": "Rotary positions turn pairs of their numbers by an angle that grows with the "
        "place, so that a score knows how far apart two tokens are.",
    }
    return " ".join(sentences[what] for what in walk.between) + " Values stay as they are."


def _scale_formula(walks: Sequence[Trace]) -> str:
    bias = " + biasᵢⱼ" if walks[0].bias is not None else ""
    return ("Sᵢⱼ / √d_k" if all(map(views.usual_scale, walks)) else "scale·Sᵢⱼ") + bias


def _scale_text(walks: Sequence[Trace]) -> str:
    width = walks[0].query.shape[2]
    text = (
        f"The sum has a term for each of the d_k = {width} numbers of a head, so it tends "
        f"to grow with the head's width; divided by √{width}, scores keep about one size."
    )
    if not all(map(views.usual_scale, walks)):
        text = "The scores are multiplied by the layer's scale, a number for each head."
    return text + (" The position bias is added." if walks[0].bias is not None else "")
