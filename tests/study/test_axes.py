"""Axes make grids of tasks, each on its own; a study of them says what its tables say."""

import dataclasses
import functools
import io
import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from qkv_jax.config import ConfigError
from qkv_jax.config_files import tree
from qkv_jax.model.stems import TokenStem
from qkv_jax.study.axes import expand
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import grids
from qkv_jax.study.protocol.breakdown import breakdown_table, read_breakdown
from qkv_jax.study.protocol.summary import seed_scores, summarise
from qkv_jax.study.report import estimate
from qkv_jax.study.report.page import write_report
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.tasks.base import (
    REGISTRY,
    Breakdown,
    Data,
    Outcome,
    Reference,
    Task,
    keys_schedule,
)
from qkv_jax.training.population import Population, RunResult
from tests.support.studies import tiny_study
from tests.support.studies.synthetic_study import Anything, make_family
from tests.support.studies.tiny_study import TINY

ROOT = pathlib.Path(__file__).parents[2]
KIND = "first_symbol_of_a_test"


@dataclasses.dataclass(frozen=True)
class First(Task):
    """Say the first of some symbols; has two references and tells its examples apart."""

    length: int = 6
    margin: float = 0.01

    title = "First symbol"
    description = "Say the first symbol at every place."
    classes = 4

    @property
    def outcome(self):
        return Outcome("mean", "accuracy", "accuracy", self.margin, 0.25)

    @property
    def max_length(self):
        return self.length

    def stem(self, width):
        return TokenStem((4,), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length), int)}

    def load(self):
        inputs = np.zeros((4, self.length), np.int32)
        split = {"inputs": inputs, "targets": inputs}
        return Data(validation=split, test=split)

    def schedule(self, train, key, first, steps, batch_size):
        return keys_schedule(key, first, steps)

    def batch(self, train, entry):
        inputs = jnp.zeros((4, self.length), int)
        return {"inputs": inputs, "targets": inputs}

    def references(self, data):
        return (Reference("majority", 0.25, "always the same"), Reference("oracle", 1.0))

    def breakdown(self, test):
        return Breakdown("distance", [2, 1, 1, 2])


AXES = {"options.length": (4, 6), "model.width": (8, 16)}
VALUES = TINY | {
    "name": "grid",
    "model": {"layers": 1, "width": 32, "heads": 2},
    "tasks": {"first": {"kind": KIND, "options": {"length": 5}, "axes": AXES}},
}
CELLS = [f"first, length={n}, width={w}" for n in (4, 6) for w in (8, 16)]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(REGISTRY, KIND, First)


def with_entry(values=VALUES, **changes):
    return values | {"tasks": {"first": values["tasks"]["first"] | changes}}


# --- the grid


def test_an_entry_with_axes_stands_for_its_grid():
    """Cells in the order given, the last axis fastest; axis values go over the study's and the
    task's own; every cell has its own baseline and placebo."""
    study = Study(VALUES)
    assert [plan.name for plan in study.tasks] == CELLS
    for plan, (length, width) in zip(study.tasks, [(4, 8), (4, 16), (6, 8), (6, 16)], strict=True):
        assert plan.task.length == length
        assert [arm.name for arm in plan.arms] == ["separate", "copies", "placebo"]
        assert {arm.trainer.model_config.width for arm in plan.arms} == {width}
    tasks = study.describe().tasks
    assert {tasks[cell].family for cell in CELLS} == {"first"}
    assert tasks[CELLS[1]].axes == {"options.length": 4, "model.width": 16}
    assert tasks[CELLS[1]].title == "First symbol, length=4, width=16"
    plain = Study(with_entry(axes={})).describe().tasks["first"]
    assert (plain.family, plain.axes, plain.title) == ("first", {}, "First symbol")


def test_dotted_and_nested_axes_are_the_same():
    """The nested form can be overridden on the command line; config files take both."""
    nested = {"options": {"length": (4, 6)}, "model": {"width": (8, 16)}}
    for axes in (AXES, nested):
        values = tree(with_entry(axes=axes)).to_dict()
        assert [plan.name for plan in Study(values).tasks] == CELLS
    again = json.loads(json.dumps(Study(VALUES).describe().config))
    assert [plan.name for plan in Study(again).tasks] == CELLS


values_of_any_kind = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(),
    st.text(max_size=40), st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.sampled_from("QKV"), st.sampled_from(["diag", "head"]), max_size=2),
)  # fmt: skip


@given(st.lists(values_of_any_kind, min_size=1, max_size=6, unique_by=repr))
def test_names_of_cells_are_unique_and_safe(values):
    """Whatever an axis holds, its cells' names can be folders and tell the cells apart."""
    try:
        cells = expand({"model.width": values, "options.length": (1, 2)}, Anything, "tasks.t")
    except ConfigError as error:  # two values that are equal, 0.0 and -0.0
        assert error.allowed == "each value once"
        return
    names = [cell.name("t") for cell in cells]
    assert len(set(names)) == len(names) == 2 * len(values)
    assert not any(c in name for name in names for c in "/\\\n")
    assert all(len(cell.label.split(", ")) == 2 for cell in cells)


def test_axes_that_would_read_alike_keep_their_whole_names():
    cells = expand({"model.dropout": (0.0,), "options.length": (3,)}, Anything, "tasks.t")
    assert cells[0].label == "dropout=0, length=3"
    task = dataclasses.make_dataclass("T", [("width", int)])
    cells = expand({"model.width": (8,), "options.width": (3,)}, task, "tasks.t")
    assert cells[0].label == "model.width=8, options.width=3"
    files = expand({"options.length": (("a/x.txt",), ("b/y.txt", "z"))}, Anything, "tasks.t")
    assert [cell.label for cell in files] == ["length=x.txt", "length=y.txt+z"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"axes": {"model.widht": (8,)}}, r"first.axes.model.widht: .*did you mean 'model.width'"),
        ({"axes": {"options.lenth": (8,)}}, r"unknown field; did you mean 'options.length'\?"),
        ({"axes": {"modle.width": (8,)}}, "an axis is a field of model, train, options"),
        ({"axes": {"width": (8,)}}, "an axis is a field of model, train, options"),
        ({"axes": {"model.width": ()}}, r"axes.model.width: given \(\); must hold at least one"),
        ({"axes": {"model.width": 8}}, "given 8; must be a list of values"),
        ({"axes": {"model.width": (8, 8)}}, "given 8; each value once"),
        ({"axes": {"model.dropout": (0.0, float("inf"))}}, "given inf; must be finite"),
        ({"axes": {"model": {"width": (8,)}, "model.width": (8,)}}, "is given twice"),
        ({"axes": {"train.learning_rate": (0.1,)}}, "the study tunes it in every cell"),
        ({"axes": {"model.tie": ("K=V",)}}, "arm 'separate' sets model.tie itself, .* undo the"),
        ({"axes": {"model.width": ("a",)}}, r"tasks.first, width=a, arm 'separate': model.width: "),
        (
            {"axes": {"train.steps": (8, 10)}},
            r"tasks.first, steps=10, arm 'separate': train.steps: given 10; must be a multiple",
        ),
        ({"published": {"A 2026": {"copeis": 1}}}, "published.A 2026: given 'copeis'; arms: sep"),
        ({"published": {"A 2026": {"copies": "x"}}}, "A 2026.copies: given 'x'; must be a finite"),
        ({"published": {"A 2026": 3}}, "must be a mapping from arms to numbers"),
    ],
)
def test_axes_that_cannot_be_are_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        Study(with_entry(**changes))


def test_two_tasks_of_one_name_are_refused():
    tasks = VALUES["tasks"] | {CELLS[0]: VALUES["tasks"]["first"] | {"axes": {}}}
    with pytest.raises(ConfigError, match="over again, or to some file systems the same"):
        Study(VALUES | {"tasks": tasks})


def test_cells_that_share_their_data_read_it_once(monkeypatch):
    """Width does not change the data, length does."""
    loads = []
    load = First.load
    monkeypatch.setattr(First, "load", lambda self: loads.append(self.length) or load(self))
    Study(VALUES).check_data()
    assert loads == [4, 6]


def test_the_plan_shows_families_and_their_cells():
    out = Console(width=100, file=io.StringIO())
    estimate.print_plan(Study(VALUES), out)
    lines = [" ".join(line.split()) for line in out.file.getvalue().splitlines()]
    family, cell = (next(line for line in lines if name in line)
                    for name in ("first, 4 cells", "length=6, width=8"))  # fmt: skip
    assert family.startswith("│ first, 4 cells │ 12 │ 36 │ 60 │ │ 8 │")
    assert cell.startswith("│ length=6, width=8 │ 3 │ 9 │ 15 │ 8 │ 2 │")


# --- a study of a grid


class Scripted(Population):
    """Stands for a population: test scores by rule; None diverges."""

    def __init__(self, rule, trainer, data, packing):
        self.rule, self.trainer = rule, trainer

    def train(self, wave, *, test, on_report, saves):
        finished = []
        for one in wave:
            copies = str(self.trainer.model_config.ties[0]) == "Q=K=V=X"
            value = self.rule(copies, self.trainer.model_config.width, one.seed)
            lost = value is None and test
            curve = np.full(2, np.nan if lost else 0.5 if value is None else value)
            scores = np.array([0.1, 0.3, 0.5, 0.7]) + curve[-1] - 0.4 if test else None
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            steps = np.array([4, 8])
            finished.append(RunResult(one, steps, curve, curve, lost, scores, params, 0.1))
        return finished


def rule(copies, width, seed):
    """`copies` loses less the wider; its seed 3 diverges at width 8."""
    if copies and width == 8 and seed == 3:
        return None
    return 0.8 - copies * (1.6 / width) + 0.01 * (seed % 7) + 0.002 * copies * (seed % 3)


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
        record, eval_seeds=(0, 1, 2), tasks={"t": dataclasses.replace(task, arms=("a",))}
    )
    runs = pd.DataFrame([("t", "a", "eval", s, "done") for s in (0, 2)],
                        columns=["task", "arm", "phase", "seed", "status"])  # fmt: skip
    scores = {0: [[1.0, 0.0, 0.0]], 2: [[1.0, 1.0, 0.0]]}
    examples = lambda task, arm, seeds: np.array(scores[seeds[0]])
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
    left = round(share * (len(reported) - 1))

    def interrupt(event):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", listener=interrupt)
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
    """A seed that lacks a cell is left out of both sides; so is a cell that lacks the arm."""
    record, runs, *_ = make_family({"model.width": (16, 32)}, arms=("K=V", "copies"))
    one, two = record.tasks
    gone = (runs.task == two) & (runs.arm == "K=V") & (runs.phase == "eval") & (runs.seed == 100)
    scores = seed_scores(record, runs[~gone])
    got = grids.average(record, scores, [one, two], "K=V")
    full = grids.average(record, seed_scores(record, runs), [one, two], "K=V")
    assert (got["n"], full["n"], got["cells"]) == (5, 6, 2)
    own = (scores[one]["K=V"] + scores[two]["K=V"])[1:] / 2
    base = (scores[one]["separate"] + scores[two]["separate"])[1:] / 2
    assert np.isclose(got["delta"], (own - base).mean())
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
        "study": {"baseline": "separate", "learning_rates": (1e-3, 1e-2), "tune_seeds": 1,
                  "eval_seeds": 5},
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
