"""The report says what the summary says, no more, and holds together as one file."""

import dataclasses
import hashlib
import html
import itertools
import re

import numpy as np
import pandas as pd
import pytest

from qkv_jax.output import formats
from qkv_jax.output.html import markdown
from qkv_jax.study.protocol.contrasts import contrast_table, contrasted
from qkv_jax.study.protocol.summary import MORE_STEPS
from qkv_jax.study.report import sentences, wording
from qkv_jax.study.report.matrix import verdict_matrix
from qkv_jax.study.report.paper import latex
from tests.support.studies.report_pages import Page, report, row
from tests.support.studies.synthetic_study import make_study

ODD = [("<b>bold</b> & K=V, `x|y`", "K=V"), ("$cost$_5", "Q=K")]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    text, summary, record = report(folder, *make_study(extra_arms=ODD))
    return folder, text, summary, record


def test_the_page_is_one_file_that_fetches_nothing(full):
    folder, text, _, _ = full
    page = Page(text)
    assert page.addresses
    shown, linked = page.addresses, {a for a in page.addresses if (folder / a[:99]).is_file()}
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) or a in linked for a in shown)
    written = {str(f.relative_to(folder)) for name in ("figures", "tables")
               for f in (folder / name).iterdir()}  # fmt: skip
    assert linked == written
    assert not {"link", "script", "iframe", "object", "base"} & set(page.tags)
    assert "@import" not in text and "url(" not in text
    assert page.tags.count("html") == page.tags.count("main") == 1


@pytest.mark.parametrize(
    "given, title, lead",
    [
        ({}, "Are Q, K and V three copies of the input?", "And what does it cost to equate"),
        ({"question": "Does <b>XSA</b> help?"}, "Does <b>XSA</b> help?", "Every arm is"),
        ({"title": "XSA", "question": "Is it so?"}, "XSA", "Is it so? Every arm is compared"),
    ],
)
def test_a_report_asks_the_question_of_its_study(tmp_path, given, title, lead):
    """And answers that of copies where no other is asked, and they are an arm."""
    record, *rest = make_study(tasks=("text",))
    text, _, _ = report(tmp_path, record, *rest, config=record.config | given)
    page, words = Page(text), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"<h1>{html.escape(title)}</h1>" in text and lead in page.text
    assert words.startswith(f"# {markdown(title)}\n")
    assert ("three copies of the input do" in page.text) == (not given)


def test_without_copies_and_a_question_a_report_has_the_studys_name():
    record = make_study(tasks=("text",))[0]
    arms = {name: arm for name, arm in record.arms.items() if name != "copies"}
    record = dataclasses.replace(record, arms=arms)
    assert (record.title, record.question) == (f"Study “{record.name}”", "")
    assert not record.asks_of_copies


def test_every_figure_is_there_as_svg_and_png_and_is_described(full):
    folder, text, _, record = full
    page = Page(text)
    names = {p.stem for p in (folder / "figures").iterdir()}
    expected = {
        f"{kind}-{task}"
        for task in record.tasks
        for kind in ("lattice", "forest", "learning-rates", "learning-curves", "cost")
    }
    assert names == expected | {"solving-recall"}
    for name in names:
        assert (folder / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"(figures/{name}.png)" in (folder / "report.md").read_text(encoding="utf-8")
    assert len(page.alts) == len(names) and all(len(alt) > 40 for alt in page.alts)


def test_a_contrast_is_answered_in_a_line(tmp_path):
    """At the top, and as a table of its own on each task that has both arms."""
    record, runs, *rest = make_study(tasks=("text", "digits"))
    arms = record.arms | {"Q=K=V": dataclasses.replace(record.arms["Q=K=V"], against="Q=K")}
    record = dataclasses.replace(record, arms=arms)
    table = contrast_table(record, runs)
    table.to_csv(tmp_path / "contrasts.csv", index=False)
    page = Page(report(tmp_path, record, runs, *rest)[0])
    there = [task for task in record.tasks if contrasted(record, task)]
    assert there and [*table["task"]] == there
    for found, task in zip(table.to_dict("records"), there, strict=True):
        title = record.tasks[task].title
        assert f"{title}: “Q=K=V” against “Q=K”: {found['verdict']} (" in page.text
        digits = wording.decimals(record.tasks[task].outcome.margin)
        low = formats.number(found["delta_low"], digits)
        assert f"[{low}, " in page.text
    assert page.text.count("Arms against each other") == len(there)
    assert "“Q=K=V” against “Q=K”" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_tables_for_a_paper_say_what_the_page_says(full):
    """The same cells; in LaTeX with true minus signs, verdicts marked and names escaped."""
    folder, text, summary, record = full
    page = Page(text)
    for task, spec in record.tasks.items():
        table = pd.read_csv(folder / "tables" / f"{task}.csv", dtype=str, keep_default_na=False)
        assert set(spec.arms) <= set(table["arm"])
        for cell in table.to_numpy().ravel():
            assert re.sub(r"\s+", " ", cell) in page.text
        lines = (folder / "tables" / f"{task}.tex").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(r"\begin{tabular}{llr") and lines[1] == r"\toprule"
        body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
        assert len(body) == len(table)
        for line, arm, verdict in zip(body, table["arm"], table["verdict"], strict=True):
            assert latex(arm) in line
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
            assert ("uparrow" in line) == (verdict == "better")
            assert ("downarrow" in line) == (verdict == "worse")
            assert not set("−≤–×±∞…") & set(line)
    assert latex("<b>bold</b> & K=V, `x|y`") == r"$<$b$>$bold$<$/b$>$ \& K=V, `x\textbar{}y`"
    assert latex("$cost$_5 −0.1 %") == r"\$cost\$\_5 $-$0.1 \%"
    methods = (folder / "tables" / "methods.txt").read_text(encoding="utf-8")
    assert "Placebo. " in methods and "What the intervals leave out. " in methods
    assert (folder / "tables" / "references.bib").read_text().count("@software{") == 3


def test_the_matrix_has_every_comparison_and_the_decisive_tasks_first(full):
    """With verdict, difference and interval of the summary; nothing where an arm is not."""
    _, text, summary, record = full
    results = wording.all_rows(record, summary)
    found = verdict_matrix(record, results)
    told = {task: np.mean([each["verdict"].kind in ("worse", "better") for each in rows.values()])
            for task, rows in results.items()}  # fmt: skip
    order = [column["name"] for column in found["columns"]]
    assert [told[name] for name in order] == sorted(told.values(), reverse=True)
    assert [text.index(f'<a href="#{name}">') for name in order] == sorted(
        text.index(f'<a href="#{name}">') for name in order
    )
    for line in found["rows"]:
        for task, cell in zip(order, line["cells"], strict=True):
            own = results[task].get(line["arm"])
            assert (cell is None) == (own is None)
            if own is None or own["verdict"].kind == "baseline" or record.tasks[task].solving:
                continue
            digits = wording.decimals(record.tasks[task].outcome.margin)
            assert cell["verdict"] == str(own["verdict"])
            assert cell["change"] == formats.number(own["delta"], digits, signed=True)
            ends = (formats.number(own[f"delta_{end}"], digits) for end in ("low", "high"))
            assert cell["span"] == f"[{', '.join(ends)}]"


def test_findings_name_every_arm_of_every_task_once(full):
    _, _, summary, record = full
    results = wording.all_rows(record, summary)
    for task, spec in record.tasks.items():
        named = [a for f in sentences.task_findings(record, results, task) for a in f.arms]
        assert sorted(named) == sorted(set(spec.arms) - {record.baseline})
        for finding in sentences.task_findings(record, results, task):
            assert all(arm in finding.text for arm in finding.arms)


def test_all_findings_and_arms_reach_page_and_markdown(full):
    folder, text, summary, record = full
    results = wording.all_rows(record, summary)
    page, md = Page(text), (folder / "report.md").read_text(encoding="utf-8")
    for task, spec in record.tasks.items():
        for finding in sentences.task_findings(record, results, task):
            assert re.sub(r"\s+", " ", finding.text) in page.text
            assert markdown(finding.text) in md
        for arm in spec.arms:
            assert re.sub(r"\s+", " ", arm) in page.text and markdown(arm) in md


def test_no_sentence_says_more_than_its_verdict(full):
    _, _, summary, record = full
    results = wording.all_rows(record, summary)
    for task in record.tasks:
        verdicts = summary[summary.task == task].set_index("arm")["verdict"]
        for finding in sentences.task_findings(record, results, task):
            kinds = {verdicts[arm].kind for arm in finding.arms}
            assert kinds == {finding.kind}
            words = finding.text.replace("nor equivalence", "").replace("show equivalence", "")
            for word, kind in (
                ("equivalent", "equivalent"),
                ("worse", "worse"),
                ("better", "better"),
                ("undecided", "undecided"),
            ):
                assert (word in words.lower()) == (finding.kind == kind), finding.text


def test_sentences_read_as_they_should():
    record = make_study(tasks=("text", "digits", "recall"))[0]
    text, digits, recall = record.tasks.values()
    base = {"n_solved": 6, "n": 6}

    def say(spec, **values):
        return sentences.arm_finding(record, spec, row(**values), base).text

    assert say(text) == (
        "Tying K=V costs 0.310 nats per byte (95 % interval 0.270 to 0.350; worse, "
        "adjusted p = 0.0004, 6 seeds)."
    )
    # The interval of a gain is that of the gain, whichever way the metric runs.
    assert "gains 0.310 nats per byte (95 % interval 0.270 to 0.350; better" in say(
        text, delta=-0.31, delta_low=-0.35, delta_high=-0.27, verdict="better"
    )
    assert "gains 0.310 in accuracy (95 % interval 0.270 to 0.350; better" in say(
        digits, verdict="better"
    )
    undecided = say(text, verdict="undecided (power)", seeds_to_decide=14.0, delta=-0.01,
                    delta_low=-0.05, delta_high=0.03)  # fmt: skip
    assert "measured gain 0.010 nats per byte (95 % interval −0.030 to 0.050" in undecided
    assert "Neither a difference nor equivalence could be shown" in undecided
    assert "about 14 seeds to decide" in undecided
    tuning = say(text, verdict="undecided (tuning)", seeds_to_decide=12.0)
    assert "luck in that choice may have cost allows no verdict; about 12 seeds would" in tuning
    assert "no number of evaluation seeds would." in say(text, verdict="undecided (tuning)")
    many = say(text, verdict="undecided (power)", seeds_to_decide=140.0)
    assert "it would take more than 100 seeds to decide" in many
    assert "edge of the grid" in say(text, verdict="undecided (edge)")
    assert "this task cannot tell" in say(text, verdict="undecided (ceiling)", delta=0.0)
    solved = say(recall, verdict="worse", n_solved=0, solve_low=0.0, solve_high=0.46)
    assert solved.startswith("Tying K=V solves the task on 0 of 6 seeds, separate on 6 of 6")


@pytest.mark.parametrize(
    "verdict, words",
    [
        ("equivalent", "as it should"),
        ("worse", "read the rest with care"),
        ("better", "read the rest with care"),
        ("undecided (power)", "no difference was shown"),
        ("undecided (edge)", "says nothing"),
    ],
)
def test_the_placebo_is_judged_by_its_verdict(verdict, words):
    record = make_study(tasks=("text",))[0]
    placebo = row(arm="placebo", tie="separate", role="placebo", verdict=verdict)
    text = sentences.placebo_finding(record, record.tasks["text"], placebo, {}).text
    assert text.startswith("The placebo (separate against itself") and words in text
    assert ("as it should" in text) == (verdict == "equivalent")


def test_odd_names_are_escaped(full):
    folder, text, _, _ = full
    assert "b" not in Page(text).tags  # "<b>" in a name is no markup
    assert html.escape(ODD[0][0], quote=False) in text
    md = (folder / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in md
    tables = [line for line in md.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    for _, group in itertools.groupby(zip(tables, widths, strict=True), lambda x: x[1]):
        head, rule, *body = (line for line, _ in group)
        assert set(rule) <= set("|-:") and body and head.startswith("| arm |")
    assert not re.search(r"(?<!\\)\$", md.split("## Environment")[0])


def test_differences_are_said_in_steps_as_well_in_every_table_of_results(full):
    folder, text, summary, _ = full
    md = (folder / "report.md").read_text(encoding="utf-8")
    heads = [line for line in md.splitlines() if line.startswith("| arm | verdict | rate |")]
    assert len([head for head in heads if "| more steps \\[95 %\\] |" in head]) == 3
    known = summary[summary["more_steps"].notna()]
    assert len(known) == len(summary) - 3  # all but the baselines
    assert 0 < np.isinf(known["more_steps"]).sum() < len(known)
    page = Page(text).text
    for said in known.to_dict("records"):
        assert markdown(wording.more_steps(said)) in md and wording.more_steps(said) in page
    assert "lower bounds of how many steps more" in page


def test_steps_are_put_into_words():
    def say(*values):
        return wording.more_steps(dict(zip(MORE_STEPS, values, strict=False)))

    assert say() == "" and say(12.3) == "+12 %" and say(-7.7, -20.0, 4.2) == "−8 % [−20, +4]"
    assert say(1240.0, 300.0, np.inf) == "+1,240 % [+300, beyond]"
    assert say(-60.0, -100.0, -10.0) == "−60 % [beyond, −10]"
    assert say(np.inf, 400.0, np.inf) == "beyond (> +400 %)"
    assert say(-100.0, -100.0, -80.0) == "beyond (< −80 %)"
    assert say(np.inf) == say(-100.0, -100.0, -100.0) == "beyond"


def test_a_study_without_curves_has_a_report_without_steps(tmp_path):
    record, runs, costs, _ = make_study(tasks=("text", "recall"))
    text, _, _ = report(tmp_path, record, runs, costs, lambda *run: None)
    assert "more steps" not in text.lower()


def test_a_banner_stands_on_an_unfinished_study_only(full, tmp_path):
    record, runs, costs, curve = make_study(tasks=("digits",))
    half = runs[runs.seed.isin(record.tune_seeds) | (runs.arm < "Q")]
    text, _, _ = report(tmp_path, record, half, costs, curve, complete=False)
    assert "not finished" in text and "No verdict yet on" in text
    assert "not finished" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "not finished" not in full[1]


def test_failures_and_edges_are_said_before_the_findings(tmp_path):
    record, runs, costs, curve = make_study(tasks=("text",))
    bad = (runs.arm == "K=X") & runs.seed.isin(record.eval_seeds[:2])
    runs.loc[bad, ["status", "validation", "test"]] = ["diverged", 5.55, 5.55]
    runs.loc[(runs.arm == "Q=V") & (runs.learning_rate == 0.01), "validation"] = 1.0
    text, summary, _ = report(tmp_path, record, runs, costs, curve)
    assert summary.set_index("arm").loc["Q=V", "edge"] == "high"
    first = Page(text).text.split("Equating all of X, Q, K and V (copies) costs")[0]
    assert "diverged or failed and count with the value 5.55: K=X (2 of 6)" in first
    assert "edge of the grid for Q=V (high end)" in first


def test_studies_of_unusual_shape_are_reported(tmp_path):
    # One task and five seeds; an arm whose scores are all missing; one tie that is a schedule.
    record, runs, costs, curve = make_study(tasks=("text",), seeds=5)
    runs = runs[~((runs.arm == "K=V") & runs.seed.isin(record.eval_seeds))]
    scheduled = dataclasses.replace(record.arms["Q=V"], tie="Q=V*1|separate*1")
    record = dataclasses.replace(record, arms=record.arms | {"Q=V": scheduled})
    text, _, _ = report(tmp_path, record, runs, costs, curve)
    assert "No verdict yet on K=V." in Page(text).text
    # No runs, no costs, no curves at all.
    nothing = dataclasses.replace(record, complete=False, seconds=None)
    (tmp_path / "empty").mkdir()
    report(tmp_path / "empty", nothing, runs.iloc[:0], None, lambda *a: None)
    # No copies, two arms: no lattice, no headline, no crash; all scores the same.
    small, runs, costs, curve = make_study(tasks=("digits",))
    small = small.with_task("digits", arms=("separate", "placebo"))
    runs["test"] = 1.0
    (tmp_path / "same").mkdir()
    text, summary, _ = report(tmp_path / "same", small, runs, costs, curve)
    assert "undecided (ceiling)" in text and "lattice-" not in text
    assert not (tmp_path / "same/figures/lattice-digits.svg").exists()


def test_the_same_study_gives_the_same_bytes(tmp_path):
    record, runs, costs, curve = make_study(tasks=("recall",))
    prints = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report(tmp_path / name, record, runs, costs, curve)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        prints.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert prints[0] == prints[1]


def test_numbers_are_written_alike():
    assert formats.number(-0.0004, 3, signed=True) == "0.000"
    assert formats.number(-1.5, 2) == "−1.50" and formats.number(0.31, 2, True) == "+0.31"
    assert formats.number(np.nan) == "–" and wording.p_value(None) == "–"
    assert [wording.p_value(p) for p in (3e-5, 0.0004, 0.0123, 0.24, 1)] == [
        "< 0.0001", "0.0004", "0.012", "0.24", "1.00",
    ]  # fmt: skip
    assert [wording.rate(r) for r in (0.003, 3e-5, 0.01)] == ["0.003", "3e-5", "0.01"]
    assert [formats.count(c) for c in (812, 1234567, 99_960)] == ["812", "1.23 M", "100 k"]
    assert formats.join(["K=V", "Q=X"]) == "K=V and Q=X"
