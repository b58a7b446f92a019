"""The analysis functions: cases with a known answer, and what each claims to be invariant to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.analysis import circuits, geometry, movement, nulls

SEEDS = st.integers(0, 2**32 - 1)


def clouds(seed, tokens=30, widths=(5, 4)):
    """Two clouds of the same tokens that have something to do with each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, widths[0])) + rng.standard_normal(widths[0])
    mixed = x @ rng.standard_normal(widths) + rng.standard_normal((tokens, widths[1]))
    return rng, x, mixed


def kernels(seed, width=9, size=3, count=2):
    rng = np.random.default_rng(seed)
    return rng, *rng.standard_normal((count, width, size))


def mixing(rng, size):
    """An invertible matrix, far from singular."""
    stretch = np.diag(rng.uniform(0.3, 3.0, size))
    return nulls.rotation(rng, size) @ stretch @ nulls.rotation(rng, size)


# --- clouds


def song_2012(x, y):
    """The estimator as the paper prints it, with the Gram matrices."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    np.fill_diagonal(k, 0), np.fill_diagonal(l, 0)
    m, one = len(x), np.ones(len(x))
    total = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((m - 1) * (m - 2))
    return (total - 2 / (m - 2) * one @ k @ l @ one) / (m * (m - 3))


@given(SEEDS)
def test_hsic_in_feature_space_is_that_of_the_gram_matrices(seed):
    _, x, y = clouds(seed)
    np.testing.assert_allclose(geometry.unbiased_hsic(x, y), song_2012(x, y), rtol=1e-9)


def test_hsic_has_the_expectation_that_its_name_promises():
    """The clouds (z, z) of standard normal numbers: E is |Cov|^2 = D, without the bias of order
    D^2 / M that the plain estimator has."""
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((8, 3)) for _ in range(4000)]
    found = [geometry.unbiased_hsic(z, z) for z in draws]
    assert abs(np.mean(found) - 3) < 4 * np.std(found) / np.sqrt(len(found))


def test_cka_of_unrelated_clouds_is_zero_on_average_and_of_equal_ones_one():
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((2, 20, 15)) for _ in range(300)]
    found = [geometry.linear_cka(*pair) for pair in draws]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found)) < 0.05
    assert geometry.linear_cka(draws[0][0], draws[0][0]) == pytest.approx(1)


@given(SEEDS, st.floats(0.01, 100))
def test_cka_knows_no_rotation_shift_scale_or_order(seed, scale):
    rng, x, y = clouds(seed)
    order = rng.permutation(len(x))
    turned = scale * x @ nulls.rotation(rng, 5) + rng.standard_normal(5)
    found = geometry.linear_cka(turned[order], y[order])
    assert found == pytest.approx(geometry.linear_cka(x, y), rel=1e-8)
    assert -1 <= found <= 1
    assert geometry.linear_cka(y, x) == pytest.approx(geometry.linear_cka(x, y), rel=1e-12)


@given(SEEDS)
def test_cka_and_effective_rank_know_other_changes_of_basis(seed):
    """Else the analysis would need no null of drawn projections for them."""
    _, x, y = clouds(seed)
    squeezed = x * np.array([1, 1, 1, 1, 30.0])
    assert abs(geometry.linear_cka(squeezed, y) - geometry.linear_cka(x, y)) > 1e-4
    assert geometry.effective_rank(squeezed) < geometry.effective_rank(x)


def test_cosines_and_ratios_in_closed_form():
    x = np.array([[1.0, 0.0], [0.0, 2.0]])
    y = np.array([[3.0, 3.0], [0.0, -1.0]])
    assert geometry.mean_cosine(x, y) == pytest.approx((np.sqrt(0.5) - 1) / 2)
    assert geometry.cosine(x, y) == pytest.approx((3 - 2) / np.sqrt(5 * 19))
    assert geometry.rms_ratio(x, y) == pytest.approx(np.sqrt(5 / 19))
    assert geometry.rms_ratio(np.full((4, 3), 2.0), np.ones((4, 8))) == pytest.approx(2)


@given(SEEDS)
def test_cosines_know_the_basis_and_ratios_do_not(seed):
    """The cosine of a cloud with itself is 1; after a turn within the head it is anything."""
    rng, x, _ = clouds(seed)
    turn = nulls.rotation(rng, 5)
    assert geometry.mean_cosine(x, x) == pytest.approx(1)
    assert geometry.mean_cosine(x, x @ turn) < 0.999
    assert geometry.rms_ratio(x, x @ turn) == pytest.approx(1)


def test_the_cosine_of_a_randomly_turned_matrix_is_zero_on_average():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4))
    found = [geometry.cosine(x, x @ nulls.rotation(rng, 4)) for _ in range(2000)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    # A turn's trace has variance 1 (Diaconis and Mallows 1986), so the cosine has about 1/4^2.
    assert np.std(found) == pytest.approx(1 / 4, rel=0.15)


@given(SEEDS)
def test_the_best_rotation_is_found_and_leaves_no_basis_to_choose(seed):
    rng, a, b = kernels(seed)
    turns = [nulls.rotation(rng, 3) for _ in range(2)]
    found = geometry.aligned_cosine(a, b)
    assert geometry.aligned_cosine(a @ turns[0], b @ turns[1]) == pytest.approx(found)
    assert geometry.aligned_cosine(a, a @ turns[0]) == pytest.approx(1)
    assert geometry.cosine(a, b @ turns[0]) <= found
    left, _, right = np.linalg.svd(b.T @ a)
    assert geometry.cosine(a, b @ left @ right) == pytest.approx(found)


@given(SEEDS)
def test_turned_cosines_are_those_of_the_turned(seed):
    """Nulls by rotation are computed from the small matrix of cosines alone."""
    rng, x, y = clouds(seed, widths=(4, 4))
    turn = nulls.rotation(rng, 4)
    for matrix, value in (
        (geometry.mean_cosines, geometry.mean_cosine),
        (geometry.cosines, geometry.cosine),
    ):
        assert np.trace(matrix(x, y) @ turn) == pytest.approx(value(x, y @ turn), abs=1e-12)


def test_principal_angles_of_planes_that_share_an_axis():
    a = np.array([[1, 0], [0, 1], [0, 0], [0, 0]])
    b = np.array([[1, 0], [0, np.cos(0.4)], [0, np.sin(0.4)], [0, 0]])
    np.testing.assert_allclose(geometry.principal_angles(a, b), [0, 0.4], atol=1e-7)
    assert geometry.subspace_overlap(a, b) == pytest.approx((1 + np.cos(0.4) ** 2) / 2)
    assert geometry.subspace_overlap(a, np.eye(4)[:, 2:]) == pytest.approx(0)
    assert geometry.subspace_overlap(a, np.eye(4)) == pytest.approx(1)


@given(SEEDS)
def test_overlap_knows_no_change_of_basis(seed):
    rng, a, b = kernels(seed)
    turn = nulls.rotation(rng, 9)
    found = geometry.subspace_overlap(turn @ a @ mixing(rng, 3), turn @ b @ mixing(rng, 3))
    assert found == pytest.approx(geometry.subspace_overlap(a, b), abs=1e-9)
    assert found == pytest.approx(geometry.subspace_overlap(b, a), abs=1e-9)


def test_overlap_of_random_subspaces_is_their_share_of_the_room():
    rng = np.random.default_rng(0)
    draws = [(rng.standard_normal((12, 2)), rng.standard_normal((12, 3))) for _ in range(2000)]
    found = [geometry.subspace_overlap(*pair) for pair in draws]
    assert abs(np.mean(found) - 3 / 12) < 4 * np.std(found) / np.sqrt(len(found))


def test_effective_rank_in_closed_form():
    assert geometry.effective_rank(np.diag([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert geometry.effective_rank(np.outer([1.0, 2.0], [3.0, 4.0])) == pytest.approx(1)
    p = np.array([0.75, 0.25])
    entropy = -np.sum(p * np.log(p))
    assert geometry.effective_rank(np.diag([3.0, 1.0])) == pytest.approx(np.exp(entropy))


@given(SEEDS, st.floats(0.01, 100))
def test_effective_rank_knows_no_rotation_scale_or_order(seed, scale):
    rng, x, _ = clouds(seed)
    changed = scale * rng.permutation(x) @ nulls.rotation(rng, 5)
    assert geometry.effective_rank(changed) == pytest.approx(geometry.effective_rank(x))


def test_leading_directions_are_where_a_cloud_spreads():
    rng = np.random.default_rng(0)
    turn = nulls.rotation(rng, 4)
    cloud = rng.standard_normal((500, 4)) * [5, 3, 0.1, 0.1] @ turn.T + 7
    found = geometry.leading_directions(cloud, 2)
    assert geometry.subspace_overlap(found, turn[:, :2]) > 0.999


def test_what_is_undefined_is_nan():
    flat, cloud = np.ones((6, 2)), np.random.default_rng(0).standard_normal((6, 2))
    zeros = np.zeros((6, 2))
    for found in (
        geometry.linear_cka(flat, cloud),
        geometry.linear_cka(cloud[:3], cloud[:3]),
        geometry.mean_cosine(zeros, cloud),
        geometry.cosine(zeros, cloud),
        geometry.aligned_cosine(zeros, cloud),
        geometry.rms_ratio(cloud, zeros),
        geometry.subspace_overlap(zeros, cloud),
        geometry.effective_rank(zeros),
        circuits.antisymmetric_share(zeros, cloud),
        circuits.copying_score(zeros, cloud.T),
        movement.relative_movement(zeros, cloud),
    ):
        assert np.isnan(found)


# --- circuits


def test_shares_of_circuits_in_closed_form():
    rng, query, _ = kernels(0)
    skew = np.array([[0.0, 1.0, 0], [-1.0, 0.0, 0], [0, 0, 0]])
    assert circuits.antisymmetric_share(query, query) == pytest.approx(0)
    assert circuits.antisymmetric_share(query, query @ skew) == pytest.approx(1)
    # e1 e2': half of its squared size is antisymmetric.
    assert circuits.antisymmetric_share(*np.eye(3)[:2, :, None]) == pytest.approx(0.5)


@given(SEEDS)
def test_circuits_from_factors_are_those_of_the_product(seed):
    _, query, key = kernels(seed)
    whole = query @ key.T
    symmetric, skew = (whole + whole.T) / 2, (whole - whole.T) / 2
    share = np.sum(skew**2) / np.sum(whole**2)
    assert circuits.antisymmetric_share(query, key) == pytest.approx(share)
    score = (np.sum(symmetric**2) - np.sum(skew**2)) / np.sum(whole**2)
    assert 1 - 2 * circuits.antisymmetric_share(query, key) == pytest.approx(score)
    singular = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(circuits.singular_values(query, key), singular[:3], rtol=1e-8)
    assert circuits.effective_rank(query, key) == pytest.approx(
        geometry.spectrum_rank(singular[:3])
    )
    values = np.linalg.eigvals(whole)
    values = values[np.argsort(-np.abs(values))][:3]
    found = circuits.eigenvalues(query, key)
    np.testing.assert_allclose(np.sort(found.real), np.sort(values.real), atol=1e-8)
    expected = values.real.sum() / np.abs(values).sum()
    assert circuits.copying_score(query, key.T) == pytest.approx(expected, abs=1e-8)


@given(SEEDS)
def test_circuits_know_no_change_of_basis_within_the_head(seed):
    """W_Q A and W_K A^-T, W_V A and A^-1 W_O: the model is the same, and so is every figure."""
    rng, left, right = kernels(seed)
    mix = mixing(rng, 3)
    mixed = left @ mix, right @ np.linalg.inv(mix).T
    for quantity in (
        circuits.antisymmetric_share,
        circuits.directionality_score,
        circuits.matching_score,
        circuits.effective_rank,
        lambda value, out: circuits.copying_score(value, out.T),
    ):
        assert quantity(*mixed) == pytest.approx(quantity(left, right), abs=1e-8)


@given(SEEDS)
def test_all_but_directionality_know_no_basis_of_the_input(seed):
    rng, left, right = kernels(seed)
    turn = nulls.rotation(rng, 9)
    for quantity in (
        circuits.antisymmetric_share,
        circuits.matching_score,
        circuits.effective_rank,
    ):
        assert quantity(turn @ left, turn @ right) == pytest.approx(quantity(left, right))


def test_symmetry_at_random_is_even():
    rng = np.random.default_rng(0)
    draws = [circuits.antisymmetric_share(*rng.standard_normal((2, 20, 4))) for _ in range(2000)]
    assert abs(np.mean(draws) - (1 - 1 / 20) / 2) < 4 * np.std(draws) / np.sqrt(len(draws)) < 0.01


def test_directionality_counts_large_columns_against_large_rows():
    """Queries of one size, one key that stands out: one large column, no large row."""
    query, key = np.ones((40, 1)), np.ones((40, 1))
    key[7] = 9.0
    assert circuits.directionality_score(query, key) == pytest.approx(1)
    assert circuits.directionality_score(key, query) == pytest.approx(-1)
    assert circuits.directionality_score(query, query) == 0
    # Two rows of 5 among 40 columns of 1 and one of 9: how far each is above its threshold.
    query[3:5] = 5.0
    size = np.linalg.norm(query), np.linalg.norm(key)
    above = [
        np.sum(np.maximum(n - n.mean() - 2 * n.std(ddof=1), 0))
        for n in (key[:, 0] * size[0], query[:, 0] * size[1])
    ]
    expected = (above[0] - above[1]) / sum(above)
    assert 0 < expected < 1
    assert circuits.directionality_score(query, key) == pytest.approx(expected)


def test_copying_in_closed_form():
    """A projector onto the head's space copies; its negative inverts; a quarter turn does
    neither."""
    basis = np.eye(6)[:, :2]
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert circuits.copying_score(basis, basis.T) == pytest.approx(1)
    assert circuits.copying_score(basis, -2 * basis.T) == pytest.approx(-1)
    assert circuits.copying_score(basis, turn @ basis.T) == pytest.approx(0)
    values = circuits.eigenvalues(basis, (turn @ basis.T).T)
    np.testing.assert_allclose(np.sort(values.imag), [-1, 1], atol=1e-12)
    assert circuits.matching_score(basis @ turn, basis @ turn) == pytest.approx(1)


# --- movement


@given(SEEDS, st.floats(0.01, 100))
def test_movement(seed, scale):
    rng, start, end = kernels(seed)
    assert movement.relative_movement(start, start) == 0
    assert movement.relative_movement(start, 3 * start) == pytest.approx(2)
    found = movement.relative_movement(start, end)
    turn = scale * nulls.rotation(rng, 3)
    assert movement.relative_movement(start @ turn, end @ turn) == pytest.approx(found)
