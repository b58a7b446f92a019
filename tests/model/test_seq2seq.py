"""The encoder-decoder: cross-attention under a tie of its own, what sees what, and decoding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.adapters import Adapters
from qkv_jax.model.beam import beam_search
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.generate import Generator
from qkv_jax.model.seq2seq import Seq2Seq
from qkv_jax.model.stems import TokenStem
from qkv_jax.tie import Tie
from tests.support.attention_layers import CONTEXT, GROUPED, LENGTH, WIDTH, X, layer
from tests.support.untied import TIES, assert_close, leaves

SYMBOLS, CLASSES, MOST = 7, 6, 8
MODEL = {"layers": 2, "width": WIDTH, "heads": 2}
_RNG = np.random.default_rng(1)
SOURCE, TARGET = (jnp.asarray(_RNG.integers(0, CLASSES, (2, n))) for n in (5, 6))
VALID = jnp.arange(5)[None] < jnp.array([[5], [3]])
GIVEN = {"source": SOURCE, "source_valid": VALID}


def translator(**changes):
    """A model none of whose parameters is 0 or 1, and these."""
    model = Seq2Seq(ModelConfig(**MODEL | changes), TokenStem((SYMBOLS,), WIDTH), CLASSES, MOST)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TARGET, **GIVEN))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.float32(0.4 * rng.normal(size=leaf.shape)), shapes)


def decoded(model, variables, cache, cuts=(3, 4)):
    outputs = []
    for chunk in jnp.split(TARGET, [*cuts], axis=1):
        logits, cache = model.apply(variables, chunk, cache=cache)
        outputs.append(logits)
    return jnp.concatenate(outputs, 1)


def leaves_of_cross(variables):
    return {*variables["params"]["decoder"]["layer_0"]["cross_attention"]}


# --- a layer of cross-attention


def kept_of(scheme, variables):
    """Of the context, as a cache has it."""
    made = scheme.apply(variables, method=lambda s: s.keep(s.project(X[:, :1], CONTEXT)).kept)
    return {name: array.swapaxes(1, 2) for name, array in made.items()}


@pytest.mark.parametrize(("tie", "options"), [
    ("separate", {}), ("K=V", {"scheme": "rotated"}),
    ("K=V", {"scheme": "grouped_tied", "head_dim": 4}),
    ("separate", {"scheme": "mla", "latent_dim": 3, "rotary_dims": 2}),
])  # fmt: skip
def test_kept_sources_are_turned_by_their_places_once(tie, options):
    module = layer(tie, positions="rotary", **options)
    variables = module.init(jax.random.key(0), X, CONTEXT)
    kept = kept_of(module.make_scheme(WIDTH), variables)
    assert_close(module.apply(variables, X, kept), module.apply(variables, X, CONTEXT))


@pytest.mark.parametrize("tie", TIES)
def test_kept_sources_of_a_context_stand_for_it(tie):
    """What `keep` makes of the context, heads first, given in its place, gives the same output."""
    for kv_heads in (2, 1) if tie in GROUPED else (2,):
        module = layer(tie, num_kv_heads=kv_heads, qk_norm=True)
        variables = module.init(jax.random.key(0), X, CONTEXT)
        scheme = module.make_scheme(WIDTH)
        kept = kept_of(scheme, variables)
        out = module.apply(variables, X, CONTEXT)
        assert_close(module.apply(variables, X, kept), out)
        assert np.abs(out - module.apply(variables, X, CONTEXT[:, 1:])).max() > 1e-4


def test_the_causal_order_goes_by_the_places_of_keys():
    """Also where only those are given."""
    module = layer("separate")
    variables = module.init(jax.random.key(0), X, CONTEXT)
    key_places = jnp.arange(CONTEXT.shape[1])[None, ::-1]
    run = lambda **given: module.apply(variables, X, CONTEXT, is_causal=True, **given)
    places = jnp.arange(X.shape[1])[None]
    assert_close(run(key_places=key_places), run(key_places=key_places, places=places))
    assert np.abs(run(key_places=key_places) - run()).max() > 1e-3


def test_sources_of_another_layer_are_refused():
    module = layer("K=V")
    variables = module.init(jax.random.key(0), X, CONTEXT)
    kept = {"key": jnp.zeros((2, 2, 7, 4))}
    module.apply(variables, X, kept)
    with pytest.raises(ConfigError, match="context: .*this layer keeps the sources key"):
        module.apply(variables, X, {"value": kept["key"]})
    with pytest.raises(ValueError, match="context.key: .*must be floats"):
        module.apply(variables, X, {"key": kept["key"][:, :1]})
    with pytest.raises(ValueError, match="cache: is for self-attention"):
        module.apply(variables, X, kept, cache=module.init_cache(2, LENGTH, WIDTH))


# --- the model: parameters


@pytest.mark.parametrize("cross_tie", ["", "separate", "Q=K=V=X", "K=V|Q=K"])
def test_cross_attention_has_a_tie_of_its_own(cross_tie):
    """Empty, it is that of the layer; a schedule is one of the decoder's layers."""
    model, variables = translator(tie="Q=V", cross_tie=cross_tie)
    for number, asked in enumerate((cross_tie or "Q=V").split("|") * 2):
        if number > 1:
            break
        own = variables["params"]["decoder"][f"layer_{number}"]
        assert {*own["attention"]} == {"query", "key", "out"}
        assert {*own["cross_attention"]} == {*Tie.parse(asked).sources, "out"}
    assert "cross_attention" not in variables["params"]["encoder"]["layer_0"]
    assert {*variables["params"]} == {"stem", "encoder", "decoder"}


def test_ties_that_share_leaves_start_with_the_same():
    """Of models that differ in a tie, equal paths have equal initial values."""
    start = lambda **changes: leaves(
        translator(**changes)[0].init(jax.random.key(3), TARGET, **GIVEN)["params"]
    )
    one, other = start(), start(tie="K=V", cross_tie="Q=K")
    common = one.keys() & other.keys()
    assert any("cross_attention/query" in path for path in common) and len(one) > len(other)
    for path in common:
        np.testing.assert_array_equal(one[path], other[path])


def test_a_model_without_cross_attention_is_as_it_was():
    """Its parameters and outputs do not depend on that there are others."""
    stem = TokenStem((SYMBOLS,), WIDTH)
    model = Encoder(ModelConfig(**MODEL), stem, CLASSES, MOST, is_causal=True)
    variables = model.init(jax.random.key(0), TARGET)
    assert not any("cross" in path for path in leaves(variables["params"]))
    with pytest.raises(ValueError, match="context: is what a model with cross-attention reads"):
        model.clone(cross=True).apply(variables, TARGET)
    with pytest.raises(ConfigError, match="cross_tie: given 'K=V'; the model of this task has no"):
        Encoder(ModelConfig(**MODEL, cross_tie="K=V"), stem, CLASSES, MOST)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cross_tie": "K=Z"}, "cross_tie: given 'K=Z'"),
        ({"cross_tie": "K=V|K=V|K=V"}, "cross_tie: .*names 3 layers, but the model has 2"),
        ({"cross_tie": "Q=K", "kv_heads": 1}, "cross_tie: .*asks for Q=K"),
        ({"cross_tie": "K=X", "latent_dim": 2}, "cross_tie: .*asks for K=X"),
        ({"cross_tie": "K=V", "frozen": ("value",)}, "cross_tie: .*frozen source 'value'"),
        ({"cross_tie": "K=V|Q=K", "scan_layers": True}, "scan_layers: .*one tie for all layers"),
        ({"cross_tie": "K=V", "tie": "K=V", "scheme": "rotated", "positions": "rotary"},
         "scheme: .*needs model.positions 'rotary', in cross-attention, which has no places"),
    ],
)  # fmt: skip
def test_ties_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**MODEL | changes)


def test_a_scheme_that_needs_places_is_no_cross_attention():
    """Where it is not asked for, there is nothing to refuse."""
    mla = {"scheme": "mla", "latent_dim": 4, "rotary_dims": 2, "positions": "rotary"}
    ModelConfig(**MODEL | mla)
    with pytest.raises(ConfigError, match="scheme: given 'mla'.*cross-attention, which has no pl"):
        translator(**mla)


# --- what sees what


@pytest.mark.parametrize("positions", ["rotary", "learned", "alibi"])
def test_a_target_token_sees_all_of_the_source_and_none_of_its_future(positions):
    """By gradients with respect to the embedded tokens."""
    model, variables = translator(positions=positions, cross_tie="K=V")

    def outputs(offsets, texts):
        table = variables["params"]["stem"]["field_0"]["embedding"]
        found = {}

        class Shifted(TokenStem):
            def __call__(self, tokens):
                found[tokens.shape[1]] = True
                return table[tokens] + offsets[f"{tokens.shape[1]}"]

        shifted = model.clone(stem=Shifted((SYMBOLS,), WIDTH))
        out = shifted.apply(variables, texts[1], source=texts[0], source_valid=VALID)
        assert found.keys() == {5, 6}
        return out.sum(-1)

    offsets = {"5": jnp.zeros((2, 5, WIDTH)), "6": jnp.zeros((2, 6, WIDTH))}
    slopes = jax.jacobian(outputs)(offsets, (SOURCE, TARGET))
    reach = {name: np.abs(leaf).max(-1) for name, leaf in slopes.items()}  # [B, T, B, S]
    for row in range(2):
        assert (reach["6"][row, :, row] * np.triu(np.ones((6, 6)), 1) == 0).all()
        assert (reach["6"][row, :, row][np.tril_indices(6)] > 0).all()
        real = np.asarray(VALID[row])
        assert (reach["5"][row, :, row][:, real] > 0).all()
        assert (reach["5"][row, :, row][:, ~real] == 0).all()
        assert (reach["5"][row, :, 1 - row] == 0).all()


def test_padding_of_either_text_changes_nothing():
    model, variables = translator(tie="K=V", positions="learned")
    alone = model.apply(variables, TARGET[1:, :4], source=SOURCE[1:, :3])
    padded = model.apply(
        variables, TARGET.at[1, 4:].set(2), jnp.arange(6)[None] < jnp.array([[6], [4]]),
        source=SOURCE.at[1, 3:].set(4), source_valid=VALID,
    )  # fmt: skip
    assert_close(padded[1:, :4], alone)


def test_layers_as_one_loop_and_computed_again_are_the_same():
    model, variables = translator(cross_tie="K=V")
    plain = model.apply(variables, TARGET, **GIVEN)
    for changes in ({"scan_layers": True}, {"remat": "block"}, {"remat": "dots"}):
        other = translator(cross_tie="K=V", **changes)[0]
        assert_close(other.apply(variables, TARGET, **GIVEN), plain)


# --- decoding


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("positions", ["learned", "rotary", "relative", "sinusoidal"])
@pytest.mark.parametrize("tie, cross_tie", [("separate", "K=V"), ("K=V", ""), ("Q=X", "Q=X,K=V")])
def test_decoding_is_the_full_pass(tie, cross_tie, positions, kv_heads):
    model, variables = translator(
        tie=tie, cross_tie=cross_tie, positions=positions, kv_heads=kv_heads,
        scale="learned_per_head",
    )  # fmt: skip
    full = model.apply(variables, TARGET, **GIVEN)
    cache = model.init_cache(2, 6, variables=variables, **GIVEN)
    assert_close(decoded(model, variables, cache), full)


SCHEMES = {
    "Q=K": {"cross_tie": "Q=K", "adapters": Adapters("head"), "tie": "Q=K", "qk_norm": True},
    "copies": {"cross_tie": "copies", "tie": "copies"},
    "copies without W_O": {"cross_tie": "copies", "output_projection": False},
    "adapters in self-attention alone": {"preset": "courtois", "cross_tie": "K=V"},
    "latent": {"latent_dim": 3, "cross_tie": "K=V"},
    "low rank": {"scheme": "low_rank", "kv_heads": 1, "latent_dim": 2, "tie": "K=V"},
    "exclusive": {"scheme": "exclusive", "positions": "rotary"},
    "window": {"window": 3, "positions": "rotary", "diagonal_mask": True, "norm": "rms"},
    "post": {"norm_position": "post", "embedding_norm": True, "tied_embedding": True},
    "schedule": {"tie": "K=V|separate", "cross_tie": "Q=K|K=V", "positions": "alibi"},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_decoding_under_other_schemes_is_the_full_pass(name):
    model, variables = translator(**SCHEMES[name])
    assert "adapters" not in name or "query_adapter" not in leaves_of_cross(variables)
    full = model.apply(variables, TARGET, **GIVEN)
    cache = model.init_cache(2, 6, variables=variables, **GIVEN)
    assert_close(decoded(model, variables, cache, cuts=range(1, 6)), full)


def test_the_context_is_kept_once_and_does_not_grow():
    """Its bytes are counted apart from those of the text: half where K=V, in two bytes half."""
    sizes = {}
    for tie, dtype in itertools.product(("separate", "K=V"), ("float32", "bfloat16")):
        model, variables = translator(tie="separate", cross_tie=tie)
        cache = model.init_cache(2, 6, dtype, variables=variables, source=SOURCE)
        sizes[tie, dtype] = cache.context_nbytes
        assert cache.nbytes == 2 * 2 * 6 * 2 * WIDTH * (4 if dtype == "float32" else 2)
        _, after = model.apply(variables, TARGET, cache=cache)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, cache)
    assert sizes["separate", "float32"] == 2 * 2 * 5 * 2 * WIDTH * 4
    assert sizes["separate", "float32"] == 2 * sizes["K=V", "float32"]
    assert sizes["K=V", "float32"] == 2 * sizes["K=V", "bfloat16"]


def test_half_precision_is_close():
    model, variables = translator(dtype="bfloat16", cross_tie="K=V")
    full = model.apply(variables, TARGET, **GIVEN)
    cache = model.init_cache(2, 6, variables=variables, **GIVEN)
    assert cache.context.tokens["layer_0"]["key"].dtype == jnp.bfloat16
    assert full.dtype == jnp.float32
    assert_close(decoded(model, variables, cache), full, 0.05)


def test_a_source_and_a_cache_are_one_or_the_other():
    model, variables = translator()
    cache = model.init_cache(2, 6, variables=variables, **GIVEN)
    for given in ({}, {"cache": cache, "source": SOURCE}):
        with pytest.raises(ValueError, match="source: is needed, unless a cache has read it"):
            model.apply(variables, TARGET, **given)
    with pytest.raises(ValueError, match="context: is what a model with cross-attention reads"):
        model.apply(variables, TARGET, cache=cache.replace(context=None))


# --- generation

BEGIN, END = CLASSES, 5
PROMPTS = np.full((2, 1), BEGIN)
CONTEXTS = {name: np.asarray(array) for name, array in GIVEN.items()}


def continued(model, variables, row, new):
    """Greedy, by a full pass for every token."""
    text, length = [BEGIN], int(VALID[row].sum())
    for _ in range(new):
        logits = model.apply(variables, jnp.array([text]), source=SOURCE[row : row + 1, :length])
        text.append(int(logits[0, -1].argmax()))
    return text[1:]


def test_greedy_is_the_likeliest_token_of_a_full_pass():
    """For sources of unequal length; streamed or not; a beam of one is the same."""
    model, variables = translator(tie="K=V", positions="rotary")
    generator = Generator(model, 5)
    found = generator(variables, PROMPTS, context=CONTEXTS)
    assert found.tolist() == [continued(model, variables, row, 5) for row in range(2)]
    streamed = list(generator.stream(variables, PROMPTS, context=CONTEXTS))
    np.testing.assert_array_equal(np.stack(streamed, 1), found)
    alone, _ = beam_search(generator, variables, PROMPTS, 1, context=CONTEXTS)
    np.testing.assert_array_equal(alone[:, 0], found)


def test_a_beam_of_all_texts_finds_the_likeliest():
    """Against the scores of every translation, the source of each row its own."""
    model, variables = translator(cross_tie="K=V", positions="rotary")
    generator = Generator(model, 2, stop=(END,))
    tokens, scores = beam_search(
        generator, variables, PROMPTS, CLASSES**2, length_penalty=0.6, context=CONTEXTS
    )
    for row in range(2):
        expected = {}
        for text in itertools.product(range(CLASSES), repeat=2):
            ends = 1 if text[0] == END else 2
            if ends == 1 and text[1] != END:
                continue
            whole = jnp.array([[BEGIN, text[0]]])
            given = {"source": SOURCE[row : row + 1], "source_valid": VALID[row : row + 1]}
            nats = jax.nn.log_softmax(model.apply(variables, whole, **given)[0])
            expected[text] = sum(float(nats[i, text[i]]) for i in range(ends))
            expected[text] /= ((5 + ends) / 6) ** 0.6
        best = sorted(expected, key=expected.get, reverse=True)[:5]
        assert [tuple(text) for text in tokens[row, :5].tolist()] == best
        np.testing.assert_allclose(scores[row, :5], [expected[text] for text in best], rtol=1e-4)


@pytest.mark.parametrize(
    "context, message",
    [
        (None, "context: given .*must have a source"),
        ({"source_valid": VALID}, "context: .*must have a source"),
        ({"source": SOURCE, "valid": VALID}, "context: "),
        ({"source": SOURCE[:1]}, "source: .*B = 2"),
        ({"source": SOURCE + SYMBOLS}, "source: .*must be from 0 to 6"),
        ({"source": jnp.zeros((2, MOST + 1), int)}, "source: given '9 tokens'.*end at 8"),
    ],
)
def test_sources_that_cannot_be_are_refused(context, message):
    model, variables = translator()
    with pytest.raises((ConfigError, ValueError), match=message):
        Generator(model, 2)(variables, PROMPTS, context=context)


def test_a_source_is_for_encoder_decoders():
    stem = TokenStem((SYMBOLS,), WIDTH)
    model = Encoder(ModelConfig(**MODEL), stem, CLASSES, MOST, is_causal=True)
    variables = model.init(jax.random.key(0), TARGET)
    with pytest.raises(ConfigError, match=r"context: given \['source'\]; is for encoder-decoders"):
        Generator(model, 2)(variables, PROMPTS, context={"source": SOURCE})
