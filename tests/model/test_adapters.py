"""Adapters and latent sources: what they start as, what they can say, where they may stand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.adapters import ADAPTERS, PRESETS, Adapter, Adapters, register_adapter
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.positions import rotate
from qkv_jax.tie import Tie
from qkv_jax.training.state import decay_mask
from tests.support.untied import assert_close, decoded, draw, leaves

WIDTH, HEADS, HEAD_DIM, LENGTH = 8, 2, 4, 5
X = draw(1, 2, LENGTH, WIDTH)
SPECS = ["diag", "head", "lowrank:2"]


def layer(tie="separate", **options):
    return MultiHeadAttention(HEADS, tie, **options)


def init(module, seed=0):
    return module.init(jax.random.key(seed), X)["params"]


def stirred(params):
    """The same tree away from its special starting point."""
    paths = leaves(params)
    noise = {path: 0.3 * draw(i, *leaf.shape) for i, (path, leaf) in enumerate(paths.items())}
    add = lambda path, leaf: leaf + noise["/".join(entry.key for entry in path)]
    return jax.tree_util.tree_map_with_path(add, params)


def probes(module, params, **options):
    _, sown = module.apply({"params": params}, X, mutable="intermediates", **options)
    return {name: value[0] for name, value in sown["intermediates"]["probes"].items()}


# --- what an adapter starts as, and what it does


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("tie, role", [("Q=K", "query"), ("K=V", "key"), ("Q=X", "query")])
def test_an_adapter_starts_as_none_and_then_counts(tie, role, spec):
    """At the start the layer is the tied one; the leaves in common start equal; afterwards it
    differs, and its gradient is not zero."""
    plain, adapted = layer(tie), layer(tie, adapters={role: spec})
    params, more = init(plain), init(adapted)
    added = set(leaves(more)) - set(leaves(params))
    assert added and all(path.startswith(f"{role}_adapter/") for path in added)
    for path, leaf in leaves(params).items():
        np.testing.assert_array_equal(leaf, leaves(more)[path])
    assert_close(adapted.apply({"params": more}, X), plain.apply({"params": params}, X), 1e-6)
    after = adapted.apply(
        {"params": more | {f"{role}_adapter": stirred(more)[f"{role}_adapter"]}}, X
    )
    assert not np.allclose(after, plain.apply({"params": params}, X), atol=1e-3)
    loss = lambda params: (adapted.apply({"params": params}, X) ** 2).sum()
    assert any(
        np.abs(g).max() > 1e-6 for g in leaves(jax.grad(loss)(more)[f"{role}_adapter"]).values()
    )


@pytest.mark.parametrize("spec", SPECS)
def test_an_adapter_acts_on_the_projected_heads(spec):
    """After projection and bias, before rotation; on its own role alone."""
    module = layer("Q=K=V", adapters={"query": spec}, positions="rotary", use_bias=True)
    params = stirred(init(module))
    seen, own = probes(module, params), params["query_adapter"]
    flat = X @ params["query"]["kernel"].reshape(WIDTH, -1)
    flat += params["query"]["bias"].reshape(1, 1, -1)
    heads = np.asarray(flat.reshape(2, LENGTH, HEADS, HEAD_DIM))
    matrix = {
        "diag": lambda: np.stack([np.diag(row) for row in own["diagonal"]]),
        "head": lambda: own["matrix"],
        "lowrank:2": lambda: np.eye(HEAD_DIM) + np.asarray(own["a"]) @ np.asarray(own["b"]),
    }[spec]()
    adapted = jnp.asarray(np.einsum("blnh,nhg->blng", heads, matrix), jnp.float32)
    assert_close(seen["query"], rotate(adapted))
    assert_close(seen["key"], rotate(jnp.asarray(heads)))
    assert_close(seen["value"], jnp.asarray(heads))


def test_the_shapes_are_those_of_the_design():
    adapters = {"query": "diag", "key": "head", "value": "lowrank:3"}
    params = init(MultiHeadAttention(4, "Q=K=V", head_dim=5, adapters=adapters))
    shapes = {path: leaf.shape for path, leaf in leaves(params).items() if "adapter" in path}
    assert shapes == {
        "query_adapter/diagonal": (4, 5),
        "key_adapter/matrix": (4, 5, 5),
        "value_adapter/a": (4, 5, 3),
        "value_adapter/b": (4, 3, 5),
    }
    np.testing.assert_array_equal(params["value_adapter"]["b"], 0)
    grouped = init(layer("K=V", num_kv_heads=1, adapters={"key": "head"}))
    assert grouped["key_adapter"]["matrix"].shape == (1, HEAD_DIM, HEAD_DIM)


def test_a_matrix_may_start_at_random():
    params = init(MultiHeadAttention(2, "Q=K", head_dim=64, adapters={"query": "head:0.5"}))
    assert np.std(params["query_adapter"]["matrix"]) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("spec, symmetric", [("diag", True), ("head", False), ("lowrank:2", False)])
def test_which_adapters_repair_the_symmetry_of_equal_queries_and_keys(spec, symmetric):
    """Scaling coordinates leaves k_i^T D k_j symmetric; a matrix does not."""
    module = layer("Q=K", adapters={"query": spec})
    seen = probes(module, stirred(init(module)))
    scores = jnp.einsum("btnh,bsnh->bnts", seen["query"], seen["key"])
    assert np.allclose(scores, scores.swapaxes(2, 3), atol=1e-4) == symmetric


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_their_tie_and_adapters(preset):
    """Their shapes too: what the papers share is one leaf."""
    tie, adapters = PRESETS[preset]
    assert (tie, adapters) == {
        "courtois": ("Q=K", Adapters(query="head")),
        "gao": ("K=V", Adapters(key="head")),
        "kowsher": ("Q=K=V", Adapters("diag", "diag", "diag")),
    }[preset]
    sources = {path.split("/")[0] for path in leaves(init(layer(tie, adapters=adapters)))}
    assert sources == set(Tie.parse(tie).sources) | {"out"} | {
        f"{role}_adapter" for role, _ in adapters.items()
    }


def test_an_adapted_key_is_not_cached():
    """K=V stays half a cache under Gao's adapter: it acts on reading."""
    module = layer("K=V", adapters={"key": "head"}, positions="rotary", qk_norm=True)
    check_decoding(module, cached={"key": (2, HEADS, LENGTH + 1, HEAD_DIM)})


def test_one_from_outside(unchecked):
    @register_adapter("shift")
    class Shift(Adapter):
        @nn.compact
        def __call__(self, heads):
            return heads + self.param("shift", nn.initializers.ones, heads.shape[-2:])[None, None]

    try:
        module = layer("Q=K", adapters={"query": "shift"})
        seen = probes(module, init(module))
        np.testing.assert_allclose(seen["query"], seen["key"] + 1, rtol=1e-6)
        with pytest.raises(ConfigError, match="adapters.query: given 'shift:2'; takes no argument"):
            init(layer("Q=K", adapters={"query": "shift:2"}))
    finally:
        del ADAPTERS["shift"]


# --- a latent source of keys and values


@pytest.mark.parametrize("tie", ["separate", "K=V", "Q=X", "Q=X,K=V"])
def test_a_latent_source_is_a_separate_layer_of_low_rank(tie):
    """Keys are X (W_c W_uk): the layer without a latent at those weights computes the same."""
    module, plain = layer(tie, latent_dim=3), layer(tie)
    params = init(module)
    assert params["latent"]["kernel"].shape == (WIDTH, 1, 3)
    down = params["latent"]["kernel"].reshape(WIDTH, 3)
    merged = {name: leaf for name, leaf in params.items() if name != "latent"}
    for name in {Tie.parse(tie).source("K"), Tie.parse(tie).source("V")}:
        up = params[name]["kernel"]
        assert up.shape == (3, HEADS, HEAD_DIM)
        merged[name] = {"kernel": jnp.einsum("dr,rnh->dnh", down, up)}
    assert_close(module.apply({"params": params}, X), plain.apply({"params": merged}, X))
    assert np.linalg.matrix_rank(merged["key"]["kernel"].reshape(WIDTH, -1), tol=1e-5) == 3


@pytest.mark.parametrize("tie", ["separate", "K=V"])
def test_the_cache_holds_the_latent_alone(tie):
    module = layer(tie, latent_dim=3, positions="rotary", num_kv_heads=1)
    check_decoding(module, cached={"latent": (2, 1, LENGTH + 1, 3)})


def test_a_latent_source_is_frozen_with_all_that_reads_it():
    """Frozen keys and values do not learn through it; the query's source does."""
    module = layer(latent_dim=3, frozen=("key", "value"))
    gradient = jax.grad(lambda p: (module.apply({"params": p}, X) ** 2).sum())(init(module))
    still = {path.split("/")[0] for path, leaf in leaves(gradient).items() if not leaf.any()}
    assert still == {"latent", "key", "value"}
    config = ModelConfig(latent_dim=3, frozen=("key", "value"))
    decays = decay_mask({"attention": init(module)}, config.frozen_leaves)["attention"]
    assert {name for name in decays if decays[name]["kernel"]} == {"query", "out"}


def test_a_latent_source_of_a_context():
    module, context = layer(latent_dim=3), draw(2, 2, 7, WIDTH + 2)
    params = module.init(jax.random.key(0), X, context)["params"]
    assert params["latent"]["kernel"].shape == (WIDTH + 2, 1, 3)
    assert module.apply({"params": params}, X, context).shape == X.shape


def check_decoding(module, cached):
    params, cache = init(module), module.init_cache(2, LENGTH + 1, WIDTH)
    params = stirred(params)
    assert {name: array.shape for name, array in cache.sources.items()} == cached
    full = module.apply({"params": params}, X, is_causal=True)
    assert_close(decoded(module, params, cache, X, [2, 3, 4]), full)


# --- refusals


@pytest.mark.parametrize(
    "tie, options, message",
    [
        ("Q=K", {"adapters": {"query": "lowrank:0"}}, "lowrank:0'; the rank must be from 1 to the"),
        ("Q=K", {"adapters": {"query": "lowrank:5"}}, "from 1 to the head width, 4"),
        ("Q=K", {"adapters": {"query": "lowrank"}}, "the rank must be from 1"),
        ("Q=K", {"adapters": {"query": "lowrank:two"}}, "the rank must be from 1"),
        ("Q=K", {"adapters": {"query": "head:-1"}}, "must be a number above 0"),
        ("Q=K", {"adapters": {"query": "head:inf"}}, "must be a number above 0"),
        ("Q=K", {"adapters": {"query": "head:"}}, "after the colon comes an argument"),
        ("Q=K", {"adapters": {"query": "lowrank: 2"}}, "the rank must be from 1"),
        ("Q=K", {"adapters": {"query": "lowrank:1_0"}}, "the rank must be from 1"),
        ("Q=K", {"adapters": {"query": "diag:2"}}, "takes no argument"),
        ("Q=K", {"adapters": {"query": "diog"}}, "allowed: diag, head, head:STD, lowrank:RANK"),
        ("Q=K", {"adapters": {"value": "diag"}}, "the value shares its source with no other role"),
        ("separate", {"adapters": {"key": "head"}}, "under tie separate the key shares its source"),
        ("Q=X", {"adapters": {"key": "head"}}, "under tie Q=X the key shares its source"),
        ("Q=K", {"latent_dim": 3}, "with a latent source, keys and values are projections of it"),
        ("V=X", {"latent_dim": 3}, "tie V=X asks for V=X; with a latent source"),
        ("separate", {"latent_dim": 3, "frozen": ("key",)}, "freeze both of them or neither"),
    ],
)
def test_refusals(tie, options, message, unchecked):
    with pytest.raises(ValueError) as caught:
        init(layer(tie, **options))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_registered_adapter_is_named_in_the_refusal(unchecked):
    with pytest.raises(ConfigError) as caught:
        Adapters(query="nothing")
    assert all(name in str(caught.value) for name in ADAPTERS)
    assert Adapters("diag", "", "head").items() == [("query", "diag"), ("value", "head")]
