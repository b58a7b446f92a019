"""The numbers of the worked example are the model's, for every tie, position and option."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis.layers import layer_weights
from qkv_jax.explain import examples
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.positions import POSITIONS
from qkv_jax.tie import Tie
from tests.support.walks import (
    digits_model,
    explained,
    walk_through,
    walked,
    walked_digits,
)  # noqa: F401


def turned(x):
    """Rotary positions of heads [T, N, 4], written out for two pairs."""
    angles = np.arange(len(x))[:, None] * np.array([1.0, 10_000.0**-0.5])
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :2], x[..., 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def bias_of(positions, params, length):
    """The bias on the scores [N, T, T] of 2 heads, for distances below 8."""
    offsets = np.arange(length)[None, :] - np.arange(length)[:, None]
    if positions == "relative":
        buckets = np.abs(offsets) + 16 * (offsets > 0)
        return np.moveaxis(np.asarray(params["relative"]["buckets"])[buckets], -1, 0)
    if positions == "alibi":
        return -np.array([2.0**-4, 2.0**-8])[:, None, None] * np.abs(offsets)
    return np.zeros((2, length, length))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_numbers_multiplied_out_are_those_of_the_layer(positions):
    """For all 15 ties: plain NumPy on the parameters gives every array of the walk, and
    weights and output are those that the model computed."""
    for tie in Tie.all():
        walk, params = walked(str(tie), positions)
        x, kernels = walk.x, {name: np.asarray(params[name]["kernel"]) for name in tie.sources}
        heads = {"X": x.reshape(3, 2, 4)}
        heads |= {name: np.einsum("td,dnh->tnh", x, kernel) for name, kernel in kernels.items()}
        query, key, value = (heads[tie.source(role)] for role in "QKV")
        for ours, theirs in zip(walk.projected, (query, key, value), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        if positions == "rotary":
            query, key = turned(query), turned(key)
        scores = np.stack([query[:, n] @ key[:, n].T for n in range(2)])
        scaled = scores / np.sqrt(4) + bias_of(positions, params, 3)
        weights = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
        mixed = np.stack([weights[n] @ value[:, n] for n in range(2)], 1)
        output = mixed.reshape(3, 8) @ np.asarray(params["out"]["kernel"]).reshape(8, 8)
        for ours, theirs in [
            (walk.query, query), (walk.key, key), (walk.scores, scores), (walk.scaled, scaled),
            (walk.weights, weights), (walk.mixed, mixed), (walk.output, output),
        ]:  # fmt: skip
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert walk.error < 1e-5
        assert walk.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


OPTIONS = {
    "biases, learned scale": {"use_bias": True, "scale": "learned_per_head"},
    "norm of queries and keys": {"qk_norm": True, "positions": "rotary"},
    "nobody sees itself": {"diagonal_mask": True, "tie": "Q=K"},
    "2D": {"positions_2d": True},
    "adapters": {"tie": "Q=K=V", "adapters": {"query": "head:1.0", "value": "diag"}},
    "latent, a fixed scale": {"latent_dim": 3, "scale": 0.2},
    "grouped": {"kv_heads": 2, "tie": "K=V"},
    "no output projection": {"output_projection": False, "tie": "V=X"},
    "post-norm": {"norm_position": "post", "norm": "rms"},
    "a slice of X": {"latent_dim": 3, "latent_kind": "slice"},
    "half rotated": {"positions": "rotary", "rotary_dims": 2, "heads": 2, "rotary_base": 100.0},
    "rotated": {"tie": "K=V", "positions": "rotary", "scheme": "rotated"},
    "grouped tied": {"tie": "K=V", "positions": "rotary", "scheme": "grouped_tied", "heads": 2},
    "low rank": {"scheme": "low_rank", "kv_heads": 1, "latent_dim": 2},
    "exclusive": {"tie": "Q=K", "scheme": "exclusive"},
    "value residual": {"tie": "K=V", "value_residual": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_a_model_is_walked_as_it_computes(options):
    """In both of two layers with four heads, where no parameter is zero or one; and every step of
    it can be told."""
    model = digits_model(**{"layers": 2, "heads": 4} | options)
    for layer in (0, 1):
        walk = walked_digits(model, "31415", layer=layer)
        assert walk.error < 1e-5
        extra, steps = bool(walk.between) + (walk.finished is not None), explained(walk).steps
        assert len(steps) == 8 + extra
        (mixed,) = (step.views[0] for step in steps if step.key == "mixed")
        of_first = layer and options.get("value_residual")
        said = [line for line in mixed.lines if line.startswith("Values are read ")]
        assert bool(said) == bool(of_first or options.get("scheme") == "rotated")
        assert not said or ("first layer" if of_first else "the scheme") in said[0]


@pytest.mark.parametrize("end", ["weights", "output"])
def test_a_wrong_walk_is_seen_by_its_error(end, monkeypatch):
    """Were a step multiplied out wrongly, the walk would say how far it is off."""
    model = digits_model()
    walk = functools.partial(walked_digits, model)
    right = walk()
    if end == "weights":
        even = lambda scores: np.full(scores.shape, 1 / 3)
        monkeypatch.setattr("qkv_jax.explain.walk.softmax", even)
        off = np.abs(right.weights - 1 / 3).max()
    else:
        layer = layer_weights(*model)[0]
        bent = layer._replace(out_bias=layer.out_bias + 7)
        monkeypatch.setattr("qkv_jax.explain.walk.layer_weights", lambda *_: (bent,))
        off = 7
    assert right.error < 1e-5 and walk().error >= off - 1e-5


def test_padding_is_left_out():
    """Real tokens are walked as if there were no others."""
    model = digits_model()
    valid = jnp.array([[True, True, True, False, False]])
    tokens = jnp.array([[3, 1, 4, 1, 5]])
    padded = walk_through(*model, tokens, tuple("314"), name="x", valid=valid)
    alone = walked_digits(model, "314")
    assert padded.error < 1e-5 and padded.weights.shape == (2, 3, 3)
    np.testing.assert_allclose(padded.output, alone.output, atol=1e-6)


def test_a_random_layer_is_that_of_its_encoder():
    """Its parameters are those that the encoder of that tie draws for itself, up to rounding."""
    config = ModelConfig(tie="Q=X,K=V", layers=1, width=8, heads=2, mlp_width=8)
    encoder, variables = examples.random_layer(config, 3)
    drawn = jax.jit(encoder.init)(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(same, variables, drawn)


def test_what_ties_have_in_common_is_equal():
    """X, and every matrix of the same name, to the bit: a difference is the tie's alone."""
    base, params = walked()
    for tie in Tie.all():
        walk, own = walked(str(tie))
        np.testing.assert_array_equal(walk.x, base.x)
        for name in (*tie.sources, "out"):
            np.testing.assert_array_equal(own[name]["kernel"], params[name]["kernel"])


def test_other_words_leave_the_vectors_of_a_word_alone():
    """They depend on the seed and on which new word it is, not on those after it."""
    one, _ = walked(text="the cat sat")
    two, _ = walked(text="the cat the")
    np.testing.assert_array_equal(one.x[:2], two.x[:2])
    np.testing.assert_array_equal(two.embedded[0], two.embedded[2])
    assert not np.array_equal(two.x[0], two.x[2])  # another place
