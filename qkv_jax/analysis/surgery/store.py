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

from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.tensors import read_json
from qkv_jax.transformer import Encoder


def save_tied(
    folder: pathlib.Path, source: pathlib.Path, encoder: Encoder, variables: dict[str, Any]
) -> None:
    """Writes a model made from the one in `source`."""
    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder / "config.json")
    (folder / "tie.json").write_text(json.dumps({"tie": encoder.config.tie}))
    leaves = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    flat = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(flat))


def load_tied(folder: str | os.PathLike) -> tuple[Encoder, dict[str, Any]]:
    """The model: `encoder.apply(variables, inputs)`.

    Raises:
      ConfigError: if the folder holds none.
    """
    place = pathlib.Path(folder)
    file = place / "model.safetensors"
    if not file.is_file():
        raise ConfigError("tied model", str(place), "holds no model.safetensors")
    values, tie = read_json(place / "config.json"), read_json(place / "tie.json")["tie"]
    if "model_type" in values:
        encoder = layouts.plan(values).encoder
    else:
        from qkv_jax.training.checkpoint import replica_of

        encoder = replica_of(values).encoder
    encoder = encoder.clone(config=dataclasses.replace(encoder.config, tie=tie, preset=""))
    leaves = safetensors.numpy.load(file.read_bytes())
    params = flax.traverse_util.unflatten_dict(leaves, sep="/")
    return encoder, {"params": jax.tree.map(jnp.asarray, params)}

