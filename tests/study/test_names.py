"""Names of studies, arms and tasks: folders, cells of tables and words of command lines at once."""

import copy
import pathlib
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.config import ConfigError
from qkv_jax.study.names import LONGEST, check_apart, check_name, fault_of, folded
from qkv_jax.study.plan import Study
from tests.support.studies.tiny_study import TINY

VALUES = TINY | {
    "tasks": {"one": {"kind": "reverse", "options": {"length": 6}}},
    "study": {
        "protocol": "fixed",
        "learning_rates": (1e-3, 1e-2),
        "tune_seeds": 1,
        "eval_seeds": 5,
    },
}
GOOD = (
    "Q=K", "K=V", "Q=X,K=V", "copies, learned scale", "Q=K + head (Courtois)", "K=V + lowrank:4",
    "None", "NA", "nan", "true", "01", "1e5", "Q'", "Größe", "注意", "a.b", "W_O; none", "$x", "#1",
    "console", "x" * LONGEST,
)  # fmt: skip
BAD = (
    "", " ", ".", "..", "a/b", "a\\b", "a\nb", "a\0", "a\x1b[2J", "a\tb", " a", "a ", ".a", "a.",
    "-a", "--help", "a\u00a0b", "a\u200bb", "a\u2028b", "\ud800", "a<b", "a>b", 'a"b', "a|b", "a?",
    "a*", "CON", "nul", "Aux.txt", "com1", "LPT9.x", "x" * (LONGEST + 1), "ü" * 101, 3, None,
)  # fmt: skip


def renamed(what, name):
    """The study with one of its names changed."""
    values = copy.deepcopy(VALUES)
    if what == "study":
        return values | {"name": name}
    values[what + "s"] = {**values[what + "s"], name: next(iter(values[what + "s"].values()))}
    return values


@pytest.mark.parametrize("what", ["study", "arm", "task"])
def test_names_that_some_system_does_not_take_are_refused_and_all_others_are_not(what):
    for name in GOOD:
        Study(renamed(what, name))
    for name in BAD:
        with pytest.raises(ConfigError) as refused:
            Study(renamed(what, name))
        field = {"study": "name", "arm": "arms", "task": "tasks"}[what]
        assert refused.value.field == field and refused.value.given == name
        assert "\n" not in str(refused.value)


def test_tasks_of_one_title_are_told_apart_by_their_names():
    """Another task, and the cells of one grid, are called what they are."""
    entry = VALUES["tasks"]["one"]
    title = next(iter(Study(VALUES).describe().tasks.values())).title
    two = Study(VALUES | {"tasks": {"one": entry, "two": entry}}).describe().tasks
    assert [two[name].title for name in two] == [f"{title} (one)", f"{title} (two)"]
    grid = Study(VALUES | {"tasks": {"one": entry | {"axes": {"model.width": (8, 16)}}}})
    assert {task.family_title for task in grid.describe().tasks.values()} == {title}


def test_names_of_cells_and_matched_arms_are_checked_as_well():
    entry = VALUES["tasks"]["one"] | {"axes": {"model.width": (8, 16)}}
    with pytest.raises(ConfigError, match="tasks: given .*bytes; must have 200 at most"):
        Study(VALUES | {"tasks": {"x" * 195: entry}})
    matched = {"study": VALUES["study"] | {"match": "params"}}
    with pytest.raises(ConfigError, match="arms: given .*params matched.*bytes; must have 200"):
        Study(renamed("arm", "x" * 195) | {"arms": {
            "separate": {}, "x" * 195: {"model": {"tie": "copies"}}}} | matched)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("Separate",), "is 'separate' over again"),
        (("\u00e9", "e\u0301"), "or to some file systems the same"),
        (("straße", "STRASSE"), "or to some file systems the same"),
        (("placebo",), "is what the study adds itself"),
        (("Placebo",), "is what the study adds itself"),
        (("copies.CSV",), "must not end as a file's name does"),
    ],
)
def test_arms_that_would_share_a_file_are_refused(names, line):
    values = renamed("arm", names[0])
    for name in names[1:]:
        values["arms"][name] = {}
    with pytest.raises(ConfigError, match=line):
        Study(values)


def test_tasks_that_would_share_a_folder_are_refused():
    with pytest.raises(ConfigError, match="tasks: given 'ONE'; is 'one' over again"):
        Study(renamed("task", "ONE"))


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_good_name_is_a_file_and_two_good_names_are_two(tmp_path_factory, name, other):
    if fault_of(name) or fault_of(other):
        return
    folder = tmp_path_factory.getbasetemp() / "names"
    (folder / name).mkdir(parents=True, exist_ok=True)
    assert (folder / name).resolve().parent == folder.resolve() and name in {
        path.name for path in folder.iterdir()
    }
    if name != other and folded(name) == folded(other):
        with pytest.raises(ConfigError):
            check_apart("arms", (name, other))


def test_all_names_of_the_configs_that_come_with_it_are_good():
    root = pathlib.Path(__file__).parents[2] / "configs"
    seen = 0
    for file in (*root.glob("*.py"), *root.glob("papers/*.py")):
        get_config = runpy.run_path(str(file)).get("get_config")
        values = get_config().to_dict() if get_config else {}
        for name in (*values.get("arms", ()), *values.get("tasks", ())):
            check_name("name", name)
            seen += 1
        check_apart("arms", values.get("arms", ()))
    assert seen > 100
