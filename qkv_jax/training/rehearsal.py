"""A run traced on shapes alone before it starts, so that what cannot be is refused before anything
is trained or written. Nothing is computed or compiled: a small model takes a tenth of a second.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks import Data
from qkv_jax.training.step import Trainer


def first_batch(trainer: Trainer, data: Data) -> Any:
    """The shapes of a training batch, as a tree of `jax.ShapeDtypeStruct`s.

    Args:
      data: what `Task.load` returned, or its shapes.

    Raises:
      ConfigError: if there is no such batch.
    """
    task, size = trainer.task, trainer.train_config.batch_size

    def draw(seed, step, train, rows):
        entry = jax.tree.map(lambda leaf: leaf[0], trainer.schedule(seed, step, train))
        return task.batch(train, entry | rows if stream else entry)

    with _in_one_line("batch_size", size):
        stream = task.stream(data.train, 0, size)
        rows = next(stream) if stream else {}
        return jax.eval_shape(draw, np.uint32(0), np.int32(0), data.train, rows)


def rehearse(trainer: Trainer, batch: Any, data: Data) -> None:
    """Traces initial values, a step, and the evaluation of both splits.

    Args:
      batch: as `first_batch` returns it.
      data: what `Task.load` returned, or its shapes.

    Raises:
      ConfigError: with the first line of what a library says, if something cannot be traced.
    """
    with _in_one_line("model and train", _chosen(trainer.model_config) | _chosen(trainer.train_config)):
        state = jax.eval_shape(trainer.init, np.uint32(0), np.float32(0))
        jax.eval_shape(trainer.train_step, state, batch)
        for name, split in data.held_out.items():
            scores = jax.eval_shape(trainer.evaluate, state.params, split)
            if not scores.size:  # an average of nothing
                raise ConfigError("task", name, "has no examples")


def rehearse_model(trainer: Trainer, batch: Any) -> None:
    """Traces the model alone, forwards: a quarter of the time, for arms that differ in it alone.

    Raises:
      ConfigError: as `rehearse`.
    """
    with _in_one_line("model and train", _chosen(trainer.model_config) | _chosen(trainer.train_config)):
        params = jax.eval_shape(trainer.init_params, np.uint32(0))
        jax.eval_shape(trainer.evaluate, params, batch)


@contextlib.contextmanager
def _in_one_line(field: str, given: Any) -> Iterator[None]:
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # of whatever library the config leads to
        reason = next(filter(None, map(str.strip, str(error).splitlines())), "")
        allowed = f"this cannot be traced: {type(error).__name__}: {reason}"
        raise ConfigError(field, given, allowed) from error


def _chosen(config: Any) -> dict[str, Any]:
    """The fields that are not what they are by default."""
    fields = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {field.name: value for field, value in fields if value != field.default}
