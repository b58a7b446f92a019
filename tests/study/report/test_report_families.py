"""The report of families, groups, references and published numbers."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from qkv_jax.output import formats, style
from qkv_jax.study.protocol import grids
from qkv_jax.study.protocol.evaluated import seed_scores
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report import headlines, tables, wording
from qkv_jax.study.report.figures.cost_quality import STATE
from qkv_jax.study.report.figures.heat import heat_columns
from qkv_jax.study.report.figures.lines import by_group, scaling, scaling_by_arm
from qkv_jax.study.report.figures.state import state_axes, state_quality
from qkv_jax.study.report.grids import family_findings
from qkv_jax.study.report.matrix import verdict_matrix
from qkv_jax.study.report.terminal import console_table
from qkv_jax.tasks.base import Reference
from tests.support.studies.report_pages import Page, report
from tests.support.studies.synthetic_study import RECALL, TEXT, make_family

WIDTHS, STEPS = (16, 32, 64), (250, 500)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A family of four cells with all that can stand beside its arms."""
    folder = tmp_path_factory.mktemp("grid")
    axes = {"model.width": (16, 64), "model.positions": ("none", "rotary")}
    record, runs, costs, curve, table = make_family(axes, arms=("K=V", "copies"), breakdown=True)
    table.to_csv(folder / "breakdown.csv", index=False)
    published = {"Somebody et al. 2026": {"K=V": 1.705}, "their <rerun>": {}}
    references = (Reference("counts of pairs", 1.9, "a bigram table"),)
    for task in record.tasks:
        record = record.with_task(task, published=published, references=references)
    text, summary, record = report(folder, record, runs, costs, curve)
    return folder, text, summary, record, runs


def test_a_family_comes_before_its_cells_and_every_anchor_leads_somewhere(grid):
    _, text, _, record, _ = grid
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    targets = {a[1:] for a in Page(text).addresses if a.startswith("#")}
    assert targets <= set(ids) and "plays" in targets
    places = [text.index(f'id="{formats.slug(name)}"') for name in ("plays", *record.tasks)]
    assert places == sorted(places)
    assert text.count('<details class="cell">') == len(record.tasks) == 4
    assert "1 task, 4 cells" in text


def test_a_family_has_its_curves_its_table_of_differences_and_groups(grid):
    folder, text, _, record, _ = grid
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {"scaling-width-plays", "grid-plays"} <= names
    for task in record.tasks:
        assert f"by-group-{formats.slug(task)}" in names
    md = (folder / "report.md").read_text(encoding="utf-8")
    for name in names:
        assert f"(figures/{name}.png)" in md and f"figures/{name}.svg" in text


def test_the_matrix_counts_the_verdicts_of_a_grid_and_has_the_mean_difference(grid):
    _, text, summary, record, runs = grid
    averages = grids.family_table(record, runs)
    found = verdict_matrix(record, wording.all_rows(record, summary), averages)
    assert [column["name"] for column in found["columns"]] == ["plays"]
    by_arm = averages.set_index("arm")
    for row in found["rows"]:
        (cell,), mean = row["cells"], by_arm.loc[row["arm"]]
        if row["arm"] == record.baseline:
            assert cell["change"] == formats.number(mean["mean"], 3) and not cell["span"]
            continue
        assert sum(map(int, re.findall(r"\d+", cell["verdict"]))) == len(record.tasks)
        assert cell["change"] == formats.number(mean["delta"], 3, signed=True)
        ends = (formats.number(mean[f"delta_{end}"], 3) for end in ("low", "high"))
        assert cell["span"] == f"[{', '.join(ends)}]"
    assert "how the verdicts of its cells are spread" in text


def test_the_table_of_a_family_says_what_the_summary_says(grid):
    """Every cell's difference with its mark, the mean over the grid, the published numbers."""
    folder, text, summary, record, runs = grid
    md = (folder / "report.md").read_text(encoding="utf-8").split("## ")
    part = next(p for p in md if p.startswith("Masked bytes of Shakespeare\n"))
    rows = {line.split(" | ")[0].strip("| *"): line.split(" | ") for line in part.splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert "their &lt;rerun&gt;" in rows["arm"] and "Somebody et al. 2026" in rows["arm"]
    by = summary.set_index(["arm", "task"])
    for arm in ("K=V", "copies", "placebo"):
        cells = rows[arm][6:]
        for cell, task in zip(cells, record.tasks, strict=True):
            row = by.loc[(arm, task)]
            sign = wording.SIGNS[row["verdict"].kind]
            delta = formats.number(row["delta"], 3, signed=True)
            assert cell.strip(" |") == f"{row['mean']:.3f} ({sign} {delta})"
    got = grids.average(record, seed_scores(record, runs), list(record.tasks), "copies")
    assert rows["copies"][3].startswith(formats.number(got["delta"], 3, signed=True) + " ")
    assert rows["K=V"][4] == "1.705" and rows["copies"][4] == formats.MISSING
    assert text.count("Protocols differ") == 1


def test_published_numbers_stand_beside_the_means():
    table = {"head": ["rate", "mean loss [95 %]", "difference [95 %]"],
             "rows": [{"arm": "K=V", "cells": ["0.1", "1.5", "+0.5"]}]}  # fmt: skip
    tables._add_published(table, {"A 2026": {"K=V": 2.0}})
    assert table["head"][1:3] == ["mean loss [95 %]", "A 2026"]
    assert table["rows"][0]["cells"] == ["0.1", "1.5", "2.000", "+0.5"]


def test_references_stand_under_the_arms_of_every_task(grid):
    folder, text, _, record, _ = grid
    md = (folder / "report.md").read_text(encoding="utf-8")
    lines = [line for line in md.splitlines() if line.startswith("| *counts of pairs*")]
    assert len(lines) == len(record.tasks) and all("| 1.900 |" in line for line in lines)
    assert text.count("counts of pairs <small>reference</small>") == len(record.tasks)
    assert "a bigram table" in text


def test_findings_of_a_family_name_every_arm_once_and_count_its_cells(grid):
    _, _, summary, record, _ = grid
    rows = wording.all_rows(record, summary)
    found = family_findings(record, rows)
    assert sorted(a for f in found for a in f.arms) == ["K=V", "copies", "placebo"]
    for finding in found:
        for arm in finding.arms:
            kinds = {cells[arm]["verdict"].kind for cells in rows.values()}
            assert kinds == {finding.kind} if finding.kind != "mixed" else len(kinds) > 1
    worse = next(f for f in found if f.kind == "worse")
    assert worse.text == "Worse than separate in all 4 cells: copies."
    assert "worse on all 4 cells of Masked bytes" in headlines.overview(record, rows)[0]


def test_what_holds_in_several_cells_is_said_once(grid):
    _, _, summary, record, runs = grid
    runs = runs.copy()
    lost = (runs.arm == "K=V") & (runs.seed == 100)
    runs.loc[lost & runs.task.str.contains("width=16"), "status"] = "failed"
    warnings = headlines.warnings(record, runs, wording.all_rows(record, summarise(record, runs)))
    assert any(line.startswith("2 of 4 cells of Masked bytes of Shakespeare: evaluation runs")
               for line in warnings)  # fmt: skip
    assert sum("evaluation runs" in line for line in warnings) == 1


@pytest.mark.parametrize("progress", ["none", "half"])
def test_unfinished_families_are_reported_as_far_as_they_go(tmp_path, progress):
    """Averages over cells that are not all there are not given: half a grid is another grid."""
    axes = {"model.width": WIDTHS, "train.steps": STEPS, "options.length": (8, 16)}
    base = {"none": RECALL, "half": TEXT}[progress]
    record, runs, costs, curve, _ = make_family(axes, arms=("copies",), base=base)
    part = {"none": runs.iloc[:0], "half": runs[runs.task.str.contains("width=16")]}[progress]
    text, _, _ = report(tmp_path, record, part, costs, curve, complete=False)
    assert "12 cells" in text
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    scaling = {name for name in names if name.startswith("scaling")}
    assert scaling == ({"scaling-width-plays"} if progress == "half" else set())
    assert not any(name.startswith(("learning", "lattice", "grid")) for name in names)


def test_many_arms_have_a_panel_each():
    record, runs, costs, _, table = make_family(
        {"model.width": WIDTHS}, arms=[f"arm {i}" for i in range(12)], breakdown=True
    )
    results = wording.all_rows(record, summarise(record, runs))
    scores, tasks = seed_scores(record, runs), list(record.tasks)
    assert len(scaling_by_arm(record, results, scores, tasks, "model.width").axes) == 13
    part = table[table.task == tasks[0]]
    assert len(by_group(record, tasks[0], part).axes) == 14
    figure = scaling(record, results, scores, tasks, "model.width")
    assert len(figure.axes[1].texts) == len(style.LINES)
    assert figure.axes[0].get_xscale() == "log"


def with_states(record, costs, each=lambda axes: axes["model.width"]):
    """Costs whose state is that of the ties, for every cell times what it says of its axes."""
    return {
        name: {arm: found | {STATE: found[STATE] * each(record.tasks[name].axes)}
               for arm, found in costs[name].items()}
        for name in record.tasks
    }  # fmt: skip


def test_the_cells_of_a_tie_are_joined_over_what_changes_their_state():
    """Widths along the line, lengths by panels; the placebo, which is the baseline, is left out."""
    axes = {"model.width": WIDTHS, "options.length": (8, 16)}
    record, runs, costs, _, _ = make_family(axes, arms=("K=V", "copies"))
    results = wording.all_rows(record, summarise(record, runs, with_states(record, costs)))
    tasks = list(record.tasks)
    assert state_axes(record, results, tasks) == ["model.width"]
    figure = state_quality(record, results, tasks)
    assert [axes.get_title("left") for axes in figure.axes] == ["length = 8", "length = 16"]
    for axes, length in zip(figure.axes, (8, 16), strict=True):
        lines = [line for line in axes.lines if line.get_linewidth() > 1]
        lines = [line for line in lines if line.get_linestyle() != "None"]
        assert len(lines) == 3
        cells = [name for name in tasks if record.tasks[name].axes["options.length"] == length]
        for line, arm in zip(lines, ("separate", "K=V", "copies"), strict=True):
            rows = [results[name][arm] for name in cells]
            assert np.allclose(2.0 ** line.get_xdata(), [row[STATE] for row in rows])
            assert np.allclose(line.get_ydata(), [row["mean"] for row in rows])


def test_no_line_is_drawn_where_no_axis_changes_the_state(grid):
    """Not over an axis of the task either, though its cells differ in state."""
    folder, _, summary, record, _ = grid
    results = wording.all_rows(record, summary)
    assert state_quality(record, results, list(record.tasks)) is None
    assert not (folder / "figures/state-plays.svg").exists()
    record, runs, costs, _, _ = make_family({"options.length": (8, 16)}, arms=("K=V",))
    states = with_states(record, costs, lambda axes: axes["options.length"])
    results = wording.all_rows(record, summarise(record, runs, states))
    assert state_quality(record, results, list(record.tasks)) is None


def test_a_grid_of_widths_has_its_figure_of_state_in_the_report(tmp_path):
    record, runs, costs, curve, _ = make_family({"model.width": WIDTHS}, arms=("K=V", "Q=K"))
    report(tmp_path, record, runs, with_states(record, costs), curve)
    assert (tmp_path / "figures/state-plays.svg").exists()
    md = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the points of an arm, joined, differ in width." in md


def test_heat_tables_fold_what_does_not_fit():
    axes = {"model.positions": ("none", "rotary", "learned"), "model.width": (8, 16, 32, 64, 128)}
    record = make_family(axes, arms=("copies",))[0]
    columns = heat_columns(record, list(record.tasks))
    assert list(columns) == ["positions=none", "positions=rotary", "positions=learned"]
    assert all(len(cells) == 5 for cells in columns.values())


@pytest.mark.parametrize("width", [80, 100])
def test_the_console_shows_a_family_as_one_table(grid, width):
    _, _, summary, record, runs = grid
    console = Console(width=width, record=True, file=io.StringIO())
    averages = grids.family_table(record, runs)
    console.print(console_table(record, summary, width, averages))
    one = next(iter(record.tasks))
    console.print(console_table(record.only(one), summary, width))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Masked bytes of Shakespeare, 4 cells")
    copies = [line for line in lines if line.startswith("copies")]
    assert len(copies) == 2 and copies[0].endswith("▼ 4") and copies[1].endswith("▼ worse")
    cell = next(line for line in lines if "positions=none" in line)
    assert "Masked bytes" in cell and "width=16, positions=none" in cell
    assert any(line.startswith("counts of pairs") and "1.900" in line for line in lines)
