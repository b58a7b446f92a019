"""Positions: the published formulas, written out, and what each kind adds to the input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.positions import (
    BASE,
    EMBEDDING_STD,
    AddPositions,
    rotate,
    sinusoidal,
    turned_scores,
)
from tests.support.untied import draw


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoidal_positions_are_the_published_ones(width):
    """sin and cos of t / 10000^(i / pairs), sines first; an odd width ends in a zero."""
    table, pairs = np.asarray(sinusoidal(6, width)), width // 2
    assert table.shape == (6, width)
    for t in range(6):
        for i in range(pairs):
            angle = t / 10_000 ** (i / pairs)
            assert table[t, i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[t, pairs + i] == pytest.approx(np.cos(angle), abs=1e-6)
    assert not table[:, 2 * pairs :].any()


@pytest.mark.parametrize("base", [BASE, 50.0])
@pytest.mark.parametrize("width", [2, 6])
def test_rotary_positions_multiply_by_a_complex_phase(width, base):
    """(x_i + j x_(i + H/2)) exp(j t / base^(i / pairs)), for every head and token."""
    x, pairs = draw(0, 2, 5, 3, width), width // 2
    turned = np.asarray(rotate(x) if base == BASE else rotate(x, base=base))
    numbers = np.asarray(x[..., :pairs]) + 1j * np.asarray(x[..., pairs:])
    angles = np.arange(5)[:, None, None] / base ** (np.arange(pairs) / pairs)
    numbers = numbers * np.exp(1j * angles)
    expected = np.concatenate([numbers.real, numbers.imag], -1)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


@pytest.mark.parametrize("places", [np.arange(7)[None], np.array([[3, 1, 9, 2, 0, 5, 4]] * 2)])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("width, dims", [(16, None), (16, 8), (12, 4), (12, 10), (6, 2), (16, 0)])
def test_turned_scores_are_products_with_rotated_keys(width, dims, kv_heads, places):
    """However many lanes add them up: of 16 turned coordinates four, of 10 beside 2 one."""
    query, key = draw(0, 2, 1, 4, width), draw(1, 2, 7, kv_heads, width)
    keys = rotate(key, places, dims, 50.0).repeat(4 // kv_heads, axis=2)
    expected = np.einsum("btnh,bsnh->bnts", query, keys)
    found = turned_scores(query, key, places, dims, 50.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    short = [x.astype(jnp.bfloat16) for x in (query, key)]
    assert turned_scores(*short, places, dims, 50.0).dtype == jnp.float32
    np.testing.assert_allclose(turned_scores(*short, places, dims, 50.0), expected, atol=0.15)


@pytest.mark.parametrize("tie, options", [
    ("separate", {}), ("K=V", {"scheme": "rotated", "rotary_dims": 4}),
    ("K=V", {"scheme": "grouped_tied"}),
    ("separate", {"scheme": "mla", "latent_dim": 3, "rotary_dims": 4}),
])  # fmt: skip
def test_every_scheme_turns_by_the_base_of_the_config(tie, options):
    """10000 where none is given; another one gives other numbers, from the third token on those
    that the slower pairs of coordinates make."""
    attention = MultiHeadAttention(2, tie, head_dim=8, positions="rotary", **options)
    x = draw(0, 1, 6, 16)
    variables = attention.init(jax.random.key(0), x)
    run = lambda base: np.asarray(attention.clone(rotary_base=base).apply(variables, x))
    np.testing.assert_array_equal(run(10_000.0), attention.apply(variables, x))
    assert np.abs(run(3.0) - run(10_000.0)).max() > 1e-3
    with pytest.raises(ConfigError, match="rotary_base: given 0.0; must be a finite number"):
        attention.clone(rotary_base=0.0)


def test_rotation_keeps_lengths_and_leaves_the_first_token():
    x = draw(0, 2, 5, 3, 4)
    turned = rotate(x)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    lengths = (jnp.linalg.norm(a, axis=-1) for a in (turned, x))
    np.testing.assert_allclose(*lengths, rtol=1e-5)


def test_rotated_products_depend_on_the_distance_only():
    """One query and one key at all pairs of places: the product is a function of t - s."""
    query, key = (jnp.broadcast_to(draw(seed, 1, 4), (9, 1, 4)) for seed in (0, 1))
    products = np.einsum("tnh,snh->ts", rotate(query), rotate(key))
    for distance in range(-8, 9):
        same = np.diagonal(products, distance)
        np.testing.assert_allclose(same, same[0], atol=1e-5)
    assert len(np.unique(products.round(3))) > 9


def test_tokens_may_stand_anywhere():
    """A part of a sequence at its own places is the part of the rotated whole."""
    x = draw(0, 2, 6, 3, 4)
    part = rotate(x[:, 2:5], jnp.arange(2, 5)[None])
    np.testing.assert_allclose(part, rotate(x)[:, 2:5], atol=1e-6)


def test_each_kind_adds_what_it_says():
    x = draw(0, 2, 3, 8)
    added = {}
    for kind in ("none", "rotary", "sinusoidal", "learned"):
        variables = AddPositions(kind, 5).init(jax.random.key(0), x)
        added[kind] = AddPositions(kind, 5).apply(variables, x) - x
        assert ("params" in variables) == (kind == "learned")
    assert not added["none"].any() and not added["rotary"].any()
    for batch in added["sinusoidal"]:
        np.testing.assert_allclose(batch, 2**0.5 * EMBEDDING_STD * sinusoidal(3, 8), atol=1e-6)
        assert jnp.sqrt((batch**2).mean()) == pytest.approx(EMBEDDING_STD, rel=1e-3)


def test_learned_positions_are_a_small_table():
    """[max_length, D] of size EMBEDDING_STD, of which a short sequence reads the start."""
    x, module = jnp.zeros((2, 3, 256)), AddPositions("learned", 64)
    variables = module.init(jax.random.key(0), x)
    table = variables["params"]["embedding"]
    assert table.shape == (64, 256) and table.std() == pytest.approx(EMBEDDING_STD, rel=0.03)
    np.testing.assert_array_equal(module.apply(variables, x), jnp.stack([table[:3]] * 2))
