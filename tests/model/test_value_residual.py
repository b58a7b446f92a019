"""The value residual: values of later layers hold the first layer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem
from tests.support.attention_layers import X, layer, probes
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


@pytest.mark.parametrize("tie, source", [("separate", "value"), ("K=V", "key")])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_a_layer_mixes_as_its_formula_says(tie, source, kv_heads):
    """V' = a V + b V_1 by hand, at one half each to begin with; values are returned as they were
    read. Keys are their projection alone, under K=V as well."""
    module = layer(tie, value_residual=True, num_kv_heads=kv_heads)
    first = draw(3, *X.shape[:2], kv_heads, 4)
    start = module.init(jax.random.key(0), X, first_values=first)["params"]
    assert start["value_residual"]["mix"].tolist() == [0.5, 0.5]
    params = start | {"value_residual": {"mix": jnp.array([0.3, -1.2])}}
    seen = probes(module, params, first_values=first)
    out, read = module.apply({"params": params}, X, first_values=first)
    key, own = (jnp.einsum("btd,dnh->btnh", X, params[name]["kernel"]) for name in ("key", source))
    assert_close(read, 0.3 * own - 1.2 * first)
    assert_close(seen["key"], key)
    value = np.repeat(read, 2 // kv_heads, axis=2)
    heads = np.einsum("bnts,bsnh->btnh", seen["attention_weights"], value)
    assert_close(out, np.einsum("btnh,nhd->btd", heads, params["out"]["kernel"]))
    _, read = module.apply({"params": params}, X)
    assert_close(read, own)


def test_every_layer_reads_the_values_of_the_first_and_not_of_the_one_before():
    """V'_n = a_n V_n + b_n V_1 in the second and in the third layer, where V'_2 is another."""
    residual = model(value_residual=True)
    variables = residual.init(jax.random.key(0), TOKENS)
    variables = changed(variables, {("mix",): lambda _: jnp.array([0.3, -1.2])})
    _, sown = residual.apply(variables, TOKENS, mutable="intermediates")
    layers = [f"layer_{layer}" for layer in range(3)]
    seen = [sown["intermediates"][name]["attention"]["probes"] for name in layers]
    kernels = [variables["params"][name]["attention"]["value"]["kernel"] for name in layers]
    own = [jnp.einsum("btd,dnh->btnh", probe["x"][0], kernel)
           for probe, kernel in zip(seen, kernels, strict=True)]  # fmt: skip
    values = [probe["value"][0] for probe in seen]
    assert_close(values, [own[0]] + [0.3 * later - 1.2 * own[0] for later in own[1:]])


def test_what_it_does_not_go_with():
    with pytest.raises(ConfigError, match="scan_layers: .*value_residual sets the first layer"):
        model(value_residual=True, scan_layers=True)
    with pytest.raises(ConfigError, match="value_residual: given True; needs a second layer"):
        ModelConfig(layers=1, value_residual=True)
    with pytest.raises(ConfigError, match="value_residual: .*does not go with scheme 'mla'"):
        model(value_residual=True, scheme="mla", latent_dim=3, rotary_dims=2, positions="rotary")
    with pytest.raises(ValueError, match="first_values: are for self-attention with"):
        layer("separate").init(jax.random.key(0), X, first_values=X[:, :, None])
