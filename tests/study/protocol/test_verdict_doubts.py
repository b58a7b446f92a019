"""When a verdict is final, and the doubts that forbid one."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.inference import Difference, Doubt
from tests.support.studies.verdict_studies import (
    SEEDS,
    make_runs,
    make_study,
    rows,
    scores,
    tuned,
    verdict,
    worse_at_one_percent,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.3, 0.3))
def test_verdicts_are_final(seed, shift):
    """Whatever seeds bring that are added: a verdict that was given stays, with its seeds, and the
    adjusted p-values never rise."""
    data = scores(0, 0, 0, sd=0.1, n=14, seed=seed)
    data["K=V"][:6] += shift
    data["K=V"][6:] -= shift  # what follows speaks against it
    seeds = list(range(100, 114))
    runs = make_runs(data, seeds=seeds)
    given = None
    for looks in ((6,), (6, 9), (6, 9, 14)):
        record = dataclasses.replace(make_study(seeds=seeds[: looks[-1]]), looks=looks)
        row = verdict(record, runs)
        if given is not None:
            assert row.p_adjusted <= given.p_adjusted
            assert row.p_equivalence <= given.p_equivalence
            if not given.verdict.startswith("undecided"):
                assert (row.verdict, row.decided_at) == (given.verdict, given.decided_at)
        assert row.n == looks[-1] and row.delta != (given is not None and given.delta)
        given = row


def test_margin_below_the_sampling_error_is_refused():
    rng = np.random.default_rng(0)
    runs = make_runs(scores(0, 0, 0))
    noise = {arm: rng.normal(size=(6, 400)) for arm in ("separate", "placebo", "K=V")}
    quiet = verdict(make_study(), runs, examples=lambda task, arm, *_: noise[arm] * 0.1)
    loud = verdict(make_study(), runs, examples=lambda task, arm, *_: noise[arm] * 10)
    assert quiet.verdict == "equivalent" and 2 * quiet.sampling_error < 0.1
    assert loud.verdict == "undecided (power)" and "sampling error" in loud.note
    assert np.isnan(loud.p_equivalence)
    assert verdict(make_study(), runs, examples=lambda *_: None).verdict == "equivalent"


def test_failed_runs_count_and_are_never_dropped():
    """A diverged run enters the mean at the failure value and forbids `equivalent`."""
    data = scores(0, 0, 0)
    status = {"K=V": ["done"] * 4 + ["diverged", "failed"]}
    row = verdict(make_study(), make_runs(data, status=status))
    assert row.n == 6 and row.n_diverged == 1 and row.n_failed == 1
    assert row["mean"] == pytest.approx((data["K=V"][:4].sum() + 2 * 9.0) / 6)
    mild = make_study(failure_value=1.0)  # even where the failure value itself is harmless
    assert verdict(mild, make_runs(data)).verdict == "equivalent"
    row = verdict(mild, make_runs(data, status=status))
    assert row.verdict == "undecided (power)" and "runs failed" in row.note
    data["K=V"][0] = np.nan  # "done" without a number is a failure as well
    assert verdict(make_study(), make_runs(data)).n_failed == 1


def test_a_placebo_that_fails_forbids_equivalence_to_its_baseline():
    status = {"placebo": ["done"] * 5 + ["diverged"]}
    row = verdict(make_study(), make_runs(scores(0, 0, 0), status=status))
    assert row.n_diverged == 0 and row.verdict == "undecided (power)" and "runs failed" in row.note
    record = dataclasses.replace(make_study(), placebo="none of these")
    assert verdict(record, make_runs(scores(0, 0, 0), status=status)).verdict == "equivalent"


@pytest.mark.parametrize("rate", [4e-3, 2e-3])
@pytest.mark.parametrize("lead, expected", [(0.001, "undecided (tuning)"), (0.2, "worse")])
def test_a_difference_that_tuning_may_have_made_is_undecided(lead, expected, rate):
    """An arm that chose its rate by a hair may have lost to its tuning, and that the baseline chose
    the same is no defence: it may have been right."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    runs = make_runs({"separate": data["separate"]})
    means = [0.9, 0.1 + lead, 0.1, 0.9] if rate == 4e-3 else [0.9, 0.1, 0.1 + lead, 0.9]
    tables = [*tuned("K=V", means), rows("K=V", rate, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.learning_rate == rate and row.p_adjusted < 0.05
    assert row.verdict == expected
    assert ("would be 'worse'" in row.note) == (expected != "worse")


def test_doubt_about_tuning_is_doubt_about_the_side_that_lost():
    """A baseline with an uncertain rate does not excuse an arm that is worse than it."""
    data = worse_at_one_percent()
    record = make_study(("separate", "K=V"), margin=0.001)
    close = make_runs({"separate": data["separate"]}, tune=(0.9, 0.1, 0.101, 0.9))
    sure = [*tuned("K=V", [0.9, 0.8, 0.1, 0.9])]
    worse = pd.concat([close, *sure, rows("K=V", 4e-3, data["K=V"], SEEDS)])
    assert verdict(record, worse).verdict == "worse"
    better = 2 * data["separate"] - data["K=V"]
    better = pd.concat([close, *sure, rows("K=V", 4e-3, better, SEEDS)])
    assert verdict(record, better).verdict == "undecided (tuning)"


@pytest.mark.parametrize("lead, expected", [(0.001, "undecided (tuning)"), (0.2, "equivalent")])
def test_equivalence_does_not_survive_doubt_about_rates(lead, expected):
    """Equal at the chosen rates is not equal at the best ones where the choice was a close one."""
    data = worse_at_one_percent()
    data["K=V"] = data["K=V"] - 0.018  # behind, but not for certain
    record = make_study(("separate", "K=V"), margin=0.06)
    # It is the baseline's better rate that would take the arm out of the margin.
    runs = make_runs({"separate": data["separate"]}, tune=(0.9, 0.1, 0.1 + lead, 0.9))
    tables = [*tuned("K=V", [0.9, 0.8, 0.1, 0.9])]
    tables += [rows("K=V", 4e-3, data["K=V"], SEEDS)]
    row = verdict(record, pd.concat([runs, *tables]))
    assert row.p_equivalence <= 0.05 and row.verdict == expected


def test_size_of_the_doubt():
    """Regret t * sd * sqrt(2 / seeds) - lead, and the tests repeated against it."""
    regret = inference.tuning_regret(1.0, 6, 0.5, 2)
    assert regret == pytest.approx(stats.t.ppf(0.95, 5) - 0.5)
    assert all(inference.tuning_regret(1.0, 6, lead, 2) == 0 for lead in (2.1, np.inf))
    error, df = np.sqrt(2 / 6), 10.0
    needed = regret + stats.t.ppf(0.975, df) * error
    for delta, sure in ((needed + 1e-6, True), (needed - 1e-6, False)):
        p = inference.judge(Difference(6, delta, error, df), None, Doubt(down=regret))
        assert (p.surely_different <= 0.05) == sure and p.different < 0.05
        p = inference.judge(Difference(6, -delta, error, df), None, Doubt(down=regret))
        assert p.surely_different == p.different < 0.05
    inside = stats.t.ppf(0.95, df) * error + regret
    for margin, sure in ((inside + 1e-6, True), (inside - 1e-6, False)):
        p = inference.judge(Difference(6, 0.0, error, df), margin, Doubt(up=regret))
        assert (p.surely_equivalent <= 0.05) == sure and p.equivalent < 0.05


def test_what_no_number_of_seeds_can_decide_is_open_for_its_tuning():
    """Doubt as large as the effect, and too large for the margin: more seeds are no remedy."""
    effect = Difference(6, 0.5, 0.4, 10.0)
    found, needed = inference.plan(effect, None, Doubt(down=0.6), 0.05)
    assert str(found) == "undecided (tuning)" and np.isnan(needed)
    found, needed = inference.plan(effect, None, Doubt(down=0.3), 0.05)
    assert str(found) == "undecided (power)"
    assert needed == inference.seeds_needed(effect, 0.5 - 0.3, 0.05)
    found, needed = inference.plan(effect, 2.0, Doubt(down=0.6), 0.05)
    assert needed == inference.seeds_needed(effect, 1.5, 0.05)  # equivalence is nearer
