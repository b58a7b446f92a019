"""Walks through small layers, for the tests of the worked example."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import build
from qkv_jax.explain import examples, walk
from qkv_jax.explain.explanation import explain
from qkv_jax.explain.sources import Walks
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """For modules that import it: as in the command, small programs are compiled without care."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def walk_through(*args, **options):
    """As the package's, without a compilation for every model."""
    with mock.patch.object(walk, "_collected", walk._collected.__wrapped__):
        return walk.walk_through(*args, **options)


@functools.cache
def walked(tie="separate", positions="sinusoidal", text="the cat sat"):
    """A walk through a random layer of width 8 and 2 heads, with its parameters; each is made once
    for all tests."""
    config = ModelConfig(tie=tie, layers=1, width=8, heads=2, positions=positions, mlp_width=8)
    encoder, variables = examples.random_layer(config, 0)
    example = examples.words_of(text)
    walk = walk_through(encoder, variables, example.inputs, example.tokens, name=tie)
    return walk, variables["params"]["layer_0"]["attention"]


def drawn_model(encoder, tokens):
    """Parameters of an encoder, none of them zero or one, quicker than its own."""
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(0.5 * draw.normal(size=leaf.shape)), shapes)


def digits_model(**options):
    """A drawn model of the task `reverse`, which reads digits."""
    config = build(ModelConfig, {"layers": 1, "width": 8, "heads": 2, **options})
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    return encoder, drawn_model(encoder, jnp.array([[3, 1, 4]]))


def walked_digits(model, digits="314", **options):
    """A walk of digits through such a model."""
    inputs = jnp.array([list(map(int, digits))])
    return walk_through(*model, inputs, tuple(digits), **{"name": "x"} | options)


def explained(*walks):
    return explain(Walks("about", list(walks)))
