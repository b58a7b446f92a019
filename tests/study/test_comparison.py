"""Studies side by side: what can be compared is shown as each study has it, the rest is refused."""

import dataclasses
import io

import pytest
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.study.comparison.compare import compare
from qkv_jax.study.comparison.shown import console_table, forest, rows, write_comparison
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.results import StudyResults
from qkv_jax.study.run.workdir import Workdir
from tests.support.commands import Page
from tests.support.studies.synthetic_study import make_study


def study(path, *, tasks=("text", "digits"), seed=0, **changes):
    """A made-up study as `load_study` would give it: summary.csv read back."""
    record, runs, costs, _ = make_study(tasks=tasks, seed=seed)
    record = dataclasses.replace(record, **changes)
    summary = summarise(record, runs, costs)
    summary = summary.assign(verdict=summary["verdict"].map(str))
    found = object.__new__(StudyResults)
    found.record, found.summary, found.workdir = record, summary, Workdir(path)
    found.runs = runs
    return found


def with_task(one, task, **changes):
    one.record = one.record.with_task(task, **changes)
    return one


def test_each_study_is_shown_as_it_is(tmp_path):
    """Its own numbers beside the other's, in the table, on the page and in the figure."""
    one, two = study(tmp_path / "a/one"), study(tmp_path / "b/two", tasks=("text",), seed=1)
    found = compare([one, two])
    assert [*found.studies] == ["one", "two"] and found.tasks == ["text"]
    for name, each in found.studies.items():
        mine = found.table[found.table["study"] == name].set_index("arm")
        summary = each.summary[each.summary["task"] == "text"].set_index("arm")
        assert (mine["delta"].dropna() == summary["delta"].dropna()).all()
        assert [*mine["verdict"]] == [*summary["verdict"]]
    assert found.notes == ["Only in some: digits (one)."]
    page = write_comparison(tmp_path / "out", found, "qkv compare a b")
    text = " ".join(Page(page.read_text()).text.split())
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(console_table(found))
    printed = console.export_text()
    assert max(map(len, printed.splitlines())) <= 100
    for row in rows(found, "text"):
        assert row["arm"] in printed
        for cell in row["cells"]:
            assert cell["change"] in printed and f"{cell['verdict']}{cell['mean']}" in text
    assert (tmp_path / "out/comparison.csv").exists() and "qkv compare a b" in text
    axes = forest(found, "text").axes[0]
    arms = [label.get_text() for label in axes.get_yticklabels()]
    assert "separate" not in arms and "K=V" in arms
    drawn = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    deltas = found.table[found.table["arm"] != "separate"]["delta"].dropna()
    assert sorted(drawn) == sorted(deltas)


def test_what_the_studies_do_not_share_is_said(tmp_path):
    wide = {"separate": {"model": {"width": 64}, "train": {"steps": 9}}}
    narrow = {"separate": {"model": {"width": 32}, "train": {"steps": 9}}}
    one = with_task(study(tmp_path / "one"), "text", resolved=wide)
    two = with_task(study(tmp_path / "two", complete=False), "text", resolved=narrow)
    found = compare([one, two])
    assert found.differs == {"text": ["model.width: 64 in one, 32 in two"], "digits": []}
    assert found.notes == ["two is not finished."]


@pytest.mark.parametrize(("change", "line"), [
    (lambda two: setattr(two, "summary", None), "two'; has no results yet"),
    (lambda two: with_task(two, "text", data={"splits": {"test": "b"}}),
     "two: tasks.text.options: given None; read other files in one: these are other data, which "
     "cannot be compared"),
    (lambda two: setattr(two, "record", dataclasses.replace(two.record, baseline="K=V")),
     "two: tasks.text.baseline: given 'K=V'; is 'separate' in one: these cannot be compared"),
    (lambda two: with_task(two, "text", outcome=dataclasses.replace(
        two.record.tasks["text"].outcome, metric="accuracy", unit="")),
     "two: tasks.text.metric: given 'accuracy'; is 'loss' in one: these cannot be compared"),
    (lambda two: with_task(two, "text", outcome=dataclasses.replace(
        two.record.tasks["text"].outcome, margin=0.7)),
     "two: tasks.text.margin: given 0.7; is 0.02 in one: these cannot be compared"),
    (lambda two: setattr(two, "record", dataclasses.replace(
        two.record, tasks={"other": two.record.tasks["text"]})),
     "must share a task; one has text and digits; two has other"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(tmp_path, change, line):
    one = with_task(study(tmp_path / "one"), "text", data={"splits": {"test": "a"}})
    two = study(tmp_path / "two")
    change(two)
    with pytest.raises(ConfigError) as refused:
        compare([one, two])
    assert line in str(refused.value)


def test_two_studies_at_least_and_none_twice(tmp_path):
    one = study(tmp_path / "one")
    with pytest.raises(ConfigError, match="runs: given 1; must be 2 to 7 folders of studies"):
        compare([one])
    with pytest.raises(ConfigError, match="one'; was given twice"):
        compare([one, study(tmp_path / "other/../one")])
    named = compare([study(tmp_path / "a/run"), study(tmp_path / "b/run")]).studies
    assert [*named] == ["a/run", "b/run"]
