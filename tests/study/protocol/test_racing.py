"""Studies that race: their rows lead where the race itself does, however they come to be there."""

import dataclasses
import math

import numpy as np
import pytest

from qkv_jax.study.protocol import hostile, inference
from qkv_jax.study.protocol.hostile import CASES, DECLARED, run_study
from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_rules import Rules
from qkv_jax.study.protocol.rounds import rounds
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.record import KEY
from tests.support.studies.raced_study import (
    BELOW,
    GRID,
    TASK,
    race_record,
    steep,
    with_seeds,
)

EFFECTS = (0.0, 0.0, 2.0, -2.0)  # over the baseline, in margins


def verdicts(record, runs):
    """{arm: verdict} as summary.csv has them, the baseline left out."""
    table = summarise(record, runs)[1:]
    return dict(zip(table["arm"], map(str, table["verdict"]), strict=True))


def standing(record, runs):
    """All of the summary and the set of the runs, as text."""
    rows = runs.sort_values(list(KEY))[list(KEY)]
    return summarise(record, runs).drop(columns="look").to_csv(), rows.to_csv(index=False)


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_a_study_ends_where_the_race_does(case):
    grid = tuple(1e-3 * 3.0 ** np.arange(DECLARED))
    losses = case.draw(np.random.default_rng(3))

    def runs(arm, place):
        known = hostile._RATES[0] <= place <= hostile._RATES[-1]
        return losses[:, arm, place + BELOW] if known else np.empty((2, 0))

    assert hostile._RATES[0] == -BELOW
    race = Race(Rules(case.arms, DECLARED, case.margin), runs)
    record = race_record(case.arms, case.margin, grid=grid)
    rows, _ = run_study(record, losses)
    found = verdicts(record, rows)
    for number, arm in enumerate(race.arms[1:], 1):
        pending = "undecided (power)" if arm.verdict.kind == "pending" else str(arm.verdict)
        assert found[f"arm{number}"] == pending
    assert len(rows) == sum(race.used.values()) and not rows.duplicated(list(KEY)).any()


def test_every_verdict_and_what_it_took():
    record = race_record(3)
    runs, names = run_study(record, steep(EFFECTS))
    found = summarise(record, runs).set_index("arm")
    assert names == ["pilot", "look4"]
    assert verdicts(record, runs) == {
        "arm1": "equivalent", "arm2": "worse", "arm3": "better", "placebo": "undecided (few seeds)",
    }  # fmt: skip
    assert (found["learning_rate"].drop("placebo") == GRID[1]).all()
    assert found.loc["arm1", ["n", "runs", "decided_at", "live_rates"]].to_list() == [
        4, 8, 4.0, "0.003",
    ]  # fmt: skip
    ends = ["delta_low_simultaneous", "delta_high_simultaneous"]
    wide = found.loc[["arm1", "arm2", "arm3"], ends]
    for (low, high), truth in zip(wide.to_numpy(float), EFFECTS[1:], strict=True):
        assert low < truth < high and high - low < 2
    assert found.loc["arm1", "p_equivalence"] < 0.05 and found.loc["arm2", "p_adjusted"] < 0.05
    assert math.isnan(found.loc["separate", "delta"])


def test_seeds_that_are_added_lead_where_all_at_once_do():
    losses = steep((0.0, 0.5, 0.9, 1.5), noise=0.8)
    at_once = race_record(3, seeds=16)
    whole, _ = run_study(at_once, losses)
    first, _ = run_study(with_seeds(at_once, 6), losses)
    assert len(first) < len(whole)
    assert "undecided (power)" in verdicts(with_seeds(at_once, 6), first).values()
    more = with_seeds(at_once, 6, 16)
    then, names = run_study(more, losses, first)
    assert standing(more, then) == standing(at_once, whole)
    analyses = [found.analysis for found in rounds(more, TASK, lambda: then)]
    assert analyses == sorted(analyses) and set(analyses) == {0, 1}


def test_waves_of_any_size_lead_to_the_same_verdicts():
    """A wave that would not be full runs ahead; such runs wait for their look."""
    losses = steep((0.0, 0.5, 0.9, 1.5), noise=0.8)
    small, large = race_record(3, seeds=16), race_record(3, seeds=16, wave=8)
    few, _ = run_study(small, losses)
    many, names = run_study(large, losses)
    assert verdicts(small, few) == verdicts(large, many) and len(many) > len(few)
    counted = summarise(large, many).set_index("arm")[["n", "mean", "delta"]]
    assert counted.equals(summarise(small, few).set_index("arm")[["n", "mean", "delta"]])
    seeds = many[many["round"] == "look4"].groupby("arm").size()
    assert (seeds % 8 == 0).all()


def test_the_order_of_rows_does_not_matter():
    losses = steep((0.0, 0.5, 0.9, 1.5), noise=0.8)
    record = race_record(3, seeds=12)
    runs, _ = run_study(record, losses)
    mixed = runs.sample(frac=1, random_state=1)
    assert standing(record, runs) == standing(record, mixed)
    assert [r.missing for r in rounds(record, TASK, lambda: mixed)] == [()] * len(
        list(rounds(record, TASK, lambda: runs))
    )


@pytest.mark.parametrize("field", ["max_runs", "max_minutes"])
def test_a_budget_ends_a_race_and_more_of_it_goes_on(field):
    losses = steep((0.0, 0.5, 0.9, 0.6), noise=0.8)
    free = race_record(3, seeds=16)
    whole, _ = run_study(free, losses)
    half = {"max_runs": len(whole) // 2, "max_minutes": len(whole) / 4 / 60}[field]  # 1 s, 2 lanes
    bound = dataclasses.replace(free, **{field: half})
    runs, names = run_study(bound, losses)
    assert len(runs) <= half or field == "max_minutes"
    assert 0 < len(runs) < len(whole) and names == run_study(free, losses)[1][: len(names)]
    assert "undecided (budget)" in verdicts(bound, runs).values()
    then, _ = run_study(free, losses, runs)
    assert standing(free, then) == standing(free, whole)


def test_equivalence_is_conditional_on_runs_that_train():
    record = race_record(3, failure=40.0)
    losses = steep((0.0, 0.0, 0.0, 0.0))
    losses[:, 2, BELOW + 1, 2] = 30.0  # past halfway to failing
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm")
    assert str(found.loc["arm1", "verdict"]) == "equivalent"
    high = found.loc["arm1", "collapsed_high"]
    assert str(found.loc["arm1", "note"]) == (
        f"when it trains: 0 of 4 runs collapsed, at most {100 * high:.0f} %"
    )
    assert high == pytest.approx(1 - 0.025 ** (1 / 4))  # Clopper and Pearson, none of four
    assert found.loc["arm2", "n_collapsed"] == 1 and "1 of" in str(found.loc["arm2", "note"])
    assert str(found.loc["arm2", "verdict"]) != "equivalent"


def test_what_would_be_equivalent_but_for_a_collapse_is_said_so():
    """The leading rate is in order; another that may be the best has lost a run."""
    record = race_record(1, margin=5.0, failure=8.0)
    losses = steep((0.0, 0.0), curve=0.01, noise=0.05)
    losses[1, 1, BELOW + 1, 1] = 4.5
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm")
    assert str(found.loc["arm1", "verdict"]) == "undecided (collapses)"
    assert found.loc["arm1", "n_collapsed"] == 1


def test_solving_is_decided_by_shares_of_seeds():
    """All against none: Boschloo's p of four against four, over the first look's share."""
    record = race_record(2, solving=True)
    losses = steep((0.2, 0.9, 0.2), noise=0.01, curve=0.02)
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm")
    assert str(found.loc["arm1", "verdict"]) == "worse"
    assert found.loc["arm1", "n_solved"] == 0 and found.loc["arm1", "decided_at"] in (6, 8)
    assert str(found.loc["arm2", "verdict"]) == "undecided (ceiling)"  # all of both solve it
    assert math.isnan(found.loc["arm1", "delta_low_simultaneous"])


@pytest.mark.parametrize(("first", "second", "verdict"), [
    (8, 0, "worse"), (0, 8, "better"), (8, 8, "undecided (ceiling)"), (4, 4, "undecided (power)"),
])  # fmt: skip
def test_the_placebo_of_a_study_of_solving_is_tested(first, second, verdict, monkeypatch):
    """The second half of the baseline's 16 seeds against the first, by Boschloo's test."""
    monkeypatch.setattr(Race, "_needed", lambda *args: math.nan)  # no arm is given up
    record = race_record(1, solving=True, seeds=16)
    losses = steep((0.2, 0.2), noise=0.01)
    for start, solved in ((0, first), (8, second)):
        losses[1, :, :, start : start + 8] = np.where(np.arange(8) < solved, 0.2, 0.9)
    losses[1, 1, :, (0, 9)] = 1.1 - losses[1, 1, :, (0, 9)]
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm")
    assert found.loc["placebo", "n"] == 8
    assert str(found.loc["placebo", "verdict"]) == verdict
    assert found.loc["placebo", "p_value"] == pytest.approx(
        inference.solved_p(second, first, 8, 8)
    )


def test_a_rate_that_was_not_tested_leaves_no_p_of_one():
    """Its two runs of the pilot are no test; the note says that they are lacking."""
    record = race_record(1, seeds=4)
    losses = steep((0.0, 0.8), noise=0.3, curve=9.0)
    losses[:, 1, BELOW] = losses[:, 1, BELOW + 1] + 0.1
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm").loc["arm1"]
    assert found["live_rates"] == "0.001; 0.003" and str(found["verdict"]) == "undecided (power)"
    assert math.isnan(found["p_adjusted"])
    assert str(found["note"]) == "learning rate 0.001, of 2 seeds, may yet be its best"


def test_the_baselines_program_and_arms_that_fail_with_it_are_not_raced():
    record = race_record(3)
    task = record.tasks[TASK]
    record = record.with_task(TASK, same_program={"arm1": "separate"})
    runs, names = run_study(record, steep((0.0, 0.0, 2.0, 0.0)))
    assert verdicts(record, runs)["arm1"] == "undecided (same program)"
    assert (runs["arm"] == "arm1").sum() == 2 * len(task.learning_rates)
    lost = lambda arm, rate, seed: "failed" if arm in ("separate", "arm3") else "done"
    runs, _ = run_study(record, steep((0.0, 0.0, 2.0, 0.0)), status=lost)
    found = verdicts(record, runs)
    assert found["arm3"] == "undecided (all failed)" and found["arm2"] == "better"


def test_where_no_score_varies_nothing_can_be_told():
    record = race_record(2)
    losses = steep((0.0, 0.0, 0.0), noise=0.0)
    runs, names = run_study(record, losses)
    assert names[-1] == "look6"
    assert verdicts(record, runs)["arm1"] == "undecided (ceiling)"


def test_scores_that_do_not_vary_among_others_that_do_are_equivalent():
    record = race_record(2)
    losses = steep((0.0, 0.0, 0.0))
    losses[:, :2] = np.round(losses[:, :2])  # baseline and first arm
    runs, _ = run_study(record, losses)
    assert verdicts(record, runs)["arm1"] == "equivalent"


def test_controls_are_raced_and_do_not_count():
    """Alpha is divided by the arms that are asked about."""
    losses = steep((0.0, 0.0, 0.9, 0.6), noise=0.2)
    tables = {
        controls: summarise(race_record(3, controls=controls), runs).set_index("arm")
        for controls in ((), ("arm2", "arm3"))
        for runs, _ in [run_study(race_record(3, seeds=4), losses)]
    }
    (plain, fewer) = tables.values()
    ratio = plain.loc["arm1", "p_equivalence"] / fewer.loc["arm1", "p_equivalence"]
    assert plain.loc["arm1", "p_equivalence"] < 1 and ratio == pytest.approx(3)


def test_the_placebo_is_the_second_half_of_the_baseline():
    losses = steep((0.0, 0.4, 0.6), noise=1.0)
    record = race_record(2, seeds=12)
    runs, _ = run_study(record, losses)
    found = summarise(record, runs).set_index("arm")
    base = runs[(runs["arm"] == "separate") & (runs["learning_rate"] == GRID[1])]
    seeds = base.sort_values("seed")["test"].to_numpy()
    half = len(seeds) // 2
    assert found.loc["placebo", "n"] == half >= 8 and found.loc["placebo", "runs"] == 0
    assert found.loc["placebo", "mean"] == pytest.approx(seeds[half : 2 * half].mean())
    first = seeds[:half].mean()
    assert found.loc["placebo", "delta"] == pytest.approx(seeds[half : 2 * half].mean() - first)
    assert "placebo" not in set(runs["arm"])
