"""Exact identities between schemes, each with its source. Two layers are one function if, for
weights of the one, weights of the other give the same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.attention import MultiHeadAttention
from tests.support.untied import assert_close, draw

WIDTH, LENGTH = 6, 5
X = draw(1, 2, LENGTH, WIDTH)


def drawn(module, seed=0):
    return module.init(jax.random.key(seed), X)["params"]


def square(params, name):
    """A projection as the square matrix [D, N * H]."""
    return np.asarray(params[name]["kernel"], np.float64).reshape(WIDTH, WIDTH)


def kernel(matrix, heads):
    return {"kernel": jnp.asarray(matrix, jnp.float32).reshape(WIDTH, heads, WIDTH // heads)}


def probes(module, params):
    _, sown = module.apply({"params": params}, X, mutable="intermediates")
    return {name: value[0] for name, value in sown["intermediates"]["probes"].items()}


def test_keyless_attention_is_the_separate_one_for_a_single_head():
    """Gao & Xu 2026, theorem 1: with W_V invertible, keys X W_V W_R are all keys that there are,
    at W_R = W_V^-1 W_K."""
    separate, keyless = (
        MultiHeadAttention(1),
        MultiHeadAttention(1, "K=V", adapters={"key": "head"}),
    )
    params = drawn(separate)
    between = np.linalg.solve(square(params, "value"), square(params, "key"))
    same = {
        "query": params["query"],
        "key": params["value"],  # of the shared source, which K=V names after the key
        "key_adapter": {"matrix": jnp.asarray(between, jnp.float32)[None]},
        "out": params["out"],
    }
    assert_close(keyless.apply({"params": same}, X), separate.apply({"params": params}, X), 1e-4)


def test_keyless_attention_of_several_heads_is_less():
    """The subspace condition of the theorem's second half: a head's keys must lie in the span of
    its own values' columns, which those of independent projections do not."""
    params = drawn(MultiHeadAttention(2))
    value, key = (np.split(square(params, name), 2, axis=1) for name in ("value", "key"))
    for own_value, own_key in zip(value, key, strict=True):
        closest = own_value @ np.linalg.lstsq(own_value, own_key)[0]
        assert np.linalg.norm(closest - own_key) > 0.1 * np.linalg.norm(own_key)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_values_can_be_read_off_the_keys(heads):
    """Slim attention (Graef 2025): for square multi-head attention V = K (W_K^-1 W_V), so that a
    cache of keys is enough."""
    module = MultiHeadAttention(heads)
    params = drawn(module)
    seen = probes(module, params)
    joined = seen["key"].reshape(2, LENGTH, WIDTH)
    across = np.linalg.solve(square(params, "key"), square(params, "value"))
    assert_close(joined @ jnp.asarray(across, jnp.float32), seen["value"].reshape(X.shape), 1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_an_identity_query_absorbs_the_projection_by_a_change_of_basis(heads):
    """Karbevski & Mijoski 2025: without norm and skip, layers X -> Attention(X) with square,
    invertible W_Q are the layers of tie Q=X that see each input in the basis X W_Q. Two in a row:
    the first one's W_O takes the second one's basis in."""
    separate, identity = MultiHeadAttention(heads), MultiHeadAttention(heads, "Q=X")
    layers = [drawn(separate, seed) for seed in (0, 1)]
    expected, actual = X, X @ jnp.asarray(square(layers[0], "query"), jnp.float32)
    following = [square(layers[1], "query"), np.eye(WIDTH)]
    for params, basis in zip(layers, following, strict=True):
        expected = separate.apply({"params": params}, expected)
        query = square(params, "query")
        changed = {name: kernel(np.linalg.solve(query, square(params, name)), heads)
                   for name in ("key", "value")}  # fmt: skip
        out = np.asarray(params["out"]["kernel"], np.float64).reshape(WIDTH, WIDTH) @ basis
        shape = params["out"]["kernel"].shape
        changed["out"] = {"kernel": jnp.asarray(out, jnp.float32).reshape(shape)}
        actual = identity.apply({"params": changed}, actual)
    assert_close(actual, expected, 1e-3)


@pytest.mark.parametrize(
    "options, symmetric",
    [
        ({}, True), ({"positions": "rotary"}, True), ({"positions": "alibi"}, True),
        ({"positions": "relative"}, False), ({"positions_2d": True}, False),
    ],
)  # fmt: skip
def test_what_makes_the_scores_of_equal_queries_and_keys_unsymmetric(options, symmetric):
    """S_ij = k_i^T k_j is symmetric before the softmax. Rotation keeps it so: both sides turn
    alike, k_i^T R_(j-i) k_j = k_j^T R_(i-j) k_i; it only makes the score of a pair depend on how
    far apart the two stand. A learned bias on the signed distance breaks it.

    The scores are the logarithms of the weights up to one constant per row, so that in a symmetric
    matrix log w_ij - log w_ji is a difference a_i - a_j: it adds up to zero around triangles. By
    that measure the 2D term, as the next test proves, changes nothing but a bias g(j).
    """
    module = MultiHeadAttention(3, "Q=K", **options)
    params = drawn(module)
    if "relative" in params:
        params["relative"] = {"buckets": draw(3, *params["relative"]["buckets"].shape)}
    weights = np.asarray(probes(module, params)["attention_weights"], np.float64)
    slant = np.log(weights) - np.log(weights).swapaxes(2, 3)
    around = slant[..., 0, 1] + slant[..., 1, 2] + slant[..., 2, 0]
    potential = symmetric or "positions_2d" in options
    assert np.allclose(around, 0, atol=1e-4) == potential


def test_the_2d_term_is_a_temperature_and_a_bias_on_keys():
    """Kayyam et al. 2026, (X)+ (after Borji 2023): computed as published, ten channels of the
    score plus [sinusoid(i), sinusoid(j)] through one linear layer, it equals the plain scores at
    temperature 1 / sum(w) with a bias g(j) that knows no query. It cannot encode direction."""
    module = MultiHeadAttention(2, "Q=K", positions_2d=True)
    params = drawn(module)
    params["positions_2d"]["offset"] = jnp.float32(0.7)
    weight = np.asarray(params["positions_2d"]["weight"], np.float64)
    assert weight.shape == (10,)
    seen = probes(module, params)
    query, key = (np.asarray(seen[name], np.float64) for name in ("query", "key"))
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(WIDTH // 2)

    half = np.zeros((LENGTH, 5))
    for place in range(LENGTH):
        for channel in range(5):
            angle = place / 10_000 ** (2 * (channel // 2) / 5)
            half[place, channel] = np.sin(angle) if channel % 2 == 0 else np.cos(angle)
    grid = np.zeros((LENGTH, LENGTH, 10))
    grid[:, :, :5], grid[:, :, 5:] = half[:, None], half[None, :]
    published = (scores[..., None] + grid) @ weight + 0.7
    simple = scores * weight.sum() + half @ weight[5:]
    for version in (published, simple):
        exponents = np.exp(version - version.max(-1, keepdims=True))
        softmax = exponents / exponents.sum(-1, keepdims=True)
        np.testing.assert_allclose(seen["attention_weights"], softmax, atol=1e-5)
    bias_alone = half @ weight[5:]
    assert np.ptp(bias_alone) > 0.1  # it is no constant
