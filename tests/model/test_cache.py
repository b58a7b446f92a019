"""Caches: decoding equals the full pass, for whatever makes queries, keys and values."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.positions import POSITIONS, rotate
from qkv_jax.model.stems import TokenStem
from qkv_jax.tie import Tie
from tests.support.attention_layers import GROUPED, HEADS, LENGTH, WIDTH, X, drawn, layer
from tests.support.untied import TIES, assert_close, decoded, draw

ROTARY = {"positions": "rotary"}
MLA = {"scheme": "mla", "latent_dim": 3, "rotary_dims": 2, **ROTARY}
TIED_GROUPS = {"scheme": "grouped_tied", **ROTARY}
LOW_RANK = {"scheme": "low_rank", "num_kv_heads": 1, "latent_dim": 2, **ROTARY}
ROTATED = {"scheme": "rotated", **ROTARY}
PAIRED = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
# A layer of each scheme, and the bytes that a token takes of its cache.
SCHEMES = {
    "tied": ("K=V", ROTARY, 8), "mla": ("separate", MLA, 5), "mla, K=V": ("K=V", MLA, 5),
    "mla, frozen": ("separate", MLA | {"latent_kind": "frozen"}, 5),
    "mla, slice": ("K=V", MLA | {"latent_kind": "slice"}, 5),
    "latent slice": ("separate", {"latent_dim": 3, "latent_kind": "slice", **ROTARY}, 3),
    "grouped tied": ("K=V", TIED_GROUPS, 10),
    "grouped tied, one head": ("K=V", TIED_GROUPS | {"num_kv_heads": 1}, 6),
    "grouped tied, Q=K=V": ("Q=K=V", TIED_GROUPS, 10),
    "low rank": ("separate", LOW_RANK, 16), "low rank, K=V": ("K=V", LOW_RANK, 8),
    "low rank, Q=X": ("Q=X,K=V", LOW_RANK, 8),
    "rotated": ("K=V", ROTATED, 8), "rotated, Q=K=V": ("Q=K=V", ROTATED, 8),
    "rotated, one head": ("K=V", ROTATED | {"num_kv_heads": 1, "qk_norm": True}, 4),
    "rotated, K=V=X": ("K=V=X", ROTATED | {"rotary_dims": 2}, 8),
    "exclusive": ("Q=K", {"scheme": "exclusive", **ROTARY}, 16),
    "exclusive, one head": ("K=V", {"scheme": "exclusive", "num_kv_heads": 1}, 4),
    "mla, pairs": ("separate", MLA | PAIRED, 5),
    "grouped tied, pairs": ("K=V", TIED_GROUPS | PAIRED, 10),
    "rotated, pairs": ("K=V", ROTATED | PAIRED, 8),
    "exclusive, pairs": ("separate", {"scheme": "exclusive", **PAIRED, **ROTARY}, 16),
}  # fmt: skip
schemes = pytest.mark.parametrize("name", SCHEMES)


def scheme_layer(name, **options):
    tie, own, _ = SCHEMES[name]
    return MultiHeadAttention(**{"num_heads": HEADS, "tie": tie} | own | options)


def check(module, cuts=(3, 4), slots=LENGTH + 2):
    """That decoding in chunks is the causal pass."""
    params = drawn(module)
    full = module.apply({"params": params}, X, is_causal=True)
    cache = module.init_cache(2, slots, WIDTH)
    assert_close(decoded(module, params, cache, X, list(cuts)), full)


@pytest.mark.parametrize("positions", sorted({*POSITIONS} - {"learned", "sinusoidal"}))
@pytest.mark.parametrize(
    "tie, kv_heads", [*((tie, 4) for tie in TIES), *((tie, k) for tie in GROUPED for k in (2, 1))]
)
def test_decoding_is_the_causal_pass(tie, kv_heads, positions):
    """For every legal tie, all positions and all sharing of heads, with all that bears on them;
    additive positions are the input's affair, see the decoder's own test."""
    options = {"positions": positions, "num_kv_heads": kv_heads, "scale": "learned_per_head"}
    module = MultiHeadAttention(4, tie, **options)
    check(module)
    check(module.clone(diagonal_mask=True, qk_norm=True, window=3), cuts=range(1, 5))


@schemes
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (3,)])
def test_decoding_under_each_scheme_is_the_causal_pass(name, cuts):
    check(scheme_layer(name), cuts)
    check(scheme_layer(name, window=2), cuts)


@schemes
def test_outputs_do_not_change_when_all_places_shift(name):
    """Rotary positions are relative under every scheme, in the values as well."""
    module = scheme_layer(name)
    params, here = drawn(module), jnp.arange(LENGTH)[None]
    run = lambda places: module.apply({"params": params}, X, places=places, is_causal=True)
    assert_close(run(here + 17), run(here), 2e-5)
    if module.positions == "rotary":
        assert np.abs(run(2 * here) - run(here)).max() > 1e-3


def test_a_rotated_cache_that_turns_nothing_is_the_tied_one():
    """The two schemes of K=V differ on the coordinates that are rotated, and there alone."""
    tied, rotated = layer("K=V", **ROTARY, rotary_dims=0), layer("K=V", **ROTATED, rotary_dims=0)
    params = drawn(tied)
    out = tied.apply({"params": params}, X)
    assert_close(rotated.apply({"params": params}, X), out)
    run = lambda module: module.clone(rotary_dims=2).apply({"params": params}, X)
    assert np.abs(run(tied) - run(rotated)).max() > 1e-3


@schemes
def test_bytes_are_those_of_the_arrays(name):
    """Of what `cache_shapes` says, and of what `project` keeps."""
    module, numbers = scheme_layer(name), SCHEMES[name][2]
    cache = module.init_cache(2, LENGTH, WIDTH)
    assert cache.nbytes == 2 * LENGTH * numbers * 4
    _, full = module.apply({"params": drawn(module)}, X, cache=cache)
    assert jax.tree.map(jnp.shape, full) == jax.tree.map(jnp.shape, cache)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_tying_keys_and_values_halves_the_cache(kv_heads):
    """Exactly, and whatever head sharing saves, it saves beside that; so do half the bytes."""
    sizes = {}
    for tie in ("separate", "K=V", "Q=X,K=V"):
        for dtype in (jnp.float32, jnp.bfloat16):
            module = MultiHeadAttention(4, tie, num_kv_heads=kv_heads)
            sizes[tie, dtype.dtype.itemsize] = module.init_cache(3, 7, WIDTH, dtype).nbytes
    assert sizes["separate", 4] == 2 * sizes["K=V", 4] == 2 * 3 * 7 * kv_heads * 2 * 4
    assert sizes["K=V", 4] == sizes["Q=X,K=V", 4] == 2 * sizes["K=V", 2]


@pytest.mark.parametrize("tie", TIES)
def test_the_cache_holds_each_source_of_keys_and_values_once(tie):
    """What was projected, before rotation where values read it, and as the scores see it else."""
    module, parsed = layer(tie, positions="rotary"), Tie.parse(tie)
    params = drawn(module)
    _, cache = module.apply({"params": params}, X, cache=module.init_cache(2, LENGTH, WIDTH))
    assert set(cache.sources) == {parsed.source("K"), parsed.source("V")}
    for source, stored in cache.sources.items():
        flat = X if source == "X" else X @ params[source]["kernel"].reshape(WIDTH, WIDTH)
        heads = flat.reshape(2, LENGTH, HEADS, -1)
        key_alone = source == parsed.source("K") != parsed.source("V")
        expected = rotate(heads) if key_alone else heads
        np.testing.assert_allclose(stored.swapaxes(1, 2), expected, atol=1e-6)
    assert cache.lengths.tolist() == [LENGTH, LENGTH]


@pytest.mark.parametrize("name", ["rotated", "mla", "exclusive"])
def test_rows_of_unequal_length(name):
    """Each row goes on from where its own text ends, whatever stood behind it."""
    module = scheme_layer(name)
    params, lengths = drawn(module), (2, 4)
    valid = jnp.arange(4)[None] < jnp.asarray(lengths)[:, None]
    cache = module.init_cache(2, LENGTH + 1, WIDTH)
    first, cache = module.apply({"params": params}, X[:, :4], cache=cache, valid=valid)
    more = draw(9, 2, 1, WIDTH)
    then, cache = module.apply({"params": params}, more, cache=cache)
    assert cache.lengths.tolist() == [3, 5]
    for row, length in enumerate(lengths):
        text = jnp.concatenate([X[row, :length], more[row]])[None]
        full = module.apply({"params": params}, text, is_causal=True)[0]
        assert_close(jnp.concatenate([first[row, :length], then[row]]), full)


def test_a_window_needs_no_more_slots_than_it_is_long():
    """Old tokens give way; where chunks come, to as many new ones less one."""
    for cuts, slots in (((1, 2, 3, 4), 3), ((2, 4), 4)):
        check(layer("K=V", window=3, **ROTARY), cuts, slots)
    module = layer("K=V", window=3)
    with pytest.raises(ConfigError, match="'3 slots'; has no room for 4 tokens; 4 are enough for"):
        check(module, (2, 4), 3)


@pytest.mark.parametrize("slots", [LENGTH, LENGTH + 1])
def test_a_window_that_is_longer_than_the_text_asks_for_no_more_slots_than_that(slots):
    check(layer("K=V", window=64, **ROTARY), (2, 4), slots)
    check(layer("K=V", window=4, **ROTARY), (3, 4), LENGTH)  # three at once would need six to turn
    module = layer("K=V", window=64)
    params, cache = drawn(module), module.init_cache(2, slots, WIDTH)
    more = jnp.concatenate([X, X], 1)
    with pytest.raises(ConfigError, match=f"room for {2 * LENGTH} tokens; {63 + 2 * LENGTH} are"):
        module.apply({"params": params}, more, cache=cache)
    out, _ = jax.jit(lambda cache: module.apply({"params": params}, more, cache=cache))(cache)
    assert np.isnan(out).all()


@pytest.mark.parametrize("options", [ROTARY, ROTARY | {"num_kv_heads": 1}, TIED_GROUPS])
def test_a_token_is_decoded_without_a_copy_of_all_keys(options):
    """Neither a rotated one nor one of two tensors side by side."""
    module = layer("K=V", **options, head_dim=64)
    params, cache = drawn(module), module.init_cache(2, 1024, WIDTH)
    run = lambda x, cache: module.apply({"params": params}, x, cache=cache)
    compiled = jax.jit(run, donate_argnums=1).lower(X[:, :1], cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < cache.nbytes / 2


def test_what_does_not_fit_inside_jit_is_nan():
    """In the rows that have too many tokens, from then on; lengths are not known there."""
    module = layer("K=V", **ROTARY)
    params, cache = drawn(module), module.init_cache(2, LENGTH, WIDTH)
    step = jax.jit(lambda x, cache, valid: module.apply({"params": params}, x, cache=cache,
                                                        valid=valid))  # fmt: skip
    both, one = jnp.ones((2, 1), bool), jnp.array([[True], [False]])
    for t in range(LENGTH):
        out, cache = step(X[:, t : t + 1], cache, both)
        assert np.isfinite(out).all()
    cache = cache.replace(lengths=cache.lengths - jnp.array([0, 1]))
    for valid in (one, both):
        out, cache = step(X[:, :1], cache, valid)
        assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@pytest.mark.parametrize(("one", "other"), [
    (MLA, MLA | {"latent_dim": 1, "rotary_dims": 4}), (ROTARY, {}), ({}, {"qk_norm": True}),
    (ROTARY, ROTARY | {"rotary_base": 9.0}), (ROTARY, ROTARY | {"rotary_dims": 2}),
    (ROTARY, ROTARY | {"rotary_dims": 0}),
])  # fmt: skip
def test_a_cache_of_another_config_is_refused(one, other):
    """Of the same names and sizes: its numbers would be read as others."""
    one, other = layer("separate", **one), layer("separate", **other)
    made = one.init_cache(2, LENGTH, WIDTH)
    sizes = jax.tree.map(jnp.shape, made.sources)
    assert sizes == jax.tree.map(jnp.shape, other.init_cache(2, LENGTH, WIDTH).sources)
    with pytest.raises(ConfigError, match="cache: given .with scheme .*; make one with init_cache"):
        other.apply({"params": drawn(other)}, X, cache=made)


def test_latent_heads_begin_with_whatever_they_read():
    """Parameters do not hang on what is read first, be it a cache or a longer context."""
    module, one = layer("separate", **MLA), X[:, :1]
    shapes = jax.tree.map(jnp.shape, module.init(jax.random.key(0), X))
    made = lambda *args, **options: module.init(jax.random.key(0), *args, **options)
    for variables in (made(one, X), made(one, cache=module.init_cache(2, LENGTH, WIDTH))):
        assert jax.tree.map(jnp.shape, variables) == shapes


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("tie", "options"), [
    ("separate", ROTARY), ("K=V", ROTARY), ("K=V", ROTATED), ("separate", {"num_kv_heads": 1}),
    ("K=V", TIED_GROUPS), ("separate", MLA), ("Q=K=V", {}),
])  # fmt: skip
def test_a_decoded_token_copies_no_cache(batch, tie, options):
    """One row alone XLA on CPUs would write, and read, by way of copies of all of it."""
    module, x = layer(tie, head_dim=8, **options), jnp.ones((batch, 1, WIDTH))
    params, cache = drawn(module), module.init_cache(batch, 64, WIDTH)
    step = lambda x, cache: module.apply({"params": params}, x, cache=cache)
    text = jax.jit(step, donate_argnums=1).lower(x, cache).compile().as_text()
    made = re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in made]
    assert max(sizes, default=0) < min(leaf.size for leaf in jax.tree.leaves(cache.sources))


def test_what_is_no_token_stands_behind_the_tokens():
    """Where it does not, as in texts that are filled up on the left, the call is refused, and
    inside jit the outputs of those rows are NaN."""
    module = layer("K=V", positions="rotary")
    params, cache = drawn(module), module.init_cache(2, LENGTH, WIDTH)
    valid = jnp.ones(X.shape[:2], bool).at[0, 0].set(False)
    apply = lambda valid: module.apply({"params": params}, X, cache=cache, valid=valid)[0]
    with pytest.raises(ConfigError, match="valid: .*must stand behind the tokens of its row"):
        apply(valid)
    inside = jax.jit(apply)(valid)
    assert np.isnan(inside[0]).all()
    assert_close(inside[1], apply(valid[:, ::-1])[1])


def test_a_padded_prefix_stays_hidden_while_decoding():
    """A mask over the whole cache goes together with the order of tokens."""
    module, hidden = layer("K=V", positions="rotary"), jnp.arange(LENGTH) == 1
    params, mask = drawn(module), ~hidden[None, None, None, :]
    full = module.apply({"params": params}, X, mask=mask, is_causal=True)
    cache, outputs = module.init_cache(2, LENGTH, WIDTH), []
    for t in range(LENGTH):
        token = X[:, t : t + 1]
        out, cache = module.apply({"params": params}, token, mask=mask, cache=cache)
        outputs.append(out)
    assert_close(jnp.concatenate(outputs, 1), full)


def test_a_cache_that_does_not_fit_is_refused():
    """One without room, of another batch, of another tie, or none at all."""
    module = layer("K=V")
    params, cache = drawn(module), module.init_cache(2, LENGTH, WIDTH)
    wrong = {
        f"given '{LENGTH - 1} slots'; has no room for {LENGTH} tokens":
            module.init_cache(2, LENGTH - 1, WIDTH),
        "given '1 rows'; the tokens have 2 rows": module.init_cache(1, LENGTH, WIDTH),
        "the tokens need key": cache.replace(sources={}),
        "given 'key, value'; the tokens need key": layer("separate").init_cache(2, LENGTH, WIDTH),
        "given \"with scheme 'rotated', .*; this layer's has scheme 'tied'; make one":
            layer("K=V", **ROTATED).init_cache(2, LENGTH, WIDTH),
    }  # fmt: skip
    for message, other in wrong.items():
        with pytest.raises(ConfigError, match=f"cache: .*{message}"):
            module.apply({"params": params}, X, cache=other)
    _, cache = module.apply({"params": params}, X, cache=cache)
    with pytest.raises(ConfigError, match=f"has no room for {LENGTH + 1} tokens"):
        module.apply({"params": params}, X[:, :1], cache=cache)
    padding = jnp.zeros((2, 1), bool)  # what is no token takes no room
    module.apply({"params": params}, X[:, :1], cache=cache, valid=padding)
    with pytest.raises(ValueError, match="cache: is for self-attention"):
        module.apply({"params": params}, X, X, cache=cache)
    with pytest.raises(ValueError, match="valid: is for a cache"):
        module.apply({"params": params}, X, valid=jnp.ones(X.shape[:2], bool))


# --- whole models

MODEL = {"layers": 2, "width": WIDTH, "heads": HEADS}
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 7)))
EVERY_TIE = {"tie": "|".join(TIES), "layers": len(TIES), "mlp": "none"}  # one a layer
PAIRS = {"heads": 4, "kv_heads": 2}  # of heads that share keys and values
CONFIGS = {
    "learned": {"positions": "learned", **EVERY_TIE},
    "sinusoidal": {"positions": "sinusoidal", **EVERY_TIE},
    "learned, pairs": {"positions": "learned", "tie": "|".join(GROUPED), "layers": 4, **PAIRS},
    "modern": {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "kv_heads": 1, "tie": "K=V"},
    "schedule of ties": {"tie": "K=V|separate", "positions": "alibi", "norm_position": "post"},
    "scan": {"scan_layers": True, "positions": "relative", "remat": "block"},
    "rotated": {"tie": "K=V", "scheme": "rotated", "positions": "rotary", "window": 3},
    "mla": {"scheme": "mla", "latent_dim": 4, "rotary_dims": 2, "positions": "rotary"},
    "value residual": {"tie": "K=V", "value_residual": True, "positions": "rotary", "layers": 3},
    "value residual, pairs": {"value_residual": True, "positions": "rotary", "layers": 3, **PAIRS},
}  # fmt: skip


def decoder(**changes):
    config = ModelConfig(**MODEL | changes)
    model = Encoder(config, TokenStem((11,), WIDTH), 11, 7, is_causal=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    draw_leaf = lambda leaf: jnp.float32(0.4 * rng.normal(size=leaf.shape))
    return model, jax.tree.map(draw_leaf, shapes)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_goes_on_as_it_would_have_read(name):
    model, variables = decoder(**CONFIGS[name])
    full = model.apply(variables, TOKENS)
    cache, outputs = model.init_cache(2, 7), []
    for chunk in jnp.split(TOKENS, [3, 4, 5, 6], axis=1):
        logits, cache = model.apply(variables, chunk, cache=cache)
        outputs.append(logits)
    assert_close(jnp.concatenate(outputs, 1), full, 2e-5)


def test_learned_positions_end_with_nan_inside_jit_and_padding_has_none():
    """As what does not fit a cache; lengths are not known there."""
    model, variables = decoder(positions="learned")
    cache = model.init_cache(2, 9)
    _, cache = model.apply(variables, TOKENS[:, :6], cache=cache)
    valid = jnp.array([[True, False], [False, False]])
    logits, cache = model.apply(variables, TOKENS[:, :2], valid, cache=cache)  # at the last place
    assert np.isfinite(logits[0, 0]).all() and cache.lengths.tolist() == [7, 6]
    with pytest.raises(ConfigError, match="places"):
        model.apply(variables, TOKENS[:, :1], cache=cache)
    step = jax.jit(lambda cache: model.apply(variables, TOKENS[:, :1], cache=cache)[0])
    assert np.isnan(step(cache)[0]).all() and np.isfinite(step(cache)[1]).all()


def test_caches_that_a_decoder_cannot_use_are_refused():
    model, variables = decoder()
    cache = model.init_cache(2, 7)
    with pytest.raises(ConfigError, match="cache: .*make one with init_cache"):
        model.apply(variables, TOKENS, cache=cache.replace(sources={}))
    with pytest.raises(ValueError, match="cache: is for causal models"):
        model.clone(is_causal=False).apply(variables, TOKENS, cache=cache)
    with pytest.raises(ValueError, match="cache: holds one text a row"):
        model.apply(variables, TOKENS, cache=cache, documents=TOKENS)
