"""The value residual: values of later layers hold the first layer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem
from tests.support.attention_layers import X, layer
from tests.support.untied import assert_close, draw

TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 7)))
VALUE = ("layer_1", "attention", "value", "kernel")


def model(**options):
    config = ModelConfig(layers=3, width=8, heads=2, **options)
    return Encoder(config, TokenStem((11,), 8), 11, 7)


def changed(variables, changes):
    """Variables with some leaves in place of theirs; a path's end may name several."""

    def leaf(path, found):
        names = tuple(key.key for key in path)
        given = [new for end, new in changes.items() if names[-len(end) :] == end]
        return given[0](found) if given else found

    return jax.tree_util.tree_map_with_path(leaf, variables)


@pytest.mark.parametrize("scheme", ["tied", "exclusive"])
def test_its_two_ends_are_no_residual_and_the_first_layers_values_alone(scheme):
    """All of the layer's own: as without. All of the first's: the others' W_V read nothing."""
    residual = model(value_residual=True, scheme=scheme)
    variables = residual.init(jax.random.key(0), TOKENS)
    assert "value_residual" not in variables["params"]["layer_0"]["attention"]
    start = residual.apply(variables, TOKENS)
    own = changed(variables, {("mix",): lambda _: jnp.array([1.0, 0.0])})
    plain = changed(variables, {})
    for name in ("layer_1", "layer_2"):
        del plain["params"][name]["attention"]["value_residual"]
    without = model(scheme=scheme).apply(plain, TOKENS)
    assert_close(residual.apply(own, TOKENS), without)
    assert np.abs(start - without).max() > 1e-3
    first = changed(variables, {("mix",): lambda _: jnp.array([0.0, 1.0])})
    other = changed(first, {VALUE: lambda kernel: 2 * kernel})
    assert_close(residual.apply(other, TOKENS), residual.apply(first, TOKENS))
    mixed = changed(variables, {VALUE: lambda kernel: 2 * kernel})
    assert np.abs(residual.apply(mixed, TOKENS) - start).max() > 1e-3


def test_a_layer_mixes_as_its_formula_says():
    """Values by hand, at one half each to begin with; they are returned, as they were read."""
    module = layer("separate", value_residual=True)
    first = draw(3, *X.shape).reshape(*X.shape[:2], 2, -1)
    variables = module.init(jax.random.key(0), X, first_values=first)
    _, read = module.apply(variables, X, first_values=first)
    own = jnp.einsum("btd,dnh->btnh", X, variables["params"]["value"]["kernel"])
    assert_close(read, own / 2 + first / 2)
    _, read = module.apply(variables, X)
    assert_close(read, own)


def test_what_it_does_not_go_with():
    with pytest.raises(ConfigError, match="scan_layers: .*value_residual sets the first layer"):
        model(value_residual=True, scan_layers=True)
    with pytest.raises(ConfigError, match="value_residual: given True; needs a second layer"):
        ModelConfig(layers=1, value_residual=True)
    with pytest.raises(ConfigError, match="value_residual: .*does not go with scheme 'mla'"):
        model(value_residual=True, scheme="mla", latent_dim=3, rotary_dims=2, positions="rotary")
    with pytest.raises(ValueError, match="first_values: are for self-attention with"):
        layer("separate").init(jax.random.key(0), X, first_values=X[:, :, None])
