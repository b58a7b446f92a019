"""The options of a scheme beside the tie: each changes the result, and is what it claims to be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.adapters import Adapters
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.blocks import SwiGlu
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.dot_product import attend
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.masks import visible
from qkv_jax.model.positions import (
    POSITIONS,
    Positions2D,
    RelativeBias,
    alibi_bias,
    alibi_slopes,
    relative_buckets,
    rotate,
)
from qkv_jax.model.stems import TokenStem
from tests.support.untied import assert_close, decoded, draw, leaves

WIDTH, HEADS, LENGTH = 8, 2, 6
X = draw(1, 2, LENGTH, WIDTH)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, LENGTH)))
PLACES = jnp.arange(LENGTH)[None]
SMALL = ModelConfig(tie="Q=K", layers=1, width=WIDTH, heads=HEADS, mlp_width=7)


def encoder(**overrides):
    config = dataclasses.replace(SMALL, **overrides)
    return Encoder(config, TokenStem((5,), WIDTH), 5, LENGTH)


@functools.cache
def initialised(**overrides):
    return encoder(**overrides).init(jax.random.key(0), TOKENS)["params"]


def stirred(params):
    """Away from the starting point, where zeros and ones hide much; equal paths move alike."""
    seed = lambda path: sum(map(ord, path)) % 1000
    noise = {path: 0.3 * draw(seed(path), *leaf.shape) for path, leaf in leaves(params).items()}
    add = lambda path, leaf: leaf + noise["/".join(entry.key for entry in path)]
    return jax.tree_util.tree_map_with_path(add, params)


def layer(tie="separate", **options):
    return MultiHeadAttention(HEADS, tie, **options)


def init(module, seed=0):
    return module.init(jax.random.key(seed), X)["params"]


def weights_of(module, params, x=X, **options):
    _, sown = module.apply({"params": params}, x, mutable="intermediates", **options)
    return sown["intermediates"]["probes"]["attention_weights"][0]


OPTIONS = [
    {"adapters": Adapters(query="diag")}, {"adapters": Adapters(query="head")},
    {"adapters": Adapters(query="lowrank:1")}, {"tie": "separate", "latent_dim": 3},
    {"positions": "relative"}, {"positions": "alibi"}, {"positions_2d": True}, {"qk_norm": True},
    {"diagonal_mask": True}, {"use_bias": True}, {"norm_position": "post"}, {"norm": "rms"},
    {"mlp": "swiglu"}, {"dtype": "bfloat16"}, {"norm_epsilon": 0.1}, {"embedding_norm": True},
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_each_option_changes_what_the_encoder_computes(option):
    """At weights equal where both have them, and trained somewhat."""
    base = {"tie": option.get("tie", "Q=K"), "positions": "none"}
    outputs = [
        encoder(**overrides).apply({"params": stirred(initialised(**overrides))}, TOKENS)
        for overrides in (base, base | option)
    ]
    assert np.isfinite(outputs[1]).all()
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


# --- positions on the scores


def test_buckets_are_those_of_t5():
    """Written out from Raffel et al. 2020: 16 a side, the first 8 of one distance each, then
    logarithmic up to 128."""

    def bucket(offset):
        side, distance = (16 if offset > 0 else 0), abs(offset)
        if distance < 8:
            return side + distance
        return side + min(15, 8 + int(np.log(distance / 8) / np.log(128 / 8) * 8 + 1e-6))

    offsets = np.arange(-300, 301)
    actual = relative_buckets(jnp.asarray(offsets)[None])[0]
    np.testing.assert_array_equal(actual, [bucket(int(offset)) for offset in offsets])
    assert set(np.asarray(actual)) == set(range(32)) - {16}


def test_a_relative_bias_knows_offset_and_direction_alone():
    module = RelativeBias(HEADS)
    table = draw(2, 32, HEADS)
    bias = module.apply({"params": {"buckets": table}}, PLACES, PLACES + 3)
    for i in range(LENGTH):
        for j in range(LENGTH):
            bucket = relative_buckets(jnp.asarray([[j + 3 - i]]))[0, 0]
            np.testing.assert_array_equal(bias[0, :, i, j], table[bucket])


@pytest.mark.parametrize(
    "heads, expected",
    [
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (2, [1 / 16, 1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),  # 4 heads', then of 8 heads'
        (1, [1 / 256]),
    ],
)
def test_slopes_of_alibi(heads, expected):
    np.testing.assert_allclose(alibi_slopes(heads), expected, rtol=1e-6)


def test_alibi_falls_with_distance_to_both_sides():
    bias = np.asarray(alibi_bias(HEADS, PLACES, PLACES))
    distance = np.abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH))
    np.testing.assert_allclose(bias[0], -np.array([1 / 16, 1 / 256])[:, None, None] * distance)


@pytest.mark.parametrize("positions", ["relative", "alibi"])
def test_the_bias_is_added_to_the_scaled_scores(positions):
    """Together with the caller's own, and by every implementation."""
    own = draw(5, 1, HEADS, LENGTH, LENGTH)
    module = layer(positions=positions, output_projection=False)
    params = stirred(init(module))
    _, sown = module.apply({"params": params}, X, mutable="intermediates")
    seen = {name: value[0] for name, value in sown["intermediates"]["probes"].items()}
    bias = alibi_bias(HEADS, PLACES, PLACES)
    if positions == "relative":
        bias = RelativeBias(HEADS).apply({"params": params["relative"]}, PLACES, PLACES)
    expected = attend(seen["query"], seen["key"], seen["value"], bias=bias + own)
    for implementation in ("einsum", "xla"):
        run = module.clone(implementation=implementation)
        out = run.apply({"params": params}, X, bias=own)
        assert_close(out, expected.reshape(X.shape))


@pytest.mark.parametrize(
    "options", [{"positions": p} for p in POSITIONS] + [{"positions_2d": True}]
)
def test_positions_go_on_counting_while_decoding(options):
    module = layer("K=V", **options)
    params, cache = stirred(init(module)), module.init_cache(2, LENGTH + 2, WIDTH)
    full = module.apply({"params": params}, X, is_causal=True)
    assert_close(decoded(module, params, cache, X, [3, 4, 5]), full)


def test_the_weights_of_the_2d_term_start_like_a_linear_layer_of_ten_inputs():
    """Xavier, uniform: within sqrt(6 / 11), of standard deviation sqrt(2 / 11)."""
    module = Positions2D()
    drawn = [module.init(jax.random.key(i), PLACES, PLACES)["params"]["weight"] for i in range(60)]
    assert np.abs(drawn).max() <= np.sqrt(6 / 11)
    assert np.std(drawn) == pytest.approx(np.sqrt(2 / 11), rel=0.1)


# --- norm of queries and keys, mask of the diagonal


def test_normed_queries_and_keys_forget_their_size():
    """Seven times the kernels of queries and keys is the same layer; without the norm it is not."""
    for qk_norm in (True, False):
        module = layer(qk_norm=qk_norm, output_projection=False)
        params = init(module)
        larger = params | {
            name: {"kernel": 7 * params[name]["kernel"]} for name in ("query", "key")
        }
        outputs = [module.apply({"params": tree}, X) for tree in (params, larger)]
        assert np.allclose(*outputs, atol=1e-4) == qk_norm


def test_the_norm_comes_before_rotation_and_spares_values():
    module = layer("Q=K=V", qk_norm=True, positions="rotary")
    params = stirred(init(module))
    _, sown = module.apply({"params": params}, X, mutable="intermediates")
    seen = {name: value[0] for name, value in sown["intermediates"]["probes"].items()}
    raw = (X @ params["query"]["kernel"].reshape(WIDTH, -1)).reshape(2, LENGTH, HEADS, -1)
    assert_close(seen["value"], raw)
    unit = np.asarray(raw) / np.sqrt((np.asarray(raw) ** 2).mean(-1, keepdims=True) + 1e-6)
    for name in ("query", "key"):
        scale = np.asarray(params[f"{name}_norm"]["scale"])
        scaled = jnp.asarray(unit * scale, jnp.float32)
        assert_close(seen[name], rotate(scaled), 1e-4)
        # The scale differs between coordinates, so that the other order is another layer.
        other = np.asarray(rotate(jnp.asarray(unit, jnp.float32))) * scale
        assert not np.allclose(seen[name], other, atol=1e-2)


@pytest.mark.parametrize("is_causal", [False, True])
def test_no_token_sees_itself_unless_it_sees_nothing_else(is_causal):
    """Alone under the mask, or first in causal order: then its weight on itself is 1."""
    mask = jnp.ones((2, 1, LENGTH, LENGTH), bool).at[0, :, 2].set(jnp.arange(LENGTH) == 2)
    mask = mask.at[1, :, 4].set(False)  # a row that sees nothing goes on seeing nothing
    module = layer("Q=K", diagonal_mask=True)
    weights = weights_of(module, init(module), mask=mask, is_causal=is_causal)
    diagonal = np.diagonal(np.asarray(weights), axis1=2, axis2=3)
    expected = np.zeros((2, HEADS, LENGTH))
    expected[0, :, 2] = 1
    if is_causal:
        expected[:, :, 0] = 1
    np.testing.assert_allclose(diagonal, expected)
    sums = np.asarray(weights).sum(-1)
    assert np.allclose(sums[0], 1, atol=1e-6) and np.allclose(sums[1, :, 4], 0)
    if is_causal:
        assert not np.triu(np.asarray(weights), 1).any()


def test_without_a_mask_only_the_diagonal_is_hidden():
    mask = visible(PLACES, PLACES, hide_self=True)
    np.testing.assert_array_equal(mask[0, 0], ~np.eye(LENGTH, dtype=bool))


def test_a_context_has_no_diagonal():
    module, context = layer(diagonal_mask=True), draw(2, 2, LENGTH, WIDTH)
    params = module.init(jax.random.key(0), X, context)["params"]
    plain = layer().apply({"params": params}, X, context)
    np.testing.assert_array_equal(module.apply({"params": params}, X, context), plain)


# --- the rest of the block


def test_biases_are_those_of_attention_alone():
    added = set(leaves(initialised(use_bias=True))) - set(leaves(initialised()))
    assert added == {f"layer_0/attention/{name}/bias" for name in ("query", "value", "out")}


def test_post_norm_leaves_tokens_normed_and_needs_no_last_norm():
    """x = norm(x + f(x)): what a block hands on has mean 0 and variance 1, at the start."""
    module = encoder(norm_position="post")
    assert "norm" not in initialised(norm_position="post") and "norm" in initialised()
    capture = lambda m, _: m.name == "layer_0"
    _, state = module.apply(
        {"params": initialised(norm_position="post")}, TOKENS, capture_intermediates=capture
    )
    out, *_ = state["intermediates"]["layer_0"]["__call__"][0]
    out = np.asarray(out)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(-1), 1, atol=1e-3)


def test_rms_norms_have_no_mean_and_no_bias():
    names = {path for path in leaves(initialised(norm="rms")) if "norm" in path}
    assert names == {"norm/scale", "layer_0/attention_norm/scale", "layer_0/mlp_norm/scale"}


def test_swiglu_is_a_gated_layer():
    module = SwiGlu(3)
    params = stirred(module.init(jax.random.key(0), X)["params"])
    own = jax.tree.map(np.asarray, params)
    dense = lambda name, x: np.asarray(x) @ own[name]["kernel"] + own[name]["bias"]
    gate = dense("gate", X)
    expected = dense("down", gate / (1 + np.exp(-gate)) * dense("up", X))
    np.testing.assert_allclose(module.apply({"params": params}, X), expected, atol=1e-5)
    assert dataclasses.replace(SMALL, mlp="swiglu", mlp_width=None, width=96).hidden == 256
    assert dataclasses.replace(SMALL, mlp_width=None, width=96).hidden == 384


def test_half_precision_is_of_the_arithmetic_alone():
    """Parameters and logits stay float32, gradients too; what lies between is bfloat16."""
    options = {"positions": "relative", "qk_norm": True, "use_bias": True, "scale": 0.3}
    options |= {"adapters": Adapters(query="head"), "positions_2d": True}
    module, exact = encoder(dtype="bfloat16", **options), encoder(**options)
    params = initialised(dtype="bfloat16", **options)
    assert {leaf.dtype for leaf in leaves(params).values()} == {np.dtype("float32")}
    run = functools.partial(module.apply, mutable="intermediates")
    logits, sown = run({"params": params}, TOKENS)
    probes = sown["intermediates"]["layer_0"]["attention"]["probes"]
    exact_too = {"scale", "bias"}  # of the scores, which are float32
    assert {probes[name][0].dtype for name in probes.keys() - exact_too} == {jnp.dtype("bfloat16")}
    assert logits.dtype == jnp.float32
    expected = exact.apply({"params": params}, TOKENS)
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    gradients = jax.grad(lambda p: module.apply({"params": p}, TOKENS).sum())(params)
    assert {leaf.dtype for leaf in leaves(gradients).values()} == {np.dtype("float32")}


def test_frozen_sources_pass_gradients_on():
    """Frozen means that the projection does not learn, not that nothing below it does."""
    for tie, sources in {"separate": ("query", "key", "value"), "K=V": ("query", "key")}.items():
        frozen, learned = (layer(tie, frozen=f) for f in (sources, ()))
        params = init(learned)
        of_input = [
            jax.grad(lambda x, m=module, p=params: (m.apply({"params": p}, x) ** 2).sum())(X)
            for module in (frozen, learned)
        ]
        np.testing.assert_array_equal(*of_input)


# --- schedules, presets, refusals


def test_in_a_schedule_adapters_act_where_their_role_shares():
    params = initialised(layers=2, tie="Q=K|separate", adapters=Adapters(query="diag"))
    assert "query_adapter" in params["layer_0"]["attention"]
    assert "query_adapter" not in params["layer_1"]["attention"]


def test_a_preset_sets_tie_and_adapters():
    config = ModelConfig(preset="gao", width=WIDTH, heads=HEADS)
    assert (config.tie, config.adapters) == ("K=V", Adapters(key="head"))
    assert dataclasses.replace(config, mlp_width=9).adapters == Adapters(key="head")
    assert ModelConfig(preset="gao", tie="v = k").tie == "K=V"


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"preset": "goa"}, "preset: given 'goa'; did you mean 'gao'? allowed: courtois, gao"),
        ({"preset": "gao", "tie": "Q=V"}, "tie: given 'Q=V'; preset 'gao' sets it"),
        (
            {"preset": "gao", "tie": "separate", "adapters": Adapters(query="head")},
            "adapters: given {'query': 'head'}; preset 'gao' sets it",
        ),
        ({"adapters": Adapters(value="diag")}, "adapters.value: given 'diag'; under tie Q=K"),
        ({"adapters": Adapters(key="lowrank:5")}, "adapters.key: given 'lowrank:5'; the rank must"),
        ({"tie": "separate", "adapters": Adapters(key="head")}, "shares its source with no other"),
        ({"latent_dim": 0}, "latent_dim: given 0; must be a whole number above 0"),
        ({"latent_dim": 2}, "tie: given 'Q=K'; layer 0: tie Q=K asks for Q=K; with a latent"),
        ({"norm": "batch"}, "norm: given 'batch'; allowed: layer, rms"),
        ({"norm_position": "sandwich"}, "norm_position: given 'sandwich'; allowed: pre, post"),
        ({"mlp": "celu"}, "mlp: given 'celu'; did you mean 'relu'? allowed: gelu, gelu_exact, "),
        ({"dtype": "float16"}, "dtype: given 'float16'; did you mean"),
        ({"positions": "t5"}, "allowed: none, sinusoidal, learned, rotary, relative, alibi"),
    ],
)
def test_refusals(overrides, message, unchecked):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SMALL, **overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)
