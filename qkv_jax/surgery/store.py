"""Tied models on disk: `model.safetensors`, and the config of the run or of the Hugging Face folder
that they were made from."""

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from qkv_jax import arguments
from qkv_jax.analysis.layers import require_variables
from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.recipe import encoder_folder
from qkv_jax.interop.tensors import read_json, read_tensors
from qkv_jax.model.encoder import Encoder


def save_tied(
    folder: pathlib.Path, source: pathlib.Path, encoder: Encoder, variables: dict[str, Any]
) -> None:
    """Writes a model made from the one in `source`.

    Raises:
      ConfigError: if the folder is there already, or the source holds no model.
    """
    folder, source = arguments.path("folder", folder), arguments.path("source", source)
    require_variables(encoder, variables)
    if folder.exists():
        raise ConfigError("folder", str(folder), "is there already")
    config = encoder_folder(source) / "config.json"
    if not config.is_file():
        raise ConfigError("source", str(source), "holds no config.json")
    folder.mkdir(parents=True)
    shutil.copy(config, folder / "config.json")
    (folder / "tie.json").write_text(json.dumps({"tie": encoder.config.tie}))
    leaves = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    flat = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(flat))


def load_tied(folder: str | os.PathLike) -> tuple[Encoder, dict[str, Any]]:
    """The model: `encoder.apply(variables, inputs)`.

    Raises:
      ConfigError: if the folder holds none, or one that is damaged.
    """
    place = arguments.path("tied model", folder)
    file = place / "model.safetensors"
    if not file.is_file():
        raise ConfigError("tied model", str(place), "holds no model.safetensors")
    values, tie = read_json(place / "config.json"), read_json(place / "tie.json").get("tie")
    arguments.text("tie.json tie", tie)
    if "task" in values:
        from qkv_jax.training.checkpoint import trainer_of

        try:
            encoder = trainer_of(values).model
        except (KeyError, TypeError, AttributeError) as error:
            what = f"its config.json is damaged: {type(error).__name__}: {error}"
            raise ConfigError("tied model", str(place), what) from None
    else:
        encoder = layouts.plan(values).encoder
    encoder = encoder.clone(config=dataclasses.replace(encoder.config, tie=tie, preset=""))
    leaves = read_tensors(place)
    params = flax.traverse_util.unflatten_dict(leaves, sep="/")
    require_variables(encoder, {"params": params})
    for number, own in enumerate(encoder.config.ties):
        found = {*params[f"layer_{number}"].get("attention", {})} & {"query", "key", "value"}
        if found != {*own.sources}:
            what = f"is not that of layer {number}, which has {', '.join(sorted(found)) or 'none'}"
            raise ConfigError("tie.json tie", tie, what)
    return encoder, {"params": jax.tree.map(jnp.asarray, params)}

