"""Quality against cost: which arms no other arm beats in both."""

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from qkv_jax.output import formats, style
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording

COSTS = {
    "kv_cache_bytes_per_token": "KV cache (bytes per token)",
    "params": "parameters",
    "attention_params": "attention parameters",
    "flops_per_token": "FLOPs per token",
}


@style.styled
def cost_quality(record: StudyRecord, results: wording.Results, name: str):
    """Mean test score against what an arm costs, non-dominated arms filled and joined by a line.

    Two panels: the KV cache, and parameters; a cost that is the same for all arms is left out.
    Returns: the figure, or None if nothing can be shown.
    """
    task, rows = record.tasks[name], results[name]
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
        _scatter(axes, points, rows, task, plot, height)
        axes.set_xlabel(COSTS[column])
        if first is None:
            unit, metric = task.unit, task.outcome.metric
            arrow = "↑" if task.higher_is_better else "↓"
            axes.set_ylabel(f"mean test {metric} ({unit}), {arrow} better"
                            if unit != metric else f"mean test {unit}, {arrow} better")
            first = axes
        else:
            axes.tick_params(labelleft=False)
    _verdict_legend(figure, rows.values(), left / width)
    return figure


def _verdict_legend(figure, rows, x):
    kinds = [k for k in style.MARKERS if k in {row["verdict"].kind for row in rows}]
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


def _scatter(axes, points, rows, task, width, height):
    scores = [y for _, y, _ in points]
    low, high = min(scores), max(scores)
    room = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - room, high + room)
    costs = sorted({x for x, _, _ in points})
    span = costs[-1] - costs[0]
    axes.set_xlim(costs[0] - 0.06 * span, costs[-1] + 0.36 * span)
    front = non_dominated(points, task.higher_is_better)
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
            kind = rows[arm]["verdict"].kind
            colour, on_front = style.COLOURS[kind], arm in front
            axes.plot(x, y, style.MARKERS[kind], ms=6.5, mfc=colour if on_front else "white",
                      mec=colour, mew=1.2, zorder=3)  # fmt: skip
            text_x = rightmost + 0.045 * span
            axes.plot((x, text_x - 0.008 * span), (y, at), color=style.LINE, lw=0.7, zorder=0)
            axes.text(
                text_x, at, formats.shorten(arm, 20), fontsize=7, va="center", zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                color=style.INK if on_front else style.SOFT,
                fontweight="bold" if on_front else "normal",
            )  # fmt: skip
    axes.grid(axis="both")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.count(x)))
