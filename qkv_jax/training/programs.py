"""The compiled programs of populations, each shared by all that can."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import chex
import jax

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import Task
from qkv_jax.tasks.sources import Stamp
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

_SERIAL = itertools.count()


@dataclasses.dataclass
class Programs:
    """Those of a trainer for waves of one size, and whether they are compiled."""

    trainer: Trainer
    train: Callable
    evaluate: Callable
    compiled: bool = False


@functools.lru_cache(maxsize=8)
def programs_of(
    trainer: Trainer,
    devices: tuple[jax.Device, ...],
    packing: int,
    shapes: tuple,
    changed: Stamp,
) -> Programs:
    """The same for all populations of a trainer, and of others that it stands for, on such data."""
    del shapes, changed  # for others these would be traced again
    pmap = functools.partial(jax.pmap, devices=devices)
    train = _lanes(_traced_once(trainer.train), (0, 0, None), packing)
    evaluate = _lanes(_traced_once(trainer.evaluate), (0, None), packing)
    return Programs(
        trainer,
        pmap(train, in_axes=(0, 0, None), donate_argnums=0),
        pmap(evaluate, in_axes=(0, None)),
    )


def _lanes(function: Callable, in_axes: tuple[int | None, ...], packing: int) -> Callable:
    """A function of one replica for those of a device, which lie along a leading axis.

    Over one replica vmap would make a batch of one of every matrix product, for which XLA on CPUs
    has slower programs: half as much time again.
    """
    if packing > 1:
        return jax.vmap(function, in_axes)

    def alone(*arguments):
        own = (arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
               for arg, axis in zip(arguments, in_axes, strict=True))  # fmt: skip
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return alone


@functools.lru_cache(maxsize=8)
def schedule_of(task: Task, config: TrainConfig, devices: tuple[jax.Device, ...]) -> Callable:
    """`Trainer.schedule` for a wave, the same for all models."""
    schedule = Trainer(ModelConfig(), task, config).schedule
    mapped = jax.vmap(schedule, in_axes=(0, 0, None))
    return jax.pmap(mapped, in_axes=(0, 0, None), devices=devices)


def _traced_once(function: Callable) -> Callable:
    """Refuses a second trace: two waves that differ in shape are a defect, not a slow day."""

    def once(*args):
        return function(*args)

    # chex tells functions apart by name and place; each population counts for itself.
    once.__name__ = f"{function.__name__} of population {next(_SERIAL)}"
    return chex.assert_max_traces(once, n=1)
