"""Axes make grids of tasks, each on its own, with names that are safe."""

import dataclasses
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.config_files import tree
from qkv_jax.study.axes import expand
from qkv_jax.study.plan import Study
from qkv_jax.study.report import estimate
from qkv_jax.training.speed import USUAL
from tests.support.studies import small_grid
from tests.support.studies.small_grid import AXES, CELLS, VALUES, First, with_entry
from tests.support.studies.synthetic_study import Anything

registered = small_grid.registered


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
    estimate.print_plan(Study(VALUES), USUAL, out)
    lines = [" ".join(line.split()) for line in out.file.getvalue().splitlines()]
    family, cell = (next(line for line in lines if name in line)
                    for name in ("first, 4 cells", "length=6, width=8"))  # fmt: skip
    assert family.startswith("│ first, 4 cells │ 12 │ 36 │ 60 │ │ 4 │")
    assert cell.startswith("│ length=6, width=8 │ 3 │ 9 │ 15 │ 8 │ 1 │")
