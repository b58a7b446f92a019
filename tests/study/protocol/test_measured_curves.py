"""Which curves of a study are compared in steps: of what runs, and what stands for those that
failed or are not there."""

import numpy as np
import pytest

from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.hostile import run_study
from qkv_jax.study.protocol.more_steps import Curves, more_steps
from qkv_jax.study.protocol.summary import MORE_STEPS, summarise
from tests.support.studies.raced_study import TASK, race_record, steep
from tests.support.studies.verdict_studies import SEEDS, make_runs, make_study, scores

STEPS = np.array([0.0, 10, 20, 40, 80, 160])
FAILURE = 9.0  # of these studies


def points(task, arm, rate, seed):
    """Losses that fall, of all arms but the baseline and the placebo a little less."""
    slower = 1.0 if arm in ("separate", "placebo") else 1.4
    noise = 0.01 * np.random.default_rng(seed).normal(size=len(STEPS))
    return np.stack([STEPS, 4 * np.exp(-STEPS / 80 / slower) + noise])


def stacked(arm, seeds):
    """The curves of an arm without the untrained model, which has no place among logarithms."""
    values = [points("task", arm, None, seed)[1, 1:] for seed in seeds]
    return Curves(STEPS[1:], np.stack(values))


def row(table, arm):
    return tuple(table.set_index("arm").loc[arm, list(MORE_STEPS)])


def test_the_summary_has_what_the_curves_at_the_best_rates_say():
    record, runs = make_study(), make_runs(scores(0, 0.01, 0.2))
    asked = []

    def recorded(*key):
        asked.append(key)
        return points(*key)

    table = summarise(record, runs, points=recorded)
    assert {rate for _, _, rate, _ in asked} == {2e-3}
    assert row(table, "K=V") == more_steps(stacked("K=V", SEEDS), stacked("separate", SEEDS), False)
    assert row(table, "K=V")[1] > 0 and row(table, "placebo")[0] == 0
    assert np.isnan(row(table, "separate")).all()
    without = summarise(record, runs)
    assert without[list(MORE_STEPS)].isna().all(axis=None)
    rest = [column for column in table if column not in MORE_STEPS]
    assert without[rest].to_csv() == table[rest].to_csv()


def test_a_run_that_failed_counts_with_the_failure_value_from_first_to_last():
    record, data = make_study(), scores(0, 0.01, 0.2)
    runs = make_runs(data, status={"K=V": ["diverged", *["done"] * 5]})
    found = row(summarise(record, runs, points=points), "K=V")
    curves = stacked("K=V", SEEDS[1:])
    values = np.vstack([curves.values, np.full((1, 5), FAILURE)])
    wanted = more_steps(Curves(curves.steps, values), stacked("separate", SEEDS), False)
    assert found == wanted
    assert found[0] > row(summarise(record, make_runs(data), points=points), "K=V")[0]
    # So does a report of a run that went on whose score was no number.
    holed = lambda *key: points(*key) + np.where(STEPS == 20, [[0], [np.nan]], 0)
    values = np.stack([stacked(arm, SEEDS).values for arm in ("K=V", "separate")])
    values[..., 1] = FAILURE
    wanted = more_steps(*(Curves(STEPS[1:], one) for one in values), False)
    assert row(summarise(record, make_runs(data), points=holed), "K=V") == wanted


@pytest.mark.parametrize("kept", [0, 3])
def test_runs_without_a_curve_are_left_out(kept):
    """As in folders from which somebody took the curves."""
    record, runs = make_study(), make_runs(scores(0, 0.01, 0.2))
    some = lambda *key: points(*key) if key[1] != "K=V" or key[3] in SEEDS[:kept] else None
    found = row(summarise(record, runs, points=some), "K=V")
    if kept:
        pair = stacked("K=V", SEEDS[:kept]), stacked("separate", SEEDS)
        assert found == more_steps(*pair, False)
    else:
        assert np.isnan(found).all()


def test_seeds_that_reported_at_other_steps_are_compared_where_all_did():
    record, runs = make_study(), make_runs(scores(0, 0.01, 0.2))
    fewer = lambda *key: points(*key)[:, :: 1 + (key[3] == SEEDS[0])]
    pair = (Curves(c.steps[1::2], c.values[:, 1::2])
            for c in (stacked(arm, SEEDS) for arm in ("K=V", "separate")))  # fmt: skip
    found = row(summarise(record, runs, points=fewer), "K=V")
    assert np.isnan(found).all() and np.isnan(more_steps(*pair, False)).all()  # two reports


def test_the_placebo_of_a_race_is_one_half_of_the_baselines_runs_against_the_other():
    record = race_record(2)
    runs, _ = run_study(record, steep((0.0, 0.5, 0.6)))
    seeds = evaluations(record, runs)[TASK, "placebo"].seeds
    every = evaluations(record, runs)[TASK, "separate"].seeds
    first = [seed for seed in every if seed not in seeds]
    assert len(first) >= len(seeds) >= 2 and max(first[: len(seeds)]) < min(seeds)
    found = row(summarise(record, runs, points=points), "placebo")
    assert found == more_steps(stacked("separate", seeds), stacked("separate", first), False)
