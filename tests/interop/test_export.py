"""Our models as Hugging Face folders: what is read back computes the same, whatever the scheme; and
transformers comes to the same numbers where the architecture is a published one."""

import dataclasses
import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qkv_jax.config import ConfigError, build
from qkv_jax.interop.export import save_model
from qkv_jax.interop.pretrained import hidden_states, load_pretrained, sentence_embeddings
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TextStem, TokenStem
from qkv_jax.tie import Tie
from tests.support.folders.pretrained_parts import one_line, refused

ROOT = pathlib.Path(__file__).parents[2]
PEER = ROOT / ".venv-benchmark" / "bin" / "python"  # of `make test-export`
SMALL = {"layers": 2, "width": 12, "heads": 3, "mlp_width": 20}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, 7)))
IMAGES = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 1)), jnp.float32)
ROTARY = {"positions": "rotary", "norm": "rms", "mlp": "swiglu"}
# By name: fields of the model, and whether it is causal.
PUBLISHED = {
    "gpt2": ({"tied_embedding": True}, True),
    "gpt2, biases": ({"tied_embedding": True, "use_bias": True, "mlp": "relu"}, True),
    "llama": ({**ROTARY, "tied_embedding": True, "use_bias": True, "rotary_base": 50.0}, True),
    "llama, shared heads": (
        {**ROTARY, "tied_embedding": True, "heads": 6, "kv_heads": 2, "head_dim": 4}, True,
    ),
    "bert": ({"norm_position": "post", "embedding_norm": True, "mlp": "gelu_exact"}, False),
    "vit": ({"norm_epsilon": 0.01}, False),
}  # fmt: skip


def draw(encoder, inputs):
    """Variables in which nothing is zero or one, so that no part can be left out unseen."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    value = lambda shape: 0.4 * rng.standard_normal(shape).astype(np.float32)
    is_gain = lambda path: jax.tree_util.keystr(path).endswith("scale']")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(value(leaf.shape) + is_gain(path)), shapes
    )


def made(name):
    """(encoder, variables, inputs) of a published architecture; 20 of 21 symbols are foretold."""
    fields, is_causal = PUBLISHED[name]
    stem, sizes, inputs = TokenStem((21,), 12), (20, 9, "token"), TOKENS
    if name == "vit":
        stem, sizes, inputs = PatchStem(4, 12), (10, 5, "class"), IMAGES
    encoder = Encoder(ModelConfig(**SMALL | fields), stem, *sizes, is_causal=is_causal)
    return encoder, draw(encoder, inputs), inputs


def assert_same(encoder, variables, inputs, folder):
    """To the last digits, which the order of sums changes."""
    model = load_pretrained(folder)
    given = inputs
    if inputs.ndim == 2 and len(model.encoder.stem.vocabulary) == 2:
        given = jnp.stack([inputs, jnp.zeros_like(inputs)], -1)
    expected = encoder.apply(variables, inputs)
    found = model.encoder.apply(model.variables, given)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert model.left_out == () and np.abs(expected[0] - expected[1]).max() > 0.1
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_separate_model_is_of_the_published_architecture_that_fits(tmp_path, name):
    encoder, variables, inputs = made(name)
    assert save_model(tmp_path / "x", encoder, variables) == (name.partition(",")[0], "")
    assert_same(encoder, variables, inputs, tmp_path / "x")
    if encoder.is_causal:  # the symbol that is never foretold
        written = json.loads((tmp_path / "x" / "generation_config.json").read_text())
        assert written == {"suppress_tokens": [20]}


@pytest.mark.skipif(not PEER.exists(), reason="make test-export makes the environment for it")
def test_transformers_comes_to_the_same_logits(tmp_path):
    expected, lines = {}, []
    for name in PUBLISHED:
        encoder, variables, inputs = made(name)
        save_model(tmp_path / name, encoder, variables)
        array = np.asarray(inputs)
        array = array.transpose(0, 3, 1, 2) if name == "vit" else array.astype(np.int64)
        np.save(tmp_path / f"{name}.npy", array)
        request = {"folder": str(tmp_path / name), "inputs": str(tmp_path / f"{name}.npy")}
        lines.append(json.dumps(request))
        expected[name] = np.asarray(encoder.apply(variables, inputs))
    worker = ROOT / "tests" / "support" / "transformers_worker.py"
    done = subprocess.run([PEER, "-I", worker], input="\n".join(lines), capture_output=True,
                          text=True, timeout=600)  # fmt: skip
    if "No module named 'transformers'" in done.stderr:
        pytest.skip("make test-export installs transformers beside PyTorch")
    assert done.returncode == 0, done.stderr
    for name, logits in expected.items():
        found = np.load(tmp_path / f"{name}-logits.npy")[..., : logits.shape[-1]]
        difference = np.abs(found - logits).max()
        print(f"{name}: transformers differs by {difference:.1e} at most")
        assert difference < 1e-4


# --- any other model is of our own kind

OPTIONS = {
    "positions": [{"positions": p} for p in
                  ("none", "sinusoidal", "rotary", "relative", "alibi")],
    "schemes": [
        {"positions": "rotary", "tie": "K=V", "scheme": "rotated"},
        {"latent_dim": 4}, {"scheme": "exclusive"}, {"window": 3}, {"qk_norm": True},
        {"value_residual": True}, {"scale": "learned_per_head"}, {"scale": 0.3},
        {"preset": "courtois"}, {"tie": "K=V|separate"}, {"kv_heads": 1},
        {"tie": "K=V", "frozen": ("key",), "adapters": {"key": "diag"}},
        {"mlp": "none"}, {"output_projection": False, "diagonal_mask": True},
        {"tied_embedding": True, "norm": "rms"}, {"scan_layers": True, "dropout": 0.1},
    ],
}  # fmt: skip


@pytest.mark.parametrize("fields", [
    *({"tie": str(tie), **OPTIONS["positions"][i % 5]} for i, tie in enumerate(Tie.all())),
    *({"tie": "K=V", **fields} for fields in OPTIONS["positions"]), *OPTIONS["schemes"],
], ids=str)  # fmt: skip
def test_any_model_is_read_back(tmp_path, fields):
    config = build(ModelConfig, SMALL | fields)
    is_causal = len(str(fields)) % 2 == 0
    encoder = Encoder(config, TokenStem((21,), 12), 20, 9, is_causal=is_causal)
    variables = draw(encoder, TOKENS)
    kind, why = save_model(tmp_path / "x", encoder, variables)
    assert kind == "qkv_jax" and why
    model = assert_same(encoder, variables, TOKENS, tmp_path / "x")
    assert model.encoder.config.ties == config.ties
    assert jax.tree.all(jax.tree.map(np.array_equal, model.variables, variables))


def test_classes_of_texts_and_several_fields_of_a_token(tmp_path):
    text = Encoder(ModelConfig(**SMALL), TextStem(21, 12), 4, 8, "class")
    fields = Encoder(ModelConfig(**SMALL), TokenStem((20, 20, 5), 12), 5, 7)
    pairs = jnp.stack([TOKENS, TOKENS, TOKENS % 5], -1)
    for name, encoder, inputs in (("text", text, TOKENS), ("fields", fields, pairs)):
        variables = draw(encoder, inputs)
        save_model(tmp_path / name, encoder, variables)
        model = load_pretrained(tmp_path / name)
        found = model.encoder.apply(model.variables, inputs)
        np.testing.assert_array_equal(found, encoder.apply(variables, inputs))
        assert len(hidden_states(model, inputs)) == 3
    with pytest.raises(ConfigError, match="at most 7 tokens"):
        hidden_states(load_pretrained(tmp_path / "text"), jnp.zeros((1, 8), jnp.int32))


@pytest.mark.parametrize("name, change, why", [
    ("gpt2", {"tie": "K=V"}, "its tie is 'K=V', 'separate' in GPT2"),
    ("gpt2", {"tied_embedding": False}, "its readout is of 20 of 21 tokens; with tied_embedding"),
    ("gpt2", {"norm": "rms"}, "its norm is 'rms', 'layer' in GPT2"),
    ("gpt2", {"mlp": "swiglu"}, "its mlp is 'swiglu', 'gelu' in GPT2"),
    ("gpt2", {"kv_heads": 1}, "its kv_heads is 1, 3 in GPT2"),
    ("llama", {"rotary_dims": 2}, "its rotary_dims is 2, 4 in Llama"),
    ("llama", {"window": 2}, "its window is 2, None in Llama"),
    ("bert", {"norm_position": "pre"}, "its norm_position is 'pre', 'post' in Bert"),
    ("vit", {"embedding_norm": True}, "its embedding_norm is True, False in ViT"),
])  # fmt: skip
def test_why_no_published_architecture_fits(tmp_path, name, change, why):
    encoder, _, inputs = made(name)
    encoder = encoder.clone(config=dataclasses.replace(encoder.config, **change))
    kind, found = save_model(tmp_path / "x", encoder, draw(encoder, inputs))
    assert kind == "qkv_jax" and found.startswith(why), found


def test_a_readout_of_its_own_fits_without_a_bias(tmp_path):
    fields = SMALL | ROTARY
    encoder = Encoder(ModelConfig(**fields), TokenStem((21,), 12), 21, 9, is_causal=True)
    variables = draw(encoder, TOKENS)
    _, why = save_model(tmp_path / "biased", encoder, variables)
    assert why == "its readout/bias has no place; a run with tied_embedding has none"
    variables["params"]["readout"]["bias"] = jnp.zeros(21)
    assert save_model(tmp_path / "plain", encoder, variables) == ("llama", "")
    assert_same(encoder, variables, TOKENS, tmp_path / "plain")


# --- what cannot be


def test_folders_of_ours_that_were_changed_are_refused(tmp_path):
    encoder, variables, _ = made("bert")
    encoder = encoder.clone(config=dataclasses.replace(encoder.config, tie="K=V"))
    save_model(tmp_path / "own", encoder, draw(encoder, TOKENS))
    config = tmp_path / "own" / "config.json"
    written = json.loads(config.read_text())
    for change, message in [
        ({"model": written["qkv_jax"]["model"] | {"tie": "K=Z"}}, "qkv_jax.model.tie: given 'K=Z'"),
        ({"model": written["qkv_jax"]["model"] | {"width": 24}}, "must have the shape (24"),
        ({"readout": "last"}, "qkv_jax.readout: given 'last'"),
        ({"stem": {"kind": "Conv"}}, "stem.kind: given 'Conv'; allowed: TokenStem"),
        ({"classes": -1}, "qkv_jax.classes: given -1"),
        ({"more": 1}, "config.json qkv_jax.more: given 1; unknown key"),
    ]:  # fmt: skip
        own = written["qkv_jax"] | change
        config.write_text(json.dumps(written | {"qkv_jax": own}))
        assert message in refused(tmp_path / "own")
    config.write_text(json.dumps(written | {"hidden_size": 12}))
    assert "config.json hidden_size: given 12; is not a known field" in refused(tmp_path / "own")
    config.write_text(json.dumps({"model_type": "qkv_jax"}))
    assert "config.json qkv_jax: given None; must be an object" in refused(tmp_path / "own")
    config.write_text(json.dumps(written))
    tensors = load_file(tmp_path / "own" / "model.safetensors")
    tensors["layer_0/attention/value/kernel"] = tensors["layer_0/attention/query/kernel"]
    save_file(tensors, tmp_path / "own" / "model.safetensors")
    assert "value/kernel: given (12, 3, 4); is not understood" in refused(tmp_path / "own")


def test_what_is_no_model_is_not_written(tmp_path):
    encoder, variables, _ = made("gpt2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    tied = encoder.clone(config=dataclasses.replace(encoder.config, tie="K=V"))

    class OwnStem(TokenStem):
        pass

    for args, line in [
        (("full", encoder, variables), "holds files already"),
        (("a", tied, variables), "is not what the encoder has"),
        (("b", encoder, {}), "must be {'params': ...}"),
        (("c", tied.clone(stem=OwnStem((21,), 12)), variables), "stem: given 'OwnStem'; allowed"),
    ]:
        with pytest.raises(ConfigError) as caught:
            save_model(tmp_path / args[0], *args[1:])
        assert line in one_line(caught)
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def test_a_readout_embeds_no_sentences(tmp_path):
    encoder, variables, _ = made("bert")
    save_model(tmp_path / "x", encoder, variables)
    from tests.support.folders.pretrained_folders import write_tokenizer

    write_tokenizer(tmp_path / "x", words=["the", "cat"])
    with pytest.raises(ConfigError, match="model_type: given 'bert'; reads out classes"):
        sentence_embeddings(load_pretrained(tmp_path / "x"), ["the cat"])
