"""The figures of a study, one function each, every one returning a matplotlib Figure.

Here: the forest plot, cost against quality, and steps to solve. `figure_lattice.py` has the
lattice, `figure_curves.py` the two figures of training, `figure_lines.py` and `figure_heat.py`
those of axes and groups of examples; all are exported from here.
"""

import math

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from qkv_jax.analysis import figure_style as style
from qkv_jax.study import wording
from qkv_jax.study.figure_curves import learning_curves, learning_rates
from qkv_jax.study.figure_heat import heat, heat_columns
from qkv_jax.study.figure_lattice import lattice, lattice_nodes, lattice_tasks
from qkv_jax.study.figure_lines import by_group, scaling, scaling_by_arm
from qkv_jax.study.statistics import steps_of

__all__ = [
    "by_group", "cost_quality", "forest", "heat", "heat_columns", "lattice", "lattice_nodes",
    "lattice_tasks", "learning_curves", "learning_rates", "save", "scaling", "scaling_by_arm",
    "solving",
]  # fmt: skip
save = style.save

_ROW, _GAP = 0.27, 0.2  # inches: height of a row, extra room before controls and placebo


def _ladder(rows: dict, with_baseline: bool):
    """Heights of the rows, top down: ([(arm, y)], total height, y of the separating lines)."""
    arms = sorted(rows, key=lambda arm: wording.role_group(rows[arm]))
    arms = [a for a in arms if with_baseline or rows[a]["role"] != "baseline"]
    places, lines, y, group = [], [], 0.0, None
    for arm in arms:
        new = wording.role_group(rows[arm])
        if group is not None and new != group:
            lines.append(y - (_ROW - _GAP) / 2)
            y -= _GAP
        group = new
        places.append((arm, y))
        y -= _ROW
    return places, -y, lines


def _arm_labels(axes, places, rows):
    axes.set_yticks([y for _, y in places])
    labels = axes.set_yticklabels([wording.shorten(arm) for arm, _ in places])
    for label, (arm, _) in zip(labels, places, strict=True):
        label.set(color=style.INK, fontsize=8.5)
        if wording.role_group(rows[arm]):
            label.set(fontstyle="italic", color=style.SOFT)
        if rows[arm]["role"] == "baseline":
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@style.styled
def forest(study: dict, summary, task: str):
    """Differences to the baseline: 95 % intervals thick, simultaneous ones thin, margin shaded.

    Returns: the figure, or None if no arm has a difference yet.
    """
    spec, rows = study["tasks"][task], wording.task_rows(study, summary, task)
    places, height, lines = _ladder(rows, with_baseline=False)
    shown = [rows[arm] for arm, _ in places if rows[arm].get("delta") is not None]
    if not shown:
        return None
    left = min(1.9, max(style.text_width(wording.shorten(arm), 8.5) for arm, _ in places) + 0.1)
    plot, right, top, bottom = 4.3, 3.3, 0.42, 0.78
    width, total = left + plot + right, top + height + bottom
    figure = style.new_figure(width, total)
    axes = figure.add_axes((left / width, bottom / total, plot / width, height / total))
    digits, margin = wording.decimals(spec), spec.get("margin") or 0
    axes.axvspan(-margin, margin, color="#e3efe9", lw=0, zorder=0)
    axes.axvline(0, color=style.INK, lw=1, zorder=1)
    note = _forest_scale(axes, shown, margin)
    for line in lines:
        axes.plot((-left / plot, 1 + right / plot), (line, line), color=style.LINE, lw=0.8,
                  clip_on=False, transform=axes.get_yaxis_transform())  # fmt: skip
    columns = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    axes.text(1.03, _ROW, "difference [95 % interval]", color=style.SOFT, **columns)
    head = "verdict" if spec["kind"] == "mean" else "verdict (on solving)"
    axes.text(1.49, _ROW, head, color=style.SOFT, **columns)
    key = "thick: 95 %, thin: simultaneous" + (f", shaded: margin ±{margin:g}" if margin else "")
    axes.text(0, _ROW, key, color=style.SOFT, **columns)
    for arm, y in places:
        row = rows[arm]
        kind = wording.kind(row["verdict"])
        colour = style.COLOURS[kind]
        if row.get("delta") is None:
            axes.text(1.03, y, "no result yet", color=style.FAINT, **columns)
            continue
        axes.plot((row.get("delta_low_simultaneous", row["delta"]),
                   row.get("delta_high_simultaneous", row["delta"])), (y, y),
                  color=colour, lw=1, zorder=2, solid_capstyle="butt")  # fmt: skip
        axes.plot((row.get("delta_low", row["delta"]), row.get("delta_high", row["delta"])),
                  (y, y), color=colour, lw=3.2, zorder=3, solid_capstyle="butt")  # fmt: skip
        hollow = bool(wording.role_group(row))
        axes.plot(row["delta"], y, style.MARKERS[kind], ms=5.5, mfc="white" if hollow else colour,
                  mec=colour if hollow else "white", mew=1.2 if hollow else 0.7, zorder=4)
        low, high = row.get("delta_low"), row.get("delta_high")
        text = wording.number(row["delta"], digits, signed=True)
        if low is not None and high is not None:
            text += f"  [{wording.number(low, digits)}, {wording.number(high, digits)}]"
        axes.text(1.03, y, text, color=style.INK, **columns)
        verdict = f"{wording.SIGNS[kind]} {row['verdict']}"
        axes.text(1.49, y, verdict, color=colour, fontweight="bold", **columns)
    axes.set_ylim(-height + _ROW / 2, _ROW / 2)
    _arm_labels(axes, places, rows)
    axes.grid(axis="x")
    unit = spec.get("unit") or spec["metric"]
    ends = ("worse ←  ", "  → better") if spec["higher_is_better"] else ("better ←  ", "  → worse")
    for end, side in zip(ends, ("right", "left"), strict=True):
        axes.annotate(end, (0, 0), (0, -0.3 * 72), xycoords=axes.get_xaxis_transform(), ha=side,
                      textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
    label = f"difference to {study['baseline']} ({unit}){note}"
    axes.set_xlabel(label, fontsize=8.5, labelpad=16)
    return figure


def _forest_scale(axes, shown, margin) -> str:
    """Limits of the axis; logarithmic beyond the margin where one arm dwarfs it. What to add."""
    ends = [
        abs(row.get(column, 0))
        for row in shown
        for column in ("delta", "delta_low", "delta_high",
                       "delta_low_simultaneous", "delta_high_simultaneous")
    ]  # fmt: skip
    centre = max(abs(row["delta"]) for row in shown)
    # A simultaneous interval from few seeds can be many times the rest: do not let it rule.
    limit = 1.06 * max(min(max(ends), 2.5 * max(centre, margin)), 2 * margin) or 1.0
    low = min([0, -margin] + [row.get("delta_low_simultaneous", row["delta"]) for row in shown])
    high = max([0, margin] + [row.get("delta_high_simultaneous", row["delta"]) for row in shown])
    low, high = max(1.1 * low, -limit), min(1.1 * high, limit)
    if not margin or limit <= 20 * margin:
        axes.set_xlim(low, high)
        return ""
    linear = 2 * margin
    axes.set_xscale("symlog", linthresh=linear, linscale=0.8)
    steps = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5)]
    powers = [p for p in steps if linear * 1.5 < p <= limit]
    powers = [p for p in powers if len(powers) < 7 or f"{p:e}"[0] == "1"]
    ticks = [0.0, -linear, linear] + powers + [-p for p in powers]
    axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.number(x, *_digits(x))))
    axes.set_xlim(min(low, -linear), high)
    return f", logarithmic beyond ±{linear:g}"


def _digits(x) -> tuple[int]:
    return (0 if x == 0 else max(0, -math.floor(math.log10(abs(x)) + 1e-9)),)


@style.styled
def solving(study: dict, summary, task: str):
    """Share of seeds that reach the threshold, and steps to reach it, with 95 % intervals."""
    spec, rows = study["tasks"][task], wording.task_rows(study, summary, task)
    places, height, lines = _ladder(rows, with_baseline=True)
    left = min(1.9, max(style.text_width(wording.shorten(arm), 8.5) for arm, _ in places) + 0.1)
    plot, gap, right, top, bottom = 2.7, 0.75, 1.6, 0.35, 0.6
    width, total = left + 2 * plot + gap + right, top + height + bottom
    figure = style.new_figure(width, total)
    share, steps = (
        figure.add_axes((x / width, bottom / total, plot / width, height / total))
        for x in (left, left + plot + gap)
    )
    for arm, y in places:
        row = rows[arm]
        kind = wording.kind(row["verdict"])
        look = {"color": style.COLOURS[kind], "zorder": 3}
        marker = style.MARKERS[kind]
        n = row.get("n", 0)
        if n:
            solved = row.get("n_solved", 0)
            share.plot((row.get("solve_low", np.nan), row.get("solve_high", np.nan)), (y, y),
                       lw=2.4, **look)  # fmt: skip
            share.plot(solved / n, y, marker, ms=6, mec="white", mew=0.7, clip_on=False, **look)
            share.text(1.04, y, f"{solved:.0f}/{n:.0f}", transform=share.get_yaxis_transform(),
                       va="center", fontsize=8, color=style.INK)  # fmt: skip
        if row.get("steps_to_solve") is not None:
            ends = row.get("steps_to_solve_low", np.nan), row.get("steps_to_solve_high", np.nan)
            steps.plot(ends, (y, y), lw=2.4, **look)
            steps.plot(row["steps_to_solve"], y, marker, ms=6, mec="white", mew=0.7,
                       clip_on=False, **look)  # fmt: skip
        verdict = f"{wording.SIGNS[kind]} {row['verdict']}" if row["verdict"] else wording.PENDING
        steps.text(1.05, y, verdict, transform=steps.get_yaxis_transform(), va="center",
                   fontsize=8, color=style.COLOURS[kind], fontweight="bold")  # fmt: skip
    for axes in (share, steps):
        axes.set_ylim(-height + _ROW / 2, _ROW / 2)
        axes.grid(axis="x")
        for line in lines:
            axes.axhline(line, color=style.LINE, lw=0.8)
    _arm_labels(share, places, rows)
    steps.set_yticks([])
    steps.spines["left"].set_visible(False)
    share.set_xlim(0, 1)
    share.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    share.set_xlabel("seeds that solve the task")
    budgets = {steps_of(spec, arm) for arm in rows}
    steps.set_xlim(0, max(budgets) * 1.02)
    for budget in budgets:
        steps.axvline(budget, color=style.FAINT, ls=(0, (3, 2)), lw=0.9)
    steps.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    steps.locator_params(axis="x", nbins=5)
    steps.set_xlabel(f"steps to solve (mean, cut at {spec['steps']:,})")
    return figure


COSTS = {
    "kv_cache_bytes_per_token": "KV cache (bytes per token)",
    "params": "parameters",
    "attention_params": "attention parameters",
    "flops_per_token": "FLOPs per token",
}


@style.styled
def cost_quality(study: dict, summary, task: str):
    """Mean test score against what an arm costs, non-dominated arms filled and joined by a line.

    Two panels: the KV cache, and parameters; a cost that is the same for all arms is left out.
    Returns: the figure, or None if nothing can be shown.
    """
    spec, rows = study["tasks"][task], wording.task_rows(study, summary, task)
    rows = {a: r for a, r in rows.items() if r["role"] != "placebo" and r.get("mean") is not None}
    panels = []
    for column in COSTS:
        values = {r[column] for r in rows.values() if r.get(column) is not None}
        if len(values) > 1 and not (column != "params" and "params" in panels):
            panels.append(column)
    if not panels:
        return None
    plot, left, gap, top, bottom = 4.2, 0.75, 0.4, 0.4, 0.62
    height = min(5.2, max(3.2, 0.3 * len(rows)))
    width, total = left + len(panels) * (plot + gap), top + height + bottom
    figure = style.new_figure(width, total)
    first = None
    for i, column in enumerate(panels):
        box = ((left + i * (plot + gap)) / width, bottom / total, plot / width, height / total)
        axes = figure.add_axes(box, sharey=first)
        points = [(r[column], r["mean"], a) for a, r in rows.items() if r.get(column) is not None]
        _scatter(axes, points, rows, spec, plot, height)
        axes.set_xlabel(COSTS[column])
        if first is None:
            unit = spec.get("unit") or spec["metric"]
            arrow = "↑" if spec["higher_is_better"] else "↓"
            axes.set_ylabel(f"mean test {spec['metric']} ({unit}), {arrow} better"
                            if unit != spec["metric"] else f"mean test {unit}, {arrow} better")
            first = axes
        else:
            axes.tick_params(labelleft=False)
    _verdict_legend(figure, rows.values(), left / width)
    return figure


def _verdict_legend(figure, rows, x):
    kinds = [k for k in style.MARKERS if k in {wording.kind(row["verdict"]) for row in rows}]
    handles = [
        Line2D([], [], ls="", marker=style.MARKERS[k], ms=6, mfc="white", mew=1.2,
               mec=style.COLOURS[k], label=k)
        for k in kinds
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color="#9fb3c1", marker="o", ms=6, mew=1.2, mfc=style.SOFT, mec=style.SOFT,
               label="filled, line: not dominated")
    )  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(x, 1), ncols=len(handles),
        borderaxespad=0.2, borderpad=0.1, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip


def non_dominated(points, higher_is_better: bool) -> list[str]:
    """Arms (cost, score, arm) that no other arm beats in one and equals in the other."""
    sign = 1 if higher_is_better else -1
    return [
        arm
        for x, y, arm in points
        if not any(
            u <= x and sign * v >= sign * y and (u < x or sign * v > sign * y)
            for u, v, _ in points
        )
    ]


def _scatter(axes, points, rows, spec, width, height):
    scores = [y for _, y, _ in points]
    low, high = min(scores), max(scores)
    room = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - room, high + room)
    costs = sorted({x for x, _, _ in points})
    span = costs[-1] - costs[0]
    axes.set_xlim(costs[0] - 0.06 * span, costs[-1] + 0.36 * span)
    front = non_dominated(points, spec["higher_is_better"])
    best = sorted((x, y) for x, y, arm in points if arm in front)
    axes.plot(*zip(*best, strict=True), color="#9fb3c1", lw=1.2, zorder=1, drawstyle="steps-post")
    columns: list[list] = []
    for point in sorted(points):
        if columns and point[0] - columns[-1][0][0] <= 0.15 * span:
            columns[-1].append(point)
        else:
            columns.append([point])
    inch = (high - low + 2 * room) / height
    for column in columns:
        rightmost = max(x for x, _, _ in column)
        column.sort(key=lambda p: p[1])
        spread = style.spread([y for _, y, _ in column], 0.155 * inch, low - room, high + room)
        for (x, y, arm), at in zip(column, spread, strict=True):
            kind = wording.kind(rows[arm]["verdict"])
            colour, on_front = style.COLOURS[kind], arm in front
            axes.plot(x, y, style.MARKERS[kind], ms=6.5, mfc=colour if on_front else "white",
                      mec=colour, mew=1.2, zorder=3)  # fmt: skip
            text_x = rightmost + 0.045 * span
            axes.plot((x, text_x - 0.008 * span), (y, at), color=style.LINE, lw=0.7, zorder=0)
            axes.text(
                text_x, at, wording.shorten(arm, 20), fontsize=7, va="center", zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                color=style.INK if on_front else style.SOFT,
                fontweight="bold" if on_front else "normal",
            )  # fmt: skip
    axes.grid(axis="both")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: wording.count(x)))
