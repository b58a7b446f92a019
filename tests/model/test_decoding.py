"""Attention token by token: who sees whom, the cache, and scores and places under each tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.positions import rotate
from qkv_jax.tie import Tie
from tests.support.attention_layers import GROUPED, LENGTH, WIDTH, X, init, layer, probes
from tests.support.untied import TIES, assert_close, draw

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


# --- the cache


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("tie", TIES)
def test_decoding_token_by_token_is_the_causal_pass(tie, positions):
    """Also when the first tokens come at once; a cache longer than the sequence does no harm."""
    check_decoding(layer(tie, positions=positions, scale="learned_per_head"))


@pytest.mark.parametrize("tie", GROUPED)
def test_decoding_with_grouped_heads(tie):
    check_decoding(layer(tie, num_kv_heads=1, positions="rotary", use_bias=True))


def check_decoding(module):
    params = init(module)
    full = module.apply({"params": params}, X, is_causal=True)
    for first in (1, 3):
        cache, outputs = module.init_cache(2, LENGTH + 2, WIDTH), []
        for chunk in jnp.split(X, list(range(first, LENGTH)), axis=1):
            out, changed = module.apply(
                {"params": params, "cache": cache}, chunk, decode=True, mutable="cache"
            )
            cache = changed["cache"]
            outputs.append(out)
        assert_close(jnp.concatenate(outputs, 1), full)
        assert cache["index"] == LENGTH


@pytest.mark.parametrize("tie", TIES)
def test_the_cache_holds_each_source_of_keys_and_values_once(tie):
    """Half the bytes where K = V; what is stored is what was projected, before rotation."""
    module, parsed = layer(tie, positions="rotary"), Tie.parse(tie)
    cache = module.init_cache(2, LENGTH, WIDTH)
    read = {parsed.source("K"), parsed.source("V")}
    assert set(cache["sources"]) == read
    size = sum(array.nbytes for array in cache["sources"].values())
    roles = 1 if parsed.equates("K", "V") else 2
    assert size == roles * 2 * LENGTH * WIDTH * 4
    params = init(module)
    variables = {"params": params, "cache": cache}
    _, changed = module.apply(variables, X, decode=True, mutable="cache")
    for source, stored in changed["cache"]["sources"].items():
        flat = X if source == "X" else X @ params[source]["kernel"].reshape(WIDTH, WIDTH)
        np.testing.assert_allclose(stored.reshape(X.shape), flat, atol=1e-6)


def test_grouped_heads_shrink_the_cache():
    caches = [layer("K=V", num_kv_heads=n).init_cache(1, 7, WIDTH)["sources"] for n in (2, 1)]
    all_heads, one_head = (sum(array.nbytes for array in c.values()) for c in caches)
    assert all_heads == 2 * one_head == 7 * WIDTH * 4


def test_a_padded_prefix_stays_hidden_while_decoding():
    """A mask over the whole cache goes together with the order of tokens."""
    module, hidden = layer("K=V", positions="rotary"), jnp.arange(LENGTH) == 1
    params, mask = init(module), ~hidden[None, None, None, :]
    full = module.apply({"params": params}, X, mask=mask, is_causal=True)
    cache, outputs = module.init_cache(2, LENGTH, WIDTH), []
    for t in range(LENGTH):
        out, changed = module.apply(
            {"params": params, "cache": cache}, X[:, t : t + 1], mask=mask, decode=True,
            mutable="cache",
        )  # fmt: skip
        cache = changed["cache"]
        outputs.append(out)
    assert_close(jnp.concatenate(outputs, 1), full)


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
