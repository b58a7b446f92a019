"""Runs of `experiments.train` as commands read them, refusals naming the flag --run."""

import contextlib
import pathlib
from collections.abc import Iterator

from qkv_jax.config import ConfigError
from qkv_jax.model.encoder import Encoder
from qkv_jax.training import checkpoint
from qkv_jax.training.step import Trainer


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


def run_trainer(folder: pathlib.Path) -> Trainer:
    """What a run trains, see `checkpoint.run_trainer`."""
    with _as_flag():
        return checkpoint.run_trainer(folder)


def run_model(folder: pathlib.Path, step: int) -> tuple[Encoder, dict]:
    """The model of a run at a step that is there, see `checkpoint.load_run`."""
    with _as_flag():
        return checkpoint.load_run(folder, step)


@contextlib.contextmanager
def _as_flag() -> Iterator[None]:
    """Refusals of the run as refusals of the flag that named it."""
    try:
        yield
    except ConfigError as error:
        field = "--run" if error.field == "run" else error.field
        raise ConfigError(field, error.given, error.allowed) from None
