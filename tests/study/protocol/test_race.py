"""The race: a function of the runs alone, equal to an implementation made apart from it, with the
errors that it claims."""

import dataclasses
import itertools
import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from qkv_jax.study.protocol import hostile, inference, race
from qkv_jax.study.protocol.hostile import CASES, DECLARED, Case
from qkv_jax.study.protocol.race import Race, Rules

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden/race.json").read_text())
SMALL = Case("small", arms=3, effect=(0.0, 0.0, 1.5, -1.5), margin=1.0)


def all_runs(losses):
    """All runs of a table [2, arms, rates, seeds] whose first two rates are below the grid."""

    def runs(arm, place):
        inside = -2 <= place < losses.shape[2] - 2
        return losses[:, arm, place + 2] if inside else np.empty((2, 0))

    return runs


def standing(found):
    """All that is known of a race at its end."""
    return [dataclasses.astuple(arm) for arm in found.arms], found.used


def test_the_shares_of_alpha_come_to_one():
    seeds, shares = zip(*itertools.islice(race.looks(), 60), strict=True)
    assert seeds[:9] == (4, 6, 8, 12, 16, 24, 32, 48, 72)
    assert math.fsum(shares[:7]) == pytest.approx(0.925) and sum(shares) < 1
    assert sum(shares) == pytest.approx(1) and all(b > a for a, b in itertools.pairwise(seeds))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_race_is_a_function_of_its_runs(seed, random):
    """Runs that come as they are asked for, in any order and a few at a time, end where all runs
    at once do, and none that is asked for goes unused."""
    losses = SMALL.draw(np.random.default_rng(seed))
    rules = Rules(3, DECLARED, SMALL.margin)
    whole = Race(rules, all_runs(losses))
    have: dict = {}

    def runs(arm, place):
        return all_runs(losses)(arm, place)[:, : have.get((arm, place), 0)]

    for _ in range(400):
        found = Race(rules, runs)
        if not found.wanted:
            break
        asked = list(found.wanted.items())
        random.shuffle(asked)
        for cell, seeds in asked[: random.randint((len(asked) + 1) // 2, len(asked))]:
            have[cell] = random.randint((have.get(cell, 0) + seeds + 1) // 2, seeds)
    assert not found.wanted and standing(found) == standing(whole)
    assert have == whole.used


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_more_seeds_change_no_verdict_that_was_given(seed):
    losses = SMALL.draw(np.random.default_rng(seed))
    given_ = [(race.verdicts.PENDING,)] * 4
    for most in (4, 6, 8, 12, 16, 24, 32):
        found = Race(Rules(3, DECLARED, SMALL.margin, max_seeds=most, hopeless=math.inf),
                     all_runs(losses))  # fmt: skip
        now = [(a.verdict, a.seeds, a.low, a.high) for a in found.arms]
        for before, after in zip(given_, now, strict=True):
            assert before[0] == race.verdicts.PENDING or before == after
        given_ = now


def test_every_verdict_comes_out_where_it_is_true():
    """Clear effects, and a curve so steep that the best rate is known."""
    case = Case("clear", arms=4, effect=(0.0, 0.0, 9.0, -9.0, 0.0), best=(1, 1, 2, 1, -9),
                curve=30.0, margin=3.0)  # fmt: skip
    found = Race(Rules(4, DECLARED, 3.0), all_runs(case.draw(np.random.default_rng(0))))
    given_ = [str(arm.verdict) for arm in found.arms[1:]]
    assert given_ == ["equivalent", "worse", "better", "undecided (edge)"]
    assert [arm.live for arm in found.arms[:4]] == [[1], [1], [2], [1]]
    assert found.used[2, 2] == 4 and found.used[2, 0] == 2  # the first look is enough for it
    assert found.used[4, -2] == 2 and (4, -3) not in found.used
    for arm, cost in zip(found.arms[1:4], (0.0, 9.0, -9.0), strict=True):
        assert arm.low <= cost <= arm.high and arm.delta == pytest.approx(cost, abs=2)
    assert found.arms[1].low > -3 and found.arms[1].high < 3
    assert found.arms[2].low > 0 > found.arms[3].high


def test_where_the_best_of_the_baseline_is_not_known_nothing_is():
    """Its best rate lies beyond all that it may be given; nor is a run more asked for."""
    case = Case("far off", arms=2, best=(-9, 1), curve=30.0)
    found = Race(Rules(2, DECLARED, 0.3), all_runs(case.draw(np.random.default_rng(0))))
    assert [str(arm.verdict) for arm in found.arms[1:]] == ["undecided (edge)"] * 2
    assert found.used[0, -2] == 2 and max(found.used.values()) == race.PILOT


def test_scores_without_spread_have_no_interval():
    """All against none is worse by the exact test; how much worse, no seed tells."""
    losses = np.zeros((2, 2, 8, 64))
    losses[:, 1] = 1.0
    (arm,) = Race(Rules(1, DECLARED, 0.1), all_runs(losses)).arms[1:]
    assert str(arm.verdict) == "worse" and (arm.low, arm.high) == (-math.inf, math.inf)


def test_an_arm_that_would_need_too_many_seeds_is_given_up():
    case = Case("close", arms=1, effect=(0.0, 0.15), margin=0.3)
    losses = all_runs(case.draw(np.random.default_rng(1)))
    (arm,) = Race(Rules(1, DECLARED, 0.3), losses).arms[1:]
    assert arm.verdict == race.verdicts.POWER and arm.needed > 64 and arm.seeds == 6
    (arm,) = Race(Rules(1, DECLARED, 0.3, hopeless=math.inf), losses).arms[1:]
    assert arm.verdict == race.verdicts.PENDING and arm.seeds == 32


def test_a_plateau_is_no_edge():
    """Rates that are equally good to the last digit, as at a ceiling, do not point beyond."""
    case = Case("ceiling", arms=1, noise=1e-9, shared=1.0, own=0.0)
    losses = case.draw(np.random.default_rng(0))
    losses[:] = 0.0
    found = Race(Rules(1, DECLARED, 0.1, max_seeds=4), all_runs(losses))
    assert not found.wanted and set(found.used) == {(a, p) for a in (0, 1) for p in range(DECLARED)}


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_an_implementation_made_apart_says_the_same(name, monkeypatch):
    """Verdicts and numbers of runs of the prototype in which the protocol was designed, for the
    same draws; it took the geometric mean of variances where we take their median, and widened no
    grid after the pilot."""

    def geometric(values):
        n, _, sd = inference.moments(values)
        df = n[n >= 2] - 1.0
        logs = 2 * np.log(np.maximum(sd[n >= 2], 1e-150)) - special.digamma(df / 2)
        return float(np.exp(np.mean(logs + np.log(df / 2))))

    class OfPilot(Race):
        def _bracket(self, arm):
            return self.event != "bracket" or super()._bracket(arm)

    monkeypatch.setattr(inference, "common_variance", geometric)
    for seed, (verdicts, runs) in enumerate(GOLDEN["cases"][name]):
        case = next(case for case in CASES if case.name == name)
        losses = case.draw(np.random.default_rng(seed))
        rules = Rules(case.arms, DECLARED, case.margin, hopeless=math.inf)
        found = OfPilot(rules, all_runs(losses))
        kinds = {"pending": "undecided"}
        said = [kinds.get(arm.verdict.kind, arm.verdict.kind) for arm in found.arms[1:]]
        assert (said, sum(found.used.values())) == (verdicts, runs)


@pytest.mark.parametrize("name", ["noise differs", "optima apart", "all at the margin"])
def test_the_family_error_is_what_it_claims(name):
    case = next(case for case in CASES if case.name == name)
    counts = hostile.simulate(case, 80)
    low, _ = inference.solve_interval(counts[:, :2].sum(0), len(counts))
    assert (low <= case.at_most).all()


def test_the_simulation_sees_a_race_that_is_too_bold(monkeypatch):
    monkeypatch.setattr(Rules, "level", property(lambda rules: 10 * rules.alpha))
    counts = hostile.simulate(CASES[0], 60)
    low, _ = inference.solve_interval(counts[:, 0].sum(), len(counts))
    assert low > 0.05


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_case_says_is_what_it_draws(case):
    """Means at every rate, and the noise of arms that do not collapse."""
    rng = np.random.default_rng(0)
    drawn = np.concatenate([case.draw(rng) for _ in range(60)], axis=-1)
    fallen = case.of_arms(case.collapse) * case.jump
    error = drawn.std(axis=(0, -1)) / np.sqrt(60 * 64) * 6
    assert (np.abs(drawn.mean(axis=(0, -1)) - case.means() - fallen[:, None]) < error + 0.05).all()
    if not fallen.any():
        expected = np.broadcast_to(case.of_arms(case.noise)[:, None], drawn.shape[1:3])
        tolerance = 0.6 if case.shape == "t3" else 0.1
        spread = drawn.std(axis=(0, -1))
        if case.fails is not None:
            assert (spread[:, case.fails + 2] == 0).all()
            expected, spread = (np.delete(x, case.fails + 2, 1) for x in (expected, spread))
        np.testing.assert_allclose(spread, expected, rtol=tolerance)


def test_whole_studies_of_both_protocols_come_to_their_counts():
    """Through the rows and the tables: where arms are far apart each protocol decides all, the race
    at fewer runs; a race counts as `race_once` does."""
    case = Case("clear", arms=4, effect=(0.0, 0.0, 9.0, -9.0, 9.0), curve=30.0, margin=4.0)
    fixed, raced = np.split(hostile.compare(case, 2), 2, axis=1)
    assert (fixed[:, :3] == [0, 0, 1]).all() and (raced[:, :3] == [0, 0, 1]).all()
    assert (fixed[:, 3] == 6 * (4 * 2 + 6)).all() and (raced[:, 3] < 60).all()
    alone = hostile.race_once(CASES[3], np.random.default_rng(0))
    study = hostile.study_once(CASES[3], "race", np.random.default_rng(0))
    assert study[0] == alone[0] and study.decided == alone.decided


def test_scores_that_are_equal_lend_no_certainty():
    """Accuracies of MNIST-5k: at a rate beyond the grid both seeds of the pilot got the same number
    of images right, which said that no rate scatters, and the best one left on two seeds."""
    losses = np.full((2, 2, 7, 8), 0.2) + 0.01 * np.random.default_rng(0).normal(size=(2, 2, 7, 8))
    for place, scores in enumerate(((0.862, 0.876), (0.866, 0.864), (0.88, 0.868), (0.602, 0.602))):
        losses[0, 1, 2 + place, :2] = 1 - np.array(scores)
    found = Race(Rules(1, 3, 0.02, max_seeds=4), all_runs(losses))
    assert (1, 3) in found.used and 1 in found.arms[1].live


@pytest.mark.parametrize(("beyond", "verdict"), [(0.0, "worse"), (-12.0, "undecided (edge)")])
def test_a_rate_that_comes_to_lead_at_an_end_widens_the_grid(beyond, verdict):
    """The pilot says that the second rate is best, later seeds that the first is, and the one below
    it; the last that may be added is worse than that one, or better still."""
    rng = np.random.default_rng(0)
    losses = np.full((2, 2, 8, 64), 50.0)
    losses[:, :, 3] = 0.0  # place 1
    losses[0, 1, 2] = np.where(np.arange(64) < race.PILOT, 0.3, -3.0)  # the first of the grid
    losses[0, 1, :2] = np.array([beyond, -6.0])[:, None]
    losses += rng.normal(size=losses.shape)
    losses[1, 1] += 9.0 - losses[1, 1].mean(1, keepdims=True) + losses[1, 0, 3].mean()
    found = Race(Rules(1, DECLARED, 1.0), all_runs(losses))
    assert str(found.arms[1].verdict) == verdict
    assert found.arms[1].lead == (-1 if beyond == 0.0 else -2)
    assert found.used[1, -1] >= 2 and found.used[1, -2] >= 2


def test_a_rate_that_comes_to_lead_while_a_verdict_waits_widens_the_grid():
    """The rate that leads at the look is worse; the other that is alive, at an end, is run for the
    verdict to stand there too, and then leads: what lies beyond it is asked for first. What is said
    of the arm are the runs by which it was judged, not the four that lead in the end."""
    losses = np.full((2, 2, 7, 16), 50.0)
    losses += np.random.default_rng(0).normal(scale=0.1, size=losses.shape)
    losses[:, :, 3] -= 50.0  # place 1
    losses[0, 1, 4] = np.where(np.arange(16) < race.PILOT, 0.4, -0.8) + losses[0, 1, 3]
    losses[0, 1, 3:5] += np.where(np.arange(16) % 2, 0.5, -0.5)
    losses[1, 1, 3:] += 30.0
    have = lambda arm, place: all_runs(losses)(arm, place)[:, : 2 if place == 3 else 16]
    found = Race(Rules(1, 3, 0.02), have)
    assert found.used[1, 2] == 4 and found.arms[1].lead == 1
    assert np.mean(losses[0, 1, 4, :4]) < np.mean(losses[0, 1, 3, :4])
    assert str(found.arms[1].verdict) == "worse" and found.used[1, 3] == 2
    nothing = lambda arm, place: all_runs(losses)(arm, place)[:, : 0 if place == 3 else 16]
    found = Race(Rules(1, 3, 0.02), nothing)
    assert found.wanted == {(1, 3): 2} and found.arms[1].verdict == race.verdicts.PENDING


def test_a_margin_that_is_too_small_is_not_met_by_arms_that_go_together_either():
    rng = np.random.default_rng(0)
    losses = np.full((2, 2, 7, 16), 50.0)
    losses[:, :, 3] = rng.normal(size=(2, 1, 16)) + 1e-4 * rng.normal(size=(2, 2, 16))
    wide, narrow = (Race(Rules(1, 3, margin), all_runs(losses)) for margin in (0.35, 0.2))
    assert str(wide.arms[1].verdict) == "equivalent" and wide.correlation > 0.9
    assert str(narrow.arms[1].verdict) != "equivalent" and 0.2 / math.sqrt(narrow.least) < 0.3


def test_arms_that_were_given_up_still_say_how_noisy_arms_are():
    """Single runs collapse in all arms: those in which some have need too many seeds and leave; one
    in which none has yet would then be judged by its own luck (16 % of such studies were wrong)."""
    losses = np.full((2, 4, 7, 32), 50.0)
    losses[:, :, 3] = 0.1 * np.random.default_rng(0).normal(size=(2, 4, 32))
    losses[:, 2:, 3] += np.where(np.arange(32) % 5 == 1, 20.0, -5.0)
    found = Race(Rules(3, 3, 1.0, max_seeds=16), all_runs(losses))
    given = [str(arm.verdict) for arm in found.arms[1:]]
    assert given == ["", "undecided (power)", "undecided (power)"] and found.arms[1].seeds == 16
    assert found.least > 10.0
