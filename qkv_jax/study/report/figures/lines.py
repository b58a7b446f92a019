"""Lines of arms along a scale: an axis of a family, or groups of test examples.

Some lines can be read in one panel, two dozen cannot: with more arms than `style.LINES` those that
differ most are named and the rest lie behind them in grey, and every arm has a panel of its own.
"""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from qkv_jax.output import formats, style
from qkv_jax.study.protocol import grids
from qkv_jax.study.record import StudyRecord

_COLUMNS = ("mean", "ci_low", "ci_high"), ("delta", "delta_low", "delta_high")


@style.styled
def scaling(record: StudyRecord, results, scores, tasks, field: str, by: str | None = None):
    """Mean and difference to the baseline against an axis, one line per arm.

    Args:
      results: `wording.all_rows`; scores: `seed_scores`; tasks: the cells of the family.
      field: the axis along x, numbers. by: an axis whose values have a column of panels each; the
        cells that are left over are averaged.

    Returns: the figure, or None if there are no scores yet.
    """
    lines, columns = _series(record, results, scores, tasks, field, by)
    if not any(pair[0] for column in lines.values() for pair in column.values()):
        return None
    task, arms = record.tasks[tasks[0]], grids.family_arms(record, tasks)
    gaps = {arm: abs(grids.average(record, scores, tasks, arm)["delta"]) for arm in arms}
    styles = _styles(record, arms, gaps)
    side_by_side = by is None
    figure, panels = _panels(len(columns), side_by_side, _label_room(styles))
    for (row, column), axes in panels.items():
        last = side_by_side or column == len(columns) - 1
        pairs = lines[columns[column]].items()
        shown = {arm: pair[row] for arm, pair in pairs if pair[row] is not None}
        if row == 1:
            margin = task.outcome.margin
            axes.axhspan(-margin, margin, color=style.MARGIN, lw=0, zorder=0)
            axes.axhline(0, color=style.INK, lw=1.2, zorder=1)
        for arm, line in shown.items():
            _draw(axes, line, styles[arm])
        if column == 0:
            unit = task.unit
            arrow = "↑" if task.higher_is_better else "↓"
            difference = f"difference to {record.baseline} ({unit})"
            axes.set_ylabel(f"{difference if row else f'mean test {unit}'}, {arrow} better")
        if by is not None and row == 0:
            axes.set_title(f"{_name(by)} = {_value_text(columns[column])}", loc="left", pad=5)
        _scale_x(axes, [line.x for line in shown.values()], label=side_by_side or row == 1)
        if side_by_side or row == 1:
            axes.set_xlabel(_name(field))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="y")
        if last:
            _name_ends(axes, shown, styles)
    _verdict_key(figure, lines)
    return figure


@style.styled
def scaling_by_arm(
    record: StudyRecord, results, scores, tasks, field: str, by: str | None = None
):
    """Difference to the baseline against an axis, one panel per arm, one line per value of `by`.

    For studies with more arms than one panel can name. Returns None if nothing can be shown.
    """
    lines, columns = _series(record, results, scores, tasks, field, by)
    task = record.tasks[tasks[0]]
    base = record.baseline
    arms = [a for a in grids.family_arms(record, tasks) if a != base]
    arms = [a for a in arms if any(lines[c].get(a, (None, None))[1] for c in columns)]
    if not arms:
        return None
    figure, panels = style.grid(len(arms), header=0.25 if by else 0.0, left=0.75)
    colours = style.ordered_colours(len(columns))
    margin = task.outcome.margin
    for axes, arm in zip(panels, arms, strict=True):
        axes.axhspan(-margin, margin, color=style.MARGIN, lw=0, zorder=0)
        axes.axhline(0, color=style.INK, lw=1, zorder=1)
        for column, colour in zip(columns, colours, strict=True):
            line = lines[column].get(arm, (None, None))[1]
            if line is not None:
                _draw(axes, line, {"color": colour, "ls": "-"}, size=3.5)
        _arm_title(axes, arm, record.arms[arm].role)
        axes.grid(axis="y")
    every = [pair[1].x for c in columns for pair in lines[c].values() if pair[1] is not None]
    for axes in panels:
        _scale_x(axes, every, label=None)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="x", labelsize=7)
    if by is not None:
        handles = [Line2D([], [], color=c, label=f"{_name(by)} = {_value_text(v)}")
                   for v, c in zip(columns, colours, strict=True)]  # fmt: skip
        figure.legend(handles=handles, loc="upper left", ncols=min(len(handles), 5),
                      bbox_to_anchor=(0.03, 1), borderaxespad=0.1, handlelength=1.4)  # fmt: skip
    unit = task.unit
    arrow = "↑" if task.higher_is_better else "↓"
    figure.supxlabel(_name(field), fontsize=9, y=0.02)
    figure.supylabel(f"difference to {base} ({unit}), {arrow} better", fontsize=9, x=0.003)
    return figure


@style.styled
def by_group(record: StudyRecord, name: str, table):
    """Test score by group of examples, one line per arm with its 95 % band, and chance.

    Args: table: the rows of breakdown.csv of this task. Returns None if there are no scores.
    """
    task = record.tasks[name]
    table = table[table["mean"].notna()]
    lines = {arm: _Line.of(part, "group") for arm, part in table.groupby("arm", sort=False)}
    arms = [arm for arm in task.arms if arm in lines]
    if not arms:
        return None
    by = str(table["by"].iloc[0])
    styles = _styles(record, arms)
    # One panel per arm as soon as a line would have to go without its name.
    alone = len(arms) <= len(style.LINES) + 2
    if alone:
        figure = style.new_figure(5.4 + 0.75 + _label_room(styles), 3.9)
        width, height = figure.get_size_inches()
        panels = [figure.add_axes((0.75 / width, 0.55 / height, 5.4 / width, 3.1 / height))]
    else:
        figure, panels = style.grid(len(arms))
    chance = task.outcome.chance
    ends = np.concatenate([line.heights[:, 0] for line in lines.values()])
    # A loss of chance level may lie so far above that it would flatten what is to be seen.
    near = chance is not None and (
        task.higher_is_better or chance - ends.max() <= 1.5 * np.ptp(ends)
    )
    for axes, arm in zip(panels, arms, strict=False):
        shown = {a: lines[a] for a in (arms if alone else dict.fromkeys((record.baseline, arm)))
                 if a in lines}  # fmt: skip
        for other, line in shown.items():
            line_style = styles[other] if alone else {"color": style.BLUE, "ls": "-"}
            if not alone and other != arm:
                line_style = {"color": "#aab4bc", "ls": "-", "bare": True}
            _draw(axes, line, line_style, size=3 if alone else 2)
        if near:
            axes.axhline(chance, color=style.SOFT, lw=0.9, ls=(0, (3, 2)), zorder=0)
            if alone:
                where = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
                axes.text(0.99, chance, "chance", fontsize=7.5, color=style.SOFT, **where)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5 if alone else 4))
        axes.xaxis.set_major_locator(MaxNLocator(8 if alone else 4, integer=True))
        if not alone:
            _arm_title(axes, arm, record.arms[arm].role)
    unit = task.unit
    arrow = "↑" if task.higher_is_better else "↓"
    label = f"mean test {unit}, {arrow} better"
    if alone:
        panels[0].set_xlabel(by)
        panels[0].set_ylabel(label)
        _name_ends(panels[0], lines, styles)
    else:
        figure.supxlabel(by, fontsize=9, y=0.02)
        figure.supylabel(label, fontsize=9, x=0.005)
    return figure


def _arm_title(axes, arm, role):
    tested = role in ("arm", "baseline")
    style.panel_title(axes, arm, fontstyle="normal" if tested else "italic")


class _Line:
    """Heights [mean, low, high] over ascending x, and the verdict at each place or None."""

    def __init__(self, x, heights, kinds=None):
        self.x, self.heights, self.kinds = list(x), np.asarray(heights, float), kinds

    @classmethod
    def of(cls, table, column):
        table = table.sort_values(column)
        return cls(table[column], table[list(_COLUMNS[0])])


def _series(record, results, scores, tasks, field, by):
    """({value of `by`: {arm: (line of means, line of differences)}}, the values of `by`)."""
    values = grids.axis_values(record, tasks)
    columns = [None] if by is None else values[by]
    hashable = [_value_text(column) for column in columns]
    found = {}
    for column, key in zip(columns, hashable, strict=True):
        found[key] = {}
        for arm in grids.family_arms(record, tasks):
            points: tuple[list, list] = ([], [])
            for x in sorted(values[field]):
                cells = [t for t in tasks if record.tasks[t].axes[field] == x
                         and (by is None or record.tasks[t].axes[by] == column)]  # fmt: skip
                got = grids.average(record, scores, cells, arm)
                kind = None
                if len(cells) == 1:
                    only = results[cells[0]].get(arm)
                    kind = only["verdict"].kind if only else "pending"
                for row, names in enumerate(_COLUMNS):
                    if np.isfinite(got[names[0]]):
                        points[row].append((x, [got[name] for name in names], kind))
            found[key][arm] = tuple(
                _Line([p[0] for p in part], [p[1] for p in part], [p[2] for p in part])
                if part else None for part in points
            )  # fmt: skip
    return found, hashable


def _styles(record, arms, gaps=None) -> dict[str, dict]:
    """Colour and dash of every arm. Of more arms than colours, those with the smallest gaps to the
    baseline are `bare`: grey, thin, unnamed."""
    base, colours = record.baseline, list(style.LINES)
    styles = {}
    order = sorted(arms, key=lambda a: record.arms[a].group)
    others = [arm for arm in order if arm != base and record.arms[arm].role != "placebo"]
    if gaps is not None and len(others) > len(colours):
        others.sort(key=lambda arm: -np.nan_to_num(gaps[arm]))
    chosen = set(others[: len(colours)])
    for arm in order:
        role = record.arms[arm].role
        if arm == base:
            styles[arm] = {"color": style.INK, "ls": "-", "lw": 1.8}
        elif role == "placebo" and len(arms) <= len(style.LINES) + 2:
            styles[arm] = {"color": style.GREY, "ls": (0, (1.5, 1.5))}
        elif arm in chosen:
            dash = "-" if role == "arm" else (0, (4, 1.5))
            styles[arm] = {"color": colours.pop(0), "ls": dash}
        else:
            styles[arm] = {"color": "#c9d0d6", "ls": "-", "bare": True}
    return styles


def _draw(axes, line, line_style, size=4.5):
    """One line with its band; a marker at every place, by the verdict where there is one."""
    line_style = {"lw": 1.5} | line_style
    bare = line_style.pop("bare", False)
    mean, low, high = line.heights.T
    if bare:
        axes.plot(line.x, mean, lw=1.0, color=line_style["color"], zorder=1.5)
        return
    axes.fill_between(line.x, low, high, color=line_style["color"], alpha=0.13, lw=0, zorder=2)
    axes.plot(line.x, mean, zorder=3, **line_style)
    axes.vlines(line.x, low, high, color=line_style["color"], lw=1, alpha=0.55, zorder=2.5)
    kinds = line.kinds or [None] * len(line.x)
    for kind in dict.fromkeys(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        axes.plot(np.take(line.x, places), mean[places], style.MARKERS.get(kind, "o"), ms=size,
                  ls="", color=line_style["color"], mec="white", mew=0.6, zorder=4)  # fmt: skip


def _name_ends(axes, lines, styles):
    """The name of every line at its right end, moved apart where they would touch."""
    named = [(lines[arm].heights[-1, 0], arm) for arm in lines if not styles[arm].get("bare")]
    if not named:
        return
    axes.autoscale_view()
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_figheight()
    # Labels go by what is inside the panel: an end may lie beyond a cut axis.
    ends = sorted((float(np.clip(y, low, high)), arm) for y, arm in named)
    places = style.spread([y for y, _ in ends], 0.145 * (high - low) / height, low, high)
    for (y, arm), at in zip(ends, places, strict=True):
        axes.annotate(
            formats.shorten(arm), (1.0, y), (1.06, at), xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(), fontsize=8, va="center",
            color=styles[arm]["color"], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style.LINE, "lw": 0.7, "shrinkA": 0,
                        "shrinkB": 0},
        )  # fmt: skip
    axes.set_ylim(low, high)


def _label_room(styles) -> float:
    named = [arm for arm, line_style in styles.items() if not line_style.get("bare")]
    return max((style.text_width(formats.shorten(arm), 8.0) for arm in named), default=0) + 0.35


def _panels(columns, side_by_side, right):
    """({(row, column): axes}): means and differences beside or below each other."""
    left, top, bottom = 0.85, 0.55, 0.55
    if side_by_side:
        width, height, gap = 3.6, 3.3, right + 0.85
        total = left + 2 * width + gap + right, top + height + bottom
        boxes = {(0, 0): (left, bottom), (1, 0): (left + width + gap, bottom)}
    else:
        width, height, gap = (3.2 if columns <= 2 else 2.5 if columns == 3 else 2.0), 2.5, 0.25
        total = (left + columns * width + (columns - 1) * gap + right,
                 top + 2 * height + 0.35 + bottom)  # fmt: skip
        boxes = {(row, c): (left + c * (width + gap), bottom + (1 - row) * (height + 0.35))
                 for row in (0, 1) for c in range(columns)}  # fmt: skip
    figure = style.new_figure(*total)
    panels = {}
    for (row, column), (x, y) in boxes.items():
        shared = {"sharey": panels[row, 0]} if column else {}
        box = (x / total[0], y / total[1], width / total[0], height / total[1])
        panels[row, column] = figure.add_axes(box, **shared)
        panels[row, column].tick_params(labelleft=column == 0)
    return figure, panels


def _scale_x(axes, xs, label):
    """Ticks at the values; logarithmic where they span a factor of four or more."""
    values = sorted({x for one in xs for x in one})
    if not values:
        return
    if values[0] > 0 and values[-1] / values[0] >= 4:
        axes.set_xscale("log")
        room = (values[-1] / values[0]) ** 0.06
        axes.set_xlim(values[0] / room, values[-1] * room)
    else:
        room = 0.06 * (values[-1] - values[0]) or 1
        axes.set_xlim(values[0] - room, values[-1] + room)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _value_text(x)))
    if label is not None:
        axes.tick_params(labelbottom=label)


def _verdict_key(figure, lines):
    """What the markers say, if any stands for a verdict."""
    kinds = {kind for column in lines.values() for pair in column.values()
             for line in pair if line is not None for kind in line.kinds}  # fmt: skip
    kinds = [kind for kind in style.MARKERS if kind in kinds and kind != "pending"]
    if len(kinds) < 2:
        return
    handles = [Line2D([], [], ls="", marker=style.MARKERS[k], ms=5.5, color=style.SOFT, label=k)
               for k in kinds]  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", ncols=len(handles), bbox_to_anchor=(0.02, 1),
        borderaxespad=0.1, borderpad=0.1, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip


def _name(field: str) -> str:
    return field.rpartition(".")[2].replace("_", " ")


def _value_text(value) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
