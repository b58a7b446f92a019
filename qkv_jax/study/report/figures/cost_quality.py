"""Quality against cost: which arms no other arm beats in both."""

import math

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from qkv_jax.output import formats, style
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import wording

STATE = "kv_cache_bytes_per_token"
COSTS = {
    STATE: "state (bytes per token, log scale)",
    "params": "parameters",
    "attention_params": "attention parameters",
    "flops_per_token": "FLOPs per token",
}
_FRONT, _LEVEL = "#9fb3c1", "#c9d0d6"
_MOST_TICKS = 8
_LANES = 3  # side by side, of points at the same cost


@style.styled
def cost_quality(record: StudyRecord, results: wording.Results, name: str):
    """Mean test score, with its interval, against what an arm costs; arms that no other one beats
    are filled and joined by a line.

    Two panels: bytes of state, and parameters; a cost that is the same for all arms is left out.
    Returns: the figure, or None if nothing can be shown.
    """
    task, rows = record.tasks[name], results[name]
    rows = {a: r for a, r in rows.items() if r["role"] != "placebo" and r.get("mean") is not None}
    panels = []
    for column in COSTS:
        values = {r[column] for r in rows.values() if r.get(column) is not None}
        if len(values) > 1 and not (column not in (STATE, "params") and "params" in panels):
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
        costs = [r[column] for r in rows.values() if r.get(column) is not None]
        place = log_places(costs) if column == STATE else float
        points = [(place(r[column]), r["mean"], a) for a, r in rows.items()
                  if r.get(column) is not None]  # fmt: skip
        _scatter(axes, points, rows, task, plot, height)
        axes.set_xlabel(COSTS[column])
        if column == STATE:
            log_ticks(axes, costs)
        else:
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.count(x)))
        if first is None:
            axes.set_ylabel(test_label(task))
            first = axes
        else:
            axes.tick_params(labelleft=False)
    _verdict_legend(figure, rows.values(), left / width)
    return figure


def test_label(task: TaskRecord) -> str:
    """What an axis of mean test scores says."""
    unit, metric = task.unit, task.outcome.metric
    arrow = "↑" if task.higher_is_better else "↓"
    name = f"{metric} ({unit})" if unit != metric else unit
    return f"mean test {name}, {arrow} better"


def log_places(costs):
    """Where costs lie on a scale of powers of two: a function; 0 lies a step and a half before the
    first."""
    least = min((cost for cost in costs if cost > 0), default=1)
    return lambda cost: math.log2(cost) if cost > 0 else math.log2(least) - 1.5


def log_ticks(axes, costs) -> None:
    """Ticks at the costs, or at powers of two where they are many."""
    place, values = log_places(costs), sorted(set(costs))
    if len(values) > _MOST_TICKS:
        most = math.floor(math.log2(values[-1]))
        values = [v for v in values if v <= 0]
        values += [2**power for power in range(math.ceil(place(min(c for c in costs if c > 0))),
                                               most + 1)]  # fmt: skip
    text = {place(value): formats.integer(value) for value in values}
    axes.xaxis.set_major_locator(FixedLocator(list(text)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.get(x, "")))


def _verdict_legend(figure, rows, x):
    kinds = [k for k in style.MARKERS if k in {row["verdict"].kind for row in rows}]
    handles = [
        Line2D([], [], ls="", marker=style.MARKERS[k], ms=6, mfc="white", mew=1.2,
               mec=style.COLOURS[k], label=k)
        for k in kinds
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=_FRONT, marker="o", ms=6, mew=1.2, mfc=style.SOFT, mec=style.SOFT,
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
    """Points (x, mean, arm) with intervals and names; where intervals at one x overlap, they are
    moved apart a little."""
    ends = [rows[arm].get(end, y) for _, y, arm in points for end in ("mean", "ci_low", "ci_high")]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 0.05
    axes.set_ylim(low - room, high + room)
    costs = sorted({x for x, _, _ in points})
    span = costs[-1] - costs[0]
    axes.set_xlim(costs[0] - 0.08 * span, costs[-1] + 0.38 * span)
    front = non_dominated(points, task.higher_is_better)
    best = sorted((x, y) for x, y, arm in points if arm in front)
    axes.plot(*zip(*best, strict=True), color=_FRONT, lw=1.2, zorder=1, drawstyle="steps-post")
    base = next((y for _, y, arm in points if rows[arm]["role"] == "baseline"), None)
    if base is not None:
        axes.axhline(base, color=_LEVEL, lw=0.9, ls=(0, (3, 2)), zorder=0)
    columns: list[list] = []
    for point in sorted(points):
        if columns and point[0] - columns[-1][0][0] <= 0.15 * span:
            columns[-1].append(point)
        else:
            columns.append([point])
    inch = (high - low + 2 * room) / height
    for column in columns:
        column.sort(key=lambda p: p[1])
        aside = _aside(column, rows, span)
        rightmost = max(x + off for (x, _, _), off in zip(column, aside, strict=True))
        spread = style.spread([y for _, y, _ in column], 0.155 * inch, low - room, high + room)
        for (x, y, arm), at, off in zip(column, spread, aside, strict=True):
            kind, row = rows[arm]["verdict"].kind, rows[arm]
            colour, on_front = style.COLOURS[kind], arm in front
            if row.get("ci_low") is not None and row.get("ci_high") is not None:
                axes.vlines(x + off, row["ci_low"], row["ci_high"], color=colour, lw=1.1,
                            alpha=0.6, zorder=2)  # fmt: skip
            axes.plot(x + off, y, style.MARKERS[kind], ms=6.5, mfc=colour if on_front else "white",
                      mec=colour, mew=1.2, zorder=3)  # fmt: skip
            text_x = rightmost + 0.045 * span
            axes.plot((x + off, text_x - 0.008 * span), (y, at), color=style.LINE, lw=0.7, zorder=0)
            axes.text(
                text_x, at, formats.shorten(arm, 34), fontsize=7, va="center", zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                color=style.INK if on_front or kind == "baseline" else style.SOFT,
                fontweight="bold" if on_front else "normal",
            )  # fmt: skip
    axes.grid(axis="both")


def _aside(column, rows, span) -> list[float]:
    """How far to the side the points of a column go, ascending by mean: none, but where intervals
    at one x overlap."""
    bunches: list[list[int]] = []
    tops: dict[float, tuple[float, list[int]]] = {}
    for number, (x, y, arm) in enumerate(column):
        top, bunch = tops.get(x, (-math.inf, []))
        if rows[arm].get("ci_low", y) > top:
            bunch = []
            bunches.append(bunch)
        bunch.append(number)
        tops[x] = max(top, rows[arm].get("ci_high", y)), bunch
    found = [0.0] * len(column)
    for bunch in bunches:
        lanes = min(len(bunch), _LANES)
        for turn, number in enumerate(bunch):
            found[number] = 0.032 * span * (turn % lanes - (lanes - 1) / 2)
    return found
