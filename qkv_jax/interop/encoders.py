"""The encoders of Hugging Face folders: BERT, RoBERTa, DistilBERT and ViT."""

import math
from collections.abc import Mapping
from typing import Any

from qkv_jax.interop.fields import words
from qkv_jax.interop.places import (
    BATCHED,
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
from qkv_jax.model.stems import PatchStem, TokenStem

BERT_READ = words("""
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    max_position_embeddings type_vocab_size layer_norm_eps pad_token_id
""")
DISTILBERT_READ = words("""
    vocab_size dim n_layers n_heads hidden_dim activation max_position_embeddings pad_token_id
""")
VIT_READ = words("""
    hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    layer_norm_eps image_size patch_size num_channels qkv_bias
""")


def bert(values: Mapping[str, Any]) -> Plan:
    return _bert_like(values, "bert.", ("cls.predictions.*", "cls.seq_relationship.*"), False)


def roberta(values: Mapping[str, Any]) -> Plan:
    return _bert_like(values, "roberta.", ("lm_head.*",), True)


def _bert_like(values, prefix: str, heads: tuple[str, ...], pad_counts: bool) -> Plan:
    """BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019), whose places start after the number
    of the padding token; the first rows of its table belong to padded tokens."""
    pad = whole(values, "pad_token_id", 1 if pad_counts else 0, least=0)
    start = pad + 1 if pad_counts else 0
    length = whole(values, "max_position_embeddings") - start
    if length < 1:
        given = values["max_position_embeddings"]
        raise refusal("max_position_embeddings", given, f"the first {start} stand for padding")
    model = _model(values, embedding_norm=True, norm_position="post")
    # Token types are a second field of every token: their table stays as it is, and pairs of texts
    # can be told apart.
    fields = (whole(values, "vocab_size"), whole(values, "type_vocab_size", 2))
    encoder = Encoder(model, TokenStem(fields, model.width), 0, length)
    places = {
        "stem/field_0/embedding": Place("embeddings.word_embeddings.weight", SAME),
        "stem/field_1/embedding": Place("embeddings.token_type_embeddings.weight", SAME),
        "positions/embedding": Place("embeddings.position_embeddings.weight", _positions(start)),
        **norm("embedding_norm", "embeddings.LayerNorm"),
    }
    for i in range(model.layers):
        theirs = f"encoder.layer.{i}"
        places |= _block(i, f"{theirs}.attention.self.", ("query", "key", "value"), {
            "out": f"{theirs}.attention.output.dense",
            "up": f"{theirs}.intermediate.dense",
            "down": f"{theirs}.output.dense",
            "attention_norm": f"{theirs}.attention.output.LayerNorm",
            "mlp_norm": f"{theirs}.output.LayerNorm",
        })  # fmt: skip
    buffers = ("embeddings.position_ids", "embeddings.token_type_ids")
    unneeded = ("pooler.dense.*", "classifier.*", "qa_outputs.*", *buffers, *heads)
    table = "embeddings.position_embeddings.weight"
    skipped = (f"{table}[:{start}] (places of padding)",) if start else ()
    return Plan(encoder, places, prefix, unneeded, skipped, pad, pad_counts)


def bert_values(encoder: Encoder, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an encoder of ours, with one token type where it has none."""
    fields = encoder.stem.vocabulary
    return _values(encoder) | {
        "vocab_size": fields[0], "type_vocab_size": fields[1] if len(fields) > 1 else 1,
        "max_position_embeddings": encoder.max_length, "pad_token_id": None,
    }  # fmt: skip


def distilbert(values: Mapping[str, Any]) -> Plan:
    """DistilBERT (Sanh et al. 2019): BERT without token types, its norms at a fixed epsilon."""
    names = {
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim", "hidden_act": "activation", "layer_norm_eps": None,
    }  # fmt: skip
    model = _model(values, names, embedding_norm=True, norm_position="post")
    stem = TokenStem((whole(values, "vocab_size"),), model.width)
    encoder = Encoder(model, stem, 0, whole(values, "max_position_embeddings"))
    places = {
        "stem/field_0/embedding": Place("embeddings.word_embeddings.weight", SAME),
        "positions/embedding": Place("embeddings.position_embeddings.weight", SAME),
        **norm("embedding_norm", "embeddings.LayerNorm"),
    }
    for i in range(model.layers):
        theirs = f"transformer.layer.{i}"
        places |= _block(i, f"{theirs}.attention.", ("q_lin", "k_lin", "v_lin"), {
            "out": f"{theirs}.attention.out_lin",
            "up": f"{theirs}.ffn.lin1",
            "down": f"{theirs}.ffn.lin2",
            "attention_norm": f"{theirs}.sa_layer_norm",
            "mlp_norm": f"{theirs}.output_layer_norm",
        })  # fmt: skip
    heads = ("vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*", "pre_classifier.*")
    unneeded = (*heads, "classifier.*", "qa_outputs.*", "embeddings.position_ids")
    pad = whole(values, "pad_token_id", 0, least=0)
    return Plan(encoder, places, "distilbert.", unneeded, pad=pad)


def vit(values: Mapping[str, Any]) -> Plan:
    """The Vision Transformer (Dosovitskiy et al. 2021)."""
    model = _model(values, norm_position="pre")
    size, patch = _side(values, "image_size", 224), _side(values, "patch_size", 16)
    if size % patch:
        raise refusal("image_size", size, f"must be divisible by patch_size = {patch}")
    channels = whole(values, "num_channels", 3)
    stem = PatchStem(patch, model.width)
    encoder = Encoder(model, stem, 0, 1 + (size // patch) ** 2)
    conv = "embeddings.patch_embeddings.projection"
    places = {
        "stem/class_token/embedding": Place("embeddings.cls_token", SAME),
        "stem/patch/kernel": Place(f"{conv}.weight", _patches(patch)),
        "stem/patch/bias": Place(f"{conv}.bias", SAME),
        "positions/embedding": Place("embeddings.position_embeddings", BATCHED),
        **norm("norm", "layernorm"),
    }
    biased = truth(values, "qkv_bias", True)
    for i in range(model.layers):
        theirs = f"encoder.layer.{i}"
        places |= _block(i, f"{theirs}.attention.attention.", ("query", "key", "value"), {
            "out": f"{theirs}.attention.output.dense",
            "up": f"{theirs}.intermediate.dense",
            "down": f"{theirs}.output.dense",
            "attention_norm": f"{theirs}.layernorm_before",
            "mlp_norm": f"{theirs}.layernorm_after",
        }, biased)  # fmt: skip
    unneeded = ("pooler.dense.*", "classifier.*", "embeddings.mask_token", "decoder.0.*")
    return Plan(encoder, places, "vit.", unneeded, channels=channels)


def vit_values(encoder: Encoder, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an encoder of ours."""
    patch, rows = encoder.stem.patch, len(leaves["stem/patch/kernel"])
    return _values(encoder) | {
        "image_size": math.isqrt(encoder.max_length - 1) * patch, "patch_size": patch,
        "num_channels": rows // patch**2, "qkv_bias": encoder.config.use_bias,
    }  # fmt: skip


def _values(encoder: Encoder) -> dict[str, Any]:
    config = encoder.config
    return {
        "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "intermediate_size": config.hidden,
        "hidden_act": their_activation(config.mlp) or "gelu_new",
        "layer_norm_eps": config.norm_epsilon, "num_labels": encoder.classes,
    }  # fmt: skip


def _positions(start: int) -> Layout:
    """A table whose first rows stand for no place."""
    return Layout(lambda ours: (ours[0] + start, ours[1]), lambda array, ours: array[start:])


def _patches(size: int) -> Layout:
    """A convolution [D, C, rows, columns] as a matrix of flattened patches [rows columns C, D]."""
    return Layout(
        lambda ours: (ours[1], ours[0] // size**2, size, size),
        lambda array, ours: array.transpose(2, 3, 1, 0).reshape(ours),
    )


def _model(values, names: Mapping[str, str | None] | None = None, **fixed) -> ModelConfig:
    """Our config; `names` are those fields of config.json that this family calls otherwise."""
    names = {} if names is None else names
    width, layers, heads, hidden = (
        whole(values, names.get(field, field))
        for field in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
    )  # fmt: skip
    if width % heads:
        field = names.get("hidden_size", "hidden_size")
        raise refusal(field, width, f"must be divisible by the {heads} heads")
    # DistilBERT has no field for it.
    named = names.get("layer_norm_eps", "layer_norm_eps") is not None
    epsilon = positive(values if named else {}, "layer_norm_eps", 1e-12)
    return ModelConfig(
        layers=layers, width=width, heads=heads, mlp_width=hidden,
        mlp=activation(values, names.get("hidden_act", "hidden_act"), "gelu"),
        norm_epsilon=epsilon, positions="learned", use_bias=True, **fixed,
    )  # fmt: skip


def _block(layer: int, roles_under: str, roles: tuple[str, ...], parts: Mapping[str, str],
           biased: bool = True):  # fmt: skip
    """The places of one layer; `biased`: whether its projections of X have biases."""
    ours, places = f"layer_{layer}", {}
    for role, theirs in zip(("query", "key", "value"), roles, strict=True):
        path = f"{ours}/attention/{role}"
        places[f"{path}/kernel"] = Place(f"{roles_under}{theirs}.weight", TO_HEADS)
        bias = f"{roles_under}{theirs}.bias" if biased else None
        places[f"{path}/bias"] = Place(bias, HEADS_BIAS)
    places[f"{ours}/attention/out/kernel"] = Place(f"{parts['out']}.weight", FROM_HEADS)
    places[f"{ours}/attention/out/bias"] = Place(f"{parts['out']}.bias", SAME)
    for part in ("up", "down"):
        places[f"{ours}/mlp/{part}/kernel"] = Place(f"{parts[part]}.weight", LINEAR)
        places[f"{ours}/mlp/{part}/bias"] = Place(f"{parts[part]}.bias", SAME)
    for part in ("attention_norm", "mlp_norm"):
        places |= norm(f"{ours}/{part}", parts[part])
    return places


def _side(values, field: str, absent: int) -> int:
    """The side of a square, which may be given twice."""
    given = values.get(field)
    if isinstance(given, list):
        if len(given) != 2 or given[0] != given[1]:
            raise refusal(field, given, "must be one whole number, or twice the same (a square)")
        values = {field: given[0]}
    return whole(values, field, absent)
