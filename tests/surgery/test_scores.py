"""Intervals of what surgery measures: against formulas, and against the spread over samples."""

import numpy as np
import pytest

from qkv_jax.surgery.scores import Metric, Scores, difference, estimate, value

MEAN = Metric("loss", False)


def test_a_mean_has_the_interval_of_a_mean_and_a_paired_difference_that_of_differences():
    one, two = np.random.default_rng(0).normal(size=(2, 50)) + [[0.0], [1.0]]
    found = estimate(MEAN, Scores.means(one))
    half = 2.0096 * one.std(ddof=1) / np.sqrt(50)  # Student's t, 49 degrees of freedom
    np.testing.assert_allclose(found, one.mean() + np.array([0, -half, half]), rtol=1e-4)
    paired, gap = difference(MEAN, Scores.means(two), Scores.means(one)), two - one
    half = 2.0096 * gap.std(ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(paired, gap.mean() + np.array([0, -half, half]), rtol=1e-4)
    np.testing.assert_allclose(
        difference(MEAN, Scores.means(one + 0.5), Scores.means(one)), [0.5, 0.5, 0.5]
    )


@pytest.mark.parametrize("root", [False, True])
def test_a_ratio_has_the_spread_that_it_has_over_samples(root):
    """Of texts of unequal length, long ones easier: nothing that a plain mean would tell."""
    rng, metric = np.random.default_rng(1), Metric("loss", False, root=root)

    def sample():
        weights = rng.integers(1, 30, size=200).astype(float)
        return Scores(weights * (3.0 - 0.05 * weights + 0.3 * rng.normal(size=200)), weights)

    found = [estimate(metric, sample()) for _ in range(400)]
    spread = np.std([each.value for each in found])
    halves = np.mean([each.high - each.low for each in found]) / 2
    assert halves == pytest.approx(1.96 * spread, rel=0.12)


def test_what_is_one_example_or_moved_nothing_has_a_number_all_the_same():
    alone = estimate(MEAN, Scores(np.array([3.0]), np.array([2.0])))
    assert alone.value == 1.5 and np.isnan(alone[1:]).all()
    still = Metric("change", False, perfect=0.0, root=True)
    assert estimate(still, Scores(np.zeros(4), np.ones(4))) == (0.0, 0.0, 0.0)
    assert value(still, Scores(np.full(4, 4.0), np.ones(4))) == 2.0
