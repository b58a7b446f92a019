"""Plain data parallelism by `pmap`: one copy of everything a device, gradients averaged by hand.

What `MeshProgram` does with `data` alone, written the other way round: there the whole batch is one
array and XLA finds the communication, here each device takes its rows and `Trainer.train_step` says
where the mean is taken. For the devices of one process.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks import Data
from qkv_jax.tasks.streaming import BatchStream
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.state import TrainState
from qkv_jax.training.step import Metrics, Trainer

_AXIS = "data"


class PmapProgram(LoneProgram):
    """One run, a copy on every device, each with its part of the batch.

    Args:
      trainer, data: as for `LoneProgram`.
      devices: by default all of this process.

    Raises:
      ConfigError: if the devices do not divide the batch, or belong to several processes.
    """

    def __init__(self, trainer: Trainer, data: Data, devices: Sequence[jax.Device] | None = None):
        super().__init__(trainer, data)
        if jax.process_count() > 1:
            raise ConfigError("mesh.by", "pmap", "several processes need a mesh: by 'jit'")
        devices = devices or jax.local_devices()
        parts, size = len(devices), trainer.train_config.batch_size
        if size % (parts * trainer.train_config.accumulate):
            parts *= trainer.train_config.accumulate
            allowed = f"must be divisible by data x accumulate = {parts}"
            raise ConfigError("train.batch_size", size, allowed)

        rows = size // parts

        def train(part, state, schedule, data):
            cut = functools.partial(
                jax.lax.dynamic_slice_in_dim, start_index=part * rows, slice_size=rows
            )
            place = functools.partial(jax.tree.map, cut)
            return trainer.train(state, schedule, data, axis_name=_AXIS, place=place)

        # The number of the device is its only argument that is not the same on all.
        mapped = jax.pmap(
            train, _AXIS, in_axes=(0, None, None, None), out_axes=None, devices=devices
        )
        self._train = functools.partial(mapped, np.arange(parts))

    def advance(self, state: TrainState, stream: BatchStream | None) -> tuple[TrainState, Metrics]:
        # Programs that run ahead starve each other on virtual devices, see `MeshProgram.advance`.
        return jax.block_until_ready(super().advance(state, stream))
