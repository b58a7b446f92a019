"""What the loop of a lone run needs of a way to run it, and the plain way: jit on one device.

`loop.train_run` owns what is written and when (curve, events, checkpoints, result); a program owns
where the state lies and how it advances. `training.mesh` has the other one, sharded over devices.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array

from qkv_jax.tasks import Data
from qkv_jax.tasks.base import HeldOut, eval_blocks
from qkv_jax.tasks.streaming import BatchStream, next_batches
from qkv_jax.training.state import TrainState
from qkv_jax.training.step import Trainer

Reported = dict[str, Array]


@runtime_checkable
class Program(Protocol):
    """One run, placed on its devices."""

    trainer: Trainer

    def start(self, seed: int) -> TrainState:
        """The state before the first step, on the devices."""

    def abstract(self) -> TrainState:
        """Such a state as `jax.ShapeDtypeStruct`s with shardings: what a restore aims at."""

    def stream(self, seed: int) -> BatchStream | None:
        """This process's training data from the beginning, where they do not lie on the devices."""

    def advance(self, state: TrainState, stream: BatchStream | None) -> tuple[TrainState, Reported]:
        """`report_every` steps as one call; the state that is passed in is used up. The metrics are
        means over the steps: `loss`, `gradient_norm`, and `diverged` as in the state."""

    def scores(self, state: TrainState, split: HeldOut) -> np.ndarray:
        """The outcome's metric of every example of a split, [examples]."""


class LoneProgram:
    """One run on the default device.

    Args:
      trainer: the program.
      data: its task's data, as `Task.load` returned them.
    """

    def __init__(self, trainer: Trainer, data: Data):
        trainer.check_platform()
        self.trainer = trainer
        self._data = data
        self._train = jax.jit(trainer.train, donate_argnums=0)
        self._schedule = jax.jit(trainer.schedule)
        self._evaluate = jax.jit(trainer.evaluate)

    def start(self, seed: int) -> TrainState:
        return self.trainer.init(seed, self.trainer.train_config.learning_rate)

    def abstract(self) -> TrainState:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.eval_shape(lambda: self.trainer.init(0, 0.0))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes
        )

    def stream(self, seed: int) -> BatchStream | None:
        return self.trainer.task.stream(self._data.train, seed, self.trainer.train_config.batch_size)

    def advance(self, state: TrainState, stream: BatchStream | None) -> tuple[TrainState, Reported]:
        schedule: Any = self._schedule(state.seed, state.step, self._data.train)
        if stream:
            schedule |= next_batches(stream, self.trainer.train_config.report_every)
        return self._train(state, schedule, self._data.train)

    def scores(self, state: TrainState, split: HeldOut) -> np.ndarray:
        # Blocks are as they are cut: a small split filled up would cost a whole block per report.
        blocks = eval_blocks(self._data.held_out[split])
        return np.concatenate([np.asarray(self._evaluate(state.params, b)) for b in blocks])
