"""Sentence embeddings of sentence-transformers folders: the library's numbers, or refused."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import load_pretrained, sentence_embeddings
from tests.support.folders import pretrained_folders as folders
from tests.support.folders import sentence_folders as sentences

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/sentences.json"
OLD = sentences.OLD
MODEL = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"


def write(root, file, content):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A folder that is understood, loaded."""
    return load_pretrained(sentences.write(tmp_path_factory.mktemp("usual"), "usual"))


@pytest.mark.parametrize("layout", sentences.LAYOUTS)
def test_embeddings_are_those_of_the_library(layout, tmp_path):
    """The numbers of tests/golden/make_sentences.py, for every layout and every field that is
    followed; cut as the library cuts."""
    root = sentences.write(tmp_path, layout)
    inner = root / sentences.LAYOUTS[layout][1]
    expected = json.loads(GOLDEN.read_text())[layout]
    for folder in sorted({root, inner}):  # the whole model, and its encoder alone
        found = sentence_embeddings(load_pretrained(folder), sentences.TEXTS, truncate=True)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_lower_case_is_followed_without_modules_too(tmp_path):
    """Where the encoder alone was copied."""
    folder = folders.write(tmp_path, folders.BERT)
    write(folder, SENTENCE, {"max_seq_length": 16, "do_lower_case": True})
    loaded = load_pretrained(folder)
    upper, lower = sentence_embeddings(loaded, ["THE CAT SAT", "the cat sat"])
    np.testing.assert_array_equal(upper, lower)
    inputs, _ = loaded.encode(["THE", "the"])  # the model's own tokens stay as they are
    assert inputs[0, 1, 0] != inputs[1, 1, 0]


@pytest.mark.parametrize("pooling", [
    {"pooling_mode": "mean"}, {"pooling_mode": ["mean"]}, {}, {"pooling_mode_mean_tokens": True},
    {"pooling_mode": "mean", "pooling_mode_cls_token": True}, sentences.NEW_MEAN,
])  # fmt: skip
def test_the_mean_is_taken_under_all_its_names(pooling, tmp_path, usual):
    write(tmp_path, POOLING, pooling)
    loaded = dataclasses.replace(usual, folder=tmp_path)
    found = sentence_embeddings(loaded, sentences.TEXTS, truncate=True)
    expected = json.loads(GOLDEN.read_text())["usual"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_longer_texts_than_the_folder_reads_are_refused_unless_they_are_cut(tmp_path):
    loaded = load_pretrained(sentences.write(tmp_path, "short"))
    with pytest.raises(ConfigError, match="text 1: .* is 8 tokens; at most 6"):
        sentence_embeddings(loaded, ["the cat", "the cat sat on a mat"])
    whole = sentence_embeddings(loaded, ["the cat sat on a mat"], max_length=16)
    expected = json.loads(GOLDEN.read_text())["usual"][:1]
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def modules(*types):
    return [{"idx": i, "path": f"{i}_x" * (i > 0), "type": t} for i, t in enumerate(types)]


USUAL = (f"{OLD}Transformer", f"{OLD}Pooling")
MORE = ("CNN", "Dense", "Dropout", "LayerNorm", "LSTM", "Router", "StaticEmbedding",
        "WeightedLayerPooling", "WordWeights", "BoW")  # fmt: skip
MODULES = {
    **{f"{name} after": (modules(*USUAL, OLD + name), f"names a {name} module") for name in MORE},
    **{f"{name} alone": (modules(OLD + name), f"names a {name} module") for name in MORE},
    "one's own": (modules(*USUAL, "mine.Normalize"), "names a Normalize module (mine.Normalize)"),
    "one's own pooling": (modules(USUAL[0], "pool.Pooling"), "names a Pooling module (pool.Pool"),
    "no pooling": (modules(USUAL[0]), "must name Transformer, Pooling and perhaps Normalize, not "),
    "none": ([], "must name Transformer, Pooling and perhaps Normalize, not "),
    "order": (modules(USUAL[0], f"{OLD}Normalize", USUAL[1]), "not Transformer, Normalize, Pool"),
    "twice": (modules(*USUAL, USUAL[1]), "not Transformer, Pooling, Pooling"),
    "object": ({"type": "x"}, "must hold a JSON list"),
    "texts": (["x"], "must hold a type and a path of each module, not 'x'"),
    "no path": ([{"type": USUAL[0]}], "must hold a type and a path of each module"),
    "no type": ([{"path": ""}], "must hold a type and a path of each module"),
}  # fmt: skip
MODES = ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_MODES = [f"pooling_mode_{mode}" for mode in (
    "cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")]
FILES = [
    *[(POOLING, {"pooling_mode": mode}, f"asks for '{mode}'") for mode in MODES],
    (POOLING, {"pooling_mode": ["mean", "cls"]}, "asks for ['mean', 'cls']"),
    *[(POOLING, {mode: True}, f"asks for {mode}") for mode in OLD_MODES],
    (POOLING, sentences.OLD_MEAN | {OLD_MODES[0]: True}, "asks for pooling_mode_cls_token, pool"),
    (POOLING, {"pooling_mode_mean_tokens": False}, "asks for no pooling_mode; understood"),
    (POOLING, sentences.NEW_MEAN | {"layers": [1]}, "1_Pooling/config.json layers: given [1]; is"),
    ("9_N/config.json", {"module_input_name": "token_embeddings"}, "9_N/config.json module_input"),
    (SENTENCE, {"max_seq_length": 0}, f"{SENTENCE} max_seq_length: given 0; must be a whole"),
    (SENTENCE, {"max_seq_length": "8"}, f"{SENTENCE} max_seq_length: given '8'"),
    (SENTENCE, {"max_seq_length": 2}, "max_length: given 2; must be from 3"),
    (SENTENCE, {"do_lower_case": "yes"}, f"{SENTENCE} do_lower_case: given 'yes'"),
    (SENTENCE, {"transformer_task": "fill-mask"}, "transformer_task: given 'fill-mask'"),
    (SENTENCE, {"module_output_name": "x"}, "module_output_name: given 'x'"),
    (SENTENCE, {"modality_config": {"text": {"method": "f"}}}, "modality_config: given"),
    (SENTENCE, {"processing_kwargs": {"text": {}}}, "processing_kwargs: given"),
    (SENTENCE, {"model_args": {"dtype": "float16"}}, "model_args: given"),
    (SENTENCE, {"tokenizer_name_or_path": "x"}, "tokenizer_name_or_path: given 'x'"),
    ("sentence_albert_config.json", {"new": 1}, "sentence_albert_config.json new: given 1; is not"),
    (MODEL, {"default_prompt_name": "x"}, f"{MODEL} default_prompt_name: given 'x'; allowed: que"),
    (MODEL, {"default_prompt_name": 3, "prompts": {}}, "default_prompt_name: given 3"),
    (MODEL, {"default_prompt_name": "query", "prompts": ["a"]}, "prompts: given ['a']"),
    (MODEL, {"default_prompt_name": "query", "prompts": {"query": 1}}, "prompts query: given 1"),
    (MODEL, {"truncate_dim": 4}, f"{MODEL} truncate_dim: given 4; is not a known field"),
    (MODEL, {"model_type": "SparseEncoder"}, f"{MODEL} model_type: given 'SparseEncoder'; under"),
]  # fmt: skip
REFUSED = [(name, {"modules.json": found}, message) for name, (found, message) in MODULES.items()]
REFUSED += [(str(content)[:40], {file: content}, message) for file, content, message in FILES]
REFUSED.append((
    "prompt left out",
    {MODEL: sentences.PROMPTS, POOLING: sentences.NEW_MEAN | {"include_prompt": False}},
    "leaves the prompt out of the mean",
))  # fmt: skip


@pytest.mark.parametrize("files, message", [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_whatever_else_a_folder_asks_for_is_refused_by_its_name(files, message, tmp_path, usual):
    for file, content in {POOLING: sentences.OLD_MEAN, **files}.items():
        write(tmp_path, file, content)
    if "modules.json" not in files:
        write(tmp_path, "modules.json", json.loads((usual.folder / "modules.json").read_text()))
    with pytest.raises(ConfigError) as caught:
        sentence_embeddings(dataclasses.replace(usual, folder=tmp_path), ["the cat"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_pooling_is_looked_for_without_modules_too(inner, tmp_path):
    """Beside the encoder, and beside the folder of the encoder."""
    folder = folders.write(tmp_path / "model" / inner, folders.BERT)
    write(tmp_path / "model", "3_Pooling/config.json", {"pooling_mode": "cls"})
    with pytest.raises(ConfigError, match="3_Pooling/config.json'; asks for 'cls'"):
        sentence_embeddings(load_pretrained(folder), ["the cat"])


def test_a_module_without_its_file_is_refused(tmp_path):
    root = sentences.write(tmp_path, "usual")
    (root / POOLING).unlink()
    with pytest.raises(ConfigError, match="1_Pooling/config.json'; is missing"):
        sentence_embeddings(load_pretrained(root), ["the cat"])


def test_a_decoder_is_refused_whose_last_token_the_library_takes(tmp_path):
    config = folders.CONFIGS["roberta"] | {"architectures": ["RobertaForCausalLM"]}
    loaded = load_pretrained(folders.write(tmp_path, config))
    with pytest.raises(ConfigError, match="architectures: .* its last token would be taken"):
        sentence_embeddings(loaded, ["the cat"])
