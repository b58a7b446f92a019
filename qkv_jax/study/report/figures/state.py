"""Quality against bytes of state over the cells of a grid: a tie is a line through its sizes."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from qkv_jax.output import style
from qkv_jax.study.protocol import grids
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.figures.cost_quality import STATE, log_places, log_ticks, test_label
from qkv_jax.study.report.figures.lines import (
    _draw,
    _label_room,
    _Line,
    _name,
    _name_ends,
    _styles,
    _value_text,
    _verdict_key,
)

_COLUMNS, _MOST_PANELS = 3, 12


def state_axes(record: StudyRecord, results: wording.Results, tasks) -> list[str]:
    """The axes of the model along which the state of some arm changes, others held."""
    found = []
    for field in grids.axis_values(record, tasks):
        states: dict[tuple, set] = {}
        for name in tasks:
            rest = tuple(_value_text(v) for f, v in record.tasks[name].axes.items() if f != field)
            for arm, row in results[name].items():
                if row.get(STATE) is not None:
                    states.setdefault((rest, arm), set()).add(row[STATE])
        if field.startswith("model.") and any(len(values) > 1 for values in states.values()):
            found.append(field)
    return found


@style.styled
def state_quality(record: StudyRecord, results: wording.Results, tasks):
    """Mean test score against bytes of state, a panel for all cells that differ in nothing else
    than what changes the state, the points of an arm joined.

    Args:
      tasks: the cells of a grid.

    Returns: the figure, or None if no axis changes the state, or if it would have more than a dozen
    panels.
    """
    fields = state_axes(record, results, tasks)
    panels: dict[str, list[str]] = {}
    for name in tasks:
        rest = {f: v for f, v in record.tasks[name].axes.items() if f not in fields}
        title = ", ".join(f"{_name(f)} = {_value_text(v)}" for f, v in rest.items())
        panels.setdefault(title, []).append(name)
    lines = {title: _lines(record, results, cells) for title, cells in panels.items()}
    lines = {title: found for title, found in lines.items() if found}
    if not fields or not 0 < len(lines) <= _MOST_PANELS:
        return None
    arms = grids.family_arms(record, tasks)
    arms = [arm for arm in arms if any(arm in found for found in lines.values())]
    deltas = {arm: [results[n].get(arm, {}).get("delta") for n in tasks] for arm in arms}
    gaps = {arm: abs(np.mean([d for d in found if d is not None] or [0.0]))
            for arm, found in deltas.items()}  # fmt: skip
    styles = _styles(record, arms, gaps)
    columns = 2 if len(lines) == 4 else min(_COLUMNS, len(lines))
    figure, shown = _grid(len(lines), columns, _label_room(styles))
    costs = [r[STATE] for n in tasks for r in results[n].values() if r.get(STATE) is not None]
    place = log_places(costs)
    for number, (axes, (title, found)) in enumerate(zip(shown, lines.items(), strict=True)):
        for arm, line in found.items():
            line.x = [place(x) for x in line.x]
            _draw(axes, line, styles[arm])
        right = place(max(costs)) + 0.3
        axes.set_xlim(place(min(costs)) - 0.3, right)
        log_ticks(axes, costs)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="both")
        axes.set_title(title, loc="left", pad=5)
        if number % columns == columns - 1 or number == len(lines) - 1:
            _name_ends(axes, found, styles)
            for arm, line in found.items():  # ties that need less state end before the panel does
                if not styles[arm].get("bare"):
                    axes.plot((line.x[-1], right), [line.heights[-1, 0]] * 2, color=style.LINE,
                              lw=0.7, zorder=0)  # fmt: skip
    figure.supxlabel("state (bytes per token, log scale)", fontsize=9, y=0.01)
    figure.supylabel(test_label(record.tasks[tasks[0]]), fontsize=9, x=0.005)
    _verdict_key(figure, {title: {arm: (line,) for arm, line in found.items()}
                          for title, found in lines.items()})  # fmt: skip
    return figure


def _lines(record, results, cells) -> dict[str, _Line]:
    """{arm: its means over ascending bytes} of the arms that have any, the placebo left out."""
    found = {}
    for arm in grids.family_arms(record, cells):
        rows = [results[name][arm] for name in cells if arm in results[name]]
        rows = [row for row in rows if row.get("mean") is not None and row.get(STATE) is not None]
        if rows and record.arms[arm].role != "placebo":
            rows.sort(key=lambda row: row[STATE])
            heights = [[row["mean"], row.get("ci_low", np.nan), row.get("ci_high", np.nan)]
                       for row in rows]  # fmt: skip
            kinds = [row["verdict"].kind for row in rows]
            found[arm] = _Line([row[STATE] for row in rows], heights, kinds)
    return found


def _grid(count, columns, right):
    """Panels with shared axes, and room for names at the right end of each row."""
    left, gap, top, bottom = 0.8, 0.25, 0.55, 0.6
    width, height, between = (5.0, 3.2, 0.0) if count == 1 else (2.6, 2.4, 0.4)
    rows = -(-count // columns)
    total = (left + columns * width + (columns - 1) * gap + right,
             top + rows * height + (rows - 1) * between + bottom)  # fmt: skip
    figure, panels = style.new_figure(*total), []
    for number in range(count):
        row, column = divmod(number, columns)
        y = bottom + (rows - 1 - row) * (height + between)
        box = ((left + column * (width + gap)) / total[0], y / total[1], width / total[0],
               height / total[1])  # fmt: skip
        shared = {"sharex": panels[0], "sharey": panels[0]} if panels else {}
        panels.append(figure.add_axes(box, **shared))
        panels[-1].tick_params(labelleft=column == 0, labelbottom=number + columns >= count)
    return figure, panels
