"""Tied models on disk: folders that `load_pretrained` reads, and hence `--pretrained`."""

import os
import pathlib
import shutil
from typing import Any

from qkv_jax import arguments
from qkv_jax.analysis.layers import require_variables
from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.export import save_model
from qkv_jax.interop.hub import model_folder
from qkv_jax.interop.recipe import encoder_folder
from qkv_jax.interop.task_tokens import tokenizer_json
from qkv_jax.interop.tensors import read_json
from qkv_jax.model.encoder import Encoder

# How a text becomes tokens, and what is made of it.
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "sentence_*_config.json")


def save_tied(
    folder: pathlib.Path,
    source: str | os.PathLike,
    encoder: Encoder,
    variables: dict[str, Any],
) -> None:
    """Writes a model made from the one in `source`: a run, or a pretrained model, whose tokenizer
    it keeps.

    Raises:
      ConfigError: if the folder is there already, or the source holds no model.
    """
    folder, given = arguments.path("folder", folder), arguments.path("source", source)
    require_variables(encoder, variables)
    if folder.exists():
        raise ConfigError("folder", str(folder), "is there already")
    try:
        place = encoder_folder(model_folder(given))
    except ConfigError as error:
        raise ConfigError("source", str(given), error.allowed) from None
    values = read_json(place / "config.json")
    if "task" in values:
        from qkv_jax.training.checkpoint import trainer_of  # with Orbax, which takes a second

        save_model(folder, encoder, variables, tokenizer_json(trainer_of(values).task))
        return
    save_model(folder, encoder, variables, like=layouts.plan(values))
    for pattern in _BESIDE:
        for file in place.glob(pattern):
            shutil.copy(file, folder)
