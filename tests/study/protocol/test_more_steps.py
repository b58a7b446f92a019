"""What a difference is worth in steps: theorems about pairs of curves, and how often the interval
holds the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.more_steps import Curves, MoreSteps, draws, more_steps

STEPS = np.arange(1, 121) * 10.0  # 1200 has many divisors


def power_law(steps, slower=1.0, exponent=0.4):
    """A loss that falls with a power of the step; `slower` by a factor."""
    return 1 + 3 * (steps / slower) ** -exponent


def pair(factor, noise=0.0, seeds=1, rng=None, steps=STEPS):
    """An arm that is the baseline slowed by a factor, and the baseline."""
    found = []
    for slower in (factor, 1.0):
        values = np.tile(power_law(steps, slower), (seeds, 1))
        if noise:
            level = rng.normal(0, noise, (seeds, 1))
            values = values + level + rng.normal(0, noise / 3, values.shape)
        found.append(Curves(steps, values))
    return found


@pytest.mark.parametrize("factor", [1, 1.2, 1.5, 2, 3, 10])
def test_an_arm_slowed_by_a_factor_needs_that_many_more_steps(factor):
    """Exactly, where the factor leads to a step that was reported."""
    arm, baseline = pair(factor)
    slower = more_steps(arm, baseline, False)
    assert slower.percent == pytest.approx(100 * (factor - 1))
    faster = more_steps(baseline, arm, False)
    assert faster.percent == pytest.approx(100 * (1 / factor - 1))


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 20.0), st.integers(0, 2**32 - 1))
def test_who_trades_places_turns_the_factor_round_and_the_direction_does_not_matter(factor, seed):
    """Of noisy curves as well, that are not monotone; loss and accuracy run either way."""
    arm, baseline = pair(factor, 0.05, 5, np.random.default_rng(seed))
    there, back = more_steps(arm, baseline, False), more_steps(baseline, arm, False)
    ratios = [1 + found.percent / 100 for found in (there, back)]
    if math.isinf(ratios[0]) or math.isinf(ratios[1]):
        assert min(ratios) == 0
    else:
        assert ratios[0] * ratios[1] == pytest.approx(1)
    turned = [Curves(curves.steps, 1 - curves.values) for curves in (arm, baseline)]
    assert more_steps(*turned, True) == pytest.approx(there)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_curves_need_equal_steps(seed):
    values = np.random.default_rng(seed).normal(0, 1, (4, len(STEPS)))
    same = more_steps(Curves(STEPS, values), Curves(STEPS, values), True)
    assert same.percent == 0 and same.low <= 0 <= same.high
    longer = more_steps(Curves(2 * STEPS, values), Curves(STEPS, values), True)
    assert longer.percent == pytest.approx(100)  # the same for twice the steps


def test_what_the_better_one_had_at_its_first_report_is_beyond_the_curve():
    """Then there is a bound: that the worse one took so many times the steps to that report."""
    learns = Curves(STEPS, np.tile(power_law(STEPS), (3, 1)) + [[0.0], [0.01], [-0.01]])
    stuck = Curves(STEPS, np.full((3, len(STEPS)), 4.0) + [[0.01], [0.0], [-0.01]])
    worse, better = more_steps(stuck, learns, False), more_steps(learns, stuck, False)
    bound = STEPS[-1] / STEPS[0]
    assert worse.percent == worse.high == math.inf and better.percent == better.low == -100
    assert worse.low == pytest.approx(100 * (bound - 1))
    assert better.high == pytest.approx(100 * (1 / bound - 1))


def test_a_curve_that_went_up_and_down_counts_from_when_it_was_first_there():
    baseline = Curves(np.array([1.0, 10, 100, 1000]), np.array([[0.0, 0.4, 0.3, 1.0]]))
    arm = Curves(np.array([1.0, 10, 100, 1000]), np.array([[0.0, 0.1, 0.5, 0.2]]))
    # The baseline had 0.2, which the arm ends with, half way from 1 to 10 on the logarithmic scale.
    assert more_steps(arm, baseline, True).percent == pytest.approx(100 * (1000 / 10**0.5 - 1))


def test_few_reports_say_nothing_and_single_seeds_or_no_spread_give_no_interval():
    two = Curves(STEPS[:2], power_law(STEPS[:2])[None])
    arm, baseline = pair(1.5)
    for found in (more_steps(two, baseline, False), more_steps(arm, two, False)):
        assert np.isnan(found).all()
    spread = Curves(STEPS, np.vstack([baseline.values, baseline.values + 0.01]))
    same = Curves(STEPS, np.repeat(baseline.values, 3, axis=0))
    for a, b in ((arm, spread), (same, same)):
        found = more_steps(a, b, False)
        assert np.isfinite(found.percent) and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("seeds", [3, 4, 12])
def test_draws_of_a_point_are_those_of_students_interval(seeds):
    values = np.random.default_rng(seeds).normal(0, 1, (seeds, 5))
    drawn = draws(values, np.random.default_rng(1))
    n, mean, sd = inference.moments(values.T)
    found = np.quantile(drawn, (0.1, 0.9), axis=0) - mean
    wanted = np.stack(inference.t_interval(mean, sd, n, alpha=0.2)) - mean
    assert found == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize(
    "factor, seeds", [(1.0, (6, 6)), (1.3, (4, 4)), (1.3, (4, 24)), (2.0, (8, 8))]
)
def test_the_interval_holds_the_truth_in_95_of_100_studies(factor, seeds):
    """With few seeds, too, and with more of the baseline's than of the arm's, as races have them.
    Seeds drawn with replacement hold it in 76 of 100 with four."""
    rng, held = np.random.default_rng(0), 0
    steps = STEPS[9::10]
    for _ in range(300):
        arm = pair(factor, 0.03, seeds[0], rng, steps)[0]
        baseline = pair(factor, 0.03, seeds[1], rng, steps)[1]
        found = more_steps(arm, baseline, False)
        held += found.low <= 100 * (factor - 1) <= found.high
    assert 0.92 <= held / 300 <= 0.995


def test_the_same_curves_give_the_same_bits():
    arm, baseline = pair(1.3, 0.03, 5, np.random.default_rng(0))
    assert more_steps(arm, baseline, False) == more_steps(arm, baseline, False) != MoreSteps()
