"""Attention token by token: who sees whom, the cache, and scores and places under each tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.positions import rotate
from qkv_jax.tie import Tie
from tests.support.attention_layers import LENGTH, WIDTH, X, init, layer, probes
from tests.support.untied import TIES, draw

# --- who sees whom


@pytest.mark.parametrize("tie", TIES)
def test_no_output_depends_on_its_future(tie):
    """Under causal order d out[t] / d x[s] is zero for s > t and only there."""
    module = layer(tie, positions="rotary")
    params = init(module)
    run = lambda x: module.apply({"params": params}, x[None], is_causal=True)[0]
    jacobian = np.abs(jax.jacobian(run)(X[0])).max((1, 3))
    np.testing.assert_array_equal(jacobian != 0, np.tri(LENGTH, dtype=bool))


@pytest.mark.parametrize("tie", TIES)
def test_no_other_output_depends_on_a_hidden_key(tie):
    """With key padding, d out[t] / d x[s] is zero for hidden s, but for t = s: its own query."""
    module, hidden = layer(tie), jnp.asarray([False, True, False, False, True])
    params = init(module)
    mask = jnp.broadcast_to(~hidden, (1, 1, 1, LENGTH))
    run = lambda x: module.apply({"params": params}, x[None], mask=mask)[0]
    jacobian = np.abs(jax.jacobian(run)(X[0])).max((1, 3))
    expected = np.broadcast_to(~np.asarray(hidden), (LENGTH, LENGTH)) | np.eye(LENGTH, dtype=bool)
    np.testing.assert_array_equal(jacobian != 0, expected)


# --- what a tie does to the scores


def scores(module, params, x=X):
    seen = probes(module, params, x)
    return np.einsum("btnh,bsnh->bnts", seen["query"], seen["key"])


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("tie", TIES)
def test_scores_are_symmetric_exactly_where_queries_are_keys(tie, positions):
    """Before the softmax. Rotary positions do not repair it: both sides are turned alike."""
    module = layer(tie, positions=positions)
    matrix = scores(module, init(module))
    symmetric = np.allclose(matrix, matrix.swapaxes(-1, -2), atol=1e-5)
    assert symmetric == Tie.parse(tie).equates("Q", "K")


@pytest.mark.parametrize("tie", ["Q=K", "copies"])
def test_rotary_scores_of_equal_queries_and_keys_see_the_order(tie):
    """What they do repair: two tokens that change places change their score, else they do not."""
    swapped = X[:, jnp.asarray([2, 1, 0, 3, 4])]
    for positions, same in (("none", True), ("rotary", False)):
        module = layer(tie, positions=positions)
        params = init(module)
        one, other = scores(module, params), scores(module, params, swapped)
        assert np.allclose(one[:, :, 0, 2], other[:, :, 0, 2], atol=1e-5) == same


@pytest.mark.parametrize("tie", TIES)
def test_rotation_comes_after_the_tie_and_spares_the_value(tie):
    """Queries and keys are turned, each after the source was shared; the value is the source."""
    params = init(layer(tie))
    plain, turned = (probes(layer(tie, positions=p), params) for p in ("none", "rotary"))
    np.testing.assert_allclose(turned["query"], rotate(plain["query"]), atol=1e-6)
    np.testing.assert_allclose(turned["key"], rotate(plain["key"]), atol=1e-6)
    np.testing.assert_array_equal(turned["value"], plain["value"])
    if Tie.parse(tie).equates("K", "V"):
        np.testing.assert_array_equal(turned["value"], plain["key"])
        assert not np.allclose(turned["value"], turned["key"])


@pytest.mark.parametrize("tie", ["separate", "Q=K", "copies"])
def test_rotary_scores_depend_on_distance_only(tie):
    """The same tokens further along score the same: the window's weights do not move."""
    module = layer(tie, positions="rotary")
    params = init(module)
    shifted = jnp.concatenate([draw(9, 2, 3, WIDTH), X], axis=1)
    one, other = scores(module, params), scores(module, params, shifted)
    np.testing.assert_allclose(one, other[..., 3:, 3:], atol=1e-4)
    keys = probes(module, params)["key"], probes(module, params, shifted)["key"][:, 3:]
    assert not np.allclose(*keys, atol=1e-2)
