"""How much of a claim holds: against brute force, its level when little of it is true and its power
when all is, and why tests of one kind are combined as they are."""

import itertools

import numpy as np
import pytest
from scipy import stats

from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.conjunction import at_least, combined, family

ALPHA = 0.05
SEEDS = 6


def some_p(seed, size):
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=size) ** rng.choice([1, 4])
    p[rng.uniform(size=size) < 0.2] = 1.0
    return np.round(p, rng.integers(1, 6))  # with ties


def welch(rng, effects, studies, shared=0.0):
    """[studies, M] one-sided p's of six runs against six; effects [M] in SDs of a paired
    difference, which is √2 of a run's. The baseline is, in part, the same for all M."""
    effects = np.asarray(effects, float)
    shape = studies, len(effects), SEEDS
    arm = rng.normal(size=shape) + np.sqrt(2) * effects[:, None]
    base = np.sqrt(shared) * rng.normal(size=(studies, 1, SEEDS))
    base = base + np.sqrt(1 - shared) * rng.normal(size=shape)
    return stats.ttest_ind(arm, base, axis=-1, equal_var=False, alternative="greater").pvalue


@pytest.mark.parametrize("seed", range(30))
def test_at_least_so_many_is_what_no_set_of_nulls_explains(seed):
    """By the definition: fewer than u of m hold if m - u + 1 or more are null together, and
    Bonferroni's p of every such set is looked at."""
    m = 1 + seed % 6
    p = some_p(seed, m)
    for u, found in enumerate(at_least(p), 1):
        sets = [list(s) for size in range(m - u + 1, m + 1)
                for s in itertools.combinations(range(m), size)]  # fmt: skip
        assert found == pytest.approx(min(max(len(s) * p[s].min() for s in sets), 1.0))


@pytest.mark.parametrize("seed", range(30))
def test_at_least_never_falls_with_u_and_is_not_below_benjamini_and_hellers(seed):
    p = some_p(seed, 7)
    found, u = at_least(p), np.arange(1, 8)
    assert (np.diff(found) >= 0).all()
    assert (found >= np.minimum((7 - u + 1) * np.sort(p), 1.0) - 1e-12).all()
    assert found[0] == pytest.approx(combined(p))  # "at least one" is the same question


def test_a_test_that_could_not_be_made_counts():
    assert combined([0.01, np.nan]) == combined([0.01, 1.0]) == pytest.approx(0.02)
    np.testing.assert_allclose(at_least([0.01, np.nan]), [0.02, 1.0])
    assert combined([np.nan]) == 1.0 and at_least([1.0]).tolist() == [1.0]


def shown_in_turn(some, enough, alpha):
    """What is shown at alpha, pair by pair: each has alpha / K for its two questions in turn, and
    leaves it to those that remain once both are answered."""
    left = set(range(len(some)))
    while left:
        done = {i for i in left if max(some[i], enough[i]) <= alpha / len(left)}
        if not done:
            break
        left -= {min(done, key=lambda i: enough[i])}
    level = alpha / len(left) if left else None
    whole = [i not in left for i in range(len(some))]
    return [done or some[i] <= level for i, done in enumerate(whole)], whole


@pytest.mark.parametrize("seed", range(40))
def test_a_family_is_tested_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    count = 2 * int(rng.integers(1, 6))
    pairs = [at_least(some_p([seed, i], 3)) for i in range(count)]
    some, enough = (np.array([pair[u] for pair in pairs]) for u in (0, 1))
    first, whole = family(some, enough)
    for alpha in (0.003, 0.02, 0.05, 0.2, 0.77):
        expected = shown_in_turn(some, enough, alpha)
        assert ((first <= alpha).tolist(), (whole <= alpha).tolist()) == expected


# --- level and power


def test_the_level_where_too_little_is_true():
    """Four of seven kinds hold beyond doubt, five are asked for; in claims of which none holds
    anywhere, nothing is said in more than alpha of all ledgers, in either direction."""
    rng = np.random.default_rng(1)
    p = welch(rng, [8.0] * 4 + [0.0] * 3, 4000)
    supported = np.mean([at_least(row)[4] <= ALPHA for row in p])
    assert supported <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / 4000)
    assert supported >= ALPHA / 3  # and it is not bought by never saying so
    wrong = 0
    for _ in range(1000):
        both = [side for row in welch(rng, [0.0] * 7, 3) for side in (row, 1 - row)]
        first, _ = family(*(np.array([at_least(row)[u] for row in both]) for u in (0, 4)))
        wrong += (first <= ALPHA).any()
    assert wrong <= 1000 * ALPHA + 3 * np.sqrt(1000 * ALPHA * (1 - ALPHA))


def test_the_level_of_mixed_ledgers():
    """Claims that hold nowhere, on too few kinds, and on all: whatever is false is said in at most
    alpha of all ledgers."""
    rng, wrong, studies = np.random.default_rng(2), 0, 1000
    truths = [[0.0] * 3, [8.0, 0.0, 0.0], [8.0] * 3, [0.0] * 3]
    for _ in range(studies):
        p = [at_least(welch(rng, truth, 1)[0]) for truth in truths]
        first, whole = family([row[0] for row in p], [row[1] for row in p])
        wrong += (first[[0, 3]] <= ALPHA).any() or (whole[[0, 1, 3]] <= ALPHA).any()
    assert wrong <= studies * ALPHA + 3 * np.sqrt(studies * ALPHA * (1 - ALPHA))


def test_the_power_of_seven_claims_that_are_true():
    """Each on seven kinds, with effects of two SDs and six seeds: most are supported, where
    counting the significant ones in a family of all tests finds less than half."""
    rng, supported, counted = np.random.default_rng(3), [], []
    for _ in range(150):
        p = welch(rng, [2.0] * 49, 1).reshape(7, 7)
        rows = [at_least(row) for row in p] + [np.ones(7)] * 7  # and nothing is against
        _, whole = family([row[0] for row in rows], [row[4] for row in rows])
        supported.append((whole[:7] <= ALPHA).mean())
        tests = 2 * inference.holm(p.ravel()).reshape(7, 7) <= ALPHA / 2
        counted.append((tests.sum(1) >= 5).mean())
    assert np.mean(supported) > 0.7
    assert np.mean(counted) < 0.5


def cauchy(p):
    """Of [studies, M] (Liu & Xie 2020)."""
    p = np.clip(p, 1e-15, 1 - 1e-15)
    return stats.cauchy.sf(np.tan((0.5 - p) * np.pi).mean(1))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_why_tests_of_one_kind_are_combined_by_the_smallest(shared):
    """Both keep their level whatever the tests share. Cauchy's sees a little more where all tests
    show the same, nothing where a guard forbids one of them, and half where two go the other
    way."""
    rng, studies = np.random.default_rng(4), 8000
    bonferroni = lambda p: np.minimum(4 * p.min(1), 1.0)
    rate = lambda p, of: np.mean(of(p) <= ALPHA / 14)
    null = welch(rng, [0.0] * 4, studies, shared)
    np.testing.assert_allclose(bonferroni(null)[:20], [combined(row) for row in null[:20]])
    slack = 3 * np.sqrt(ALPHA / studies)
    for of in (bonferroni, cauchy):
        assert np.mean(of(null) <= ALPHA) <= ALPHA + slack
    alike = welch(rng, [1.5] * 4, studies, shared)
    assert 0 < rate(alike, cauchy) - rate(alike, bonferroni) < 0.2
    guarded = alike.copy()
    guarded[:, 3] = 1.0
    assert rate(guarded, bonferroni) > 0.4 and rate(guarded, cauchy) == 0
    opposed = welch(rng, [2.0, 2.0, -2.0, -2.0], studies, shared)
    assert rate(opposed, bonferroni) > 1.5 * rate(opposed, cauchy)
