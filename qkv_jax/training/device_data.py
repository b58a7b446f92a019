"""What the waves of a population share: its devices, and a task's data and batches on them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from qkv_jax import arguments
from qkv_jax.config import ConfigError, shown
from qkv_jax.tasks import Data
from qkv_jax.tasks.base import equal_blocks

# Replicas per device: on a CPU core one is fastest; accelerators have room for more.
PACKING = {"cpu": 1, "gpu": 8, "tpu": 8}
# Of what is kept for other waves, on all devices together.
DRAWN_BYTES = 2**28


def wave_shape(
    packing: int | None = None, devices: Sequence[jax.Device] | None = None
) -> dict[str, int]:
    """Devices, replicas per device, and replicas per wave; all local devices by default."""
    devices = _devices(devices)
    if packing is None:
        packing = PACKING.get(devices[0].platform, 1)
    packing = arguments.whole("packing", packing, 1)
    return {"devices": len(devices), "packing": packing, "size": len(devices) * packing}


class DeviceData:
    """A task's data on every device of a population, and what arms have in common beside them, such
    as batches: one copy for all arms.

    Attributes:
      train: what the task's schedules and batches read.
      shapes: of all arrays, to tell programs apart by.
      blocks: validation and test, cut into blocks of one size, each with its number of examples.
    """

    def __init__(self, data: Data, devices: Sequence[jax.Device] | None = None):
        for name, split in arguments.instance("data", data, Data).held_out.items():
            if not isinstance(split, Mapping) or "targets" not in split:
                raise ConfigError("data", shown(data), f"needs {name!r}, a batch with targets")
        self.devices = _devices(devices)
        mesh = layout(self.devices).mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        put = functools.partial(jax.device_put, device=everywhere)
        self.train = put(data.train)
        self.shapes = tuple(
            (jax.tree_util.keystr(path), np.shape(leaf), str(leaf.dtype))
            for path, leaf in jax.tree_util.tree_leaves_with_path((self.train, data.held_out))
        )
        self.blocks = {
            name: [(put(block), real) for block, real in equal_blocks(split)]
            for name, split in data.held_out.items()
        }
        self._drawn: dict[Any, Any] = {}
        self._room = DRAWN_BYTES

    def drawn(self, key: Any, draw: Callable[[], Any]) -> Any:
        """What `draw` makes, made once for all that name it by the same key. What comes first is
        kept: the seeds of the first round, which every arm trains at every rate."""
        if key in self._drawn:
            return self._drawn[key]
        made = draw()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
        if size <= self._room:
            self._drawn[key] = made
            self._room -= size
        return made


@functools.lru_cache(maxsize=8)
def layout(devices: tuple[jax.Device, ...]) -> jax.sharding.NamedSharding:
    """How pmap lays out its results: it traces anew for arrays that lie otherwise."""
    return jax.pmap(lambda x: x, devices=devices)(np.zeros(len(devices))).sharding


def _devices(given: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    """Those given, or all of this process."""
    devices = tuple(jax.local_devices() if given is None else given)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise ConfigError("devices", given, "must be devices of JAX, one at least")
    return devices
