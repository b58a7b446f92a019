"""The decoders of Hugging Face folders: GPT-2 and Llama.

Both read out logits of the next token, by the embedding itself where config.json ties the two.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkv_jax.interop.fields import words
from qkv_jax.interop.places import (
    FROM_HEADS,
    HEADS_BIAS,
    LINEAR,
    SAME,
    TO_HEADS,
    Layout,
    Place,
    Plan,
    activation,
    norm,
    positive,
    refusal,
    their_activation,
    truth,
    whole,
)
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.positions import BASE
from qkv_jax.model.stems import TokenStem

GPT2_FIELDS = {
    "read": words("""
        vocab_size n_embd n_layer n_head n_inner n_positions activation_function
        layer_norm_epsilon tie_word_embeddings
    """),
    "harmless": words("""
        n_ctx attn_pdrop embd_pdrop resid_pdrop pad_token_id reorder_and_upcast_attn
        summary_activation summary_first_dropout summary_proj_to_labels summary_type
    """),
    "fixed": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
LLAMA_FIELDS = {
    "read": words("""
        vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
        intermediate_size max_position_embeddings rms_norm_eps rope_theta rope_parameters
        attention_bias mlp_bias tie_word_embeddings
    """),
    # How a checkpoint was cut for training, and what other libraries read.
    "harmless": words("pad_token_id pretraining_tp is_llama_config transformers.js_config"),
    "fixed": {"hidden_act": "silu", "rope_scaling": None, "rope_interleaved": False},
}
_ROPE = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}


def gpt2(values: Mapping[str, Any]) -> Plan:
    """GPT-2 (Radford et al. 2019). Its linear layers are stored as [in, out], and queries, keys and
    values of a layer lie side by side in one tensor."""
    width, heads = whole(values, "n_embd"), whole(values, "n_head")
    if width % heads:
        raise refusal("n_embd", width, f"must be divisible by the {heads} heads")
    tied = truth(values, "tie_word_embeddings", True)
    model = ModelConfig(
        layers=whole(values, "n_layer"), width=width, heads=heads,
        mlp_width=whole(values, "n_inner", 4 * width),
        mlp=activation(values, "activation_function", "gelu_new"),
        norm_epsilon=positive(values, "layer_norm_epsilon", 1e-5),
        positions="learned", use_bias=True, tied_embedding=tied,
    )  # fmt: skip
    places = {"positions/embedding": Place("wpe.weight", SAME), **norm("norm", "ln_f")}
    for i in range(model.layers):
        ours, theirs = f"layer_{i}", f"h.{i}"
        for part, role in enumerate(("query", "key", "value")):
            path = f"{ours}/attention/{role}"
            places[f"{path}/kernel"] = Place(f"{theirs}.attn.c_attn.weight", _third(part))
            places[f"{path}/bias"] = Place(f"{theirs}.attn.c_attn.bias", _third(part))
        joined = f"{theirs}.attn.c_proj"
        places[f"{ours}/attention/out/kernel"] = Place(f"{joined}.weight", _JOINED)
        places[f"{ours}/attention/out/bias"] = Place(f"{joined}.bias", SAME)
        for part, name in (("up", "c_fc"), ("down", "c_proj")):
            places[f"{ours}/mlp/{part}/kernel"] = Place(f"{theirs}.mlp.{name}.weight", SAME)
            places[f"{ours}/mlp/{part}/bias"] = Place(f"{theirs}.mlp.{name}.bias", SAME)
        places |= norm(f"{ours}/attention_norm", f"{theirs}.ln_1")
        places |= norm(f"{ours}/mlp_norm", f"{theirs}.ln_2")
    length = whole(values, "n_positions")
    # The causal order, which old files hold as a tensor.
    buffers = ("h.*.attn.bias", "h.*.attn.masked_bias")
    return _decoder(values, model, length, places, "transformer.", "wte.weight", buffers)


def gpt2_values(encoder: Encoder, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an encoder of ours."""
    config = encoder.config
    return _decoder_values(encoder) | {
        "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads,
        "n_inner": config.hidden, "n_positions": encoder.max_length,
        "activation_function": their_activation(config.mlp) or "gelu_new",
        "layer_norm_epsilon": config.norm_epsilon, "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip


def llama(values: Mapping[str, Any]) -> Plan:
    """Llama (Touvron et al. 2023), with grouped heads as in Llama 2."""
    width, heads = whole(values, "hidden_size"), whole(values, "num_attention_heads")
    groups = whole(values, "num_key_value_heads", heads)
    if heads % groups:
        what = f"must divide the {heads} heads of queries"
        raise refusal("num_key_value_heads", groups, what)
    if values.get("head_dim") is None and width % heads:
        raise refusal("hidden_size", width, f"must be divisible by the {heads} heads")
    size = whole(values, "head_dim", width // heads)
    if size % 2:
        field = "hidden_size" if values.get("head_dim") is None else "head_dim"
        raise refusal(field, values[field], "rotary positions need an even head width")
    biased = truth(values, "attention_bias", False)
    model = ModelConfig(
        layers=whole(values, "num_hidden_layers"), width=width, heads=heads, kv_heads=groups,
        head_dim=size, mlp_width=whole(values, "intermediate_size"), mlp="swiglu", norm="rms",
        norm_epsilon=positive(values, "rms_norm_eps", 1e-6), positions="rotary",
        rotary_base=_theta(values), use_bias=biased,
        tied_embedding=truth(values, "tie_word_embeddings", False),
    )  # fmt: skip
    mlp_biased = truth(values, "mlp_bias", False)
    places = {"norm/scale": Place("norm.weight", SAME)}
    for i in range(model.layers):
        ours, theirs = f"layer_{i}", f"layers.{i}"
        for role, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            tensor, path = f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{role}"
            kernel, bias = (FROM_HEADS, SAME) if role == "out" else (TO_HEADS, HEADS_BIAS)
            places[f"{path}/kernel"] = Place(f"{tensor}.weight", kernel)
            if biased:
                places[f"{path}/bias"] = Place(f"{tensor}.bias", bias)
        for part in ("gate", "up", "down"):
            tensor = f"{theirs}.mlp.{part}_proj"
            places[f"{ours}/mlp/{part}/kernel"] = Place(f"{tensor}.weight", LINEAR)
            bias = f"{tensor}.bias" if mlp_biased else None
            places[f"{ours}/mlp/{part}/bias"] = Place(bias, SAME)
        for norm_, tensor in (
            ("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")
        ):  # fmt: skip
            places[f"{ours}/{norm_}/scale"] = Place(f"{theirs}.{tensor}.weight", SAME)
    length = whole(values, "max_position_embeddings")
    buffers = ("layers.*.self_attn.rotary_emb.inv_freq",)
    return _decoder(values, model, length, places, "model.", "embed_tokens.weight", buffers)


def llama_values(encoder: Encoder, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an encoder of ours, whose MLP always has biases, if perhaps of zeros."""
    config = encoder.config
    of_mlp = (leaf for path, leaf in leaves.items() if "/mlp/" in path and path.endswith("bias"))
    return _decoder_values(encoder) | {
        "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "head_dim": config.head_width,
        "num_key_value_heads": config.kv_heads or config.heads,
        "intermediate_size": config.hidden, "max_position_embeddings": encoder.max_length,
        "rms_norm_eps": config.norm_epsilon, "rope_theta": config.rotary_base,
        "hidden_act": "silu", "attention_bias": config.use_bias,
        "mlp_bias": any(np.any(leaf) for leaf in of_mlp), "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip


def _decoder_values(encoder: Encoder) -> dict[str, Any]:
    """What is common; a symbol that is never asked for begins a text, and none ends one."""
    tokens = encoder.stem.vocabulary[0]
    begin = encoder.classes if encoder.classes < tokens else None
    return {
        "vocab_size": tokens, "tie_word_embeddings": encoder.config.tied_embedding,
        "bos_token_id": begin, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip


def _decoder(
    values: Mapping[str, Any], model: ModelConfig, length: int, places: dict[str, Place],
    prefix: str, table: str, unneeded: tuple[str, ...],
) -> Plan:  # fmt: skip
    """The plan of a model whose embedding is that tensor."""
    tokens = whole(values, "vocab_size")
    encoder = Encoder(model, TokenStem((tokens,), model.width), tokens, length, is_causal=True)
    places["stem/field_0/embedding"] = Place(table, SAME)
    if model.tied_embedding:
        unneeded = ("lm_head.weight", *unneeded)  # the embedding once more
    else:
        places["readout/kernel"] = Place("lm_head.weight", LINEAR)
        places["readout/bias"] = Place(None, SAME)
    heads = ("score.weight", "classifier.*", "multiple_choice_head.*")
    return Plan(encoder, places, prefix, (*unneeded, *heads), pad=None)


def _third(part: int) -> Layout:
    """That of three matrices [D, N H], or biases, side by side."""
    return Layout(
        lambda ours: (*ours[:-2], 3 * ours[-2] * ours[-1]),
        lambda array, ours: np.split(array, 3, axis=-1)[part].reshape(ours),
    )


_JOINED = Layout(lambda o: (o[0] * o[1], o[2]), lambda array, ours: array.reshape(ours))


def _theta(values: Mapping[str, Any]) -> float:
    """The base of rotary positions; since version 5 of the library it stands among others."""
    given = values.get("rope_parameters")
    if given is None:
        return positive(values, "rope_theta", BASE)
    if not isinstance(given, dict):
        raise refusal("rope_parameters", given, "must be an object")
    for field, value in given.items():
        if field != "rope_theta" and value is not None and value != _ROPE.get(field):
            known = f"understood: {_ROPE[field]!r}" if field in _ROPE else "is not a known field"
            raise refusal(f"rope_parameters {field}", value, known)
    return positive(given, "rope_theta", BASE)
