"""A GGUF file of the llama architecture as a Hugging Face folder, in float32.

GGUF is what llama.cpp reads; small models are often published in it alone. Needs the package `gguf`
(extra `gguf`), which undoes the quantisation; the numbers are those of the quantised model.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import write_whole

_OUTER = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
_INNER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
# How texts are cut before byte-level BPE, by GGUF's name of it; True: digits stand alone.
_CUTS = {"gpt-2": False, "smollm": True, "starcoder": True, "refact": True}
_CONTROL, _OWN = 3, 4  # kinds of tokens
_KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}  # fmt: skip


def convert(file: pathlib.Path, folder: pathlib.Path) -> str | None:
    """Writes config.json, model.safetensors and, if it can be made, tokenizer.json.

    Returns:
      why there is no tokenizer.json, in a few words; None where there is one.

    Raises:
      ConfigError: `gguf` for a file that is damaged or holds something else, `out` for a folder
        that holds files already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("out", str(folder), "holds files already; name a new folder")
    fields, tensors = _read(file)
    config = _config(file, fields, tensors)
    found = {}
    for name, array in tensors.items():
        renamed = _renamed(file, name)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in renamed:
                array = _unpermuted(array, config[heads])
        found[renamed] = np.ascontiguousarray(array)
    tokenizer, lack = _tokenizer(fields)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.safetensors", safetensors.numpy.save(found, {"format": "pt"}))
    if tokenizer is not None:
        write_whole(folder / "tokenizer.json", tokenizer)
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return lack


def _read(file: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields, and the tensors in float32."""
    try:
        import gguf
    except ImportError:
        advice = "needs the package 'gguf': pip install -e '.[gguf]'"
        raise ConfigError("gguf", str(file), advice) from None
    if not file.is_file():
        raise ConfigError("gguf", str(file), "is no file")
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever a damaged file makes of the package
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refusal(file, f"is no readable GGUF file: {line}") from None
    if fields.get("general.architecture") != "llama":
        given = fields.get("general.architecture")
        raise _refusal(file, f"is of the architecture {given!r}; understood: 'llama'")
    tensors = {}
    for tensor in reader.tensors:
        try:
            plain = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            what = f"{tensor.name} is stored as {tensor.tensor_type.name}, which is not understood"
            raise _refusal(file, what) from None
        tensors[tensor.name] = np.asarray(plain, np.float32)
    return fields, tensors


def _config(
    file: pathlib.Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json."""
    own = {name.removeprefix("llama."): value for name, value in fields.items()}
    for name in _KEYS.values():
        if name not in own:
            raise _refusal(file, f"has no field llama.{name}")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        **{ours: own[name] for ours, name in _KEYS.items()},
        "num_key_value_heads": own.get("attention.head_count_kv", own["attention.head_count"]),
        "rope_theta": own.get("rope.freq_base", 10_000.0),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }  # fmt: skip
    if "token_embd.weight" not in tensors:
        raise _refusal(file, "has no tensor token_embd.weight")
    # It was a float of 32 bits: 1e-05, not 9.999999747378752e-06.
    config["rms_norm_eps"] = float(str(np.float32(config["rms_norm_eps"])))
    config["vocab_size"] = len(tensors["token_embd.weight"])
    counts = (config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"])
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise _refusal(file, f"has layers of several shapes, {counts}")
    size = own.get("attention.key_length", counts[0] // counts[1])
    config["head_dim"] = size
    turned = own.get("rope.dimension_count", size)
    if turned != size or own.get("rope.scaling.type", "none") != "none":
        raise _refusal(file, "scales its rotary positions, or turns a part of a head alone")
    for name, token in (("bos", "bos_token_id"), ("eos", "eos_token_id")):
        config[token] = fields.get(f"tokenizer.ggml.{name}_token_id")
    return config


def _renamed(file: pathlib.Path, name: str) -> str:
    """The name of a tensor in a Hugging Face folder."""
    *parts, end = name.split(".")
    if end in ("weight", "bias"):
        if len(parts) == 1 and parts[0] in _OUTER:
            return f"{_OUTER[parts[0]]}.{end}"
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in _INNER:
            return f"model.layers.{parts[1]}.{_INNER[parts[2]]}.{end}"
    raise _refusal(file, f"has a tensor {name}, which is not understood")


def _unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in Hugging Face's order: GGUF has the coordinates that are turned
    together, i and i + H/2, beside each other."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)


def _tokenizer(fields: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """tokenizer.json, or why there is none."""
    own = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    kind, cut = own.get("model"), own.get("pre")
    if kind != "gpt2" or cut not in _CUTS:
        return None, f"a tokenizer {kind!r} that cuts texts as {cut!r} is not understood"
    ends = [f"{end}_token_id" for end in ("bos", "eos") if own.get(f"add_{end}_token")]
    lacking = [name for name in ("tokens", "merges", *ends) if name not in own]
    if lacking:
        return None, f"the file has no tokenizer.ggml.{lacking[0]}"
    try:
        import tokenizers as t
    except ImportError:
        return None, "needs the package 'tokenizers': pip install -e '.[text]'"
    numbers = {token: i for i, token in enumerate(own["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in own["merges"]]
    tokenizer = t.Tokenizer(t.models.BPE(numbers, merges))
    cuts = [t.pre_tokenizers.Digits(individual_digits=True)] if _CUTS[cut] else []
    spaced = bool(own.get("add_space_prefix", False))
    cuts.append(t.pre_tokenizers.ByteLevel(add_prefix_space=spaced))
    tokenizer.pre_tokenizer = t.pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = t.decoders.ByteLevel()
    kinds = own.get("token_type", [])
    for token, kind in zip(own["tokens"], kinds, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([t.AddedToken(token, special=True, normalized=False)])
        elif kind == _OWN:
            tokenizer.add_tokens([t.AddedToken(token, normalized=False)])
    ends = [own["tokens"][own[f"{end}_token_id"]] if own.get(f"add_{end}_token") else None
            for end in ("bos", "eos")]  # fmt: skip
    if any(ends):
        single = " ".join(filter(None, (ends[0], "$A", ends[1])))
        special = [(token, numbers[token]) for token in dict.fromkeys(filter(None, ends))]
        tokenizer.post_processor = t.processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    return tokenizer.to_str(), None


def _refusal(file: pathlib.Path, what: str) -> ConfigError:
    return ConfigError("gguf", str(file), what)
