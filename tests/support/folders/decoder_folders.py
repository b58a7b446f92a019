"""Small Hugging Face folders of decoders with random weights, written by hand: GPT-2 and Llama."""

import pathlib

import numpy as np

from tests.support.folders.pretrained_folders import drawn, save

GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 23, "n_embd": 12,
    "n_layer": 2, "n_head": 3, "n_inner": 20, "n_positions": 16, "layer_norm_epsilon": 0.01,
    "activation_function": "gelu_new",
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 23,
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 4, "intermediate_size": 20, "max_position_embeddings": 16, "rms_norm_eps": 0.01,
    "rope_theta": 50.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2,
    "gpt2, a readout of its own": GPT2 | {
        "tie_word_embeddings": False, "activation_function": "relu", "n_inner": None,
    },
    "llama": LLAMA,
    "llama, a readout of its own": {k: v for k, v in LLAMA.items() if k != "rope_theta"} | {
        "tie_word_embeddings": False, "num_key_value_heads": 6, "head_dim": None,
        "rope_parameters": {"rope_theta": 9.0, "rope_type": "default"},
    },
    "llama, eleven layers": LLAMA | {"num_hidden_layers": 11},
    "llama, biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
}  # fmt: skip


def shapes(config):
    """{name of a tensor: shape}, as transformers stores the model with its readout."""
    return _gpt2_shapes(config) if config["model_type"] == "gpt2" else _llama_shapes(config)


def _gpt2_shapes(config):
    width = config["n_embd"]
    hidden = config["n_inner"] or 4 * width
    norms = ["transformer.ln_f"]
    found = {
        "transformer.wte.weight": (config["vocab_size"], width),
        "transformer.wpe.weight": (config["n_positions"], width),
    }
    for i in range(config["n_layer"]):
        layer = f"transformer.h.{i}"
        norms += [f"{layer}.ln_1", f"{layer}.ln_2"]
        for name, shape in {
            "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
            "mlp.c_fc": (width, hidden), "mlp.c_proj": (hidden, width),
        }.items():  # fmt: skip
            found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[1:]}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if not config.get("tie_word_embeddings", True):
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found


def _llama_shapes(config):
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config["head_dim"] or width // heads
    queries, keys = heads * size, config["num_key_value_heads"] * size
    hidden = config["intermediate_size"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    found["model.norm.weight"] = (width,)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{name}.weight"] = (width,)
        of = {"q": queries, "k": keys, "v": keys}
        linears = {f"self_attn.{name}_proj": (rows, width) for name, rows in of.items()}
        linears["self_attn.o_proj"] = (width, queries)
        linears |= {f"mlp.{name}_proj": (hidden, width) for name in ("gate", "up")}
        linears["mlp.down_proj"] = (width, hidden)
        for name, shape in linears.items():
            found[f"{layer}.{name}.weight"] = shape
            if config.get("mlp_bias" if name.startswith("mlp") else "attention_bias"):
                found[f"{layer}.{name}.bias"] = shape[:1]
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found


def tensors(config):
    is_gain = lambda name: name.endswith("norm.weight") or ".ln_" in name and "bias" not in name
    return drawn(shapes(config), is_gain)


def write(folder, config, weights=None, tokenizer=True):
    """Writes config.json, model.safetensors and a tokenizer.json of letters."""
    folder = save(folder, config, tensors(config) if weights is None else weights)
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    """Byte-level BPE, as both families have it: of some letters, the space and a few pairs."""
    import tokenizers as t

    letters = [*"abcdehilnorstuwy", "Ġ", "."]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocabulary = ["<|endoftext|>", *letters, *map("".join, merges)]
    assert len(vocabulary) <= GPT2["vocab_size"]
    numbers = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = t.Tokenizer(t.models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = t.decoders.ByteLevel()
    tokenizer.add_special_tokens(vocabulary[:1])
    tokenizer.save(str(pathlib.Path(folder) / "tokenizer.json"))


def token_inputs(config):
    """Tokens [3, 9] and where they are real, with places of padding at the right."""
    rng, lengths = np.random.default_rng(5), np.array([9, 5, 8])
    valid = np.arange(9)[None, :] < lengths[:, None]
    return np.where(valid, rng.integers(0, config["vocab_size"], (3, 9)), 0), valid
