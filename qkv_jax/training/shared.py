"""One program for arms that differ in their tie alone.

A program takes seconds to compile, on accelerators tens of them, and a study of all ties on small
tasks trains each of its runs in about one. Such arms are trained by one program, whose scheme reads
the tie from an array beside the parameters (`qkv_jax/model/selected.py`). It takes the three
projections of `separate` for each of them: at width 32 up to an eighth more time a step, at 128 a
quarter; so where runs are long every tie has the program that takes what it needs. Which one it is
follows from the config alone: whoever trains an arm, and with whichever others, gets the same bits.
"""

import dataclasses
from typing import Any

import numpy as np

from qkv_jax.model.encoder import Encoder
from qkv_jax.model.selected import SELECTION, Selected, selection
from qkv_jax.tie import SOURCE_NAMES
from qkv_jax.training import costs
from qkv_jax.training.step import Trainer

# FLOPs of a run, forward and backward: half a second to two of a CPU core. Above, the products that
# a tie saves are worth more than a compilation.
LONG = 5e10
_PROJECTIONS = tuple(name for name in SOURCE_NAMES.values() if name != "X")
_SCHEME = f"{Selected.__module__}.{Selected.__qualname__}"


def program_of(trainer: Trainer) -> Trainer:
    """The trainer whose program trains this one: itself, where no other does."""
    model = trainer.model_config
    simple = (
        model.scheme == "tied" and not model.adapters.items() and not model.frozen
        and not model.latent_dim and not model.use_bias and not model.preset
        and model.kv_heads in (None, model.heads) and model.heads * model.head_width == model.width
    )  # fmt: skip
    if not simple or not isinstance(trainer.model, Encoder):  # `Selected` has no cross-attention
        return trainer
    whole = separate(trainer)
    if trainer.train_config.steps * costs.step_flops(whole) > LONG:
        return trainer
    any_tie = dataclasses.replace(whole.model_config, scheme=_SCHEME)
    return dataclasses.replace(whole, model_config=any_tie)


def separate(trainer: Trainer) -> Trainer:
    """The same of the tie that has all projections. A tie's initial parameters are some of its."""
    model = dataclasses.replace(trainer.model_config, tie="separate")
    return dataclasses.replace(trainer, model_config=model)


def widened(params: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Parameters of a trainer as its program has them: what the tie lacks is zero, and stays so."""
    found, model = dict(params), trainer.model_config
    nothing = np.zeros((model.width, model.heads, model.head_width), np.float32)
    for layer, tie in enumerate(model.ties):
        attention = dict(params[f"layer_{layer}"]["attention"])
        for name in _PROJECTIONS:
            attention.setdefault(name, {"kernel": nothing})
        attention[SELECTION] = selection(tie)
        found[f"layer_{layer}"] = params[f"layer_{layer}"] | {"attention": attention}
    return found


def narrowed(params: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """The trainer's own of the parameters of its program."""
    found = dict(params)
    for layer, tie in enumerate(trainer.model_config.ties):
        attention = params[f"layer_{layer}"]["attention"]
        lacks = {SELECTION, *_PROJECTIONS} - set(tie.sources)
        own = {name: leaf for name, leaf in attention.items() if name not in lacks}
        found[f"layer_{layer}"] = params[f"layer_{layer}"] | {"attention": own}
    return found
