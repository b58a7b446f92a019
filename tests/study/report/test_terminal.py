"""The table of a study in a terminal: it fits at any time, and nothing in it is cut."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.protocol.verdicts import BASELINE, POWER
from qkv_jax.study.report.terminal import console_table
from tests.support.studies.synthetic_study import make_study


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("progress", ["none", "tuning", "some", "all"])
def test_the_console_table_fits_at_any_time(width, progress):
    record, runs, costs, _ = make_study()
    tuned = runs.seed.isin(record.tune_seeds)
    some = tuned | runs.arm.isin(["separate", "Q=K"])
    part = {"tuning": runs[tuned], "some": runs[some]}.get(progress, runs)
    summary = None if progress == "none" else summarise(record, part, costs)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(record, summary, width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    for arm in record.arms:
        assert any(line.startswith(arm) for line in lines)
    cut = [line for line in lines if re.search(r"\w…", line)]
    assert not cut, cut
    assert any("…" in line for line in lines) == (progress != "all")
    assert any("▼ worse" in line for line in lines) == (progress in ("some", "all"))


@pytest.mark.parametrize("width", [78, 98])
def test_the_widest_cells_of_the_console_table_are_whole(width):
    """Four digits near a ceiling, a minus at both ends, more seeds than are counted."""
    record, runs, costs, _ = make_study()
    name, task = next(iter(record.tasks.items()))
    outcome = dataclasses.replace(task.outcome, margin=0.0012)
    task = dataclasses.replace(task, outcome=outcome, declared_margin=0.02)
    record = dataclasses.replace(record, tasks={name: task})
    summary = summarise(record, runs[runs["task"] == name], costs)
    open_ = summary["verdict"] != BASELINE
    summary.loc[open_, ["delta", "delta_low", "delta_high"]] = -0.0027, -0.0044, -0.0010
    summary["verdict"] = [POWER if one else verdict for one, verdict in
                          zip(open_, summary["verdict"], strict=True)]  # fmt: skip
    summary.loc[open_, "seeds_to_decide"] = 1e6
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(record, summary, width))
    text = console.export_text()
    assert "−0.0027 [−0.0044, −0.0010]" in text and "? needs >100 seeds" in text
    assert "…" not in text and max(map(len, text.splitlines())) <= width
