"""What a Hugging Face model is in our terms: its config.json, and the place of every tensor.

A family is one layout: which fields of config.json say what, which tensor becomes which leaf, and
which tensors are known and not needed. Encoders are in `encoders`, decoders in `decoders`, models
of our own in `own`. `export` walks the same places the other way.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qkv_jax.interop import decoders, encoders, own
from qkv_jax.interop.fields import check_fields
from qkv_jax.interop.model_fields import FIXED, HARMLESS
from qkv_jax.interop.places import LINEAR, SAME, Place, Plan, refusal, whole
from qkv_jax.model.encoder import Encoder

# Of a model that `export` wrote: how many classes its readout has, which no other library reads.
CLASSES = "qkv_jax_classes"
_CLASSIFIER = {
    "readout/kernel": Place("classifier.weight", LINEAR),
    "readout/bias": Place("classifier.bias", SAME),
}


class Family(NamedTuple):
    """Models of one layout.

    Attributes:
      plan: of a config.json.
      name: how their classes begin.
      read: fields that are read.
      harmless, fixed: those of this family alone, see `model_fields`.
      values: the config.json of an encoder of ours with these leaves; None for families that we
        do not write.
      readout: which tokens the head reads that is called `classifier`, and its class.
    """

    plan: Callable[[Mapping[str, Any]], Plan]
    name: str
    read: frozenset[str]
    harmless: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = {}
    values: Callable[[Encoder, Mapping[str, Any]], dict[str, Any]] | None = None
    readout: tuple[str, str] = ("token", "ForTokenClassification")


FAMILIES = {
    "bert": Family(encoders.bert, "Bert", encoders.BERT_READ, values=encoders.bert_values),
    "roberta": Family(encoders.roberta, "Roberta", encoders.BERT_READ),
    "distilbert": Family(encoders.distilbert, "DistilBert", encoders.DISTILBERT_READ),
    "vit": Family(encoders.vit, "ViT", encoders.VIT_READ, values=encoders.vit_values,
                  readout=("class", "ForImageClassification")),
    # RoBERTa with another tokenizer, twice
    "xlm-roberta": Family(encoders.roberta, "XLMRoberta", encoders.BERT_READ),
    "camembert": Family(encoders.roberta, "Camembert", encoders.BERT_READ),
    "gpt2": Family(decoders.gpt2, "GPT2", **decoders.GPT2_FIELDS, values=decoders.gpt2_values),
    "llama": Family(decoders.llama, "Llama", **decoders.LLAMA_FIELDS,
                    values=decoders.llama_values),
    own.KIND: Family(own.plan, "QkvJax", frozenset({own.KIND})),
}  # fmt: skip


def plan(values: Mapping[str, Any]) -> Plan:
    """The plan of a config.json.

    Raises:
      ConfigError: naming the field, for a `model_type` or a value that is not understood.
    """
    kind = kind_of(values)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise refusal("model_type", kind, f"understood: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    fixed = {**FIXED, **family.fixed}
    read = family.read | ({CLASSES} if family.values else set())
    check_fields("config.json", values, read, HARMLESS | family.harmless, fixed)
    found = family.plan(values)
    if family.values and CLASSES in values:
        return _with_readout(found, family, whole(values, CLASSES))
    return found


def _with_readout(found: Plan, family: Family, classes: int) -> Plan:
    """The same model with its readout. No token of ours stands for padding."""
    if found.encoder.is_causal:
        return dataclasses.replace(found, encoder=found.encoder.clone(classes=classes))
    encoder = found.encoder.clone(classes=classes, readout=family.readout[0])
    return dataclasses.replace(
        found, encoder=encoder, places={**found.places, **_CLASSIFIER}, pad=None
    )


def kind_of(values: Mapping[str, Any]) -> Any:
    """The model_type; where there is none, as in old files, that of the class that was saved."""
    kind, classes = values.get("model_type"), values.get("architectures")
    if kind is not None or not isinstance(classes, list):
        return kind
    found = {
        kind
        for name in classes
        for kind, family in FAMILIES.items()
        if re.fullmatch(f"{family.name}(Model|LMHeadModel|For[A-Z][A-Za-z]*)", str(name))
    }
    return found.pop() if len(found) == 1 else None
