"""Attention under every tie: against Flax, against the untied layer, and against its own claims."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.config import ConfigError
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.dot_product import attend, attention_weights, resolved, unsupported
from qkv_jax.model.positions import rotate
from qkv_jax.tie import Tie
from tests.support.untied import TIES, assert_close, draw, leaves, sum_over_roles, untie

WIDTH, HEADS, HEAD_DIM, LENGTH = 8, 2, 4, 5
X, CONTEXT = draw(1, 2, LENGTH, WIDTH), draw(2, 2, LENGTH + 2, WIDTH)
# A mask under which every query sees something, and no two see the same.
MASK = jnp.asarray(np.random.default_rng(0).random((2, 1, LENGTH, LENGTH)) < 0.6)
MASK |= jnp.eye(LENGTH, dtype=bool)[None, None]
GROUPED = ("separate", "K=V", "Q=X", "Q=X,K=V")  # ties that allow fewer key/value heads


def layer(tie="separate", **options):
    return MultiHeadAttention(HEADS, tie, **options)


def init(module, *inputs, seed=0):
    return module.init(jax.random.key(seed), *(inputs or (X,))).get("params", {})


def objective(module, **options):
    """A loss in which every output counts differently, so that no gradient cancels."""

    def loss(params, *inputs):
        out = module.apply({"params": params}, *inputs, **options)
        phases = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        return (jnp.sin(out + phases) * out).sum()

    return loss


def probes(module, params, x=X, **options):
    _, sown = module.apply({"params": params}, x, mutable="intermediates", **options)
    return {name: value[0] for name, value in sown["intermediates"]["probes"].items()}


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


# --- attend


@st.composite
def problems(draw_):
    """Arguments of `attend` of every kind: sizes, groups, bias, mask, causal order, scale."""
    pick = lambda *options: draw_(st.sampled_from(options))
    batch, queries, keys, head_dim = pick(1, 2), pick(1, 3), pick(1, 4), pick(2, 4)
    heads, kv_heads = pick((1, 1), (4, 4), (4, 2), (4, 1))
    seed = draw_(st.integers(0, 1000))
    shape = (pick(1, batch), pick(1, heads), pick(1, queries), keys)
    mask = np.random.default_rng(seed).random(shape) < 0.7 if draw_(st.booleans()) else None
    return {
        "query": draw(seed, batch, queries, heads, head_dim),
        "key": draw(seed + 1, batch, keys, kv_heads, head_dim),
        "value": draw(seed + 2, batch, keys, kv_heads, head_dim),
        "bias": pick(None, draw(seed + 3, pick(1, batch), pick(1, heads), pick(1, queries), keys)),
        "mask": None if mask is None else jnp.asarray(mask),
        "is_causal": pick(False, True),
        "scale": pick(None, 0.7, jnp.linspace(0.2, 1.5, heads)),
    }


def naive(query, key, value, *, bias, mask, is_causal, scale):
    """The formula, a query, head and key at a time, in float64."""
    (batch, queries, heads, head_dim), keys = query.shape, key.shape[1]
    as_given = lambda x, default: np.broadcast_to(
        default if x is None else np.asarray(x), (batch, heads, queries, keys)
    )
    bias, mask = as_given(bias, 0.0), as_given(mask, True)
    scale = np.broadcast_to(head_dim**-0.5 if scale is None else np.asarray(scale), heads)
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    out = np.zeros(query.shape)
    for b, n, t in np.ndindex(batch, heads, queries):
        group = n // (heads // key.shape[2])
        seen = [s for s in range(keys) if mask[b, n, t, s] and (s <= t or not is_causal)]
        scores = [scale[n] * query[b, t, n] @ key[b, s, group] + bias[b, n, t, s] for s in seen]
        weights = np.exp(scores) / np.exp(scores).sum()
        for s, weight in zip(seen, weights, strict=True):
            out[b, t, n] += weight * value[b, s, group]
    return out


@settings(max_examples=12)
@given(problems())
def test_implementations_of_attend_agree(problem):
    """einsum and xla against the formula, and their gradients against each other."""
    arrays = {name: problem.pop(name) for name in ("query", "key", "value")}
    expected = naive(**arrays, **problem)
    upstream = jnp.sin(1 + jnp.arange(expected.size)).reshape(expected.shape)

    @functools.partial(jax.jit, static_argnums=1)
    def forward_and_backward(arrays, implementation):
        run = lambda arrays: attend(**arrays, **problem, implementation=implementation)
        out, backward = jax.vjp(run, arrays)
        return out, backward(upstream)[0]

    (einsum, of_einsum), (xla, of_xla) = (
        forward_and_backward(arrays, name) for name in ("einsum", "xla")
    )
    np.testing.assert_allclose(einsum, expected, atol=2e-5)
    np.testing.assert_allclose(xla, expected, atol=2e-5)
    assert_close(of_einsum, of_xla, 3e-5)


@pytest.mark.parametrize("implementation", ["einsum", "xla", "auto"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_query_that_sees_nothing_gets_zero(implementation, is_causal):
    """Exactly, with finite gradients, whether the mask alone or mask and causal order hide all."""
    query = draw(0, 1, 3, HEADS, HEAD_DIM)
    # Query 1 sees no key; query 0 sees the last key only, which causal order hides.
    mask = jnp.asarray([[False, False, True], [False] * 3, [True, False, True]])[None, None]
    run = lambda q, k, v: attend(
        q, k, v, mask=mask, is_causal=is_causal, implementation=implementation
    )
    out = run(query, query, query)
    blind = [0, 1] if is_causal else [1]
    for place in range(3):
        assert (not out[0, place].any()) == (place in blind)
    gradients = jax.grad(lambda *qkv: (run(*qkv) ** 2).sum(), (0, 1, 2))(query, query, query)
    assert all(jnp.isfinite(g).all() for g in gradients)
    assert not gradients[0][0, jnp.asarray(blind)].any() and gradients[0].any()


def test_softmax_of_half_precision_is_taken_in_full():
    """Scores far apart: the output is bfloat16, the rows sum to 1 within its rounding."""
    query = draw(0, 1, 4, HEADS, HEAD_DIM)
    half = (10 * query).astype(jnp.bfloat16)
    out = attend(half, half, half, implementation="einsum")
    assert out.dtype == jnp.bfloat16
    exact = attend(*(half.astype(jnp.float32),) * 3, implementation="einsum")
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.2)
    program = str(jax.make_jaxpr(lambda q: attention_weights(q, q))(half))
    assert "exp" in program and "bf16" not in program.split(" exp ")[0].split("\n")[-1]


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_a_bias_is_added_in_its_own_precision(implementation):
    """Of biases that bfloat16 cannot tell apart the differences stay, as in float32."""
    drawn = (draw(seed, 1, 4, HEADS, HEAD_DIM) for seed in range(3))
    query, key, value = (array.astype(jnp.bfloat16) for array in drawn)
    bias = 300 + jnp.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    out = attend(query, key, value, bias=bias, implementation=implementation)
    exact = naive(
        *(np.asarray(a, np.float32) for a in (query, key, value)),
        bias=bias, mask=None, is_causal=False, scale=None,
    )  # fmt: skip
    assert np.abs(np.asarray(out, np.float32) - exact).max() < 0.01 * np.abs(exact).max()


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_a_bias_that_hides_a_whole_row_leaves_it_finite(implementation):
    query = draw(0, 1, 3, HEADS, HEAD_DIM).astype(jnp.bfloat16)
    bias = jnp.zeros((1, 1, 3, 3)).at[0, 0, 1].set(-1e9)
    assert jnp.isfinite(attend(query, query, query, bias=bias, implementation=implementation)).all()


@pytest.mark.parametrize("implementation", ["auto", "einsum", "xla"])
@pytest.mark.parametrize("jit", [False, True])
def test_padding_and_additive_masks_are_not_mistaken_for_a_mask(implementation, jit, unchecked):
    """With as many examples as tokens and heads, so that every one of them would broadcast. The
    same numbers as a bias are right."""
    x, keep = draw(0, 4, 4, 16), jnp.arange(4)[None] < jnp.asarray([[4], [2], [3], [1]])
    module = MultiHeadAttention(4, implementation=implementation)
    params = init(module, x)
    run = lambda **options: module.apply({"params": params}, x, **options)
    run = jax.jit(run) if jit else run
    right, added = keep[:, None, None, :], jnp.where(keep, 0.0, -1e9)[:, None, None, :]
    for wrong in (keep, keep[:, None], keep[:, None, :], added, added[:, 0], right.astype(int)):
        with pytest.raises(ValueError, match=r"mask: given .*; must be booleans \[#B, #N,"):
            run(mask=wrong)
    with pytest.raises(ValueError, match=r"bias: given bool.*; must be floats \[#B, #N,"):
        run(bias=right)
    assert_close(run(mask=right), run(bias=added), 1e-6)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_float16_is_refused_since_its_gradients_overflow(size):
    half = (size * draw(0, 1, 3, HEADS, HEAD_DIM)).astype(jnp.float16)
    with pytest.raises(ValueError, match="query: given float16.*; in float16 gradients overflow"):
        attend(half, half, half)
    with pytest.raises(ValueError, match="x: given float16.*; in float16 gradients overflow"):
        layer().init(jax.random.key(0), X.astype(jnp.float16))


def test_auto_is_what_is_fastest_on_the_platform():
    """On that which is named, wherever this process runs."""
    assert resolved("auto", "cpu") == "einsum"
    assert resolved("auto", "tpu") == resolved("auto", "gpu") == "xla"
    assert all(resolved(name, "tpu") == name for name in ("einsum", "xla", "cudnn"))


@pytest.mark.parametrize(
    "dtype, width, platform, message",
    [
        ("float32", 64, None, "cuDNN computes in bfloat16, not in float32"),
        ("bfloat16", 12, None, "a multiple of 8, not 12"),
        ("bfloat16", 64, "cpu", "needs an NVIDIA GPU, and the platform is cpu"),
        ("bfloat16", 64, "tpu", "needs an NVIDIA GPU, and the platform is tpu"),
    ],
)
def test_what_cudnn_cannot_do_is_said(dtype, width, platform, message):
    assert message in unsupported("cudnn", dtype, width, platform)
    assert unsupported("xla", dtype, width, platform) is None
    assert unsupported("cudnn", "bfloat16", 64, None) is None


def test_cudnn_is_refused_where_there_is_none():
    """Before anything is computed; on a GPU, where the pieces are, it is what is asked for."""
    query = draw(0, 1, 4, HEADS, 8).astype(jnp.bfloat16)
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="implementation: given 'cudnn'; cuDNN needs"):
            attend(query, query, query, implementation="cudnn")


def test_cudnn_is_given_masks_and_biases_of_full_length(monkeypatch):
    """It takes no axis of 1 in place of queries or keys, and one number format."""
    seen, real = {}, jax.nn.dot_product_attention

    def kernel(query, key, value, bias, mask, **options):
        seen.update(bias=bias, mask=mask)
        return real(query, key, value, bias, mask, scale=options["scale"])

    monkeypatch.setattr("qkv_jax.model.dot_product.unsupported", lambda *_: None)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    query, key = (draw(0, 2, n, HEADS, 8).astype(jnp.bfloat16) for n in (4, 6))
    mask, bias = jnp.arange(6)[None] < jnp.asarray([[3], [6]]), draw(1, 1, 1, 1, 6)
    options = {"mask": mask[:, None, None], "bias": bias}
    out = attend(query, key, key, implementation="cudnn", **options)
    monkeypatch.undo()
    assert (seen["bias"].shape, seen["bias"].dtype) == ((1, 1, 4, 6), jnp.bfloat16)
    assert (seen["mask"].shape, seen["mask"].dtype) == ((2, 1, 4, 6), bool)
    assert_close(out, attend(query, key, key, implementation="xla", **options), 2e-2)


def test_a_cache_of_another_number_format_is_read_in_that_of_the_tokens():
    """Decoding computes and answers in the format of the tokens, as the causal pass does."""
    module, half = layer("K=V", implementation="xla"), X.astype(jnp.bfloat16)
    params = init(module)
    full = module.apply({"params": params}, half, is_causal=True)
    variables = {"params": params, "cache": module.init_cache(2, LENGTH, WIDTH)}
    out, _ = module.apply(variables, half, decode=True, mutable="cache")
    assert out.dtype == full.dtype == jnp.bfloat16
    assert_close(out.astype(jnp.float32), full.astype(jnp.float32), 2e-2)


def test_a_cache_that_does_not_fit_is_refused():
    """One without room, of another batch or of another tie; nothing is written over its end."""
    module = layer("K=V")
    params = init(module)
    for cache in (
        module.init_cache(2, LENGTH - 1, WIDTH),
        module.init_cache(1, LENGTH, WIDTH),
        layer("Q=V").init_cache(2, LENGTH, WIDTH) | {"sources": {}},
    ):
        with pytest.raises(ConfigError, match="cache: given .*"):
            module.apply({"params": params, "cache": cache}, X, decode=True, mutable="cache")
    cache = module.init_cache(2, LENGTH, WIDTH)
    variables = {"params": params, "cache": cache}
    _, changed = module.apply(variables, X, decode=True, mutable="cache")
    with pytest.raises(ConfigError, match=f"has no room for {LENGTH + 1} tokens"):
        module.apply(
            {"params": params, **changed}, X[:, :1], decode=True, mutable="cache"
        )


def test_unknown_implementations_are_refused(unchecked):
    with pytest.raises(ValueError, match="implementation: given 'flash'; allowed: auto"):
        attend(X[:, :, None], X[:, :, None], X[:, :, None], implementation="flash")


# --- who sees whom


@pytest.mark.parametrize("tie", TIES)
def test_no_output_depends_on_its_future(tie):
    """Under causal order d out[t] / d x[s] is zero for s > t and only there."""
    module = layer(tie, positions="rotary")
    params = init(module)
    run = lambda x: module.apply({"params": params}, x[None], is_causal=True)[0]
    jacobian = np.abs(jax.jacobian(run)(X[0])).max((1, 3))
    np.testing.assert_array_equal(jacobian != 0, np.tri(LENGTH, dtype=bool))


@pytest.mark.parametrize("tie", TIES)
def test_no_other_output_depends_on_a_hidden_key(tie):
    """With key padding, d out[t] / d x[s] is zero for hidden s, but for t = s: its own query."""
    module, hidden = layer(tie), jnp.asarray([False, True, False, False, True])
    params = init(module)
    mask = jnp.broadcast_to(~hidden, (1, 1, 1, LENGTH))
    run = lambda x: module.apply({"params": params}, x[None], mask=mask)[0]
    jacobian = np.abs(jax.jacobian(run)(X[0])).max((1, 3))
    expected = np.broadcast_to(~np.asarray(hidden), (LENGTH, LENGTH)) | np.eye(LENGTH, dtype=bool)
    np.testing.assert_array_equal(jacobian != 0, expected)


# --- the cache


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("tie", TIES)
def test_decoding_token_by_token_is_the_causal_pass(tie, positions):
    """Also when the first tokens come at once; a cache longer than the sequence does no harm."""
    check_decoding(layer(tie, positions=positions, scale="learned_per_head"))


@pytest.mark.parametrize("tie", GROUPED)
def test_decoding_with_grouped_heads(tie):
    check_decoding(layer(tie, num_kv_heads=1, positions="rotary", use_bias=True))


def check_decoding(module):
    params = init(module)
    full = module.apply({"params": params}, X, is_causal=True)
    for first in (1, 3):
        cache, outputs = module.init_cache(2, LENGTH + 2, WIDTH), []
        for chunk in jnp.split(X, list(range(first, LENGTH)), axis=1):
            out, changed = module.apply(
                {"params": params, "cache": cache}, chunk, decode=True, mutable="cache"
            )
            cache = changed["cache"]
            outputs.append(out)
        assert_close(jnp.concatenate(outputs, 1), full)
        assert cache["index"] == LENGTH


@pytest.mark.parametrize("tie", TIES)
def test_the_cache_holds_each_source_of_keys_and_values_once(tie):
    """Half the bytes where K = V; what is stored is what was projected, before rotation."""
    module, parsed = layer(tie, positions="rotary"), Tie.parse(tie)
    cache = module.init_cache(2, LENGTH, WIDTH)
    read = {parsed.source("K"), parsed.source("V")}
    assert set(cache["sources"]) == read
    size = sum(array.nbytes for array in cache["sources"].values())
    roles = 1 if parsed.equates("K", "V") else 2
    assert size == roles * 2 * LENGTH * WIDTH * 4
    params = init(module)
    variables = {"params": params, "cache": cache}
    _, changed = module.apply(variables, X, decode=True, mutable="cache")
    for source, stored in changed["cache"]["sources"].items():
        flat = X if source == "X" else X @ params[source]["kernel"].reshape(WIDTH, WIDTH)
        np.testing.assert_allclose(stored.reshape(X.shape), flat, atol=1e-6)


def test_grouped_heads_shrink_the_cache():
    caches = [layer("K=V", num_kv_heads=n).init_cache(1, 7, WIDTH)["sources"] for n in (2, 1)]
    all_heads, one_head = (sum(array.nbytes for array in c.values()) for c in caches)
    assert all_heads == 2 * one_head == 7 * WIDTH * 4


def test_a_padded_prefix_stays_hidden_while_decoding():
    """A mask over the whole cache goes together with the order of tokens."""
    module, hidden = layer("K=V", positions="rotary"), jnp.arange(LENGTH) == 1
    params, mask = init(module), ~hidden[None, None, None, :]
    full = module.apply({"params": params}, X, mask=mask, is_causal=True)
    cache, outputs = module.init_cache(2, LENGTH, WIDTH), []
    for t in range(LENGTH):
        out, changed = module.apply(
            {"params": params, "cache": cache}, X[:, t : t + 1], mask=mask, decode=True,
            mutable="cache",
        )  # fmt: skip
        cache = changed["cache"]
        outputs.append(out)
    assert_close(jnp.concatenate(outputs, 1), full)


# --- what a tie does to the scores


def scores(module, params, x=X):
    seen = probes(module, params, x)
    return np.einsum("btnh,bsnh->bnts", seen["query"], seen["key"])


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("tie", TIES)
def test_scores_are_symmetric_exactly_where_queries_are_keys(tie, positions):
    """Before the softmax. Rotary positions do not repair it: both sides are turned alike."""
    module = layer(tie, positions=positions)
    matrix = scores(module, init(module))
    symmetric = np.allclose(matrix, matrix.swapaxes(-1, -2), atol=1e-5)
    assert symmetric == Tie.parse(tie).equates("Q", "K")


@pytest.mark.parametrize("tie", ["Q=K", "copies"])
def test_rotary_scores_of_equal_queries_and_keys_see_the_order(tie):
    """What they do repair: two tokens that change places change their score, else they do not."""
    swapped = X[:, jnp.asarray([2, 1, 0, 3, 4])]
    for positions, same in (("none", True), ("rotary", False)):
        module = layer(tie, positions=positions)
        params = init(module)
        one, other = scores(module, params), scores(module, params, swapped)
        assert np.allclose(one[:, :, 0, 2], other[:, :, 0, 2], atol=1e-5) == same


@pytest.mark.parametrize("tie", TIES)
def test_rotation_comes_after_the_tie_and_spares_the_value(tie):
    """Queries and keys are turned, each after the source was shared; the value is the source."""
    params = init(layer(tie))
    plain, turned = (probes(layer(tie, positions=p), params) for p in ("none", "rotary"))
    np.testing.assert_allclose(turned["query"], rotate(plain["query"]), atol=1e-6)
    np.testing.assert_allclose(turned["key"], rotate(plain["key"]), atol=1e-6)
    np.testing.assert_array_equal(turned["value"], plain["value"])
    if Tie.parse(tie).equates("K", "V"):
        np.testing.assert_array_equal(turned["value"], plain["key"])
        assert not np.allclose(turned["value"], turned["key"])


@pytest.mark.parametrize("tie", ["separate", "Q=K", "copies"])
def test_rotary_scores_depend_on_distance_only(tie):
    """The same tokens further along score the same: the window's weights do not move."""
    module = layer(tie, positions="rotary")
    params = init(module)
    shifted = jnp.concatenate([draw(9, 2, 3, WIDTH), X], axis=1)
    one, other = scores(module, params), scores(module, params, shifted)
    np.testing.assert_allclose(one, other[..., 3:, 3:], atol=1e-4)
    keys = probes(module, params)["key"], probes(module, params, shifted)["key"][:, 3:]
    assert not np.allclose(*keys, atol=1e-2)


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
    ],
)
def test_layers_that_cannot_be_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), X)


def test_decoding_without_a_cache_or_with_a_context_is_refused():
    module = layer()
    params = init(module)
    with pytest.raises(ValueError, match="make one with init_cache"):
        module.apply({"params": params}, X, decode=True)
    variables = {"params": params, "cache": module.init_cache(2, LENGTH, WIDTH)}
    with pytest.raises(ValueError, match="decode=True is for self-attention"):
        module.apply(variables, X, CONTEXT, decode=True, mutable="cache")
