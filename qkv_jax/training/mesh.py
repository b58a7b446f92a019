"""One big run: its state sharded over a named mesh of devices (data, fsdp, tensor).

The batch is cut over `data` and `fsdp`; parameters, and the optimiser's moments with them, as the
rules say (`training.rules`); XLA adds the communication. The function that runs is the one
`Trainer.train` that a lone run has, and the loop is the same: `MeshProgram` is a
`training.program.Program`.

Nothing here asks how many processes there are: arrays are global, and every process contributes
what its devices hold.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qkv_jax.config import ConfigError, require_positive, settle
from qkv_jax.model.blocks import BLOCKS
from qkv_jax.tasks import Batch, Data
from qkv_jax.tasks.base import EVAL_BLOCK, HeldOut, equal_blocks
from qkv_jax.tasks.streaming import BatchStream, next_batches
from qkv_jax.training.rules import AXES, DEFAULT_RULES, parse_rules, partition
from qkv_jax.training.state import TrainState
from qkv_jax.training.step import Metrics, Trainer

BATCH = PartitionSpec(("data", "fsdp"))  # how the leading axis of a batch is cut
_REST = -1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The mesh: devices along each axis, and the rules by which parameters are cut over it.

    Attributes:
      data: copies of the parameters, each on another part of the batch.
      fsdp: parts of the parameters, each gathered when it is needed; cuts the batch as well.
      tensor: parts of heads and hidden layers that work on the same rows of the batch.
      rules: the name of a set or a list of [pattern, spec], see `training.rules`.
      by: `jit`, or `pmap` for plain data parallelism (see `training.data_parallel`).

    One axis may be -1: as many devices as the others leave. Sizes left out are 1; with all of them
    left out there is no mesh.

    Raises:
      ConfigError: for sizes and rules that cannot be.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int | None = None
    rules: Any = DEFAULT_RULES
    by: Literal["jit", "pmap"] = "jit"

    def __post_init__(self):
        settle(self)
        given = [axis for axis in AXES if getattr(self, axis) == _REST]
        if len(given) > 1:
            raise ConfigError(given[1], _REST, f"only one axis can take what is left: {given[0]}")
        require_positive(self, *(axis for axis in AXES if axis not in given))
        parse_rules(self.rules)
        if self.by == "pmap" and {self.fsdp, self.tensor} - {None, 1}:
            raise ConfigError("by", "pmap", "has the axis data alone; fsdp and tensor need 'jit'")
        if self.by == "pmap" and self.data is None:
            raise ConfigError("by", "pmap", "needs the axis data: how many devices, or -1 for all")

    @property
    def is_given(self) -> bool:
        """Whether there is a mesh at all."""
        return any(getattr(self, axis) is not None for axis in AXES)

    def sizes(self, devices: int) -> dict[str, int]:
        """Devices along each axis.

        Raises:
          ConfigError: if they do not multiply to the number of devices.
        """
        sizes = {axis: getattr(self, axis) or 1 for axis in AXES}
        rest = [axis for axis in AXES if sizes[axis] == _REST]
        product = math.prod(size for size in sizes.values() if size != _REST)
        if rest and devices % product == 0:
            sizes[rest[0]] = devices // product
        elif rest or product != devices:
            given = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
            must = "a divisor of" if rest else "equal to"
            allowed = f"the product must be {must} the number of devices, {devices}"
            raise ConfigError("mesh", given, allowed)
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices`, by default all devices of all processes.

    Raises:
      ConfigError: if its sizes do not multiply to their number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    # Explicit axes, JAX's default, would ask the model to say how each of its arrays is cut.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=devices)


class MeshProgram:
    """One run, sharded over a mesh.

    Args:
      trainer: the program; its optimiser is given moments by leaf, so that they can be cut.
      data: its task's data, as `Task.load` returned them: on every device, unless streamed.
      config: the mesh.
      devices: those that it covers; by default all devices of all processes.

    Raises:
      ConfigError: if mesh, rules, batch and devices do not fit together.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Data,
        config: MeshConfig,
        devices: Sequence[Any] | None = None,
    ):
        self.trainer = trainer = dataclasses.replace(trainer, moments="by_leaf")
        self.mesh = make_mesh(config, devices)
        trainer.check_platform(self.mesh.devices.flat[0].platform)
        self._rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self._check_batch()
        self.shardings = self._state_shardings(config)
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self._data = data
        jit = functools.partial(jax.jit, out_shardings=(self.shardings, self._whole))
        self.train = jit(self._train, donate_argnums=0)
        self._init = jax.jit(trainer.init, out_shardings=self.shardings)
        self._schedule = jax.jit(trainer.schedule, out_shardings=self._whole)
        self._evaluate = jax.jit(self._evaluate_rows, out_shardings=self._whole)

    def start(self, seed: int) -> TrainState:
        return self._init(np.uint32(seed), np.float32(self.trainer.train_config.learning_rate))

    def abstract(self) -> TrainState:
        shapes = jax.eval_shape(lambda: self.trainer.init(0, 0.0))
        described = lambda leaf, cut: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut)
        return jax.tree.map(described, shapes, self.shardings)

    def stream(self, seed: int) -> BatchStream | None:
        stream = self.trainer.task.stream(self._train_data, seed, self.trainer.train_config.batch_size)
        return stream.share(*self._share) if stream else None

    def advance(self, state: TrainState, stream: BatchStream | None) -> tuple[TrainState, Metrics]:
        schedule: Any = self._schedule(state.seed, state.step, self._train_data)
        if stream:
            schedule |= self._place_rows(next_batches(stream, self.trainer.train_config.report_every))
        state, metrics = self.train(state, schedule, self._train_data)
        # Programs that run ahead of each other on virtual CPU devices can starve one another's
        # collectives of threads, for ever.
        return jax.block_until_ready((state, metrics))

    def scores(self, state: TrainState, split: HeldOut) -> np.ndarray:
        blocks = [
            np.asarray(self._evaluate(state.params, block))[:real]
            for block, real in self._held_out[split]
        ]
        return np.concatenate(blocks)

    def shapes(self) -> tuple[TrainState, Any, Any]:
        """The arguments of `train` as shapes with shardings: to compile it without the devices."""
        state = self.abstract()
        train = self._described(self._data.train, PartitionSpec())
        schedule = jax.eval_shape(self.trainer.schedule, state.seed, state.step, train)
        schedule = self._described(schedule, PartitionSpec())
        config = self.trainer.train_config
        stream = self.trainer.task.stream(self._data.train, 0, config.batch_size)
        if stream:
            rows = next_batches(stream, config.report_every)
            schedule |= self._described(rows, PartitionSpec(None, *BATCH))
        return state, schedule, train

    def _train(self, state, schedule, train):
        with self._activations_by_rows():
            return self.trainer.train(state, schedule, train, place=self._by_rows)

    def _evaluate_rows(self, params, batch):
        with self._activations_by_rows():
            return self.trainer.evaluate(params, self._by_rows(batch))

    def _by_rows(self, rows: Any) -> Any:
        """A batch, or activations, cut by their leading axis."""
        cut = NamedSharding(self.mesh, BATCH)
        return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, cut), rows)

    @contextlib.contextmanager
    def _activations_by_rows(self) -> Iterator[None]:
        """While the model is traced, says of what every block takes and gives that it is cut as the
        batch is. Left to itself, XLA may cut it by width like the parameters, and send it around.
        """
        blocks = tuple(BLOCKS.values())

        def interceptor(call, args, kwargs, context):
            if not (isinstance(context.module, blocks) and context.method_name == "__call__"):
                return call(*args, **kwargs)
            return self._by_rows(call(self._by_rows(args[0]), *args[1:], **kwargs))

        with nn.intercept_methods(interceptor):
            yield

    def _state_shardings(self, config: MeshConfig) -> TrainState:
        """Parameters and moments as the rules say; everything else whole on every device."""
        state = jax.eval_shape(lambda: self.trainer.init(0, 0.0))
        try:
            specs = partition(parse_rules(config.rules), state.params, dict(self.mesh.shape))
        except ConfigError as error:
            raise error.under("mesh") from None
        cut = jax.tree.map(functools.partial(NamedSharding, self.mesh), specs)
        whole = NamedSharding(self.mesh, PartitionSpec())
        moments = optax.tree.map_params(
            self.trainer.optimizer,
            lambda _, sharding: sharding,
            state.opt_state,
            cut,
            transform_non_params=lambda _: whole,
        )
        rest = jax.tree.map(lambda _: whole, state.replace(params=None, opt_state=None))
        return rest.replace(params=cut, opt_state=moments)

    def _check_batch(self) -> None:
        config = self.trainer.train_config
        if config.batch_size % (self._rows * config.accumulate):
            parts = f"data x fsdp = {self._rows}"
            if config.accumulate > 1:
                parts += f" times accumulate = {config.accumulate}"
            allowed = f"must be divisible by {parts}"
            raise ConfigError("train.batch_size", config.batch_size, allowed)

    @functools.cached_property
    def _train_data(self) -> Any:
        """The training data on every device."""
        return self._place_whole(self._data.train)

    @functools.cached_property
    def _held_out(self) -> dict[HeldOut, list[tuple[Batch, int]]]:
        """Validation and test, in blocks that the mesh divides, each with its real examples."""
        size = self._rows * math.ceil(EVAL_BLOCK / self._rows)
        return {
            name: [(self._place_whole(block), real) for block, real in equal_blocks(split, size)]
            for name, split in self._data.held_out.items()
        }

    @property
    def _share(self) -> tuple[int, int]:
        """Which part of every batch this process reads, and of how many: the rows that its devices
        hold, or all if these are not one part of equal parts."""
        size = self.trainer.train_config.batch_size
        rows = NamedSharding(self.mesh, BATCH).addressable_devices_indices_map((size,)).values()
        starts = {index[0].indices(size)[0] for index in rows}
        first, wanted = min(starts), len(starts) * (size // self._rows)
        last = max(index[0].indices(size)[1] for index in rows)
        is_a_part = last - first == wanted and size % wanted == 0 and first % wanted == 0
        return (first // wanted, size // wanted) if is_a_part else (0, 1)

    def _place_whole(self, tree: Any) -> Any:
        def place(array):
            array = np.asarray(array)
            return jax.make_array_from_callback(array.shape, self._whole, lambda at: array[at])

        return jax.tree.map(place, tree)

    def _place_rows(self, batches: Any) -> Any:
        """Stacked batches [steps, rows of this process, ...] as parts of the global ones."""
        index, count = self._share
        cut = NamedSharding(self.mesh, PartitionSpec(None, *BATCH))

        def place(array):
            rows = array.shape[1]
            shape = (array.shape[0], rows * count, *array.shape[2:])

            def local(at):
                start, stop, _ = at[1].indices(shape[1])
                return array[at[0], start - index * rows : stop - index * rows]

            return jax.make_array_from_callback(shape, cut, local)

        return jax.tree.map(place, batches)

    def _described(self, tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        describe = lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)
        return jax.tree.map(describe, tree)
