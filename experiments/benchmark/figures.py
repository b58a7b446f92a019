"""The figures of benchmarks: medians with their ranges, and times cut into parts.

What colour tells is told a second time, by the label of a row or by words in the bar's key.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from qkv_jax.output import formats, style

from .sides import Spread

_ROW, _GAP, _COLUMNS = 0.25, 0.75, 2  # inches, inches, panels beside each other
_COLOURS = {"ours": style.BLUE, "PyTorch": style.VERMILLION, "plain Flax": style.GREEN}
_MARKERS = {"ours": "o", "PyTorch": "s", "plain Flax": "^"}
_PARTS = (style.GREY, style.VERMILLION, style.BLUE, style.PURPLE)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a panel.

    Attributes:
      label: who or what; the first of its words before a comma gives colour and marker.
      spread: median and range.
      mark: where a short stroke says what was to be expected, if anywhere.
    """

    label: str
    spread: Spread
    mark: float | None = None


@style.styled
def ranges(panels: Mapping[str, Sequence[Row]], axis: str) -> Figure:
    """A panel for each title: medians as markers, ranges as lines, all from zero."""
    rows = max(len(panel) for panel in panels.values())
    labels = [row.label for panel in panels.values() for row in panel]
    left, plot, right = max(map(style.text_width, labels)) + 0.1, 2.4, 0.75
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    width, height = columns * (left + plot + right), lines * (rows * _ROW + _GAP)
    figure = style.new_figure(width, height)
    for place, (title, panel) in enumerate(panels.items()):
        line, column = divmod(place, columns)
        x = column * (left + plot + right) + left
        y = height - (line + 1) * (rows * _ROW + _GAP) + _GAP - 0.3
        box = (x / width, y / height, plot / width, rows * _ROW / height)
        axes = figure.add_axes(box)
        axes.set_title(title, loc="left", color=style.INK, fontweight="bold")
        _panel(axes, panel, rows)
        if line == lines - 1 or place + columns >= len(panels):
            axes.set_xlabel(axis)
    return figure


def _panel(axes, panel: Sequence[Row], rows: int) -> None:
    known = [row for row in panel if not math.isnan(row.spread.median)]
    most = max([row.spread.high for row in known] + [row.mark or 0.0 for row in known])
    axes.set_xlim(0, 1.04 * most)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(len(panel)), [row.label for row in panel])
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.grid(axis="x")
    for place, row in enumerate(panel):
        if row not in known:
            axes.text(0.02 * most, place, "left out", color=style.SOFT, va="center", fontsize=8)
            continue
        side = row.label.partition(",")[0]
        colour, marker = _COLOURS.get(side, style.GREY), _MARKERS.get(side, "D")
        axes.plot((row.spread.low, row.spread.high), (place, place), color=colour, lw=1.6, zorder=2)
        axes.plot(row.spread.median, place, marker, color=colour, ms=5.5, mec="white", mew=0.6)
        if row.mark is not None:
            axes.plot(row.mark, place, "|", color=style.INK, ms=11, mew=1.6, zorder=4)
        digits = 1 if row.spread.median >= 10 else 2
        axes.annotate(
            formats.number(row.spread.median, digits), (1.03, place),
            xycoords=axes.get_yaxis_transform(), va="center", fontsize=8, color=style.INK,
        )  # fmt: skip


@style.styled
def parts(bars: Mapping[str, Mapping[str, float]], axis: str) -> Figure:
    """A bar for each title, cut into named parts, which are the same for all."""
    left = max(map(style.text_width, bars)) + 0.1
    plot, right, bottom, row = 4.6, 0.7, 1.0, 0.5
    width, height = left + plot + right, bottom + row * len(bars)
    figure = style.new_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, plot / width, row * len(bars) / height))
    for place, bar in enumerate(bars.values()):
        start = 0.0
        for colour, (part, seconds) in zip(_PARTS, bar.items(), strict=False):
            label = part if not place else None
            axes.barh(place, seconds, 0.6, start, color=colour, label=label, edgecolor="white")
            start += seconds
        axes.annotate(
            formats.number(start, 1), (start, place), (4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
        axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.set_xlabel(axis)
    below = (0, -0.55 / (row * len(bars)))
    axes.legend(loc="upper left", bbox_to_anchor=below, ncols=4, borderaxespad=0, handlelength=1)
    return figure
