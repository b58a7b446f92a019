"""`attend`: its implementations agree, and what each refuses or leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.dot_product import attend, attention_weights, resolved, unsupported
from tests.support.attention_layers import HEAD_DIM, HEADS, LENGTH, WIDTH, X, init, layer
from tests.support.untied import assert_close, draw


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
    cache = module.init_cache(2, LENGTH, WIDTH)
    out, _ = module.apply({"params": params}, half, cache=cache)
    assert out.dtype == full.dtype == jnp.bfloat16
    assert_close(out.astype(jnp.float32), full.astype(jnp.float32), 2e-2)



def test_unknown_implementations_are_refused(unchecked):
    with pytest.raises(ValueError, match="implementation: given 'flash'; allowed: auto"):
        attend(X[:, :, None], X[:, :, None], X[:, :, None], implementation="flash")
