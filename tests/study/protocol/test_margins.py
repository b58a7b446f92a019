"""Margins that are in force: in log-odds near the ceiling, none where runs scatter too much."""

import dataclasses
import math

import numpy as np
import pytest

from qkv_jax.study.protocol import inference, margins
from qkv_jax.study.protocol.hostile import run_study
from qkv_jax.study.protocol.summary import summarise
from tests.support.studies.raced_study import GRID, TASK, race_record, steep
from tests.support.studies.synthetic_study import make_study


def accuracies(record, scores):
    """The same study with a share of right answers for an outcome; its record and its runs."""
    outcome = dataclasses.replace(
        record.tasks[TASK].outcome, metric="accuracy", unit="accuracy", failure_value=0.0
    )
    record = record.with_task(TASK, outcome=outcome)
    return record, *run_study(record, scores)


@pytest.mark.parametrize(("score", "margin"), [
    (0.5, 0.02), (0.9, 0.02), (0.95, 0.02 * 0.95 * 0.05 / 0.09), (0.999, 0.02 * 0.000999 / 0.09),
])  # fmt: skip
def test_a_margin_is_the_same_in_log_odds_above_90_per_cent(score, margin):
    """By the baseline's pilot at its best rate; its later seeds, and other arms, do not count."""
    losses = np.full((2, 3, 7, 64), 0.3)
    losses[:, 0, 3] = score
    losses[:, 0, 3, 2:] = 0.4
    losses[:, 1] = 0.9999
    record, runs, _ = accuracies(race_record(2, margin=0.02, seeds=4), losses)
    task = margins.in_force(record, runs).tasks[TASK]
    assert task.outcome.margin == pytest.approx(margin, rel=1e-2)
    assert task.declared_margin == (None if score <= 0.9 else 0.02)
    if score > 0.9:  # a step of that size is the same in log-odds as the declared one at 90 %
        assert margin / (score * (1 - score)) == pytest.approx(0.02 / 0.09)
    pilot = runs[runs["seed"] < 1]
    assert margins.in_force(record, pilot).tasks[TASK].declared_margin is None  # not known yet


def test_a_perfect_score_leaves_a_margin_above_none():
    losses = np.full((2, 2, 7, 64), 1.0)
    record, runs, _ = accuracies(race_record(1, margin=0.02, seeds=6), losses)
    assert 0 < margins.in_force(record, runs).tasks[TASK].outcome.margin < 1e-6


def test_a_fixed_study_takes_the_score_at_the_rate_that_was_chosen():
    record, runs, _, _ = make_study(tasks=("digits", "text"))
    tuned = runs["seed"].isin(record.tune_seeds) & (runs["task"] == "digits")
    base = tuned & (runs["arm"] == "separate")
    chosen = runs[base].groupby("learning_rate")["validation"].mean().max()
    found = margins.in_force(record, runs).tasks
    assert chosen > 0.9
    share = chosen * (1 - chosen) / 0.09
    assert found["digits"].outcome.margin == pytest.approx(0.01 * share, rel=1e-2)
    assert found["text"] == record.tasks["text"]


def test_equivalence_is_not_offered_where_runs_scatter_by_more():
    """At a quarter of a run's standard deviation, shown or not; the note says what it would take:
    so many seeds, which two one-sided tests of simulated runs confirm."""
    record = race_record(1, margin=0.25, seeds=4)
    losses = steep((0.0, 0.0), noise=1.0)
    runs, _ = run_study(record, losses)
    row = summarise(record, runs).set_index("arm").loc["arm1"]
    assert "equivalence is offered from 0.3 on" in str(row["note"])
    assert margins.is_narrow(0.29, 1.0) and not margins.is_narrow(0.31, 1.0)
    seeds, rng = margins.seeds_for(0.25, 1.0, 0.05), np.random.default_rng(0)
    error = math.sqrt(2 / seeds)
    delta = error * rng.normal(size=20_000)
    shown = np.mean((np.abs(delta) + 1.645 * error) < 0.25)
    assert shown == pytest.approx(inference.POWER, abs=0.02) and seeds > 250


def test_a_race_at_the_ceiling_says_so():
    rng = np.random.default_rng(0)
    losses = 1 - 1e-4 * rng.exponential(size=(2, 3, 7, 64))
    losses[:, :, [0, 1, 2, 4, 5, 6]] -= 0.3
    record, runs, names = accuracies(race_record(2, margin=0.02), losses)
    found = summarise(margins.in_force(record, runs), runs).set_index("arm")
    assert set(found.loc[["arm1", "arm2"], "verdict"].map(str)) == {"undecided (ceiling)"}
    assert "the baseline is at the ceiling" in str(found.loc["arm1", "note"])
    assert found.loc["arm1", ["seeds_to_decide"]].isna().all()
    plain = summarise(record, runs).set_index("arm")  # by the declared margin they were equivalent
    assert str(plain.loc["arm1", "verdict"]) == "equivalent"
    own = found.drop("placebo")["learning_rate"]
    assert (own == GRID[1]).all() and np.isnan(found.loc["placebo", "learning_rate"])


def test_an_arm_that_is_far_below_the_ceiling_is_not_excused_by_it():
    """It is open for want of seeds, and told how many; only equivalence is not offered."""
    rng = np.random.default_rng(0)
    losses = 1 - 1e-4 * rng.exponential(size=(2, 3, 7, 64))
    losses[:, :, [0, 1, 2, 4, 5, 6]] -= 0.6
    losses[:, 1, 3] -= rng.choice([0.0, 0.5], size=(2, 64))  # half of its runs fall short
    record, runs, _ = accuracies(race_record(2, margin=0.02, seeds=4), losses)
    found = summarise(margins.in_force(record, runs), runs).set_index("arm")
    assert found.loc["arm1", "delta"] < -0.1
    assert found["verdict"].map(str)[["arm1", "arm2"]].to_list() == [
        "undecided (power)", "undecided (ceiling)",
    ]  # fmt: skip
    assert found.loc["arm1", "seeds_to_decide"] > 4 and np.isnan(found.loc["arm2"].seeds_to_decide)
    assert "in log-odds the margin is as good as none" in str(found.loc["arm1", "note"])


def test_no_interval_ends_beyond_what_scores_can_be():
    rng = np.random.default_rng(0)
    losses = np.clip(1 - 0.3 * rng.exponential(size=(2, 3, 7, 64)), 0, 1)
    losses[:, :, [0, 1, 2, 4, 5, 6]] *= 0.3
    losses[:, 1, 3] *= 0.1
    record, runs, _ = accuracies(race_record(2, margin=0.02, seeds=4), losses)
    found = summarise(record, runs)
    assert (found["ci_high"].dropna() <= 1).all() and (found["ci_low"].dropna() >= 0).all()
    for end in ("low", "high"):
        assert (found[f"delta_{end}_simultaneous"].abs().dropna() <= 1).all()
    assert 1 in (*found["ci_high"], *-found["delta_low_simultaneous"])  # one would have been
