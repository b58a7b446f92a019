"""The protocol's numbers against closed forms and libraries, and what changes none of them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.comparison import Design, Tuning, compare_means
from qkv_jax.study.protocol.inference import Difference
from qkv_jax.study.protocol.selection import choose_rates
from qkv_jax.study.protocol.summary import COLUMNS
from qkv_jax.study.protocol.verdicts import Verdict
from tests.support.studies.verdict_studies import (
    SEEDS,
    make_runs,
    make_study,
    rows,
    scores,
    summarise,
    verdict,
)

# --- the numbers are those of the libraries -------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.floats(0.1, 9), st.integers(0, 10**6))
def test_a_difference_is_welchs(n, n_other, spread, seed):
    """Error, degrees of freedom, p, interval and TOST, with seeds missing on either side."""
    rng = np.random.default_rng(seed)
    x, y = np.full((2, 9), np.nan)
    x[:n], y[:n_other] = rng.normal(0.3, 1, n), rng.normal(0, spread, n_other)
    effect = inference.difference([(1, x), (-1, y)])
    welch = stats.ttest_ind(x[:n], y[:n_other], equal_var=False)
    assert effect.df == pytest.approx(welch.df) and effect.n == min(n, n_other)
    assert inference.p_difference(effect) == pytest.approx(welch.pvalue)
    np.testing.assert_allclose(inference.interval(effect), welch.confidence_interval(0.95))
    tost = ttost_ind(x[:n], y[:n_other], -0.5, 0.5, usevar="unequal")[0]
    assert inference.p_equivalence(effect, -0.5, 0.5) == pytest.approx(tost)


def test_an_effect_of_several_samples_is_satterthwaites():
    """Of one sample it is the one-sample t-test; of four, variances add up."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0.4, [[1], [2], [3], [4]], (4, 7))
    alone = stats.ttest_1samp(rows[0], 0)
    effect = inference.difference([(1, rows[0])])
    assert effect.df == pytest.approx(6)
    assert inference.p_difference(effect) == pytest.approx(alone.pvalue)
    effect = inference.difference(list(zip((1, -1, -1, 1), rows, strict=True)))
    parts = rows.var(1, ddof=1) / 7
    assert effect.error == pytest.approx(np.sqrt(parts.sum()))
    assert effect.df == pytest.approx(parts.sum() ** 2 / (parts**2 / 6).sum())
    assert effect.delta == pytest.approx(rows.mean(1) @ [1, -1, -1, 1])


def test_rows_of_the_summary_reckon_with_the_task_as_a_whole():
    """The error takes the correlation that arms show on the whole, and no variance below their
    median; p is multiplied by the number of arms that are asked about."""
    arms = ("separate", "placebo", "K=V", "Q=K", "Q=V")
    data = scores(0, 0.01, 0.05, -0.03, 0.2, sd=0.04, arms=arms)
    shared = np.random.default_rng(5).normal(0, 0.08, 6)
    data = {arm: values + shared for arm, values in data.items()}
    data["Q=V"] = 1.2 + 0.1 * (data["Q=V"] - 1.2)  # quiet by chance
    table = summarise(make_study(arms), make_runs(data)).set_index("arm")
    assert list(table.columns) == [c for c in COLUMNS if c != "arm"]
    base = data["separate"]
    z = [np.arctanh(min(np.corrcoef(data[a], base)[0, 1], 0.99)) for a in arms[1:]]
    rho = np.tanh(np.mean(z) - 1 / np.sqrt(4 * 3))
    assert rho > 0.5 and np.allclose(table.correlation[1:].astype(float), rho)
    variances = {a: v.var(ddof=1) for a, v in data.items()}
    least = np.median(list(variances.values())) * 5 / stats.chi2.median(5)
    for arm in arms[1:]:
        v, v0 = (max(variances[a], least) for a in (arm, "separate"))
        error = np.sqrt((v + v0 - 2 * rho * np.sqrt(v * v0)) / 6)
        df = (v + v0) ** 2 / ((v**2 + v0**2) / 5)
        row, delta = table.loc[arm], np.mean(data[arm] - base)
        assert row.delta == pytest.approx(delta) and row.sd == pytest.approx(variances[arm] ** 0.5)
        p = 2 * stats.t.sf(abs(delta) / error, df)
        assert row.p_value == pytest.approx(p) and row.p_adjusted == pytest.approx(min(3 * p, 1))
        tost = stats.t.sf((0.1 - abs(delta)) / error, df)
        assert row.p_equivalence == pytest.approx(min(3 * tost, 1))
        for ends, level in (("delta_{}", 0.05), ("delta_{}_simultaneous", 0.05 / 3)):
            half = stats.t.ppf(1 - level / 2, df) * error
            low, high = (row[ends.format(end)] for end in ("low", "high"))
            np.testing.assert_allclose([low, high], [delta - half, delta + half])
        own = stats.ttest_1samp(data[arm], 0).confidence_interval(0.95)
        np.testing.assert_allclose([row.ci_low, row.ci_high], own, rtol=1e-9)
    assert variances["Q=V"] < least / 9


def test_a_correlation_that_is_not_certain_is_not_reckoned_with():
    rng = np.random.default_rng(0)
    drawn = [inference.pooled_correlation(x[1:], x[0]) for x in rng.normal(size=(400, 5, 6))]
    assert np.mean(drawn) < 0.1 and min(drawn) == 0
    pair = rng.normal(size=6)
    assert inference.pooled_correlation([pair], pair) < 0.99  # three degrees of freedom
    assert inference.pooled_correlation([pair] * 40, pair) > 0.95
    assert inference.pooled_correlation([-pair, np.ones(6), np.full(6, np.nan)], pair) == 0


@settings(max_examples=15, deadline=None)  # each costs a garbage collection
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_statsmodels(p):
    np.testing.assert_allclose(inference.holm(p), multipletests(p, method="holm")[1])


def test_a_test_that_could_not_be_made_stays_in_the_family():
    np.testing.assert_allclose(inference.holm([0.01, np.nan]), [0.02, np.nan])


def one_arm(values, baseline, margin=0.1, **fields):
    """The comparison of one arm that was sure of its learning rate."""
    n = len(baseline)
    design = {"analyses": (n,), "alpha": 0.05, "arms": 1, "higher_is_better": True}
    design = Design(**design | {"margin": margin} | fields)
    values, refused = np.asarray(values, float)[None], np.zeros((1, n), bool)
    (found,), _ = compare_means(values, np.asarray(baseline), design, [Tuning()] * 2, refused)
    return found


def test_scores_without_spread_use_an_exact_test():
    """One arm always 1, the other always 0: no t-test; p is scipy's Barnard test of n to 0."""
    found = one_arm(np.zeros(6), np.ones(6))
    barnard = stats.barnard_exact([[6, 0], [0, 6]], pooled=True)
    assert found.p == pytest.approx(barnard.pvalue, rel=1e-3) == 2 * 0.25**6
    assert found.verdict == Verdict("worse")
    assert np.isnan(found.low) and np.isnan(found.p_equivalence)
    sign = inference.difference([(1, np.full(6, 0.2))])  # against a constant
    assert inference.p_difference(sign) == stats.binomtest(6, 6).pvalue


def test_sampling_error_is_that_of_the_seed_averaged_difference():
    rng = np.random.default_rng(0)
    arm, base = rng.normal(size=(2, 6, 50))
    expected = stats.sem((arm - base).mean(0))
    assert inference.sampling_error(arm, base) == pytest.approx(expected)
    arm[2] = np.nan  # a diverged run: left out of both
    keep = [0, 1, 3, 4, 5]
    expected = stats.sem((arm - base)[keep].mean(0))
    assert inference.sampling_error(arm, base) == pytest.approx(expected)
    assert np.isnan(inference.sampling_error(None, base))
    assert np.isnan(inference.sampling_error(arm, base[:, :-1]))


def test_at_the_number_of_seeds_given_the_test_has_its_power():
    """Simulated at that number, an effect as large as the estimate is found in four of five."""
    effect = Difference(6, 0.4, 0.3, 10.0)
    seeds = inference.seeds_needed(effect, 0.4, 0.05)
    assert seeds == np.ceil(6 * ((1.96 + 0.8416) * 0.3 / 0.4) ** 2)
    sd = 0.3 * np.sqrt(6 / 2)
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, sd, (2, 2000, int(seeds)))
    found = np.mean(stats.ttest_ind(x + 0.4, y, axis=1, equal_var=False).pvalue < 0.05)
    assert found == pytest.approx(inference.POWER, abs=0.04)
    assert np.isnan(inference.seeds_needed(effect, 0.0, 0.05))
    assert np.isnan(inference.seeds_needed(Difference(6, 0.4), 0.4, 0.05))
    assert inference.seeds_needed(effect, 100.0, 0.05) == 7  # what there is was not enough


# --- properties -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_arms_seeds_and_rows_changes_nothing(seed, random):
    arms = ["separate", "placebo", "K=V", "Q=K"]
    runs = make_runs(scores(0, 0, 0.06, 0.2, sd=0.06, seed=seed, arms=arms))
    before = summarise(make_study(arms), runs).set_index("arm")
    shuffled, seeds = arms[:], SEEDS[:]
    random.shuffle(shuffled)
    random.shuffle(seeds)
    order = list(range(len(runs)))
    random.shuffle(order)
    after = summarise(make_study(shuffled, seeds=seeds), runs.iloc[order]).set_index("arm")
    pd.testing.assert_frame_equal(before, after.loc[arms], rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_flipping_the_metric_flips_nothing_but_signs(seed):
    """-value with higher_is_better reversed is the same study; without it better becomes worse."""
    data = scores(0, 0.0, 0.15, sd=0.05, seed=seed)
    runs = make_runs(data)
    mirrored = runs.assign(validation=-runs.validation, test=-runs.test)
    before = summarise(make_study(), runs)
    after = summarise(make_study(metric="accuracy", failure_value=-9.0), mirrored)
    assert list(before.verdict) == list(after.verdict)
    np.testing.assert_allclose(before.delta_low.astype(float), -after.delta_high.astype(float))
    only = runs.assign(test=-runs.test)
    swap = {"better": "worse", "worse": "better"}
    reversed_ = summarise(make_study(), only).verdict
    assert list(reversed_) == [swap.get(word, word) for word in before.verdict]


# --- studies that are still running -------------------------------------------------------------


def test_unfinished_studies_are_summarised():
    data = scores(0, 0, 0.5)
    data["K=V"] = []
    table = summarise(make_study(), make_runs(data)).set_index("arm")
    assert table.n["K=V"] == 0 and np.isnan(table["mean"]["K=V"]) and table.verdict["K=V"] == ""
    assert table.verdict["placebo"] == "equivalent"
    empty = summarise(make_study(threshold=1.0), make_runs(data).iloc[:0])
    assert list(empty.verdict) == ["baseline", "", ""] and (empty.n == 0).all()
    assert len(choose_rates(make_study(), make_runs(data).iloc[:0])) == 0


def test_only_runs_at_the_chosen_rate_and_on_the_seeds_of_the_study_count():
    data = scores(0, 0, 0.5)
    runs = make_runs(data)
    missing = runs[~((runs.arm == "K=V") & (runs.seed == 100))]
    stray = [rows("K=V", 8e-3, [99.0], [100]), rows("K=V", 2e-3, [99.0], [777])]
    row = verdict(make_study(), pd.concat([missing, *stray]))
    assert row.n == 5
    assert row.delta == pytest.approx(data["K=V"][1:].mean() - data["separate"].mean())


def test_costs_are_merged():
    costs = {"task": {"K=V": {"params": 7, "step_time_ratio": None}}}
    row = verdict(make_study(), make_runs(scores(0, 0, 0)), costs=costs)
    assert row.params == 7 and np.isnan(row.step_time_ratio) and np.isnan(row.flops_per_token)
