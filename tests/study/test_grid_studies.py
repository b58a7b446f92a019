"""A study of a grid: what its tables say, averages over cells and groups, tasks of others."""

import dataclasses
import functools
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol import grids
from qkv_jax.study.protocol.breakdown import breakdown_table, read_breakdown
from qkv_jax.study.protocol.evaluated import seed_scores
from qkv_jax.study.protocol.selection import RUN_COLUMNS
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report.page import write_report
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.tasks.base import (
    REGISTRY,
    Breakdown,
    Reference,
    Task,
)
from tests.support.studies import small_grid, tiny_study
from tests.support.studies.engine_runs import interrupting
from tests.support.studies.small_grid import CELLS, VALUES, First, Scripted, rule, with_entry
from tests.support.studies.synthetic_study import make_family

registered = small_grid.registered

ROOT = pathlib.Path(__file__).parents[2]


# --- a study of a grid


@pytest.fixture
def run(monkeypatch):
    """`run(folder, values, listener)`: starts or resumes a scripted study."""
    monkeypatch.setattr(engine_module, "Population", functools.partial(Scripted, rule))
    return lambda folder, values=VALUES, **more: tiny_study.run(folder, values, **more)


def kept(folder):
    """All tables but timing, and what study.json knows of the tasks."""
    texts = [(folder / name).read_text() for name in ("families.csv", "breakdown.csv")]
    study = load_study(folder)
    summary = study.summary.drop(columns=["step_time_ratio", "step_time_noise"]).to_csv()
    return [*texts, summary, study.runs.drop(columns="seconds").to_csv(), study.record.tasks]


def test_averages_are_over_cells_and_then_over_seeds(run, tmp_path):
    """families.csv by hand: a seed's mean over the cells first, so that the interval is that of
    seeds; the diverged run of `copies` counts with the failure value."""
    run(tmp_path / "study")
    study = load_study(tmp_path / "study")
    table = study.families.set_index("arm")
    assert tuple(study.families.columns) == grids.FAMILY_COLUMNS
    seeds = np.arange(5)
    base = 0.8 + 0.01 * seeds
    narrow, wide = (base - 1.6 / w + 0.002 * (seeds % 3) for w in (8, 16))
    narrow[3] = 0.25
    own = (narrow + wide) / 2  # both lengths are alike
    row = table.loc["copies"]
    assert (row["cells"], row["n"]) == (4, 5)
    assert np.isclose(row["mean"], own.mean()) and np.isclose(row["delta"], (own - base).mean())
    ends = stats.ttest_ind(own, base, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([row["delta_low"], row["delta_high"]], ends)
    assert table.loc["separate", ["delta", "delta_low"]].isna().all()
    assert study.summary["task"].unique().tolist() == CELLS
    # One arm is asked about in each cell, the placebo is not.
    tested = study.summary[study.summary["arm"] == "copies"]
    np.testing.assert_allclose(tested["p_adjusted"], tested["p_value"])


def test_scores_by_group_are_means_over_examples_and_then_over_seeds(run, tmp_path):
    """breakdown.csv by hand; a diverged run has the failure value in every group."""
    run(tmp_path / "study")
    table = load_study(tmp_path / "study").breakdown
    assert set(table["task"]) == set(CELLS) and set(table["by"]) == {"distance"}
    part = table[(table["task"] == CELLS[0]) & (table["group"] == 1)].set_index("arm")
    seeds = np.arange(5)
    # Examples 1 and 2 are of group 1: their scores average to the value of the run.
    base = 0.8 + 0.01 * seeds
    copies = np.where(seeds == 3, 0.25, base - 0.2 + 0.002 * (seeds % 3))
    assert np.isclose(part.loc["separate", "mean"], base.mean(), atol=1e-6)
    assert np.isclose(part.loc["copies", "mean"], copies.mean(), atol=1e-6)
    half = 2.7764451 * copies.std(ddof=1) / np.sqrt(5)
    assert np.isclose(part.loc["copies", "ci_high"], copies.mean() + half, atol=1e-6)
    assert (table["n"] == 5).all()


def test_seeds_that_have_not_run_are_left_out_of_groups():
    record, *_ = make_family({"model.width": (16,)}, seeds=3)
    (task,) = record.tasks.values()
    record = dataclasses.replace(
        record, tune_seeds=(9,), eval_seeds=(0, 1, 2),
        tasks={"t": dataclasses.replace(task, arms=("a",))},
    )  # fmt: skip
    runs = pd.DataFrame([("t", "a", 1e-3, s, "done", 0.5, 0.5, np.nan) for s in (0, 2)],
                        columns=RUN_COLUMNS)  # fmt: skip
    scores = {0: [[1.0, 0.0, 0.0]], 2: [[1.0, 1.0, 0.0]]}
    examples = lambda task, arm, rate, seeds: np.array(scores[seeds[0]])
    table = breakdown_table(record, runs, {"t": Breakdown("d", [5, 7, 7])}, examples)
    assert table[["group", "n", "mean"]].to_numpy().tolist() == [[5, 2, 1.0], [7, 2, 0.25]]


def test_a_breakdown_of_the_wrong_size_is_refused(monkeypatch):
    monkeypatch.setattr(First, "breakdown", lambda self, test: Breakdown("d", [1, 2]))
    with pytest.raises(ConfigError, match="tasks.t: breakdown: .* for each of the 4 test examples"):
        read_breakdown(First(), First().load(), "t")


def test_references_are_worked_out_once_and_kept(run, tmp_path, monkeypatch):
    """Once for the cells that share their data; a resumed study keeps what it has."""
    calls = []
    references = First.references
    counted = lambda self, data: calls.append(self) or references(self, data)
    monkeypatch.setattr(First, "references", counted)
    run(tmp_path / "study")
    assert [task.length for task in calls] == [4, 6]
    tasks = load_study(tmp_path / "study").record.tasks
    expected = Reference("majority", 0.25, "always the same"), Reference("oracle", 1.0)
    assert [tasks[cell].references for cell in CELLS] == [expected] * 4
    run(tmp_path / "study")
    assert len(calls) == 2


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_an_interrupted_grid_ends_with_equal_tables(run, tmp_path, share):
    """Families, groups and references too; and again when seeds are added."""
    reported = []
    run(tmp_path / "whole", listener=reported.append)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", listener=interrupting(round(share * (len(reported) - 1))))
    assert not (tmp_path / "cut/families.csv").exists()
    run(tmp_path / "cut")
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
    more = VALUES | {"study": VALUES["study"] | {"eval_seeds": 7}}
    for folder in ("cut", "whole"):
        run(tmp_path / folder, more)
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
    assert set(load_study(tmp_path / "cut").families["n"]) == {7}


def test_a_study_without_axes_or_groups_has_no_such_tables(run, tmp_path, monkeypatch):
    monkeypatch.setattr(First, "breakdown", Task.breakdown)
    run(tmp_path / "study", with_entry(axes={}))
    study = load_study(tmp_path / "study")
    assert study.families is None and study.breakdown is None


# --- averages on made-up tables


def test_an_average_needs_all_cells_of_a_seed():
    """A seed that lacks a cell is left out of the arm's mean, of the baseline's it is not; a cell
    that lacks the arm is left out of both."""
    record, runs, *_ = make_family({"model.width": (16, 32)}, arms=("K=V", "copies"))
    one, two = record.tasks
    gone = (runs.task == two) & (runs.arm == "K=V") & (runs.seed == 100)
    scores = seed_scores(record, runs[~gone])
    got = grids.average(record, scores, [one, two], "K=V")
    full = grids.average(record, seed_scores(record, runs), [one, two], "K=V")
    assert (got["n"], full["n"], got["cells"]) == (5, 6, 2)
    own = (scores[one]["K=V"] + scores[two]["K=V"])[1:] / 2
    base = (scores[one]["separate"] + scores[two]["separate"]) / 2
    assert np.isclose(got["delta"], own.mean() - base.mean())
    del scores[two]["copies"]
    alone = grids.average(record, scores, [one, two], "copies")
    only = (scores[one]["copies"] - scores[one]["separate"]).mean()
    assert alone["cells"] == 1 and np.isclose(alone["delta"], only)


def test_the_average_of_one_cell_is_the_row_of_the_summary():
    record, runs, costs, *_ = make_family({"model.width": (16,)})
    row = summarise(record, runs, costs).set_index("arm").loc["Q=K"]
    got = grids.average(record, seed_scores(record, runs), list(record.tasks), "Q=K")
    for name in ("mean", "ci_low", "ci_high", "delta"):
        assert np.isclose(got[name], row[name])


def test_scores_of_other_units_are_not_averaged():
    record, runs, *_ = make_family({"model.width": (16, 32)})
    name, task = next(iter(record.tasks.items()))
    other = dataclasses.replace(task.outcome, unit="nats/token")
    record = record.with_task(name, outcome=other)
    assert grids.family_table(record, runs).empty


# --- tasks of other people

OWN = '''
import dataclasses
from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms
from qkv_jax.tasks import register
from qkv_jax.tasks.generated.sequences import Reverse

@register("my_own_task")
@dataclasses.dataclass(frozen=True)
class Mine(Reverse):
    title = "Mine"

def get_config():
    axes = {"model.width": (8, 16)}
    published = {"Somebody et al. 2026, table 1": {"copies": 0.5}}
    return tree({
        "name": "own", "model": {"layers": 1, "width": 8, "heads": 2},
        "train": {"steps": 8, "report_every": 4, "batch_size": 4},
        "arms": tie_arms("separate", "copies"),
        "tasks": {"mine": {"kind": "my_own_task", "axes": axes, "published": published,
                           "options": {"length": 6, "outcome_kind": "mean"}}},
        "study": {"protocol": "fixed", "baseline": "separate", "learning_rates": (1e-3, 1e-2),
                  "tune_seeds": 1, "eval_seeds": 5},
    })
'''


def test_a_config_file_may_bring_its_own_task(run, tmp_path, monkeypatch):
    """From another folder: the command takes the file; the study it makes can be run, resumed,
    reported, and, once the task is registered again, read back with its models."""
    (tmp_path / "own.py").write_text(OWN)
    command = [sys.executable, "-m", "experiments.ablate", "--config=own.py", "--plan"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mine, 2 cells" in done.stdout and "width=16" in done.stdout

    monkeypatch.setitem(REGISTRY, "my_own_task", None)  # so that it is forgotten afterwards
    values = runpy.run_path(str(tmp_path / "own.py"))["get_config"]().to_dict()
    for _ in range(2):
        work = run(tmp_path / "study", values)
    study = load_study(tmp_path / "study")
    record, summary = work.record, summarise(work.record, work.runs)
    path = write_report(tmp_path / "study", record, work.runs, summary, study.curve, dpi=30)
    published = {"Somebody et al. 2026, table 1": {"copies": 0.5}}
    assert all(task.published == published for task in work.record.tasks.values())
    # As a column of the tables, not only among the words of the config.
    assert 'class="published">Somebody et al. 2026, table 1</th>' in path.read_text()
    encoder, _ = study.model("mine, width=16", "copies")
    assert encoder.config.width == 16
    monkeypatch.delitem(REGISTRY, "my_own_task")
    line = "tasks.mine.kind: given 'my_own_task'; no task of that kind is registered; import the"
    with pytest.raises(ConfigError, match=line):
        load_study(tmp_path / "study").model("mine, width=16", "copies")
