"""Attention under every tie: against Flax, against the untied layer, and against its own claims."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.dot_product import attention_weights
from qkv_jax.tie import Tie
from tests.support.attention_layers import (
    CONTEXT,
    GROUPED,
    HEAD_DIM,
    HEADS,
    LENGTH,
    MASK,
    WIDTH,
    X,
    init,
    layer,
    objective,
    probes,
)
from tests.support.untied import TIES, assert_close, draw, leaves, sum_over_roles, untie

# --- the untied layer is the Transformer's, the tied ones are untied ones with equal weights


@pytest.mark.parametrize("case", ["self", "masked", "cross"])
def test_separate_is_the_attention_of_flax(case):
    """Outputs and gradients, of the parameters and the inputs, at copied weights."""
    theirs = nn.MultiHeadDotProductAttention(HEADS, use_bias=False)
    ours, context = layer(), CONTEXT if case == "cross" else X
    mask = MASK if case == "masked" else None
    inputs = (X, context) if case == "cross" else (X,)
    params = init(ours, *inputs)

    @functools.partial(jax.jit, static_argnums=0)
    def forward_and_backward(module):
        out = module.apply({"params": params}, *inputs, mask=mask)
        every = tuple(range(len(inputs) + 1))
        return out, jax.grad(objective(module, mask=mask), every)(params, *inputs)

    assert_close(forward_and_backward(ours), forward_and_backward(theirs))


VARIANTS = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "rotary": ({"positions": "rotary"}, {}),
    "learned_scale": ({"scale": "learned_per_head"}, {"mask": MASK}),
    "no_output": ({"output_projection": False}, {}),
    "grouped": ({"num_kv_heads": 1, "positions": "rotary"}, {"mask": MASK}),
    "cross": ({}, {}),
}
PAIRS = [(t, v) for v, t in itertools.product(VARIANTS, TIES) if v != "grouped" or t in GROUPED]


@pytest.mark.parametrize("tie, variant", PAIRS)
def test_a_tied_layer_is_the_untied_one_at_equal_weights(tie, variant):
    """Equal outputs; the gradient of a shared source is the SUM over the roles that read it.

    X as a role is an identity matrix: the gradient of the input agrees too.
    """
    options, call = VARIANTS[variant]
    inputs = (X, CONTEXT) if variant == "cross" else (X,)
    tied, separate = layer(tie, **options), layer(**options)
    params = init(tied, *inputs)
    if "log_scale" in params:  # off its initial value
        params["log_scale"] += jnp.asarray([0.3, -0.5])
    equal = untie(params, tie, HEADS, HEAD_DIM)
    assert_close(
        tied.apply({"params": params}, *inputs, **call),
        separate.apply({"params": equal}, *inputs, **call),
    )
    every = tuple(range(len(inputs) + 1))
    of_params, *of_inputs = jax.grad(objective(tied, **call), every)(params, *inputs)
    of_equal, *expected = jax.grad(objective(separate, **call), every)(equal, *inputs)
    assert_close(of_params, sum_over_roles(of_equal, tie))
    assert_close(of_inputs, expected)
    for source in Tie.parse(tie).sources:
        assert np.abs(of_params[source]["kernel"]).max() > 1e-3


# --- probes and the scale


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_probes_are_what_the_layer_computed(implementation):
    """Collected on request only, on the einsum path, without changing the output."""
    module = layer("K=V", num_kv_heads=1, positions="rotary", implementation=implementation)
    params = init(module)
    assert set(module.init(jax.random.key(0), X)) == {"params"}
    out, sown = module.apply({"params": params}, X, mask=MASK, mutable="intermediates")
    seen = {name: value[0] for name, value in sown["intermediates"]["probes"].items()}
    assert_close(out, module.apply({"params": params}, X, mask=MASK))
    shapes = {name: array.shape for name, array in seen.items()}
    of_keys = (2, LENGTH, 1, HEAD_DIM)
    assert shapes == {
        "x": X.shape, "query": (2, LENGTH, HEADS, HEAD_DIM), "key": of_keys, "value": of_keys,
        "attention_weights": (2, HEADS, LENGTH, LENGTH), "scale": (HEADS,), "mask": MASK.shape,
    }  # fmt: skip
    np.testing.assert_array_equal(seen["x"], X)
    weights = attention_weights(seen["query"], seen["key"], mask=MASK)
    np.testing.assert_allclose(seen["attention_weights"], weights, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not weights[jnp.broadcast_to(~MASK, weights.shape)].any()


@pytest.mark.parametrize("tie", ["separate", "copies"])
def test_the_learned_scale_starts_at_one_over_the_root(tie):
    """Equal outputs at first; a gradient moves every head's temperature; it acts as a factor."""
    learned, fixed = layer(tie, scale="learned_per_head"), layer(tie)
    params = init(learned)
    rest = {name: leaf for name, leaf in params.items() if name != "log_scale"}
    assert params["log_scale"].shape == (HEADS,)
    assert_close(learned.apply({"params": params}, X), fixed.apply({"params": rest}, X), 1e-6)
    assert jnp.all(jax.grad(objective(learned))(params, X)["log_scale"] != 0)
    doubled = params | {"log_scale": jnp.full(HEADS, np.log(2.0))}
    number = layer(tie, scale=2 * HEAD_DIM**-0.5)
    assert_close(learned.apply({"params": doubled}, X), number.apply({"params": rest}, X))
    one = params | {"log_scale": jnp.asarray([0.0, 1.0])}
    before, after = (probes(learned, p)["attention_weights"] for p in (params, one))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert not np.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_a_bias_on_the_scores_is_added_after_the_scale():
    module = layer()
    params, bias = init(module), draw(4, 1, HEADS, LENGTH, LENGTH)
    seen = probes(module, params, bias=bias)
    plain = np.einsum("btnh,bsnh->bnts", seen["query"], seen["key"]) * HEAD_DIM**-0.5
    np.testing.assert_allclose(seen["attention_weights"], jax.nn.softmax(plain + bias), atol=1e-6)


def test_biases_of_projections_are_shared_with_their_kernels():
    module = layer("Q=K", use_bias=True)
    params = init(module)
    assert {path for path in leaves(params) if "bias" in path} == {
        "query/bias", "value/bias", "out/bias",
    }  # fmt: skip
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    seen = probes(module, params)
    np.testing.assert_array_equal(seen["query"], seen["key"])
    flat = X @ params["query"]["kernel"].reshape(WIDTH, -1)
    flat += params["query"]["bias"].reshape(1, 1, -1)
    np.testing.assert_allclose(seen["query"].reshape(X.shape), flat, atol=1e-5)


# --- refusals


def of_scheme(scheme, tie="separate", positions="rotary", **options):
    return MultiHeadAttention(2, tie, scheme=scheme, positions=positions, **options)


@pytest.mark.parametrize(
    "module, message",
    [
        (MultiHeadAttention(3), "width 8 is not divisible by 3 heads"),
        (MultiHeadAttention(2, head_dim=3, positions="rotary"), "need an even head width, not 3"),
        (MultiHeadAttention(2, head_dim=3, output_projection=False), "must be the width 8"),
        (MultiHeadAttention(2, "copies", head_dim=3), "uses the input itself"),
        (MultiHeadAttention(2, "Q=K", num_kv_heads=1), "asks for Q=K"),
        (MultiHeadAttention(2, "K=V", frozen=("value",)), "frozen source 'value'"),
        (MultiHeadAttention(2, "K=Z"), "'K=Z' is not a tie"),
        (MultiHeadAttention(2, rotary_dims=2), "rotary_dims: given 2; is for positions 'rotary'"),
        (of_scheme("rotated", "K=V", positions="none"), "scheme: .* needs model.positions"),
        (of_scheme("rotated", "separate"), "scheme: .* needs K=V in every layer, not separate"),
        (of_scheme("grouped_tied", "separate"), "scheme: .* needs a tied projection, K=V"),
        (of_scheme("grouped_tied", "K=V", qk_norm=True), "qk_norm: given True; is not for"),
        (of_scheme("grouped_tied", "K=V", rotary_dims=0), "rotary_dims: given 0; is not for"),
        (of_scheme("grouped_tied", "K=V", frozen=("key",)), "frozen: .* is not for"),
        (of_scheme("low_rank", "K=V"), "scheme: .* needs kv_heads=1, and the rank"),
        (of_scheme("mla", "K=V", latent_dim=2), "scheme: .* needs positions 'rotary' and"),
        (of_scheme("mla", latent_dim=2, rotary_dims=2, frozen=("query",)), "frozen: .* is not for"),
    ],
)
def test_layers_that_cannot_be_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), X)
