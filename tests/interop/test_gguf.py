"""GGUF files as Hugging Face folders: the tensors that were put in, whatever their order there."""

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop.gguf import _tokenizer, convert
from qkv_jax.interop.pretrained import load_pretrained
from tests.support.folders import decoder_folders as folders
from tests.support.folders.pretrained_parts import one_line

gguf = pytest.importorskip("gguf")

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
# Blocks of 32 numbers are quantised together.
CONFIG = folders.LLAMA | {
    "hidden_size": 32, "intermediate_size": 64, "rms_norm_eps": 1e-5, "num_attention_heads": 8,
}  # fmt: skip
WORDS = ["<|endoftext|>", *"abcdehilnorstuwy12", "Ġ", "th", "the"]


def theirs(name):
    """A tensor's name in GGUF."""
    if name.startswith("model.layers."):
        _, _, number, rest = name.split(".", 3)
        part, end = rest.rsplit(".", 1)
        return f"blk.{number}.{NAMES[part]}.{end}"
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    part, end = name.rsplit(".", 1)
    return f"{outer[part]}.{end}"


def permuted(array, heads):
    """As llama.cpp wants queries and keys: what is turned together lies side by side. Row by row,
    so that nothing is shared with the package."""
    rows, size = [], len(array) // heads
    for head in range(heads):
        for i in range(size // 2):
            rows += [array[head * size + i], array[head * size + i + size // 2]]
    return np.stack(rows)


def written(path, config, weights, kind=None, pre="smollm", extra=()):
    """A GGUF file; `kind` is a quantisation of the matrices."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    for add, value in extra:
        getattr(writer, add)(value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, array in weights.items():
        role = name.rsplit(".", 2)[-2]
        array = permuted(array, heads[role]) if role in heads else array
        if kind is not None and array.ndim == 2:
            writer.add_tensor(theirs(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [None, "F16", "Q8_0", "Q4_1"])
def test_a_folder_holds_what_the_file_was_made_of(tmp_path, tied, kind):
    """Tensors and config.json of the model before it was written as GGUF; quantised ones to the
    half step of their blocks."""
    config = CONFIG | {"tie_word_embeddings": tied}
    weights = folders.tensors(config)
    quantised = None if kind is None else gguf.GGMLQuantizationType[kind]
    file = written(tmp_path / "model.gguf", config, weights, quantised)
    assert convert(file, tmp_path / "made") is None
    model = load_pretrained(tmp_path / "made")
    other = load_pretrained(folders.write(tmp_path / "other", config, weights, tokenizer=False))
    assert model.encoder == other.encoder and model.left_out == ()
    attention = lambda m: m.variables["params"]["layer_1"]["attention"]
    for role in ("query", "key", "value", "out"):
        one, right = (np.asarray(attention(m)[role]["kernel"]) for m in (model, other))
        tolerance = {None: 0, "F16": 1e-3, "Q8_0": 0.01, "Q4_1": 0.15}[kind]
        np.testing.assert_allclose(one, right, rtol=0, atol=tolerance)
    # The end of a text is a token that stands in front; digits are tokens of their own.
    assert model.tokenizer.words(model.tokenizer.tokens(["the 12"])[0]) == [
        WORDS[0], "the", "Ġ", "1", "2"
    ]  # fmt: skip


def test_a_tokenizer_that_cannot_be_made_is_left_out_and_said(tmp_path):
    file = written(tmp_path / "model.gguf", CONFIG, folders.tensors(CONFIG), pre="llama-bpe")
    assert convert(file, tmp_path / "made") == (
        "a tokenizer 'gpt2' that cuts texts as 'llama-bpe' is not understood"
    )
    assert load_pretrained(tmp_path / "made").tokenizer is None


@pytest.mark.parametrize(
    ("fields", "lacking"),
    [({}, "tokens"), ({"tokens": ["a"]}, "merges"),
     ({"tokens": ["a"], "merges": [], "add_eos_token": True}, "eos_token_id")],
)  # fmt: skip
def test_a_tokenizer_that_lacks_something_is_left_out_and_said(fields, lacking):
    given = {"model": "gpt2", "pre": "smollm"} | fields
    given = {f"tokenizer.ggml.{name}": value for name, value in given.items()}
    assert _tokenizer(given) == (None, f"the file has no tokenizer.ggml.{lacking}")


def test_what_is_no_such_model_is_refused_in_one_line(tmp_path):
    weights = folders.tensors(CONFIG)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(written(tmp_path / "whole.gguf", CONFIG, weights).read_bytes()[:900])
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    other.add_block_count(1)
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.close()
    (tmp_path / "text").write_text("no GGUF")
    freqs = weights | {"model.layers.0.mlp.gate_proj.scale": np.ones(3, np.float32)}
    scaled = [("add_rope_scaling_type", gguf.RopeScalingType.YARN)]
    for file, message in (
        (tmp_path / "lost", "is no file"),
        (tmp_path / "text", "is no readable GGUF file: "),
        (cut, "is no readable GGUF file: "),
        (tmp_path / "other.gguf", "is of the architecture 'gpt2'; understood: 'llama'"),
        (written(tmp_path / "odd.gguf", CONFIG, freqs), "has a tensor blk.0.ffn_gate.scale, which"),
        (written(tmp_path / "yarn.gguf", CONFIG, weights, extra=scaled), "scales its rotary"),
    ):
        with pytest.raises(ConfigError) as caught:
            convert(file, tmp_path / "made")
        assert one_line(caught).startswith("gguf: given ") and message in one_line(caught)
        assert not (tmp_path / "made").exists()
    with pytest.raises(ConfigError, match="out: given .*holds files already"):
        convert(tmp_path / "whole.gguf", tmp_path)
