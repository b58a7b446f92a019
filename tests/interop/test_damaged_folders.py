"""Pretrained folders that are damaged, or that hold something else: refused in one line."""

import functools
import json
import shutil

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import load_pretrained, sentence_embeddings
from tests.support.folders import pretrained_folders as folders
from tests.support.folders.pretrained_parts import one_line, refused, shard, write_index

CONFIG_REFUSALS = [
    ({"model_type": "gpt2"}, "config.json hidden_size: given 12; is not a known field"),
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
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "holds no config.json; there: model.safetensors, tokenizer.json",
    ),
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
