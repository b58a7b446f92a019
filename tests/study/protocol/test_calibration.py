"""The whole protocol on simulated studies: a small run of what experiments/calibrate.py measures.

Few studies and fixed seeds, so the bounds are wide; they are there to catch an error rate that
has doubled. The precise table comes from the experiment.
"""

import numpy as np
import pytest

from qkv_jax.study.protocol import calibration, comparison
from qkv_jax.study.protocol.calibration import Scenario, estimate, simulate, simulate_study
from qkv_jax.study.protocol.selection import tuning_runs

FAIR = {"rate_gap": 2.5}  # tuning on two seeds nearly always finds the best rate


def rates(scenario, studies=100, seed=1):
    return estimate(simulate(scenario, studies, seed))


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("outcome", ["normal", "heavy", "bimodal"])
def test_null_studies_claim_no_differences(outcome, correlation):
    """Family error of better/worse is at most 5 %, and the 95 % intervals cover the truth."""
    result = rates(Scenario(outcome, "none", correlation, margin=0.5, **FAIR))
    assert result["family_error"].low <= 0.05
    assert result["placebo"].value <= 0.05
    assert result["coverage"].high >= 0.95
    assert result["simultaneous_miss"].low <= 0.05


@pytest.mark.parametrize("outcome", ["normal", "heavy", "bimodal"])
def test_arms_at_the_margin_are_not_equivalent(outcome):
    """An effect of exactly the margin is called equivalent in at most 5 % of the studies."""
    result = rates(Scenario(outcome, "margin", 0.5, **FAIR))
    assert result["false_equivalence"].low <= 0.05
    assert result["false_equivalence_at_rate"].low <= 0.05


@pytest.mark.parametrize("elsewhere", [0, 3])
def test_tuning_mistakes_are_not_reported_as_differences(elsewhere):
    """Where two tuning seeds often choose the wrong rate, equal arms still are not told apart."""
    scenario = Scenario("normal", "none", 0.5, margin=0.5, rate_gap=1.0, elsewhere=elsewhere)
    assert rates(scenario, studies=120)["family_error"].low <= 0.05


@pytest.mark.parametrize("analyses", [(20,), (6, 12, 20)])
def test_the_error_does_not_grow_with_seeds_where_optima_differ(analyses):
    """It was 32 % at 20 seeds while an arm that chose the baseline's rate was beyond all doubt."""
    scenario = Scenario("normal", "none", 0.0, margin=0.5, rate_gap=1.5, elsewhere=3,
                        eval_seeds=20, analyses=analyses)  # fmt: skip
    assert rates(scenario, studies=150)["family_error"].low <= 0.05


def test_planted_effects_and_equal_arms_are_found():
    """The tests have power: a protocol that never decides would pass all of the above."""
    result = rates(Scenario("normal", "planted", 0.5, **FAIR), studies=60)
    assert result["power"].value > 0.9
    assert result["equivalence_power"].value > 0.7


def test_solved_seeds_are_calibrated():
    result = rates(Scenario("solve", "none", 0.5), studies=100)
    assert result["family_error"].low <= 0.05
    more = rates(Scenario("solve", "planted", 0.0, eval_seeds=30), studies=20)
    assert more["power"].value > 0.5


def test_the_estimates_see_a_protocol_that_is_too_bold(monkeypatch):
    """With all of alpha for every arm the same measurement is over 5 %."""
    monkeypatch.setattr(comparison.Design, "level", lambda design, analysis: design.alpha)
    assert rates(Scenario("normal", "none", 0.5, margin=0.5, **FAIR))["family_error"].low > 0.05


@pytest.mark.parametrize("outcome", calibration.OUTCOMES)
def test_the_stated_truth_is_what_is_drawn(outcome):
    """The mean of many draws is `true_mean`, and the pairing correlation is what it says."""
    scenario = Scenario(outcome, "planted", 0.5)
    rng = np.random.default_rng(0)
    rate = np.full((1 + scenario.arms, 1), calibration.BEST - 1)
    loss, failed = calibration._draw(rng, scenario, rate, 40_000)
    loss = loss[:, 0]
    if outcome != "solve":
        truth = calibration._true_mean(scenario, rate[:, 0])
        np.testing.assert_allclose(loss.mean(1), truth, atol=5 * loss.std() / 200)
    assert failed.any() == (outcome == "diverging")
    tolerance = 0.2 if outcome == "heavy" else 0.03
    assert np.corrcoef(loss[:2])[0, 1] == pytest.approx(0.5, abs=tolerance)


def test_extensions_are_part_of_the_simulation():
    """Where tuning is all noise some studies extend their grids, on every arm."""
    rng = np.random.default_rng(0)
    record, runs, summary, _ = simulate_study(rng, Scenario(rate_gap=0.0))
    tune = tuning_runs(record, runs)
    assert tune.learning_rate.nunique() > 4
    assert (tune.groupby("arm").size() == 2 * tune.learning_rate.nunique()).all()
    assert list(summary.arm) == list(record.arms)


def test_estimate_gives_monte_carlo_intervals():
    outcomes = np.full((50, len(calibration.EVENTS) + len(calibration.SHARES)), np.nan)
    outcomes[:, 0] = [0] * 48 + [1] * 2
    outcomes[:, -1] = 0.5
    result = estimate(outcomes)
    assert result["family_error"].value == 0.04
    assert result["family_error"].low < 0.01 and result["family_error"].high > 0.13
    assert result["edge"] == (0.5, 0.5, 0.5)
    assert np.isnan(result["placebo"].value)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="normal"):
        Scenario("gaussian")
