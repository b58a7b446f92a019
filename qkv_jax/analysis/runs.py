"""Runs of `experiments.train` as commands read them, refusals naming the flag --run."""

import json
import pathlib

from qkv_jax.config import ConfigError
from qkv_jax.training.checkpoint import load_run, replica_of
from qkv_jax.training.step import Replica
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


def run_replica(folder: pathlib.Path) -> Replica:
    """What a run trains: task, model and hyperparameters.

    Raises:
      ConfigError: if its config.json cannot be read, or says what cannot be run.
    """
    try:
        return replica_of(json.loads((folder / "config.json").read_text()))
    except ConfigError as error:
        damage = str(error)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        damage = f"{type(error).__name__}: {error}"
    raise ConfigError("--run", str(folder), f"its config.json is damaged: {damage}")


def run_model(folder: pathlib.Path, step: int) -> tuple[Encoder, dict]:
    """The model of a run at a step that is there.

    Raises:
      ConfigError: if its config.json or its checkpoint is damaged.
    """
    run_replica(folder)
    try:
        return load_run(folder, step)
    except ConfigError:
        raise
    except Exception as error:  # what Orbax raises depends on what is broken
        what = error.args[0] if isinstance(error, KeyError) and error.args else error
        said = f"the checkpoint of step {step} cannot be read"
        allowed = f"{said} (damaged, or written by another version): {what}"
        raise ConfigError("--run", str(folder), allowed[:300]) from None
