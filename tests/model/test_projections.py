"""The projections under every tie: their tree, their initial values, what they are applied to."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.projections import check_scheme
from qkv_jax.model.schemes import Scheme
from qkv_jax.tie import Tie
from tests.support.untied import ROLES, TIES, assert_described, describe, draw, leaves

WIDTH, HEADS = 16, 4
X = draw(1, 2, 3, WIDTH)
AXES = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "biased": {"use_bias": True},
    "learned_scale": {"scale": "learned_per_head"},
    "no_output": {"output_projection": False},
}


def projection(tie, kv_heads=HEADS, **options):
    return Scheme(HEADS, kv_heads, WIDTH // HEADS, Tie.parse(tie), **options)


def attention_tree(tie, seed=0, **options):
    layer = MultiHeadAttention(HEADS, tie, **options)
    return layer.init(jax.random.key(seed), X).get("params", {})


def grouped_allows(tie):
    return tie in ("separate", "K=V", "Q=X", "Q=X,K=V")


def kernel(params, source):
    return params[source]["kernel"].reshape(WIDTH, -1)


def in_heads(x, heads=HEADS):
    return x.reshape(*x.shape[:-1], heads, -1)


@pytest.mark.parametrize("axis", AXES)
def test_parameter_trees(axis, golden):
    """Names, shapes, dtypes and initial spreads of every tie's leaves; a tied one is one leaf."""
    legal = [tie for tie in TIES if axis != "grouped" or grouped_allows(tie)]
    actual = {tie: describe(attention_tree(tie, **AXES[axis])) for tie in legal}
    expected = golden(f"attention_{axis}", actual)
    assert list(actual) == list(expected)
    for tie in legal:
        assert_described(actual[tie], expected[tie])
        learned = {path.split("/")[0] for path in actual[tie]} & set(ROLES.values())
        assert learned == set(Tie.parse(tie).sources)


@pytest.mark.parametrize("axis", AXES)
def test_leaves_in_common_start_equal_to_the_bit(axis):
    """Pairing: at a seed, whatever any two ties share has one initial value."""
    legal = [tie for tie in TIES if axis != "grouped" or grouped_allows(tie)]
    trees = {tie: leaves(attention_tree(tie, seed=5, **AXES[axis])) for tie in legal}
    for one, other in itertools.combinations(legal, 2):
        for path in trees[one].keys() & trees[other].keys():
            np.testing.assert_array_equal(trees[one][path], trees[other][path], err_msg=path)


def test_initial_values_depend_on_the_path_and_the_seed_alone():
    """Not on the order of creation, nor on what else the layer holds."""

    class Backwards(Scheme):
        def __call__(self, x):
            for source in ("value", "query", "key"):
                getattr(self, source)(x)

    def tree(module, seed):
        return leaves(module.init(jax.random.key(seed), X)["params"])

    expected = tree(projection("separate"), 3)
    backwards = Backwards(HEADS, HEADS, WIDTH // HEADS, Tie.parse("separate"))
    biased = tree(projection("separate", use_bias=True), 3)
    for path, leaf in tree(backwards, 3).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
        np.testing.assert_array_equal(leaf, biased[path], err_msg=path)
    for one, other in itertools.combinations(expected.values(), 2):
        assert not np.array_equal(one, other)
    for path, leaf in tree(projection("separate"), 4).items():
        assert not np.array_equal(leaf, expected[path]), path


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_kernels_are_drawn_with_the_fans_of_their_matrices(kv_heads):
    """Variance 1 / D for Q, K, V and 1 / (N H) for the output, as Dense layers of that size."""
    layer = MultiHeadAttention(8, num_kv_heads=kv_heads, head_dim=24, use_bias=True)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 1, 256)))["params"]
    for source in ("query", "key", "value"):
        np.testing.assert_allclose(params[source]["kernel"].std(), 256**-0.5, rtol=0.02)
        assert not params[source]["bias"].any()
    np.testing.assert_allclose(params["out"]["kernel"].std(), (8 * 24) ** -0.5, rtol=0.02)
    assert not params["out"]["bias"].any()


@pytest.mark.parametrize("tie", TIES)
def test_each_source_is_projected_once_and_handed_out_as_the_tie_says(tie):
    """q, k, v = X W of the role's source, or X in heads; one matrix product a source."""
    module, parsed = projection(tie), Tie.parse(tie)
    variables = module.init(jax.random.key(0), X)
    projected = module.apply(variables, X, method="project")
    assert set(projected.kept) == {parsed.source("K"), parsed.source("V")}
    sources = projected.kept | {parsed.source("Q"): projected.query}
    roles = module.apply(variables, projected, method="roles")
    for role, array in zip(ROLES, roles, strict=True):
        source = parsed.source(role)
        flat = X if source == "X" else X @ kernel(variables["params"], source)
        np.testing.assert_allclose(array, in_heads(flat), atol=1e-6)
        assert array is sources[source]
    program = str(jax.make_jaxpr(lambda v: module.apply(v, X))(variables))
    assert program.count("dot_general") == len(parsed.sources)


@pytest.mark.parametrize("tie", TIES)
def test_cross_attention_reads_the_context_for_keys_and_values(tie):
    """X is the input for Q and the context for K, V; a shared matrix is applied to each."""
    module, parsed, context = projection(tie), Tie.parse(tie), draw(2, 2, 5, WIDTH)
    variables = module.init(jax.random.key(0), X, context)
    roles = module.apply(variables, X, context)
    for role, array in zip(ROLES, roles, strict=True):
        source, read = parsed.source(role), X if role == "Q" else context
        flat = read if source == "X" else read @ kernel(variables["params"], source)
        np.testing.assert_allclose(array, in_heads(flat), atol=1e-6)
    alone = leaves(module.init(jax.random.key(0), X).get("params", {}))
    for path, leaf in leaves(variables.get("params", {})).items():
        np.testing.assert_array_equal(leaf, alone[path], err_msg=path)


@pytest.mark.parametrize("tie", TIES)
def test_a_context_of_another_width(tie):
    """Is fine unless a matrix is shared across, or the context itself is a role."""
    module, parsed, context = projection(tie), Tie.parse(tie), draw(2, 2, 5, WIDTH + 2)
    shared = [r for r in "KV" if parsed.equates("Q", r) and not parsed.equates("Q", "X")]
    direct = [r for r in "KV" if parsed.equates(r, "X")]
    if shared or direct:
        reason = "the widths must be equal" if shared else "uses the input itself"
        with pytest.raises(ValueError, match=reason):
            module.init(jax.random.key(0), X, context)
    else:
        key = module.init(jax.random.key(0), X, context)["params"]["key"]["kernel"]
        assert key.shape == (WIDTH + 2, HEADS, WIDTH // HEADS)


@pytest.mark.parametrize("tie", TIES)
def test_frozen_sources_get_no_gradient_and_the_rest_do(tie):
    """Exactly zero, whatever else reads the source; the gradient of X passes through the rest."""
    sources = Tie.parse(tie).sources
    for count in range(len(sources) + 1):
        for frozen in itertools.combinations(sources, count):
            layer = MultiHeadAttention(HEADS, tie, frozen=frozen)
            params = layer.init(jax.random.key(0), X)["params"]
            loss = lambda params, layer=layer: (layer.apply({"params": params}, X) ** 2).sum()
            for path, gradient in leaves(jax.grad(loss)(params)).items():
                assert (not gradient.any()) == (path.split("/")[0] in frozen), path


def test_a_frozen_source_computes_what_a_learned_one_does():
    frozen, learned = (MultiHeadAttention(HEADS, "K=V", frozen=f) for f in (("key",), ()))
    variables = learned.init(jax.random.key(0), X)
    np.testing.assert_array_equal(frozen.apply(variables, X), learned.apply(variables, X))


@pytest.mark.parametrize("tie", TIES)
def test_fewer_key_value_heads_are_refused_where_a_tie_needs_as_many(tie):
    """Legal: `separate`, `Q=X`, `K=V` and both; the message names the equality at fault."""
    if grouped_allows(tie):
        params = projection(tie, kv_heads=2).init(jax.random.key(0), X).get("params", {})
        for source in Tie.parse(tie).sources:
            heads = HEADS if source == "query" else 2
            assert params[source]["kernel"].shape == (WIDTH, heads, WIDTH // HEADS)
        return
    with pytest.raises(ValueError) as caught:
        projection(tie, kv_heads=2).init(jax.random.key(0), X)
    parsed, text = Tie.parse(tie), str(caught.value)
    named = [p for p in ("Q=K", "Q=V", "K=X", "V=X") if f"asks for {p}" in text]
    assert len(named) == 1 and parsed.equates(*named[0].split("="))
    assert f"tie {tie}" in text and "not 2 and 4" in text


@pytest.mark.parametrize(
    "tie, heads, kv_heads, frozen, message",
    [
        ("separate", 4, 3, (), "3 key/value heads do not divide 4 query heads"),
        ("separate", 2, 4, (), "4 key/value heads do not divide 2 query heads"),
        ("separate", 0, 0, (), "0 key/value heads do not divide 0 query heads"),
        ("separate", 4, 0, (), "0 key/value heads do not divide 4 query heads"),
        ("K=V", 4, 4, ("value",), "frozen source 'value': tie K=V has the sources: query, key"),
        ("copies", 4, 4, ("query",), "tie Q=K=V=X has the sources: none"),
        ("separate", 4, 4, ("out",), "frozen source 'out'"),
    ],
)
def test_refusals_name_the_reason(tie, heads, kv_heads, frozen, message):
    with pytest.raises(ValueError) as caught:
        check_scheme(Tie.parse(tie), heads, kv_heads, frozen)
    assert message in str(caught.value)


@pytest.mark.parametrize("tie", [tie for tie in TIES if "X" in tie])
def test_the_input_itself_must_be_as_wide_as_the_heads(tie):
    module = Scheme(HEADS, HEADS, 3, Tie.parse(tie))
    with pytest.raises(ValueError, match=r"heads x head width = 4 x 3, not 16"):
        module.init(jax.random.key(0), X)


def test_projections_live_in_somebody_elses_model():
    """As a submodule of any Linen module, with the tied parameter once under its name."""

    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            return MultiHeadAttention(HEADS, "K=V", name="mixer")(nn.LayerNorm()(x))

    params = Theirs().init(jax.random.key(0), X)["params"]
    assert set(params["mixer"]) == {"query", "key", "out"}
