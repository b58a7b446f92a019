"""How learning rates are chosen and extended, and tasks that are solved or not."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from qkv_jax.study.protocol.selection import extension_needed
from tests.support.studies.verdict_studies import (
    GRID,
    chosen,
    make_runs,
    make_study,
    scores,
    tuned,
    verdict,
)

# --- learning rates -----------------------------------------------------------------------------


def test_best_validation_mean_is_chosen():
    choice = chosen(tuned("separate", [0.5, 0.3, 0.1, 0.4]))
    assert choice.learning_rate == 4e-3 and choice.edge == "" and choice["mean"] == 0.1
    up = make_study(metric="accuracy")
    assert chosen(tuned("separate", [0.5, 0.3, 0.1, 0.4]), up).edge == "low"
    assert chosen(tuned("separate", [0.5, 0.3, 0.1, 0.05])).edge == "high"


def test_failures_count_against_a_rate():
    tables = tuned("separate", [0.5, 0.3, 0.1, 0.4])
    tables[2].loc[1, "status"] = "diverged"
    tables[2].loc[1, "validation"] = np.nan
    assert chosen(tables).learning_rate == 2e-3


def test_ties_go_to_fewer_steps_then_to_the_lower_rate():
    tables = tuned("separate", [0.5, 0.1, 0.1, 0.5])
    assert chosen(tables).learning_rate == 2e-3
    tables[1]["steps_to_solve"] = [100.0, np.nan]  # 550 on average, censored at 1000
    tables[2]["steps_to_solve"] = [400.0, 500.0]
    assert chosen(tables).learning_rate == 4e-3
    tables[1]["steps_to_solve"] = [100.0, 200.0]
    assert chosen(tables).learning_rate == 2e-3


def test_a_plateau_is_no_edge_nor_is_one_of_failures():
    flat = tuned("separate", [0.1] * 4)
    assert tuple(chosen(flat)[["learning_rate", "edge"]]) == (1e-3, "")
    dead = tuned("separate", [0.1] * 4, status=["diverged"] * 2)
    assert tuple(chosen(dead)[["learning_rate", "edge"]]) == (1e-3, "")
    assert extension_needed(make_study(("separate",)), pd.concat(dead), "task") == []
    half = tuned("separate", [0.5, 0.5, 0.5, 0.5])  # one rate works, at the end
    for table in half[1:]:
        table["status"] = "diverged"
    assert tuple(chosen(half)[["learning_rate", "edge"]]) == (1e-3, "low")


def test_extension_keeps_the_spacing_and_stops_after_two():
    """An arm at the edge extends the grid for all; interior arms ask for nothing."""
    record = make_study(("separate", "K=V"))

    def extend(rates, means):
        tables = tuned("separate", means, rates)
        tables += tuned("K=V", [abs(np.log(r / 3e-3)) for r in rates], rates)
        return extension_needed(record, pd.concat(tables), "task")

    assert extend(GRID, [0.5, 0.1, 0.3, 0.4]) == []
    assert extend(GRID, [0.5, 0.4, 0.3, 0.1]) == [1.6e-2]
    assert extend(GRID, [0.1, 0.3, 0.4, 0.5]) == [5e-4]
    assert extend([5e-4, *GRID], [0.05, 0.1, 0.3, 0.4, 0.5]) == [2.5e-4]
    assert extend([*GRID, 1.6e-2], [0.5, 0.4, 0.3, 0.1, 0.05]) == [3.2e-2]
    assert extend([2.5e-4, 5e-4, *GRID], [0.01, 0.05, 0.1, 0.3, 0.4, 0.5]) == []
    assert extend([2.5e-4, 5e-4, *GRID], [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]) == [1.6e-2]
    record = record.with_task("task", learning_rates=(1e-3,))
    assert extend([1e-3], [0.1]) == []


def test_both_edges_extend_at_once():
    record = make_study(("separate", "K=V"))
    tables = tuned("separate", [0.1, 0.2, 0.3, 0.4]) + tuned("K=V", [0.4, 0.3, 0.2, 0.1])
    assert extension_needed(record, pd.concat(tables), "task") == [5e-4, 1.6e-2]


# --- tasks that are solved or not -----------------------------------------------------------------


def solve_study(n=6, arms=("separate", "K=V"), **task):
    seeds = list(range(100, 100 + n))
    spec = {"kind": "solve", "metric": "accuracy", "threshold": 0.9, "failure_value": 0.0}
    return make_study(arms, seeds=seeds, **(spec | task)), seeds


def solve_runs(seeds, **solved):
    data = {arm: np.where(won, 1.0, 0.5) for arm, won in solved.items()}
    return make_runs(data, rate=2e-3, seeds=seeds, tune=(0.1, 0.9, 0.3, 0.2))


def test_solved_seeds_boschloo_and_clopper_pearson():
    record, seeds = solve_study(20)
    base, arm = [1] * 18 + [0] * 2, [0] * 14 + [1] * 4 + [0, 1]
    runs = solve_runs(seeds, separate=base, **{"K=V": arm})
    row = verdict(record, runs)
    assert row.p_value == pytest.approx(stats.boschloo_exact([[5, 18], [15, 2]]).pvalue)
    assert row.verdict == "worse" and row.n_solved == 5 and np.isnan(row.p_equivalence)
    low, high = proportion_confint(5, 20, method="beta")
    assert (row.solve_low, row.solve_high) == pytest.approx((low, high))
    runs = solve_runs(seeds, separate=arm, **{"K=V": base})
    assert verdict(record, runs).verdict == "better"


def test_six_solved_against_none_decide_and_less_says_how_many_would():
    record, seeds = solve_study(6)
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [0] * 6}))
    assert row.p_value == pytest.approx(2 * 0.25**6) and row.verdict == "worse"
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [0] * 2 + [1] * 4}))
    apart = 2 * np.arcsin(1) - 2 * np.arcsin(np.sqrt(4 / 6))
    z = stats.norm.ppf(1 - 0.025 / 2) + stats.norm.ppf(0.8)  # the next analysis has half of alpha
    assert row.verdict == "undecided (power)"
    assert row.seeds_to_decide == np.ceil(2 * (z / apart) ** 2)
    row = verdict(record, solve_runs(seeds, separate=[1] * 6, **{"K=V": [1] * 6}))
    assert row.verdict == "undecided (ceiling)"


def test_seeds_that_could_decide_nothing_are_few():
    """Among 400 arms not even all against none of five seeds would be told apart."""
    arms = ("separate", "K=V", *(f"arm{i}" for i in range(399)))
    record, seeds = solve_study(5, arms)
    runs = solve_runs(seeds, separate=[1] * 5, **{"K=V": [0] * 5})
    assert verdict(record, runs).verdict == "undecided (few seeds)"
    record, seeds = solve_study(5)
    assert verdict(record, runs).verdict == "worse"


def test_a_run_that_failed_has_not_solved():
    record, seeds = solve_study(6, failure_value=1.0)  # a failure value declared by mistake
    runs = solve_runs(seeds, separate=[1] * 6, **{"K=V": [1] * 6})
    runs.loc[(runs.arm == "K=V") & (runs.seed == 100), "status"] = "diverged"
    assert verdict(record, runs).n_solved == 5


def test_lower_is_better_thresholds():
    record, seeds = solve_study(6, metric="loss", threshold=0.5, failure_value=9.0)
    runs = solve_runs(seeds, separate=[1] * 6, **{"K=V": [0, 0, 1, 1, 1, 1]})
    runs["validation"] = 1 - runs.validation  # tuned by what is low
    assert verdict(record, runs).n_solved == 2


def test_steps_to_solve_is_a_restricted_mean():
    """Runs that never solve count with the whole budget; `mean` tasks report it as well."""
    steps = {"K=V": [100, 200, 300, 400, np.nan, np.nan]}
    runs = make_runs(scores(0, 0, 0), steps=steps)
    row = verdict(make_study(threshold=2.0), runs)
    censored = [100, 200, 300, 400, 1000, 1000]
    interval = stats.ttest_1samp(censored, 0).confidence_interval(0.95)
    assert row.steps_to_solve == pytest.approx(500) and row.n_solved == 6
    assert row.steps_to_solve_low == pytest.approx(max(interval.low, 0))
    assert row.steps_to_solve_high == pytest.approx(interval.high)
    nothing = verdict(make_study(), runs)
    assert np.isnan(nothing.steps_to_solve) and np.isnan(nothing.n_solved)
