"""Who sees whom, and that places are data: only they say where a token stands."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.masks import visible
from qkv_jax.model.positions import POSITIONS, AddPositions
from tests.support.untied import assert_close, draw

WIDTH, HEADS, LENGTH = 8, 2, 5
PLACES = jnp.arange(LENGTH)[None]


def test_every_rule_hides_what_it_says_and_they_join():
    """Against the rules written out, pair by pair, in every combination."""
    queries, keys = jnp.array([[3, 0, 1], [1, 1, 4]]), jnp.array([[0, 1, 2, 3]])
    valid = jnp.array([[True, True, True, False]])
    documents = (jnp.array([[0, 0, 1], [0, 1, 1]]), jnp.array([[0, 0, 1, 1]]))
    mask = draw(1, 2, 2, 3, 4) > 0
    rules = {
        "is_causal": (True, lambda b, n, t, s: keys[0, s] <= queries[b, t]),
        "window": (2, lambda b, n, t, s: abs(keys[0, s] - queries[b, t]) < 2),
        "valid": (valid, lambda b, n, t, s: valid[0, s]),
        "documents": (documents, lambda b, n, t, s: documents[0][b, t] == documents[1][0, s]),
        "mask": (mask, lambda b, n, t, s: mask[b, n, t, s]),
    }
    shape = (2, 2, 3, 4)
    for count in range(1, len(rules) + 1):
        for names in itertools.combinations(rules, count):
            seen = visible(queries, keys, **{name: rules[name][0] for name in names})
            expected = [all(rules[n][1](*pair) for n in names) for pair in np.ndindex(shape)]
            np.testing.assert_array_equal(
                np.broadcast_to(seen, shape), np.reshape(expected, shape), err_msg=str(names)
            )


def test_where_nothing_is_hidden_there_is_no_mask():
    assert visible(PLACES, PLACES) is None
    mask = jnp.ones((1, 1, 1, LENGTH), bool)
    assert visible(PLACES, PLACES, mask=mask) is mask


@pytest.mark.parametrize("positions", [p for p in POSITIONS if p not in ("sinusoidal", "learned")])
@pytest.mark.parametrize("diagonal_mask", [False, True])
def test_tokens_in_another_order_with_their_places_are_the_same_sequence(positions, diagonal_mask):
    """Scores, causal order and diagonal go by places, not by the order in the array."""
    module = MultiHeadAttention(HEADS, "Q=K", positions=positions, diagonal_mask=diagonal_mask)
    x, order = draw(1, 2, LENGTH, WIDTH), jnp.array([3, 0, 4, 1, 2])
    params = module.init(jax.random.key(0), x)["params"]
    if positions == "relative":
        params["relative"]["buckets"] = draw(2, 32, HEADS)
    whole = module.apply({"params": params}, x, is_causal=True)
    places = jnp.stack([order, order])
    shuffled = module.apply({"params": params}, x[:, order], places=places, is_causal=True)
    assert_close(shuffled, whole[:, order])


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_additive_positions_are_those_of_the_places(kind):
    module, x = AddPositions(kind, 7), draw(1, 2, LENGTH, WIDTH)
    variables = module.init(jax.random.key(0), x)
    places = jnp.array([[6, 0, 1, 2, 2], [0, 1, 2, 3, 4]])
    table = module.apply(variables, jnp.zeros((1, 7, WIDTH)))[0]
    assert_close(module.apply(variables, x, places), x + table[places])
    np.testing.assert_array_equal(
        module.apply(variables, x, PLACES), module.apply(variables, x)
    )
