"""What a Hugging Face model is in our terms: its config.json, and the place of every tensor.

A family is one layout: which fields of config.json say what, which tensor becomes which leaf, and
which tensors are known and not needed. Linear layers are stored there as [out, in]; heads lie side
by side in one axis. Every leaf says what shape its tensor must have, so that nothing is guessed.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.interop.fields import check_fields, words
from qkv_jax.interop.model_fields import FIXED, HARMLESS
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem

Shape = tuple[int, ...]
_ACTIVATIONS = {
    "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "gelu_accurate": "gelu", "gelu_python": "gelu_exact", "relu": "relu",
}  # fmt: skip
_READ = words("""
    vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    max_position_embeddings type_vocab_size layer_norm_eps pad_token_id
""")


class Layout(NamedTuple):
    """From a tensor of the files to a leaf of ours: `stored` gives the shape that the tensor must
    have for a leaf's, `convert` makes the leaf of that shape."""

    stored: Callable[[Shape], Shape]
    convert: Callable[[np.ndarray, Shape], np.ndarray]


def _positions(start: int) -> Layout:
    """A table whose first rows stand for no place."""
    return Layout(lambda ours: (ours[0] + start, ours[1]), lambda array, ours: array[start:])


def _patches(size: int) -> Layout:
    """A convolution [D, C, rows, columns] as a matrix of flattened patches [rows columns C, D]."""
    return Layout(
        lambda ours: (ours[1], ours[0] // size**2, size, size),
        lambda array, ours: array.transpose(2, 3, 1, 0).reshape(ours),
    )


SAME = Layout(lambda ours: ours, lambda array, ours: array)
LINEAR = Layout(lambda ours: ours[::-1], lambda array, ours: array.T)
TO_HEADS = Layout(lambda o: (o[1] * o[2], o[0]), lambda array, ours: array.T.reshape(ours))
FROM_HEADS = Layout(lambda o: (o[2], o[0] * o[1]), lambda array, ours: array.T.reshape(ours))
HEADS_BIAS = Layout(lambda o: (o[0] * o[1],), lambda array, ours: array.reshape(ours))
BATCHED = Layout(lambda ours: (1, *ours), lambda array, ours: array[0])


class Place(NamedTuple):
    """Where a leaf's numbers are; without a tensor they are zeros."""

    tensor: str | None
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Plan:
    """One model: our encoder, the tensor of every leaf, and how its inputs are made.

    Attributes:
      encoder: without readout; `apply` gives the last hidden state [B, T, D].
      places: by our path, `layer_0/attention/query/kernel`.
      prefix: what names of tensors may begin with.
      unneeded: patterns of tensors that the encoder can do without.
      skipped: rows of tensors that no token reads, in words.
      pad: the number of the padding token.
      pad_counts: whether the padding token takes no place, as in RoBERTa.
      channels: of the images of a ViT.
    """

    encoder: Encoder
    places: Mapping[str, Place]
    prefix: str
    unneeded: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    pad: int = 0
    pad_counts: bool = False
    channels: int = 0

    def is_unneeded(self, tensor: str) -> bool:
        return any(fnmatch.fnmatchcase(tensor, pattern) for pattern in self.unneeded)


def plan(values: Mapping[str, Any]) -> Plan:
    """The plan of a config.json.

    Raises:
      ConfigError: naming the field, for a `model_type` or a value that is not understood.
    """
    kind = kind_of(values)
    if kind == "gpt2":
        raise _refusal("model_type", kind, "a decoder, which this package does not have yet")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise _refusal("model_type", kind, f"understood: {', '.join(_FAMILIES)}")
    family = _FAMILIES[kind]
    check_fields("config.json", values, family.read, HARMLESS, FIXED)
    return family.plan(values)


def kind_of(values: Mapping[str, Any]) -> Any:
    """The model_type; where there is none, as in old files, that of the class that was saved."""
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind is not None or not isinstance(classes, list):
        return kind
    found = {
        kind
        for name in classes
        for kind, family in _FAMILIES.items()
        if re.fullmatch(f"{family.name}(Model|LMHeadModel|For[A-Z][A-Za-z]*)", str(name))
    }
    return found.pop() if len(found) == 1 else None


def _bert(values: Mapping[str, Any]) -> Plan:
    return _bert_like(values, "bert.", ("cls.predictions.*", "cls.seq_relationship.*"), False)


def _roberta(values: Mapping[str, Any]) -> Plan:
    return _bert_like(values, "roberta.", ("lm_head.*",), True)


def _bert_like(values, prefix: str, heads: tuple[str, ...], pad_counts: bool) -> Plan:
    """BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019), whose places start after the number
    of the padding token; the first rows of its table belong to padded tokens."""
    pad = _whole(values, "pad_token_id", 1 if pad_counts else 0, least=0)
    start = pad + 1 if pad_counts else 0
    length = _whole(values, "max_position_embeddings") - start
    if length < 1:
        given = values["max_position_embeddings"]
        raise _refusal("max_position_embeddings", given, f"the first {start} stand for padding")
    model = _model(values, embedding_norm=True, norm_position="post")
    # Token types are a second field of every token: their table stays as it is, and pairs of texts
    # can be told apart.
    fields = (_whole(values, "vocab_size"), _whole(values, "type_vocab_size", 2))
    encoder = Encoder(model, TokenStem(fields, model.width), 0, length)
    places = {
        "stem/field_0/embedding": Place("embeddings.word_embeddings.weight", SAME),
        "stem/field_1/embedding": Place("embeddings.token_type_embeddings.weight", SAME),
        "positions/embedding": Place("embeddings.position_embeddings.weight", _positions(start)),
        **_norm("embedding_norm", "embeddings.LayerNorm"),
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


def _distilbert(values: Mapping[str, Any]) -> Plan:
    """DistilBERT (Sanh et al. 2019): BERT without token types, its norms at a fixed epsilon."""
    names = {
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim", "hidden_act": "activation", "layer_norm_eps": None,
    }  # fmt: skip
    model = _model(values, names, embedding_norm=True, norm_position="post")
    stem = TokenStem((_whole(values, "vocab_size"),), model.width)
    encoder = Encoder(model, stem, 0, _whole(values, "max_position_embeddings"))
    places = {
        "stem/field_0/embedding": Place("embeddings.word_embeddings.weight", SAME),
        "positions/embedding": Place("embeddings.position_embeddings.weight", SAME),
        **_norm("embedding_norm", "embeddings.LayerNorm"),
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
    pad = _whole(values, "pad_token_id", 0, least=0)
    return Plan(encoder, places, "distilbert.", unneeded, pad=pad)


def _vit(values: Mapping[str, Any]) -> Plan:
    """The Vision Transformer (Dosovitskiy et al. 2021)."""
    model = _model(values, norm_position="pre")
    size, patch = _side(values, "image_size", 224), _side(values, "patch_size", 16)
    if size % patch:
        raise _refusal("image_size", size, f"must be divisible by patch_size = {patch}")
    channels = _whole(values, "num_channels", 3)
    stem = PatchStem(patch, model.width)
    encoder = Encoder(model, stem, 0, 1 + (size // patch) ** 2)
    conv = "embeddings.patch_embeddings.projection"
    places = {
        "stem/class_token/embedding": Place("embeddings.cls_token", SAME),
        "stem/patch/kernel": Place(f"{conv}.weight", _patches(patch)),
        "stem/patch/bias": Place(f"{conv}.bias", SAME),
        "positions/embedding": Place("embeddings.position_embeddings", BATCHED),
        **_norm("norm", "layernorm"),
    }
    biased = values.get("qkv_bias", True)
    if not isinstance(biased, bool):
        raise _refusal("qkv_bias", biased, "must be true or false")
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


class _Family(NamedTuple):
    """Models of one layout: its plan, how their classes begin, and the fields that are read."""

    plan: Callable[[Mapping[str, Any]], Plan]
    name: str
    read: frozenset[str] = _READ


_FAMILIES = {
    "bert": _Family(_bert, "Bert"),
    "roberta": _Family(_roberta, "Roberta"),
    "distilbert": _Family(_distilbert, "DistilBert", words("""
        vocab_size dim n_layers n_heads hidden_dim activation max_position_embeddings pad_token_id
    """)),
    "vit": _Family(_vit, "ViT", words("""
        hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
        layer_norm_eps image_size patch_size num_channels qkv_bias
    """)),
    "xlm-roberta": _Family(_roberta, "XLMRoberta"),  # RoBERTa with another tokenizer
    "camembert": _Family(_roberta, "Camembert"),  # likewise
}  # fmt: skip


def _model(values, names: Mapping[str, str | None] | None = None, **fixed) -> ModelConfig:
    """Our config; `names` are those fields of config.json that this family calls otherwise."""
    names = {} if names is None else names
    width, layers, heads, hidden = (
        _whole(values, names.get(field, field))
        for field in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
        )
    )  # fmt: skip
    if width % heads:
        field = names.get("hidden_size", "hidden_size")
        raise _refusal(field, width, f"must be divisible by the {heads} heads")
    field = names.get("hidden_act", "hidden_act")
    activation = values.get(field, "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise _refusal(field, activation, f"understood: {', '.join(_ACTIVATIONS)}")
    epsilon = values.get(names.get("layer_norm_eps", "layer_norm_eps"), 1e-12)
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if not (number and math.isfinite(epsilon) and epsilon > 0):
        raise _refusal("layer_norm_eps", epsilon, "must be a finite number above 0")
    return ModelConfig(
        layers=layers, width=width, heads=heads, mlp_width=hidden, mlp=_ACTIVATIONS[activation],
        norm_epsilon=float(epsilon), positions="learned", use_bias=True, **fixed,
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
    for norm in ("attention_norm", "mlp_norm"):
        places |= _norm(f"{ours}/{norm}", parts[norm])
    return places


def _norm(ours: str, theirs: str) -> dict[str, Place]:
    weight, bias = Place(f"{theirs}.weight", SAME), Place(f"{theirs}.bias", SAME)
    return {f"{ours}/scale": weight, f"{ours}/bias": bias}


def _side(values, field: str, absent: int) -> int:
    """The side of a square, which may be given twice."""
    given = values.get(field)
    if isinstance(given, list):
        if len(given) != 2 or given[0] != given[1]:
            raise _refusal(field, given, "must be one whole number, or twice the same (a square)")
        values = {field: given[0]}
    return _whole(values, field, absent)


def _whole(values, field: str, absent: int | None = None, least: int = 1) -> int:
    """A whole number of config.json; `absent` stands in where there is none, or null."""
    value = values.get(field)
    value = absent if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _refusal(field, value, f"must be a whole number of at least {least}")
    return value


def _refusal(field: str, given: Any, allowed: str) -> ConfigError:
    return ConfigError(f"config.json {field}", given, allowed)
