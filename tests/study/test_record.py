"""study.json as a record: what is written is read, and a file that was damaged, or changed by hand,
is refused in one line that names the field."""

import copy
import json

import pytest

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.runtime.files import json_text
from qkv_jax.study.plan import Study
from qkv_jax.study.record import ArmRecord, StudyRecord
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir

VALUES = {
    "name": "kept",
    "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 10, "report_every": 2, "batch_size": 4},
    "arms": {"separate": {}, "K=V": {"model": {"tie": "K=V"}, "train": {"steps": 12}}},
    "tasks": {"grid": {
        "kind": "reverse",
        "options": {"length": 4, "test_examples": 8, "outcome_kind": "mean"},
        "axes": {"model.width": (8, 16)}, "published": {"somebody": {"K=V": 1.5}},
    }},
    "study": {"learning_rates": (0.001, 0.01), "protocol": "fixed"},
    "claims": {"1": {"text": "so.", "evidence": {"a": {
        "task": "grid, width=8", "arm": "K=V", "expect": "above", "measure": "antisymmetry",
        "margin": 0.1,
    }}}},
}  # fmt: skip
TASK = "grid, width=8"
RACE = {"learning_rates": (0.001, 0.01), "protocol": "race", "max_runs": 99, "max_minutes": 1.5}
# What a run adds.
LATER = {
    "command": "make", "versions": [{"at": "now", "packages": {"jax": "1"}}], "devices": ["cpu:0"],
    "platform": "cpu", "started": "now", "seconds": 1.5, "compiling": 0.5,
    "machine": {"devices": ["cpu:0"], "platform": "cpu"},
    "accepted": [{"at": "now", "changes": [{"field": "a", "before": 1, "now": 2}]}],
}  # fmt: skip
FACTS = {
    "data": {"files": {}, "splits": {}}, "data_notes": ["a note"],
    "references": [{"name": "chance", "value": 0.5, "note": ""}],
}  # fmt: skip
# Fields without which a record still says what it must.
MAY_LACK = {
    *LATER, "claims", "claims_dated", *FACTS, "steps_of", "same_program", "resolved", "cell",
    "axes", "published", "note", "overrides", "threshold", "chance", "higher_is_better",
    "max_runs", "max_minutes", "branch", "against",
}  # fmt: skip
MAY_BE_NULL = MAY_LACK - {"claims", "claims_dated", "accepted", "versions", "devices",
                          "steps_of", "same_program", "cell", "axes", "published", "note",
                          "overrides", "branch", "against"}  # fmt: skip


@pytest.fixture(scope="module", params=("fixed", "race"))
def values(request):
    """A study of each protocol."""
    return VALUES if request.param == "fixed" else VALUES | {"study": RACE}


@pytest.fixture(scope="module")
def kept(values, tmp_path_factory):
    """A study.json with every field that there is."""
    workdir = Workdir(tmp_path_factory.mktemp("kept") / "study")
    workdir.open(Study(values).describe())
    known = json.loads(workdir.study_file.read_text()) | LATER
    for task in known["tasks"].values():
        task |= FACTS
    return known


def places(kept):
    """The path of every field of the record, of one arm, of one task."""
    yield from ((name,) for name in kept)
    yield from (("arms", "K=V", name) for name in kept["arms"]["K=V"])
    yield from (("tasks", TASK, name) for name in kept["tasks"][TASK])
    yield from (("wave", name) for name in kept["wave"])
    yield from (("tasks", TASK, "resolved", "K=V", name) for name in ("model", "train"))


def changed(kept, path, change):
    known = copy.deepcopy(kept)
    inner = known
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    return known


def refusal(known, tmp_path):
    """The line with which the file is refused, None if it is read."""
    file = tmp_path / "study.json"
    file.write_text(json.dumps(known))
    try:
        load_study(tmp_path)
    except ConfigError as error:
        line = str(error)
        assert line.startswith(str(file)) and "\n" not in line
        return line
    return None


def test_what_is_written_is_read_to_the_byte(kept, values):
    text = json_text(kept)
    record = StudyRecord.read(json.loads(text))
    assert json_text(record.as_dict()) == text
    assert record.tasks[TASK].baseline == "separate" and record.tasks[TASK].grid == "grid"
    assert record.tasks[TASK].steps_for("K=V") == 12 and record.arms["K=V"].plain_tie is False
    assert list(record.only(TASK).tasks) == [TASK] and len(record.tasks) == 2
    begun = Study(values).describe()
    assert not {*LATER, "looks"} & begun.as_dict().keys()  # what is not known is not there


def test_a_field_that_is_missing_is_named(kept, tmp_path):
    for path in places(kept):
        line = refusal(changed(kept, path, lambda inner, name: inner.pop(name)), tmp_path)
        if path == ("format",):
            assert "a study's has the field format" in line
        elif path[-1] in MAY_LACK and path[0] != "wave":
            assert line is None, path
        else:
            must = "must hold " if path == ("tune_seeds",) else "must be "
            assert f": {'.'.join(path)}" in line and must in line, path


def test_a_field_of_another_kind_is_named(kept, tmp_path):
    for path in places(kept):
        if path[-1] == "higher_is_better":  # follows from the metric
            continue
        for wrong in (None, [[]], {"a": [1]}, -0.5):
            line = refusal(changed(kept, path, lambda i, n, w=wrong: i.update({n: w})), tmp_path)
            if line is None:
                null = wrong is None and path[-1] in MAY_BE_NULL
                assert null or right(path, wrong), (path, wrong)
            else:
                assert f": {'.'.join(path)}" in line, (path, wrong, line)


def right(path, value):
    """Whether it may be so after all: trees of anything, and numbers below 0."""
    anything = ("axes", "data", "overrides", "config", "model", "train")
    if isinstance(value, dict):
        return path[-1] in anything
    numbers = ("alpha", "failure_value", "threshold", "chance", "seconds", "compiling",
               "max_minutes")  # fmt: skip
    return value == -0.5 and path[-1] in numbers


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        (("tasks",), {}, "tasks: given {}; must hold at least one"),
        (("looks",), [], "looks: given []; must hold at least one"),
        (("tasks", TASK, "arms"), ["separate", "gone"], f"tasks.{TASK}.arms: given 'gone'; arms: "),
        (("tasks", TASK, "arms"), ["K=V"], "must hold the baseline, separate"),
        (("tasks", TASK, "margin"), -1.0, f"tasks.{TASK}.margin: given -1.0; must be a finite"),
        (("tasks", TASK, "kind"), "means", f"tasks.{TASK}.kind: given 'means'; did you mean"),
        (("arms", "K=V", "role"), "extra", "arms.K=V.role: given 'extra'; allowed: baseline"),
        (("config",), {"study": {}}, "config.tasks: given None; must be a mapping"),
        (("config",), {"study": {}, "tasks": {"a": 3}}, "config.tasks.a: given 3; must be a map"),
        (("versions",), [{"at": "now"}], "versions[0].packages: given None; must be given"),
        (("claims", "1", "text"), 3, "claims.1.text: given 3; must be a text"),
        (("accepted",), [{"at": "now", "changes": [{}]}], "accepted[0].changes[0].field: given"),
    ],
)
def test_what_does_not_belong_together_is_refused(kept, tmp_path, path, wrong, message):
    known = changed(kept, path, lambda inner, name: inner.update({name: wrong}))
    assert message in refusal(known, tmp_path)


def test_numbers_that_json_has_no_word_for_are_read(kept):
    known = changed(kept, ("tasks", TASK, "failure_value"), lambda i, n: i.update({n: "inf"}))
    known["tasks"][TASK]["references"][0]["value"] = None
    record = StudyRecord.read(known)
    assert record.tasks[TASK].outcome.failure_value == float("inf")
    assert record.tasks[TASK].references[0].value != record.tasks[TASK].references[0].value
    assert json_text(record.as_dict()) == json_text(known)


@pytest.mark.parametrize(
    ("role", "overrides", "plain"),
    [
        ("arm", {"model": {"tie": "K=V"}, "train": {}}, True),
        ("baseline", {}, True),
        ("arm", {"model.tie": "K=V"}, True),
        ("arm", {"model": {"tie": "K=V", "heads": 2}}, False),
        ("control", {"model": {"tie": "K=V"}}, False),
    ],
)
def test_a_plain_tie_differs_in_nothing_else(role, overrides, plain):
    assert ArmRecord("K=V", role, overrides=overrides).plain_tie is plain


def test_the_config_is_kept_as_it_was_given(kept, values):
    assert StudyRecord.read(kept).config == as_dict(Study(values).file)
