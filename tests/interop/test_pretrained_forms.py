"""The forms a pretrained folder may have, and the texts and images that go into the model."""

import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import (
    batches,
    hidden_states,
    load_pretrained,
    sentence_embeddings,
)
from tests.support.folders import pretrained_folders as folders
from tests.support.folders import pretrained_parts
from tests.support.folders.pretrained_parts import FAMILIES, one_line, shard
from tests.support.untied import leaves

models = pretrained_parts.models


# --- the forms a folder may have

HEADS = {
    "bert": ["pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.position_ids"],
    "roberta": ["lm_head.bias", "classifier.out_proj.weight", "roberta.pooler.dense.bias"],
    "distilbert": ["vocab_transform.weight", "pre_classifier.bias"],
    "vit": ["classifier.weight", "vit.embeddings.mask_token"],
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_prefixes_and_heads_change_nothing(models, kind, tmp_path):
    """A model saved with its head: the encoder's tensors are prefixed; what is over is named."""
    config = folders.CONFIGS[kind]
    weights = {f"{kind}.{name}": array for name, array in folders.tensors(config).items()}
    weights |= {name: np.arange(3) for name in HEADS[kind]}
    folder = folders.write(tmp_path, config, weights, tokenizer=False)
    loaded = load_pretrained(folder)
    assert set(HEADS[kind]) <= set(loaded.left_out)
    assert len(loaded.left_out) == len(HEADS[kind]) + (kind == "roberta")
    assert_same_parameters(loaded, models(kind))


def assert_same_parameters(one, other):
    assert one.encoder == other.encoder
    one, other = (leaves(model.variables["params"]) for model in (one, other))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_old_names_of_norms_are_taken(models, tmp_path):
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name):
        for new, past in old.items():
            name = name.replace(new, past)
        return name

    weights = folders.tensors(folders.BERT)
    weights = {rename(name): array for name, array in weights.items()}
    assert "embeddings.LayerNorm.gamma" in weights
    assert_same_parameters(
        load_pretrained(folders.write(tmp_path, folders.BERT, weights)), models("bert")
    )


def test_shards_are_put_together(models, tmp_path):
    folder = folders.write(tmp_path, folders.BERT)
    shard(folder)
    assert_same_parameters(load_pretrained(folder), models("bert"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_number_formats_become_float32(dtype, tmp_path):
    weights = folders.tensors(folders.BERT)
    rounded = {name: array.astype(jnp.dtype(dtype)) for name, array in weights.items()}
    loaded = load_pretrained(folders.write(tmp_path, folders.BERT, rounded, tokenizer=False))
    table = loaded.variables["params"]["stem"]["field_0"]["embedding"]
    name = "embeddings.word_embeddings.weight"
    assert table.dtype == jnp.float32
    np.testing.assert_array_equal(table, rounded[name].astype(np.float32))
    assert (dtype == "float64") == np.array_equal(table, weights[name])


# --- texts


def test_texts_become_tokens_padded_at_the_right(models):
    """What tokenizer.json says about padding and cutting is not followed."""
    inputs, valid = map(np.asarray, models("distilbert").encode(folders.TEXTS[:2]))
    np.testing.assert_array_equal(inputs, [[1, 4, 5, 6, 7, 8, 9, 2], [1, 15, 16, 17, 2, 0, 0, 0]])
    np.testing.assert_array_equal(valid, inputs != 0)
    typed, _ = models("bert").encode(folders.TEXTS[:2])
    np.testing.assert_array_equal(typed[..., 0], inputs)
    assert not typed[..., 1].any() and typed.dtype == np.int32
    assert models("bert").tokenizer.words(inputs[1][:3]) == ["[CLS]", "it", "went"]


def test_long_texts_are_cut_only_when_asked(models):
    bert, text = models("bert"), "the cat " * 9
    with pytest.raises(ConfigError, match="text 1: given 'the cat .*is 20 tokens; at most 16"):
        bert.encode(["the", text])
    inputs, _ = bert.encode(["the", text], truncate=True)
    assert inputs.shape[1] == 16 and inputs[1, -1, 0] == 2
    inputs, _ = bert.encode([text], max_length=5, truncate=True)
    np.testing.assert_array_equal(inputs[0, :, 0], [1, 4, 5, 4, 2])
    assert bert.encode([text[:32]]).inputs.shape[1] == 10  # nothing stays behind


def test_batches_hold_every_text_once_in_few_shapes(models):
    texts = ["the " * (1 + i % 13) for i in range(21)]
    seen, shapes = [], set()
    for batch in batches(models("distilbert"), texts, size=4):
        seen += batch.rows.tolist()
        shapes.add(batch.inputs.shape)
        for row, tokens, real in zip(batch.rows, batch.inputs, batch.valid, strict=False):
            assert real.sum() == len(texts[row].split()) + 2
            np.testing.assert_array_equal(tokens != 0, real)
    assert sorted(seen) == list(range(21)) and shapes == {(4, 16)}


TEXT_REFUSALS = [
    ([], "texts: given []; must be a list of at least one text"),
    ("the cat", "texts: given 'the cat'; must be a list"),
    (["the", ""], "text 1: given ''; is empty"),
    (["  "], "text 0: given '  '; is empty"),
    (["the", 3], "text 1: given 3; must be a text"),
]


@pytest.mark.parametrize("texts, message", TEXT_REFUSALS)
def test_texts_that_cannot_be_are_refused(models, texts, message, unchecked):
    with pytest.raises(ConfigError) as caught:
        sentence_embeddings(models("bert"), texts)
    assert message in one_line(caught)


@pytest.mark.parametrize("limit", [0, 2, 17])
def test_a_limit_beyond_the_model_is_refused(models, limit):
    with pytest.raises(ConfigError) as caught:
        models("bert").encode(["the"], max_length=limit)
    assert f"max_length: given {limit}; must be from 3 to the 16" in one_line(caught)


def test_the_padding_token_in_a_text_is_refused_where_it_takes_no_place(models):
    with pytest.raises(ConfigError, match="must not hold the padding token '<pad>'"):
        models("roberta").encode(["the <pad> cat"])
    assert models("bert").encode(["the [PAD] cat"]).inputs.shape[1] == 5


def test_images_of_another_size_are_refused(models):
    with pytest.raises(ConfigError, match=r"given \(4, 8\); images must be 8 x 8"):
        hidden_states(models("vit"), jnp.zeros((1, 4, 8, 3)))
