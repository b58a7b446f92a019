"""Arms by values of an axis that is no scale, such as positions: coloured differences."""

import dataclasses
from collections.abc import Sequence

from qkv_jax.output import formats, style
from qkv_jax.study.protocol import grids
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.figures.lattice import colour_norm, shade

_MOST_COLUMNS = 14
_CELL, _ROW = 0.95, 0.36  # inches, at least


@style.styled
def heat(record: StudyRecord, results: wording.Results, scores, tasks: Sequence[str]):
    """One row per arm, one column per cell: difference to the cell's baseline and its verdict mark.

    With more cells than fit, the columns are the values of the axes that are no scale, averaged
    over the rest and without marks. Returns the figure, or None if there is nothing to show.
    """
    task = record.tasks[tasks[0]]
    # Of a task that is solved or not, the means are shown here.
    task = dataclasses.replace(task, outcome=dataclasses.replace(task.outcome, kind="mean"))
    base, arms = record.baseline, grids.family_arms(record, tasks)
    arms.sort(key=lambda arm: record.arms[arm].group)
    arms = [base, *(arm for arm in arms if arm != base)]
    columns = heat_columns(record, tasks)
    found = {(arm, label): grids.average(record, scores, cells, arm)
             for label, cells in columns.items() for arm in arms}  # fmt: skip
    deltas = {key: got["delta"] for key, got in found.items() if formats.known(got["delta"])}
    if not deltas:
        return None
    norm = colour_norm(deltas.values(), task.outcome.margin)
    digits = wording.digits(task)
    left = max(style.text_width(formats.shorten(arm), 8.5) for arm in arms) + 0.1
    heads = {label: label.split(", ") for label in columns}
    top = 0.35 + 0.15 * max(map(len, heads.values()))
    longest = max(part for parts in heads.values() for part in map(len, parts))
    cell = max(_CELL, style.text_width("x" * longest, 7.5))
    width, height = left + len(columns) * cell, len(arms) * _ROW + top
    figure = style.new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    unit = task.unit
    axes.text(0, height - 0.02, f"difference to {base} ({unit}), {wording.better_words(task)}; "
              f"first row: mean of {base}; pale: undecided", va="top", fontsize=8,
              color=style.SOFT)  # fmt: skip
    for i, label in enumerate(columns):
        axes.text(left + (i + 0.5) * cell, height - top + 0.06, "\n".join(heads[label]),
                  ha="center", va="bottom", fontsize=7.5, linespacing=1.15)  # fmt: skip
    for j, arm in enumerate(arms):
        y = height - top - (j + 1) * _ROW
        role = record.arms[arm].role
        axes.text(left - 0.08, y + _ROW / 2, formats.shorten(arm), ha="right", va="center",
                  fontsize=8.5, fontweight="bold" if arm == base else "normal",
                  fontstyle="normal" if role in ("arm", "baseline") else "italic")  # fmt: skip
        for i, (label, cells) in enumerate(columns.items()):
            got, face = found[arm, label], "white"
            text = formats.number(got["mean"], digits)
            if arm != base:
                text = formats.number(got["delta"], digits, signed=True)
                kind = ""
                if len(cells) == 1 and arm in results[cells[0]]:
                    kind = results[cells[0]][arm]["verdict"].kind
                    text = f"{wording.SIGNS[kind]} {text}"
                if formats.known(got["delta"]):
                    face = shade(task, norm, got["delta"], kind)
            x = left + i * cell
            axes.fill((x, x + cell, x + cell, x), (y, y, y + _ROW, y + _ROW), color=face,
                      ec="white", lw=1.5)  # fmt: skip
            axes.text(x + cell / 2, y + _ROW / 2, text, ha="center", va="center", fontsize=8.5,
                      color=style.ink_on(face))  # fmt: skip
    return figure


def heat_columns(record: StudyRecord, tasks: Sequence[str]) -> dict[str, list[str]]:
    """{heading: its cells}: one each, or those that agree in the axes that are no scale."""
    if len(tasks) <= _MOST_COLUMNS:
        return {record.tasks[name].cell: [name] for name in tasks}
    values = grids.axis_values(record, tasks)
    kept = [f for f, given in values.items() if len(given) > 1 and not grids.is_numeric(given)]
    columns: dict[str, list[str]] = {}
    for name in tasks:
        task = record.tasks[name]
        labels = dict(zip(task.axes, task.cell.split(", "), strict=True))
        columns.setdefault(", ".join(labels[field] for field in kept), []).append(name)
    return columns
