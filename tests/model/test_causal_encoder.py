"""A causal encoder, proved by gradients: who sees whom alone, packed with documents, within a
window; and a readout that is the embedding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.masks import places_within
from qkv_jax.model.positions import POSITIONS
from qkv_jax.model.stems import PatchStem, TextStem, TokenStem
from qkv_jax.tasks import make_task
from tests.support.untied import assert_close, draw

WIDTH, LENGTH, CLASSES = 8, 9, 3
DOCUMENTS = jnp.array([[4, 4, 4, 4, 1, 1, 7, 7, 0], [0, 0, 1, 2, 2, 2, 2, 2, 2]])
ROTARY = {"positions": "rotary"}
LATENT = {"latent_dim": 3, **ROTARY}
PAIRS = {"heads": 4, "kv_heads": 2, "head_dim": 4, **ROTARY}  # of heads that share keys and values
SCHEMES = {
    "tied": {"tie": "K=V", **PAIRS}, "latent": {"tie": "K=V", **LATENT},
    "latent slice": {"latent_kind": "slice", **LATENT},
    "mla": {"scheme": "mla", "rotary_dims": 2, **LATENT},
    "grouped tied": {"scheme": "grouped_tied", "tie": "K=V", **PAIRS},
    "low rank": {"scheme": "low_rank", "kv_heads": 1, **LATENT},
    "rotated": {"scheme": "rotated", "tie": "K=V", **PAIRS},
    "exclusive": {"scheme": "exclusive", **PAIRS},
    "exclusive, learned positions": {"scheme": "exclusive", **PAIRS, "positions": "learned"},
    "value residual": {"value_residual": True, "layers": 2, "tie": "K=V", **PAIRS},
}  # fmt: skip


class Embedded(nn.Module):
    """The inputs as they are: what gradients are taken by."""

    @nn.compact
    def __call__(self, x):
        return x


def encoder(stem, classes=CLASSES, is_causal=True, **model):
    options = {"width": WIDTH, "heads": 2, "layers": 2, "mlp_width": 12} | model
    return Encoder(ModelConfig(**options), stem, classes, LENGTH, is_causal=is_causal)


def stirred(module, inputs):
    """Parameters away from their start, so that no bias is zero."""
    params = module.init(jax.random.key(0), inputs)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def influence(module, x, **seen):
    """[B, T, S]: whether the output at t has a gradient by the embedding at s, of the own row;
    by that of another row none has."""
    variables = {"params": stirred(module, x)}
    slopes = jax.jacobian(lambda x: module.apply(variables, x, **seen))(x)
    felt = np.asarray(jnp.abs(slopes).max((2, 5))) > 0  # [B, T, B, S]
    of_rows, rows = felt.swapaxes(1, 2), np.arange(len(x))  # [B, B, T, S]
    assert not of_rows[rows[:, None] != rows[None]].any()
    return of_rows[rows, rows]


def pairs(rule):
    """[B, T, S] of a rule of (row, t, s)."""
    shape = (len(DOCUMENTS), LENGTH, LENGTH)
    return np.array([rule(*index) for index in np.ndindex(shape)]).reshape(shape)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("tie", ["separate", "Q=K=V"])
def test_no_token_feels_its_future(positions, tie):
    """And every token feels all of its past: without documents, and with them within each, in
    neither direction from one to another."""
    check_order(encoder(Embedded(), tie=tie, positions=positions))


@pytest.mark.parametrize("name", SCHEMES)
def test_no_token_feels_its_future_under_any_scheme(name):
    check_order(encoder(Embedded(), **{"layers": 1} | SCHEMES[name]))


def check_order(module):
    x = draw(0, 2, LENGTH, WIDTH)
    np.testing.assert_array_equal(influence(module, x), pairs(lambda b, t, s: s <= t))
    same = lambda b, t, s: s <= t and DOCUMENTS[b, t] == DOCUMENTS[b, s]
    np.testing.assert_array_equal(influence(module, x, documents=DOCUMENTS), pairs(same))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_window_reaches_so_far_in_every_layer(layers):
    """window - 1 places back with one layer, twice as many with two; with documents no further
    than the own one."""
    module, x = encoder(Embedded(), layers=layers, window=3), draw(0, 2, LENGTH, WIDTH)
    near = lambda b, t, s: 0 <= t - s <= 2 * layers
    np.testing.assert_array_equal(influence(module, x), pairs(near))
    same = lambda b, t, s: near(b, t, s) and DOCUMENTS[b, t] == DOCUMENTS[b, s]
    np.testing.assert_array_equal(influence(module, x, documents=DOCUMENTS), pairs(same))


def test_an_encoder_that_is_not_causal_looks_both_ways_within_a_document():
    module, x = encoder(Embedded(), is_causal=False), draw(0, 2, LENGTH, WIDTH)
    same = lambda b, t, s: DOCUMENTS[b, t] == DOCUMENTS[b, s]
    np.testing.assert_array_equal(influence(module, x, documents=DOCUMENTS), pairs(same))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("model", [{}, {"window": 2}, {"scan_layers": True}], ids=str)
def test_packed_documents_get_what_each_gets_alone(positions, model):
    """Logits of a row of several are those of each by itself, at the beginning of a row."""
    check_packed(encoder(TokenStem((7,), WIDTH), positions=positions, **model))


@pytest.mark.parametrize("name", SCHEMES)
def test_packed_documents_get_what_each_gets_alone_under_any_scheme(name):
    check_packed(encoder(TokenStem((7,), WIDTH), **{"layers": 1} | SCHEMES[name]))


def check_packed(module):
    tokens = jax.random.randint(jax.random.key(2), (2, LENGTH), 0, 7)
    variables = {"params": stirred(module, tokens)}
    packed = module.apply(variables, tokens, documents=DOCUMENTS)
    for row, numbers in enumerate(np.asarray(DOCUMENTS)):
        for number in np.unique(numbers):
            here = numbers == number
            alone = module.apply(variables, tokens[row : row + 1, here])
            np.testing.assert_allclose(packed[row, here], alone[0], atol=1e-5)


def test_places_begin_anew_in_every_document():
    """By hand: whatever the numbers of the documents are; one that comes again is another."""
    documents = jnp.array([[5, 5, 5, 2, 2, 9], [1, 0, 0, 0, 1, 1], [3, 3, 3, 3, 3, 3]])
    places = [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(places_within(documents), places)
    assert places_within(documents[:, :0]).shape == (3, 0)


# --- a readout that is the embedding


TOKENS = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, 7)


def of_tokens(tied, classes=5, **model):
    return encoder(TokenStem((7,), WIDTH), classes, tied_embedding=tied, **model)


def test_the_gradient_of_a_tied_embedding_is_the_sum_of_both_uses():
    """Equal logits where the readout is a copy without a bias; of the gradients, that of the copy
    is added to the rows of its classes."""
    tied, apart = of_tokens(True), of_tokens(False)
    params = stirred(tied, TOKENS)
    table = params["stem"]["field_0"]["embedding"]
    copy = params | {"readout": {"kernel": table[:5].T, "bias": jnp.zeros(5)}}
    weights = draw(3, 2, LENGTH, 5)
    run = lambda module: lambda p: (module.apply({"params": p}, TOKENS) * weights).sum()
    assert_close(tied.apply({"params": params}, TOKENS), apart.apply({"params": copy}, TOKENS))
    found, expected = jax.grad(run(tied))(params), jax.grad(run(apart))(copy)
    both = expected["stem"]["field_0"]["embedding"]
    both = both.at[:5].add(expected.pop("readout")["kernel"].T)
    expected["stem"]["field_0"]["embedding"] = both
    assert_close(found, expected)


@pytest.mark.parametrize("model", [{}, {"scan_layers": True}, {"dtype": "bfloat16"}], ids=str)
def test_a_tied_embedding_saves_the_readout(model):
    """Its D x C weights and its C biases; nothing else changes."""
    init = lambda tied: of_tokens(tied, **model).init(jax.random.key(0), TOKENS)
    count = lambda tied: sum(leaf.size for leaf in jax.tree.leaves(init(tied)))
    assert count(False) - count(True) == WIDTH * 5 + 5
    logits = of_tokens(True, **model).init_with_output(jax.random.key(0), TOKENS)[0]
    assert logits.shape == (2, LENGTH, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("stem", "allowed"),
    [
        (TokenStem((4,), WIDTH), "5 classes, and 4 tokens that are embedded"),
        (TokenStem((9, 9), WIDTH), "needs inputs that are tokens of one field"),
        (TextStem(9, WIDTH), "needs inputs that are tokens of one field"),
        (PatchStem(2, WIDTH), "needs inputs that are tokens of one field"),
    ],
    ids=["few", "fields", "class", "patches"],
)
def test_a_stem_that_is_no_readout_is_refused(stem, allowed):
    with pytest.raises(ConfigError) as refusal:
        encoder(stem, 5, tied_embedding=True)
    assert str(refusal.value) == f"tied_embedding: given True; {allowed}"
    assert encoder(stem, 0, tied_embedding=True).classes == 0  # no readout, nothing to be tied


def test_the_recall_of_its_authors_ties_the_embedding():
    """All of its vocabulary are classes."""
    task = make_task("mqar", {"vocabulary": 70, "length": 16})
    config = ModelConfig(width=8, heads=1, layers=2, tied_embedding=True)
    model = task.encoder(config)
    assert model.is_causal
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), **task.example()))["params"]
    assert "readout" not in params and params["stem"]["field_0"]["embedding"].shape == (70, 8)
    separate = task.encoder(dataclasses.replace(config, tied_embedding=False))
    params = jax.eval_shape(lambda: separate.init(jax.random.key(0), **task.example()))["params"]
    assert params["readout"]["kernel"].shape == (8, 70)
