"""Folders of decoders: the same logits as float64 NumPy and transformers, read at once or by cache;
and what is refused."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.pretrained import hidden_states, load_pretrained, sentence_embeddings
from qkv_jax.model.generate import Generator
from tests.support.folders import decoder_folders as folders
from tests.support.folders import decoder_oracle as oracle
from tests.support.folders.pretrained_parts import one_line, refused
from tests.support.untied import leaves

NAMES = tuple(folders.CONFIGS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(name)`: a folder of that config, loaded."""

    @functools.cache
    def loaded(name):
        folder = tmp_path_factory.mktemp("decoder")
        return load_pretrained(folders.write(folder, folders.CONFIGS[name]))

    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_numpy(models, name):
    """In float64 straight from the tensors; padding changes nothing before it."""
    config, model = folders.CONFIGS[name], models(name)
    tokens, valid = folders.token_inputs(config)
    expected = oracle.logits(config, folders.tensors(config), tokens)
    inputs, real = jnp.asarray(tokens, jnp.int32), jnp.asarray(valid)
    found = np.asarray(model.encoder.apply(model.variables, inputs, real))
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-4)
    assert np.abs(expected[0, 0] - expected[0, -1]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(models, name):
    """The numbers of tests/golden/make_pretrained.py."""
    stored = json.loads((pathlib.Path(__file__).parents[1] / "golden/decoders.json").read_text())
    model = models(name)
    tokens, _ = folders.token_inputs(folders.CONFIGS[name])
    found = model.encoder.apply(model.variables, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(found[:2, :5, :4], stored[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_by_cache_gives_the_same_logits(models, name):
    """Three tokens at once, then one by one; a cache holds the heads of keys and values alone."""
    config, model = folders.CONFIGS[name], models(name)
    tokens, _ = folders.token_inputs(config)
    expected = oracle.logits(config, folders.tensors(config), tokens)
    cache, found = model.encoder.init_cache(3, 9), []
    groups = config.get("num_key_value_heads") or config["n_head"]
    assert all(leaf.shape[1] == groups for leaf in jax.tree.leaves(cache.sources))
    step = jax.jit(lambda some, cache: model.encoder.apply(model.variables, some, cache=cache))
    for part in np.split(tokens.astype(np.int32), [3, *range(4, 9)], axis=1):
        logits, cache = step(part, cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=1e-4)


def test_a_folder_goes_on_with_a_text(models):
    """Greedy, as the logits of NumPy have it; of a model of more layers than one digit counts,
    whose caches come out of a compiled program in another order."""
    config, model = folders.CONFIGS["llama, eleven layers"], models("llama, eleven layers")
    inputs, _ = model.encode(["the suns"])
    tokens = np.asarray(inputs)
    found = Generator(model.encoder, 4)(model.variables, tokens)
    for token in found[0]:
        logits = oracle.logits(config, folders.tensors(config), tokens)[:, -1]
        assert logits.argmax(-1) == [token]
        tokens = np.concatenate([tokens, [[token]]], axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_filled_and_every_tensor_used(models, name):
    model = models(name)
    found = leaves(model.variables["params"])
    tokens = jnp.zeros((1, 2), jnp.int32)
    wanted = jax.eval_shape(lambda: model.encoder.init(jax.random.key(0), tokens)["params"])
    paths = jax.tree_util.tree_leaves_with_path(wanted)
    shapes = {"/".join(k.key for k in path): leaf.shape for path, leaf in paths}
    assert {path: leaf.shape for path, leaf in found.items()} == shapes
    assert ("readout/kernel" in found) == ("readout" in name)
    assert model.left_out == ()
    assert len(hidden_states(model, tokens)) == 1 + model.encoder.config.layers


def test_bare_models_buffers_and_a_second_copy_of_the_embedding(models, tmp_path):
    """Names without their prefix, what old files hold besides, and the tied readout written out."""
    for name, prefix, buffer, table in (
        ("gpt2", "transformer.", "h.0.attn.bias", "wte.weight"),
        ("llama", "model.", "layers.0.self_attn.rotary_emb.inv_freq", "embed_tokens.weight"),
    ):
        config = folders.CONFIGS[name]
        weights = {k.removeprefix(prefix): v for k, v in folders.tensors(config).items()}
        weights |= {buffer: np.ones((2, 2), np.float32), "lm_head.weight": weights[table]}
        model = load_pretrained(folders.write(tmp_path / name, config, weights))
        assert model.left_out == tuple(sorted((buffer, "lm_head.weight")))
        ours, theirs = (leaves(m.variables["params"]) for m in (model, models(name)))
        assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)


def test_texts_are_read_by_byte_level_bpe_and_padded_behind(models):
    model = models("gpt2")
    inputs, valid = model.encode(["the sun. the", "the"])
    words = model.tokenizer.words(np.asarray(inputs)[0])
    assert words == ["the", "Ġ", "s", "u", "n", ".", "Ġthe"]
    assert np.asarray(valid).sum(1).tolist() == [7, 1]
    assert model.tokenizer.tokens(["the"]) == [[words and np.asarray(inputs)[1, 0]]]


def test_decoders_embed_no_sentences(models):
    model = models("llama")
    with pytest.raises(ConfigError, match="config.json architectures: given .*its last token"):
        sentence_embeddings(model, ["the sun"])
    bare = {k: v for k, v in model.config.items() if k != "architectures"}
    with pytest.raises(ConfigError, match="config.json model_type: given 'llama'; is a decoder"):
        sentence_embeddings(dataclasses.replace(model, config=bare), ["the sun"])


# --- the fields of config.json

SAME = {
    "gpt2": {"n_ctx": 16, "attn_pdrop": 0.1, "summary_type": "cls_index", "use_cache": True,
             "reorder_and_upcast_attn": True, "scale_attn_weights": True, "n_inner": 20,
             "scale_attn_by_inverse_layer_idx": False, "bos_token_id": 0, "pad_token_id": 9},
    "llama": {"pretraining_tp": 4, "rope_scaling": None, "is_llama_config": True,
              "rope_interleaved": False, "attention_bias": False, "mlp_bias": False,
              "transformers.js_config": {"dtype": "q4"}, "pad_token_id": 2, "sliding_window": None},
}  # fmt: skip
REFUSALS = [
    ("gpt2", {"activation_function": "silu"}, "activation_function: given 'silu'; understood"),
    ("gpt2", {"n_embd": 13}, "n_embd: given 13; must be divisible by the 3 heads"),
    ("gpt2", {"n_head": 0}, "n_head: given 0; must be a whole number"),
    ("gpt2", {"n_positions": None}, "n_positions: given None"),
    ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon: given 0; must be a finite number"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: given False; understood: True"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx: given True; "),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention: given True; understood: False"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: given 'yes'; must be true or"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act: given 'gelu'; understood: 'silu'"),
    ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: given {'rope_type': 'll"),
    ("llama", {"rope_theta": "1e4"}, "rope_theta: given '1e4'; must be a finite number above 0"),
    ("llama", {"rope_parameters": 3}, "rope_parameters: given 3; must be an object"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}},
     "rope_parameters rope_type: given 'yarn'; understood: 'default'"),
    ("llama", {"rope_parameters": {"factor": 2.0}},
     "rope_parameters factor: given 2.0; is not a known field"),
    ("llama", {"num_key_value_heads": 4}, "num_key_value_heads: given 4; must divide the 6 heads"),
    ("llama", {"head_dim": 3}, "head_dim: given 3; rotary positions need an even head width"),
    ("llama", {"head_dim": None, "num_attention_heads": 4, "num_key_value_heads": 4},
     "hidden_size: given 12; rotary positions need an even head width"),
    ("llama", {"attention_bias": 1}, "attention_bias: given 1; must be true or false"),
    ("llama", {"sliding_window": 4}, "sliding_window: given 4; is not a known field"),
    ("llama", {"layer_types": ["sliding_attention"]}, "layer_types: given ['sliding_attention']; "
     "is not a known field"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps: given None; must be a finite number"),
]  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_fields_that_change_no_number_may_be_there(kind):
    values = folders.CONFIGS[kind]
    usual = layouts.plan(values)
    for field, given in SAME[kind].items():
        assert layouts.plan(values | {field: given}).encoder == usual.encoder, field


@pytest.mark.parametrize("kind, change, message", REFUSALS, ids=lambda case: str(case)[:40])
def test_what_is_not_understood_is_refused_by_its_field(kind, change, message):
    with pytest.raises(ConfigError) as caught:
        layouts.plan(folders.CONFIGS[kind] | change)
    assert one_line(caught).startswith("config.json ") and message in one_line(caught)


def test_a_tensor_that_is_missing_cut_or_over_is_refused(tmp_path):
    config, name = folders.GPT2, "transformer.h.1.attn.c_attn.weight"
    weights = folders.tensors(config)
    cut = weights | {name: weights[name][:, :-1]}
    message = refused(folders.write(tmp_path / "cut", config, cut))
    assert f"tensor {name}: given (12, 35); must have the shape (12, 36)" in message
    none = {k: v for k, v in weights.items() if k != name}
    message = refused(folders.write(tmp_path / "none", config, none))
    assert message.startswith("tensor h.1.attn.c_attn.weight: given None; is missing")
    over = weights | {"transformer.h.2.ln_1.weight": np.ones(12, np.float32)}
    message = refused(folders.write(tmp_path / "over", config, over))
    assert message == "tensor transformer.h.2.ln_1.weight: given (12,); is not understood"
    untied = config | {"tie_word_embeddings": False}
    message = refused(folders.write(tmp_path / "untied", untied, weights))
    assert message.startswith("tensor lm_head.weight: given None; is missing; readout/kernel")


@pytest.mark.parametrize("field, token, at", [
    ("add_bos_token", "bos_token", "begins"), ("add_eos_token", "eos_token", "ends"),
])  # fmt: skip
def test_a_token_at_an_end_is_there_as_tokenizer_config_says(tmp_path, field, token, at):
    """What tokenizer.json adds is followed; a tokenizer_config.json at odds with it is refused."""
    import tokenizers as t

    folder = folders.write(tmp_path, folders.LLAMA)
    path, end = folder / "tokenizer_config.json", {token: "<|endoftext|>"}
    path.write_text(json.dumps({field: False, **end}))
    assert load_pretrained(folder).tokenizer.tokens(["the"])[0][-1] != 0
    path.write_text(json.dumps({field: True, **end}))
    assert refused(folder).endswith("is at odds with tokenizer.json: a text has no special token")
    tokenizer = t.Tokenizer.from_file(str(folder / "tokenizer.json"))
    single = "<|endoftext|> $A" if at == "begins" else "$A <|endoftext|>"
    tokenizer.post_processor = t.processors.TemplateProcessing(
        single=single, special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = load_pretrained(folder).tokenizer.tokens(["the"])[0]
    assert len(tokens) == 2 and tokens[0 if at == "begins" else -1] == 0
    path.write_text(json.dumps({field: False, **end}))
    assert f"{field}: given False; is at odds with tokenizer.json: a text {at}" in refused(folder)
