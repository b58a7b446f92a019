"""Runs of `experiments.train` as commands read them, refusals naming the flag --run."""

import json
import pathlib

from qkv_jax.config import ConfigError
from qkv_jax.tasks import Task
from qkv_jax.training.checkpoint import load_run, replica_of
from qkv_jax.transformer import Encoder


def run_steps(folder: pathlib.Path) -> list[int]:
    """The steps that a run of `experiments.train` has checkpoints of.

    Raises:
      ConfigError: if there is none.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError("--run", str(folder), "is no run of experiments.train: no config.json")
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps:
        raise ConfigError("--run", str(folder), "holds no checkpoint")
    return steps


def run_task(folder: pathlib.Path) -> Task:
    """The task of a run.

    Raises:
      ConfigError: if its config.json cannot be read.
    """
    try:
        return replica_of(json.loads((folder / "config.json").read_text())).task
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        allowed = f"its config.json is damaged: {type(error).__name__}: {error}"
        raise ConfigError("--run", str(folder), allowed) from None


def run_model(folder: pathlib.Path, step: int) -> tuple[Encoder, dict]:
    """The model of a run at a step that is there.

    Raises:
      ConfigError: if its checkpoint is damaged.
    """
    try:
        return load_run(folder, step)
    except ConfigError:
        raise
    except Exception as error:  # what Orbax raises depends on what is broken
        allowed = f"the checkpoint of step {step} cannot be read: {error}"
        raise ConfigError("--run", str(folder), allowed[:300]) from None
