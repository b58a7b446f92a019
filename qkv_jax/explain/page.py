"""A walk as one self-contained page: the steps at a glance, then one by one with their numbers."""

import pathlib
from collections.abc import Sequence

import numpy as np

from qkv_jax.explain.explanation import QUESTION, Explanation
from qkv_jax.explain.heat import heat_map, scale_bar
from qkv_jax.explain.panels import Panel
from qkv_jax.explain.steps import Step
from qkv_jax.explain.walk import Trace
from qkv_jax.output import html

_TEMPLATE = pathlib.Path(__file__).with_name("explain.html.jinja")
_HEADS = 4  # shown, where there are more
_MOST, _MOST_GLANCE = 64, 32  # rows and columns shown of large arrays; columns in the overview
_GLANCE = ("X", "Q", "K", "V", "scaled scores", "weights", "output")


def write_page(path: pathlib.Path, explanation: Explanation) -> None:
    """Writes the page; nothing in it is loaded from elsewhere."""
    walks = explanation.walks
    names = [walk.name for walk in walks]
    most = max(float(walk.weights.max()) for walk in walks)
    context = {
        "about": explanation.about,
        "names": names,
        "heading": _GLANCE,
        "heads": walks[0].query.shape[1],
        "most": _HEADS,
        "cut": _MOST_GLANCE if walks[0].x.shape[1] > _MOST_GLANCE else 0,
        "glance": [_glance(walk, most) for walk in walks],
        "glance_bars": (scale_bar("signed", 1.0), scale_bar("weights", most)),
        "steps": [_shown(step) for step in explanation.steps],
        "comparison": explanation.comparison,
        "remarks": list(zip(names, explanation.remarks, strict=True)),
        "question": QUESTION,
        "answers": explanation.answers,
        "checked": explanation.checked,
    }
    html.write_page(path, _TEMPLATE, context)


def _glance(walk: Trace, most: float) -> list[list[str]]:
    """The maps of each column of the overview; each array has its own scale, but for weights, which
    have their largest one, `most`, in common."""
    length = len(walk.tokens)
    side = lambda heads: heads.reshape(length, -1)
    columns = [
        [("X", walk.x[:, :_MOST_GLANCE], "signed")],
        *(
            [(name, side(heads)[:, :_MOST_GLANCE], "signed")]
            for name, heads in zip("QKV", walk.projected, strict=True)
        ),
        [(f"scaled scores, head {n}", a, "signed") for n, a in enumerate(walk.scaled[:_HEADS], 1)],
        [(f"weights, head {n}", a, "weights") for n, a in enumerate(walk.weights[:_HEADS], 1)],
        [("output", walk.output[:, :_MOST_GLANCE], "signed")],
    ]
    return [
        [
            heat_map(
                Panel(f"{title}, {walk.name}", array, walk.tokens, ("",) * array.shape[1], kind),
                most if kind == "weights" else float(np.abs(array).max()),
                plain=True,
            )
            for title, array, kind in column
        ]
        for column in columns
    ]


def _shown(step: Step) -> dict:
    """A step for the template: maps of one scale have its colours, whatever tie they belong to."""
    panels = [panel for view in step.views for panel in view.panels]
    limits = {
        scale: max(float(np.abs(_corner(p).matrix).max()) for p in panels if p.scale == scale)
        for scale in dict.fromkeys(panel.scale for panel in panels)
    }
    views = [
        {
            "name": view.name,
            "lines": view.lines,
            "same": _same(view.panels) if number else "",
            "heads": max(((p.head or 0) + 1 for p in view.panels), default=0),
            "groups": _groups(view.panels, limits),
        }
        for number, view in enumerate(step.views)
    ]
    kinds = {panel.scale: panel.kind for panel in panels}
    bars = [(scale, scale_bar(kinds[scale], limit)) for scale, limit in limits.items()]
    return step._asdict() | {"views": views, "bars": bars, "most": _HEADS}


def _same(panels: Sequence[Panel]) -> str:
    """Words in place of maps that are all as under another tie."""
    reasons = {panel.same_as for panel in panels}
    if len(reasons) == 1 and "" not in reasons:
        return f"{', '.join(panel.title for panel in panels)}: {reasons.pop()}."
    return ""


def _groups(panels: Sequence[Panel], limits: dict[str, float]) -> list[list[dict]]:
    """Panels of one head stand beside each other."""
    groups: dict = {}
    for panel in panels:
        if (panel.head or 0) < _HEADS:
            figure = {
                "title": panel.title,
                "note": _note(panel),
                "svg": heat_map(_corner(panel), limits[panel.scale]),
            }
            groups.setdefault(panel.head, []).append(figure)
    several = any(len(group) > 1 for group in groups.values())
    return list(groups.values()) if several else [sum(groups.values(), [])]


def _corner(panel: Panel) -> Panel:
    """The panel without what lies beyond its first rows and columns; scores and weights, a row and
    one column per token, are left whole."""
    if panel.of_pairs:
        return panel
    return panel._replace(
        matrix=panel.matrix[:_MOST, :_MOST], rows=panel.rows[:_MOST], columns=panel.columns[:_MOST]
    )


def _note(panel: Panel) -> str:
    """What is to be said beside the title: whose numbers these are, and what is not shown."""
    rows, columns = _corner(panel).matrix.shape
    cut = [f"first {rows} × {columns}"] if (rows, columns) != panel.matrix.shape else []
    return ", ".join(([panel.same_as] if panel.same_as else []) + cut)
