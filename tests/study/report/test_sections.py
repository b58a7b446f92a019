"""A task's section: its sentences, the one figure that shows its verdicts best, one table, and the
others behind; and what the placebo of a race is compared with."""

import dataclasses
import html
import re

import numpy as np
import pytest

from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.hostile import run_study
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report import headlines, wording
from qkv_jax.tasks.base import Reference
from tests.support.studies.raced_study import race_record, steep
from tests.support.studies.report_pages import report
from tests.support.studies.synthetic_study import make_study

FEW = ("separate", "K=V", "Q=K", "copies", "placebo")


@pytest.mark.parametrize(("few", "first", "behind"), [
    (True, "forest", "the lattice of ties"), (False, "lattice", "the differences"),
])  # fmt: skip
def test_a_lattice_comes_first_where_most_of_the_ties_are_in_it(tmp_path, few, first, behind):
    record, runs, *rest = make_study(tasks=("text",))
    if few:
        task = dataclasses.replace(record.tasks["text"], arms=FEW)
        record, runs = dataclasses.replace(record, tasks={"text": task}), runs[runs.arm.isin(FEW)]
    text, _, _ = report(tmp_path, record, runs, *rest)
    section = text[text.index('<h2 id="text">') :]
    shown, more = section.split('<details class="more">', 1)
    assert re.findall('<figure class="([a-z-]+)"', shown) == [first]
    assert shown.count("<table>") == 1 and '<ul class="findings">' in shown
    summary = re.search("<summary>More: (.*?)</summary>", more)[1]
    assert behind in summary and summary.endswith("what the arms cost")
    for page in (text, (tmp_path / "report.md").read_text(encoding="utf-8")):
        places = [page.index(f"figures/{kind}-text.png") for kind in ("lattice", "forest")]
        assert (places[0] < places[1]) == (first == "lattice")


@pytest.mark.parametrize("task", ["text", "digits"])
def test_a_baseline_behind_a_simple_method_is_said_first(task):
    """Beyond the interval of its mean, on the side that is better: below of a loss, above of an
    accuracy."""
    record, runs, *_ = make_study(tasks=(task,))
    results = wording.all_rows(record, summarise(record, runs))
    row, better = results[task]["separate"], 1 if task == "digits" else -1
    assert record.tasks[task].higher_is_better == (better > 0) and row["ci_low"] < row["ci_high"]
    at = {"ahead": 1.01, "within": 0.99, "behind": -1.01}  # of the interval, from its middle
    middle, half = (row["ci_low"] + row["ci_high"]) / 2, (row["ci_high"] - row["ci_low"]) / 2
    values = [Reference(name, middle + better * place * half) for name, place in at.items()]
    said = headlines.warnings(record.with_task(task, references=tuple(values)), runs, results)
    (line,) = (line for line in said if "learned" in line)
    assert line.endswith("separate does worse than ahead: verdicts are about models that have not "
                         "learned what that knows.")  # fmt: skip
    assert said[1:] == headlines.warnings(record.with_task(task, references=()), runs, results)


def test_the_placebo_of_a_race_says_what_it_is_compared_with(tmp_path):
    record = race_record(2, seeds=12)
    runs, _ = run_study(record, steep((0.0, 0.4, 0.6), noise=1.0))
    text, summary, _ = report(tmp_path, record, runs, None, lambda *_: None)
    scores = evaluations(record, runs)["task", "separate"].values
    scores = scores[np.isfinite(scores)]
    mean = scores[: len(scores) // 2].mean()
    said = re.search("half of separate's seeds against the first, whose mean is (\\d[.]\\d)",
                     html.unescape(text))  # fmt: skip
    assert float(said[1]) == pytest.approx(mean, abs=0.051)
    row = summary.set_index("arm").loc["placebo"]
    assert np.isnan(row["learning_rate"]) and row["mean"] - row["delta"] == pytest.approx(mean)
