"""A model of ours as a Hugging Face folder: the places of `layouts`, walked the other way.

A `separate` model becomes one of a published architecture where one computes exactly the same:
GPT-2, Llama, a BERT that classifies tokens, a ViT that classifies images. Any other is of our own
`model_type`, see `own`. `load_pretrained` reads both back.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
import safetensors.numpy

from qkv_jax import arguments
from qkv_jax.config import ConfigError, as_dict
from qkv_jax.interop import layouts, own
from qkv_jax.interop.places import Place, Plan, Shape, leaf_shapes
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem
from qkv_jax.runtime.files import write_whole

Leaves = Mapping[str, np.ndarray]  # by their paths, layer_0/attention/query/kernel
# What a config says of training alone, or of what the tie says already.
_NO_MATHS = own.COMPUTED | {"dtype", "frozen", "preset"}


class Exported(NamedTuple):
    """What was written.

    Attributes:
      kind: the model_type.
      why_own: why no published architecture computes the same; empty where one does.
    """

    kind: str
    why_own: str


def save_model(
    folder: pathlib.Path,
    encoder: Encoder,
    variables: dict[str, Any],
    tokenizer: str | None = None,
    like: Plan | None = None,
) -> Exported:
    """Writes config.json and model.safetensors and, where there is one, tokenizer.json.

    Args:
      tokenizer: what tokenizer.json is to hold.
      like: the plan of the model that this one was made from, see `own.values`.

    Raises:
      ConfigError: `folder` if it holds files, `encoder` or `variables` for what is no model.
    """
    folder = new_folder(arguments.path("folder", folder))
    arguments.instance("encoder", encoder, Encoder)
    arguments.instance("tokenizer", tokenizer, (str, type(None)))
    arguments.instance("like", like, (Plan, type(None)))
    params = variables.get("params") if isinstance(variables, Mapping) else None
    if not isinstance(params, Mapping):
        raise ConfigError("variables", variables, "must be {'params': ...}")
    leaves = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()
    }
    why_own = ""
    try:
        values, found = _published(encoder, leaves)
        tensors = stored(found, leaves)
    except ConfigError as misfit:
        why_own = misfit.allowed
        kernel = leaves.get("stem/patch/kernel", ())
        channels = len(kernel) // encoder.stem.patch**2 if len(kernel) else 0
        values, tensors = own.values(encoder, like, channels), dict(leaves)
        _check_shapes(leaf_shapes(encoder, channels), leaves)
    write_whole(folder / "model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
    if tokenizer is not None:
        write_whole(folder / "tokenizer.json", tokenizer)
    if not why_own and encoder.is_causal and encoder.classes < values["vocab_size"]:
        never = list(range(encoder.classes, values["vocab_size"]))  # they are read, never foretold
        _write_json(folder / "generation_config.json", {"suppress_tokens": never})
    _write_json(folder / "config.json", values)
    return Exported(values["model_type"], why_own)


def new_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder, if nothing is in it.

    Raises:
      ConfigError: `folder`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("folder", str(folder), "holds files already; name a new folder")
    return folder


def stored(plan: Plan, leaves: Leaves) -> dict[str, np.ndarray]:
    """The tensors of a plan, of the leaves of a model that computes the same. A bias that the model
    does not have is zero.

    Raises:
      ConfigError: for a leaf that has no place there.
    """
    shapes, tensors = leaf_shapes(plan.encoder, plan.channels), {}
    for path in leaves:
        if path not in shapes:
            raise _misfit(f"its {path} has no place")
    for path, shape in shapes.items():
        place, leaf = plan.places[path], leaves.get(path, np.zeros(shape, np.float32))
        if leaf.shape != shape:
            raise _misfit(f"its {path} is {leaf.shape}, not {shape}")
        if place.tensor is None:
            if np.any(leaf):
                hint = "; a run with tied_embedding has none" if path == "readout/bias" else ""
                raise _misfit(f"its {path} has no place{hint}")
            continue
        name = place.tensor if path.startswith("readout/") else f"{plan.prefix}{place.tensor}"
        _put(tensors.setdefault(name, np.zeros(place.layout.stored(shape), np.float32)),
             place, leaf)  # fmt: skip
    return tensors


def _put(tensor: np.ndarray, place: Place, leaf: np.ndarray) -> None:
    """Writes a leaf where `convert` would read it: that only moves numbers, so that what it makes
    of their addresses says where each one came from."""
    addresses = np.arange(tensor.size).reshape(tensor.shape)
    tensor.reshape(-1)[place.layout.convert(addresses, leaf.shape)] = leaf


def _published(encoder: Encoder, leaves: Leaves) -> tuple[dict[str, Any], Plan]:
    """The config.json of a published architecture that computes the same, and its plan.

    Raises:
      ConfigError: if there is none, saying why.
    """
    stem = encoder.stem
    if not isinstance(stem, TokenStem | PatchStem):
        raise _misfit(f"none begins with a {type(stem).__name__}")
    kind = "vit" if isinstance(stem, PatchStem) else "bert"
    if encoder.is_causal:
        kind = "llama" if encoder.config.positions == "rotary" else "gpt2"
    family = layouts.FAMILIES[kind]
    values = {"model_type": kind, **family.values(encoder, leaves)}
    if encoder.classes:
        values[layouts.CLASSES] = encoder.classes
    if not encoder.is_causal:
        head = family.readout[1] if encoder.classes else "Model"
        values["architectures"] = [f"{family.name}{head}"]
    try:
        found = layouts.plan(values)
    except ConfigError as error:
        raise _misfit(str(error)) from None
    if odd := _difference(encoder, found.encoder):
        raise _misfit(f"{odd} in {family.name}")
    is_untied = encoder.is_causal and not encoder.config.tied_embedding
    if is_untied and encoder.classes != values["vocab_size"]:
        of = f"{encoder.classes} of {values['vocab_size']} tokens"
        raise _misfit(f"its readout is of {of}; with tied_embedding a run has one of all")
    return values, found


def _difference(ours: Encoder, theirs: Encoder) -> str:
    """The first thing that tells the maths of two encoders apart, in words; empty if nothing does.
    A bias that we do not have can be zero there."""
    mine, other = _maths(ours), _maths(theirs)
    for field, value in mine.items():
        if value != other[field] and (field, value) != ("use_bias", False):
            return f"its {field} is {value!r}, {other[field]!r}"
    return ""


def _maths(encoder: Encoder) -> dict[str, Any]:
    config = encoder.config
    found = as_dict(config) | {
        "tie": ", ".join(dict.fromkeys(map(str, config.ties))), "head_dim": config.head_width,
        "kv_heads": config.kv_heads or config.heads, "mlp_width": config.hidden,
    }  # fmt: skip
    if config.positions != "rotary":
        found |= {"rotary_dims": None, "rotary_base": None}
    elif config.rotary_dims is None:
        found["rotary_dims"] = config.head_width
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    found = {name: found[name] for name in fields if name not in _NO_MATHS}
    read = encoder.readout if encoder.classes else None
    return found | {"max_length": encoder.max_length, "readout": read}


def _check_shapes(expected: Mapping[str, Shape], leaves: Leaves) -> None:
    found = {path: leaf.shape for path, leaf in leaves.items()}
    if found != expected:
        odd = sorted(found.items() ^ expected.items())[0]
        raise ConfigError("variables", f"{odd[0]} {odd[1]}", "is not what the encoder has")


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=2) + "\n")


def _misfit(why: str) -> ConfigError:
    return ConfigError("encoder", None, why)
