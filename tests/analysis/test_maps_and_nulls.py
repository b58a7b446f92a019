"""Figures of attention maps, and what chance gives: cases with a known answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.analysis import attention_maps, movement, nulls

SEEDS = st.integers(0, 2**32 - 1)


def test_attention_in_closed_form():
    valid = np.array([[True, True, True, True], [True, True, False, False]])
    causal = attention_maps.uniform(valid, is_causal=True)[0, 0]
    assert np.allclose(causal.sum(-1), 1) and (np.triu(causal, 1) == 0).all()
    even = attention_maps.uniform(valid)
    own = np.broadcast_to(np.eye(4), (2, 1, 4, 4))
    real = lambda rows: attention_maps.real_queries(rows, valid)[:, 0]
    np.testing.assert_allclose(
        real(attention_maps.entropy(even)), [np.log(4)] * 4 + [np.log(2)] * 2
    )
    np.testing.assert_allclose(real(attention_maps.distance(even)), [1.5, 1, 1, 1.5, 0.5, 0.5])
    np.testing.assert_allclose(real(attention_maps.diagonal(even)), [0.25] * 4 + [0.5] * 2)
    np.testing.assert_array_equal(real(attention_maps.entropy(own)), np.zeros(6))
    np.testing.assert_array_equal(real(attention_maps.distance(own)), np.zeros(6))
    np.testing.assert_array_equal(real(attention_maps.diagonal(own)), np.ones(6))


@given(SEEDS)
def test_attention_figures_lie_in_their_bounds_and_padding_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(5), (3, 2, 5))
    valid = np.ones((3, 5), bool)
    longer = np.zeros((3, 2, 7, 7))
    longer[:, :, :5, :5] = weights
    longer[:, :, 5:, 0] = 1.0
    wider = np.pad(valid, ((0, 0), (0, 2)))
    limits = {"entropy": np.log(5), "distance": 4, "diagonal": 1}
    for name, limit in limits.items():
        figure = getattr(attention_maps, name)
        rows = attention_maps.real_queries(figure(weights), valid)
        assert rows.shape == (15, 2) and rows.min() >= 0 and rows.max() <= limit + 1e-12
        np.testing.assert_array_equal(attention_maps.real_queries(figure(longer), wider), rows)
    order = rng.permutation(5)
    moved = weights[:, :, order][:, :, :, order]
    for figure in (attention_maps.entropy, attention_maps.diagonal):
        np.testing.assert_allclose(figure(moved), figure(weights)[:, :, order])


def test_a_fresh_draw_is_as_far_away_as_it_should_be():
    rng = np.random.default_rng(0)
    found = [movement.relative_movement(*rng.standard_normal((2, 200, 8))) for _ in range(50)]
    assert np.mean(found) == pytest.approx(movement.INDEPENDENT, rel=0.01)


@given(SEEDS, st.integers(1, 8))
def test_rotations_are_orthogonal(seed, size):
    rng = np.random.default_rng(seed)
    turn = nulls.rotation(rng, size)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-12)


def test_bands_hold_the_middle_of_the_draws():
    assert nulls.band(np.full(2, 2.0)) == (2.0, 2.0, 2.0)
    assert nulls.band(np.arange(101)) == pytest.approx((50, 2.5, 97.5))
