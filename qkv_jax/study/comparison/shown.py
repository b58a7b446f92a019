"""Studies side by side: as a table for the terminal, a figure and a page."""

import pathlib

import rich
from matplotlib.lines import Line2D
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats, style
from qkv_jax.output.html import write_page
from qkv_jax.study.comparison.compare import Comparison
from qkv_jax.study.protocol.margins import in_force
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.record import TaskRecord
from qkv_jax.study.report import wording

_TEMPLATE = pathlib.Path(__file__).with_name("comparison.html.jinja")
_ROW, _APART = 0.3, 0.11  # inches: height of an arm's row, and between its studies
_SHAPES = "osD^vPX"


def write_comparison(folder: pathlib.Path, found: Comparison, command: str) -> pathlib.Path:
    """Writes `comparison.csv`, `figures/` and `report.html` into a new folder; returns the page."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    found.table.to_csv(folder / "comparison.csv", index=False)
    tasks = []
    for number, name in enumerate(found.tasks):
        figure = forest(found, name)
        files = style.save(figure, folder / "figures" / f"{number}-{formats.slug(name)}")
        tasks.append({
            "name": name, "record": _task(found, name), "rows": rows(found, name),
            "differs": found.differs[name], "uri": style.data_uri(files[0]),
            "files": {file.suffix[1:]: f"figures/{file.name}" for file in files},
            "width": round(96 * figure.get_figwidth()),
            "direction": wording.better_words(_task(found, name)),
        })  # fmt: skip
    context = {
        "studies": {name: study.record for name, study in found.studies.items()}, "tasks": tasks,
        "notes": found.notes, "command": command, "baseline": _baseline(found),
    }  # fmt: skip
    return write_page(folder / "report.html", _TEMPLATE, context)


def rows(found: Comparison, task: str) -> list[dict]:
    """An arm each: `arm`, and a cell for every study with `mean`, `change` and `verdict`, or None
    where the study has no such arm."""
    digits = wording.digits(_task(found, task))
    mine = found.table[found.table["task"] == task]
    made = []
    for arm in dict.fromkeys(mine["arm"]):
        cells = {row["study"]: row for row in mine[mine["arm"] == arm].to_dict("records")}
        made.append({"arm": arm, "cells": [_cell(cells.get(name), digits) for name in
                                           found.studies]})  # fmt: skip
    return made


def _cell(row: dict | None, digits: int) -> dict | None:
    if row is None:
        return None
    verdict = Verdict.read(row["verdict"] if formats.known(row["verdict"]) else "")
    change = formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True)
    return {
        "mean": formats.number(row["mean"], digits), "kind": verdict.kind,
        "verdict": f"{wording.SIGNS[verdict.kind]} {verdict}",
        "change": change if formats.known(row["delta"]) else "",
    }  # fmt: skip


def console_table(found: Comparison) -> Table:
    """All tasks for the terminal: an arm's studies below each other."""
    outer = Table.grid(expand=False)
    for name in found.tasks:
        task = _task(found, name)
        about = f"  {task.unit}, {wording.better_words(task)}"
        outer.add_row(Text(task.title, style="bold") + Text(about, style="dim"))
        for line in found.differs[name]:
            outer.add_row(Text(line, style="dim"))
        table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for heading in ("arm", "study", "mean", "difference [95 %]", "verdict"):
            side = "right" if heading in ("mean", "difference [95 %]") else "left"
            table.add_column(heading, justify=side, overflow="fold")
        for row in rows(found, name):
            label = row["arm"]
            for study, cell in zip(found.studies, row["cells"], strict=True):
                if cell is not None:
                    table.add_row(label, study, cell["mean"], cell["change"], cell["verdict"])
                    label = ""
        outer.add_row(table)
        outer.add_row("")
    return outer


@style.styled
def forest(found: Comparison, task: str):
    """Differences to the baseline of each study, its 95 % intervals, a row per arm."""
    record, base = _task(found, task), _baseline(found)
    mine = found.table[(found.table["task"] == task) & (found.table["arm"] != base)]
    arms = list(dict.fromkeys(mine["arm"]))
    row = max(_ROW, _APART * (len(found.studies) + 1))
    left = max((style.text_width(arm, 8.5) for arm in arms), default=1.0) + 0.1
    plot, top, bottom = 4.6, 0.55, 0.62
    width, height = left + plot + 0.3, max(len(arms), 1) * row
    total = top + height + bottom
    figure = style.new_figure(width, total)
    axes = figure.add_axes((left / width, bottom / total, plot / width, height / total))
    margin = record.outcome.margin
    axes.axvspan(-margin, margin, color=style.MARGIN, lw=0, zorder=0)
    axes.axvline(0, color=style.INK, lw=1, zorder=1)
    for place, (name, colour, shape) in enumerate(zip(found.studies, style.LINES, _SHAPES,
                                                      strict=False)):  # fmt: skip
        for cell in mine[mine["study"] == name].to_dict("records"):
            shift = (place - (len(found.studies) - 1) / 2) * _APART
            y = -arms.index(cell["arm"]) * row - shift
            ends = (cell["delta_low"], cell["delta_high"])
            if all(map(formats.known, ends)):
                axes.plot(ends, (y, y), color=colour, lw=2, solid_capstyle="butt", zorder=3)
            if formats.known(cell["delta"]):
                axes.plot(cell["delta"], y, shape, ms=5, color=colour, mec="white", mew=0.6,
                          zorder=4)  # fmt: skip
    axes.set_ylim(-height + row / 2, row / 2)
    axes.set_yticks([-place * row for place in range(len(arms))], arms, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    ends = ("worse ←   ", "   → better") if record.higher_is_better else ("better ←   ",
                                                                         "   → worse")  # fmt: skip
    axes.set_xlabel(f"{ends[0]}difference to {base} ({record.unit}), {record.title}{ends[1]}",
                    fontsize=8.5)  # fmt: skip
    handles = [
        Line2D([], [], color=colour, marker=shape, ms=5, lw=2, label=name)
        for name, colour, shape in zip(found.studies, style.LINES, _SHAPES, strict=False)
    ]
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=8.5,
                  bbox_to_anchor=(0.0, 1.0))  # fmt: skip
    return figure


def _task(found: Comparison, name: str) -> TaskRecord:
    """A task as the first study has it, with the margin that is in force there."""
    first = next(iter(found.studies.values()))
    return in_force(first.record.only(name), first.runs).tasks[name]


def _baseline(found: Comparison) -> str:
    return next(iter(found.studies.values())).record.baseline
