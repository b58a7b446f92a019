"""Which verdict a study gets: margins, failures, edges, and the level that claims share."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from qkv_jax.study.protocol import summary
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.selection import extension_needed
from qkv_jax.study.record import ArmRecord
from qkv_jax.study.report import headlines, sentences, tables, wording
from qkv_jax.study.report.methods import protocol
from tests.support.studies.verdict_studies import (
    GRID,
    SEEDS,
    chosen,
    make_runs,
    make_study,
    rows,
    scores,
    summarise,
    tuned,
    tuning,
    verdict,
    worse_at_one_percent,
)


@pytest.mark.parametrize(
    "shift, sd, expected",
    [(0.0, 0.02, "equivalent"), (0.5, 0.02, "worse"), (-0.5, 0.02, "better"),
     (0.15, 0.1, "undecided (power)")],
)  # fmt: skip
def test_verdict_words(shift, sd, expected):
    table = summarise(make_study(), make_runs(scores(0, 0, shift, sd=sd))).set_index("arm")
    assert table.verdict["K=V"] == expected
    assert table.verdict["separate"] == "baseline" and np.isnan(table.delta["separate"])
    assert (table.seeds_to_decide["K=V"] > 6) == (expected == "undecided (power)")
    assert (table.decided_at["K=V"] == 6) == (expected != "undecided (power)")


def test_equivalent_comes_before_worse():
    """A difference that is certain but within the margin is `equivalent`."""
    row = verdict(make_study(), make_runs(scores(0, 0, 0.05, sd=0.005)))
    assert row.p_adjusted < 0.05 and row.verdict == "equivalent"


def test_identical_outcomes_are_at_the_ceiling():
    same = {arm: [1.0] * 6 for arm in ("separate", "placebo", "K=V")}
    row = verdict(make_study(), make_runs(same))
    assert row.verdict == "undecided (ceiling)" and np.isnan(row.seeds_to_decide)


def judged(record, runs, arm="K=V"):
    """The row, the sentence about it, and the lines at the top of the report."""
    results = wording.all_rows(record, summary.summarise(record, runs))
    row = summarise(record, runs).set_index("arm").loc[arm]
    (found,) = [f for f in sentences.task_findings(record, results, "task") if arm in f.arms]
    top = [*headlines.overview(record, results), *headlines.warnings(record, runs, results)]
    return row, found.text, top


@pytest.mark.parametrize("kind", ["mean", "solve"])
def test_the_same_program_under_another_name_is_not_at_the_ceiling(kind):
    """Known from the configs it is said for certain, at whatever the seeds scored; seen in the
    numbers alone it is a question."""
    data = scores(0, 0, 0)
    twins = data | {"K=V": data["separate"]}
    task = {"kind": kind, "threshold": 1.5 if kind == "solve" else None}
    row, text, _ = judged(make_study(**task), make_runs(twins))
    assert row.verdict == "undecided (same scores)" and np.isnan(row.seeds_to_decide)
    assert "The same numbers as separate at every seed: is it the same program?" in text
    for some in (twins, dict.fromkeys(twins, np.ones(6))):
        record = make_study(same_program={"K=V": "separate"}, **task)
        row, text, top = judged(record, make_runs(some))
        assert row.verdict == "undecided (same program)" and np.isnan(row.seeds_to_decide)
        assert "the program of separate under another name: there is nothing to decide" in text
    both = record.tasks | {"other": record.tasks["task"]}
    record = dataclasses.replace(record, tasks=both)
    runs = pd.concat([make_runs(twins), make_runs(twins).assign(task="other")])
    top = headlines.overview(record, wording.all_rows(record, summary.summarise(record, runs)))
    assert "The program of separate under another name: K=V." in top
    assert not any("Still open" in line for line in top)
    other = twins | {"placebo": twins["separate"]}  # it is no arm that the configs make the same
    assert judged(make_study(**task), make_runs(other), "placebo")[0].verdict.endswith("scores)")


def lose(runs, *arms):
    """The runs with every one of those arms failed."""
    gone = runs["arm"].isin(arms)
    lost = np.where(tuning(runs), "diverged", "failed")
    scores = {name: runs[name].where(~gone, np.nan) for name in ("validation", "test")}
    return runs.assign(status=runs["status"].where(~gone, lost), **scores)


def test_an_arm_that_fails_at_every_rate_is_worse_and_is_counted():
    """The baseline works: no edge, no further rates for anybody, and nothing left open."""
    record, runs = make_study(), lose(make_runs(scores(0, 0, 0)), "K=V")
    runs = runs[~((runs.arm == "K=V") & ~tuning(runs))]
    lost = rows("K=V", GRID[0], [np.nan] * 6, SEEDS, ["failed"] * 6)
    runs = pd.concat([runs, lost], ignore_index=True)
    assert extension_needed(record, runs, "task") == []
    row, text, top = judged(record, runs)
    assert row.verdict == "worse" and row.edge == "" and row.learning_rate == GRID[0]
    assert row.n_failed == 6 and row.note == "K=V failed at every rate tried (14 of 14)"
    assert any(line.endswith("K=V failed at every rate tried (14 of 14).") for line in top)
    assert not any("Still open" in line or "edge" in line for line in top)
    assert np.isinf(evaluations(record, runs)["task", "K=V"].lead)


@pytest.mark.parametrize("kind", ["mean", "solve"])
def test_arms_that_all_failed_are_not_at_the_ceiling(kind):
    record = make_study(kind=kind, threshold=0.5 if kind == "solve" else None)
    data = scores(0, 0, 0)
    works = make_runs({"placebo": data.pop("placebo")})
    runs = pd.concat([lose(make_runs(data, rate=GRID[0]), "K=V", "separate"), works])
    row, text, top = judged(record, runs)
    assert row.verdict == "undecided (all failed)" and np.isnan(row.seeds_to_decide)
    assert "No run came through, nor did one of separate: there is nothing to compare." in text
    assert any("separate failed at every rate tried (14 of 14)" in line for line in top)
    row, text, _ = judged(record, runs, "placebo")
    assert row.verdict == ("better" if kind == "mean" else row.verdict)
    assert "separate failed at every rate tried (14 of 14)" in row.note


def test_one_run_that_came_through_is_not_every_run_failed():
    runs = lose(make_runs(scores(0, 0, 0)), "K=V")
    place = runs[(runs.arm == "K=V") & ~tuning(runs)].index[0]
    runs.loc[place, ["status", "validation", "test"]] = ["done", 1.0, 1.0]
    assert "every rate" not in judged(make_study(), runs)[0].note


def test_step_times_carry_the_error_that_the_placebo_shows():
    ratios = {"separate": 1.0, "placebo": 0.78, "K=V": 0.9}
    costs = {"task": {arm: {"step_time_ratio": ratio} for arm, ratio in ratios.items()}}
    data = make_runs(scores(0, 0, 0))
    table = summary.summarise(make_study(), data, costs)
    assert np.allclose(table.step_time_noise, 0.22)
    assert summarise(make_study(), data).step_time_noise.isna().all()
    record = make_study()
    table = tables._cost_table("separate", wording.all_rows(record, table)["task"])
    shown = {row["arm"]: row["cells"][-1] for row in table["rows"]}
    assert shown == {"separate": "1.00 ×", "placebo": "0.78 × ± 0.22", "K=V": "0.90 × ± 0.22"}


def test_arms_with_their_own_steps_are_judged_at_them():
    """A seed that never solved counts with the budget of its own arm, in tuning as well."""
    record = make_study(kind="solve", threshold=0.5, steps_of={"K=V": 4000})
    never = {arm: np.full(6, np.inf) for arm in ("separate", "placebo", "K=V")}
    data = dict.fromkeys(never, np.ones(6))
    table = summarise(record, make_runs(data, steps=never)).set_index("arm")
    assert table.steps_to_solve.to_dict() == {"separate": 1000, "placebo": 1000, "K=V": 4000}
    late = tuned("K=V", [0.1, 0.1, 0.1, 0.1], steps=[3000.0, 3000.0])
    late[2]["steps_to_solve"] = [2000.0, 2000.0]  # beyond the baseline's steps all are one
    assert chosen(late, record, "K=V").learning_rate == GRID[2]
    lines = protocol(record, make_runs(data), wording.all_rows(record, None))
    (sentence,) = [line for line in lines if line.startswith("t:")]
    assert "1,000 steps per run, 4,000 for K=V, judged at its own; " in sentence


def test_four_seeds_give_no_verdict():
    row = verdict(make_study(), make_runs(scores(0, 0, 5.0, n=4)))
    assert row.verdict == "undecided (few seeds)" and row.n == 4
    row = verdict(make_study(), make_runs(scores(0, 0, 5.0, n=5)))
    assert row.verdict == "worse" and "5 of 6 seeds" in row.note and row.decided_at == 5


@pytest.mark.parametrize("whose", ["K=V", "separate"])
def test_rate_at_the_edge_gives_no_verdict(whose):
    data = scores(0, 0, 0.5)
    runs = make_runs({arm: v for arm, v in data.items() if arm != whose})
    edge = tuned(whose, [0.05, 0.1, 0.3, 0.9]) + [rows(whose, 1e-3, data[whose], SEEDS)]
    table = summarise(make_study(), pd.concat([runs, *edge])).set_index("arm")
    assert table.edge[whose] == "low"
    assert table.verdict["K=V"] == "undecided (edge)"
    assert (table.verdict["placebo"] == "undecided (edge)") == (whose == "separate")


def test_arms_that_are_asked_about_share_the_level():
    """What is worse alone is undecided among seven others, but not among seven controls."""
    lone = worse_at_one_percent()
    names = [f"null{i}" for i in range(7)]
    rng = np.random.default_rng(1)
    crowd = lone | {name: rng.permutation(lone["separate"]) for name in names}
    record = make_study(tuple(crowd), margin=0.001)
    row = verdict(record, make_runs(crowd))
    assert row.p_adjusted == pytest.approx(8 * row.p_value) and row.p_adjusted > 0.05
    assert row.verdict == "undecided (power)"
    for role in ("control", "matched", "placebo"):
        arms = {name: ArmRecord(name, role) for name in names}
        among = dataclasses.replace(record, arms=record.arms | arms)
        row = verdict(among, make_runs(crowd))
        assert row.p_adjusted == row.p_value and row.verdict == "worse"
        other = verdict(among, make_runs(crowd), "null3")
        assert other.p_adjusted == other.p_value


def test_the_planned_analysis_has_all_of_alpha_and_those_added_half_as_much_each():
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    rows_at = {}
    for looks in ([6], [5, 6], [4, 5, 6]):
        row = verdict(dataclasses.replace(record, looks=tuple(looks)), make_runs(data))
        assert row.alpha_look == 0.05 / 2 ** (len(looks) - 1) and row.look == len(looks)
        rows_at[len(looks)] = row
    assert rows_at[1].p_adjusted == rows_at[1].p_value < 0.05
    assert rows_at[3].p_adjusted <= 4 * rows_at[3].p_value
