"""Small Hugging Face folders with random weights, written by hand: one of each family."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

WORDS = [
    "the", "cat", "sat", "on", "a", "mat", "dog", "ran", "far", "and", "so", "it", "went", "home",
]  # fmt: skip
BERT = {
    "model_type": "bert", "vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 16,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "bert": BERT,
    "roberta": BERT | {
        "model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 18,
        "layer_norm_eps": 0.01, "pad_token_id": 1, "hidden_act": "gelu_new",
    },
    "distilbert": {
        "model_type": "distilbert", "vocab_size": 20, "dim": 12, "n_layers": 2, "n_heads": 3,
        "hidden_dim": 20, "max_position_embeddings": 16, "activation": "gelu", "pad_token_id": 0,
    },
    "vit": {
        "model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 20, "image_size": 8, "patch_size": 4, "num_channels": 3,
        "layer_norm_eps": 0.01, "hidden_act": "gelu",
    },
}  # fmt: skip
TEXTS = ["the cat sat on a mat", "it went home", "so far and the dog ran home"]


def shapes(config):
    """{name of a tensor: shape}, as transformers stores the bare model."""
    kind = config["model_type"]
    width = config.get("hidden_size") or config["dim"]
    hidden = config.get("intermediate_size") or config["hidden_dim"]
    found, norms, linears = {}, [], {}
    if kind == "vit":
        patch, side = config["patch_size"], config["image_size"] // config["patch_size"]
        conv = "embeddings.patch_embeddings.projection"
        found = {
            "embeddings.cls_token": (1, 1, width),
            "embeddings.position_embeddings": (1, 1 + side**2, width),
            f"{conv}.weight": (width, config["num_channels"], patch, patch),
            f"{conv}.bias": (width,),
        }
        norms.append("layernorm")
    else:
        found["embeddings.word_embeddings.weight"] = (config["vocab_size"], width)
        places = (config["max_position_embeddings"], width)
        found["embeddings.position_embeddings.weight"] = places
        if kind != "distilbert":
            types = (config["type_vocab_size"], width)
            found["embeddings.token_type_embeddings.weight"] = types
        norms.append("embeddings.LayerNorm")
    for i in range(config.get("num_hidden_layers") or config["n_layers"]):
        if kind == "distilbert":
            layer = f"transformer.layer.{i}"
            square = [f"attention.{part}_lin" for part in ("q", "k", "v", "out")]
            wide, back = "ffn.lin1", "ffn.lin2"
            norms += [f"{layer}.sa_layer_norm", f"{layer}.output_layer_norm"]
        else:
            layer = f"encoder.layer.{i}"
            inner = "attention" if kind == "vit" else "self"
            square = [f"attention.{inner}.{role}" for role in ("query", "key", "value")]
            square.append("attention.output.dense")
            wide, back = "intermediate.dense", "output.dense"
            both = ("layernorm_before", "layernorm_after")
            both = both if kind == "vit" else ("attention.output.LayerNorm", "output.LayerNorm")
            norms += [f"{layer}.{norm}" for norm in both]
        linears |= {f"{layer}.{name}": (width, width) for name in square}
        linears |= {f"{layer}.{wide}": (hidden, width), f"{layer}.{back}": (width, hidden)}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return found


def drawn(shapes, is_gain):
    """Random tensors, large enough that no part of the model can be left out unseen; gains are
    about 1."""
    rng = np.random.default_rng(7)
    return {
        name: (0.4 * rng.standard_normal(shape) + is_gain(name)).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def tensors(config):
    is_gain = lambda name: "norm" in name.lower() and name.endswith("weight")
    return drawn(shapes(config), is_gain)


def save(folder, config, weights):
    """Writes config.json and model.safetensors; returns the folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write(folder, config, weights=None, tokenizer=True):
    """Writes config.json, model.safetensors and a tokenizer.json of whole words."""
    folder = save(folder, config, tensors(config) if weights is None else weights)
    if tokenizer and config["model_type"] != "vit":
        write_tokenizer(folder, config["model_type"] == "roberta")
    return folder


def write_tokenizer(folder, roberta=False, words=WORDS):
    import tokenizers as t

    marks = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    start, end = (marks[0], marks[2]) if roberta else (marks[1], marks[2])
    vocabulary = {word: i for i, word in enumerate([*marks, *words])}
    tokenizer = t.Tokenizer(t.models.WordLevel(vocabulary, unk_token=marks[3]))
    tokenizer.pre_tokenizer = t.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(marks)
    tokenizer.post_processor = t.processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(mark, vocabulary[mark]) for mark in (start, end)],
    )
    # Published files often carry these; they must not act by themselves.
    tokenizer.enable_padding(length=12, pad_id=vocabulary[marks[1 if roberta else 0]])
    tokenizer.enable_truncation(4)
    tokenizer.save(str(pathlib.Path(folder) / "tokenizer.json"))


def images():
    """Two images [2, 8, 8, 3]."""
    return np.random.default_rng(3).standard_normal((2, 8, 8, 3)).astype(np.float32)


def token_inputs(config):
    """Tokens [3, 9] and where they are real, with places of padding at the right."""
    rng, lengths = np.random.default_rng(5), np.array([9, 5, 8])
    valid = np.arange(9)[None, :] < lengths[:, None]
    ids = np.where(valid, rng.integers(4, 18, (3, 9)), config["pad_token_id"])
    return ids.astype(np.int32), valid
