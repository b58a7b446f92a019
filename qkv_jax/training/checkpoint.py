"""Orbax checkpoints of a lone run, and the one call that loads a model back."""

import json
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from qkv_jax.config import ConfigError, build
from qkv_jax.tasks import make_task
from qkv_jax.tasks.streaming import BatchStream
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig, TrainState
from qkv_jax.training.step import Replica
from qkv_jax.transformer import Encoder, ModelConfig


class Checkpoints:
    """The checkpoints of one run, by step: whole train states.

    Beside them, in `streams/`, where a run's stream of data was, if it had one.
    """

    def __init__(self, folder: str | os.PathLike):
        self._streams = pathlib.Path(folder).absolute().parent / "streams"
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, stream: BatchStream | None = None) -> None:
        if stream:  # first, so that no checkpoint lacks its place in the data
            self._streams.mkdir(exist_ok=True)
            self._stream_file(int(state.step)).write_text(json.dumps(stream.get_state()))
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state), force=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (the last by default), with the shapes and types of `like`, on the
        devices that it names by its shardings, or on one; whatever devices it was saved from.

        Raises:
          ConfigError: if there is no such checkpoint.
        """
        step = max(self.steps, default=None) if step is None else step
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise ConfigError("checkpoint step", step, f"checkpoints there: {known}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
            ),
            like,
        )
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def restore_stream(self, stream: BatchStream, step: int) -> None:
        """Sets a stream, made as the run made its own, to where it was at `step`.

        Raises:
          ConfigError: if nothing was saved for that step.
        """
        file = self._stream_file(step)
        try:
            stream.set_state(json.loads(file.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError("stream", str(file), f"cannot be restored: {error}") from None

    def _stream_file(self, step: int) -> pathlib.Path:
        return self._streams / f"{step}.json"

    def close(self) -> None:
        self._manager.close()


def replica_of(values: dict[str, Any]) -> Replica:
    """The program that a run's config describes: `task`, `model`, `train`; and `mesh`, if any.

    Raises:
      ConfigError: naming the field, for anything that cannot be run.
    """
    task = values["task"]
    mesh = build(MeshConfig, values.get("mesh") or {}, "mesh")
    return Replica(
        build(ModelConfig, values["model"], "model"),
        make_task(task.get("kind"), task.get("options", {}), "task"),
        build(TrainConfig, values["train"], "train"),
        "by_leaf" if mesh.is_given else "joined",
    )


def load_run(workdir: str | os.PathLike, step: int | None = None) -> tuple[Encoder, dict]:
    """The model of a run of `experiments.train`: `encoder.apply(variables, inputs)`.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the last by default, 0 is the untrained model.

    Raises:
      ConfigError: if the folder holds no run or no such checkpoint.
    """
    folder = pathlib.Path(workdir)
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError("run", str(folder), f"holds no readable config.json: {error}") from None
    if not (folder / "checkpoints").is_dir():
        raise ConfigError("run", str(folder), "holds no checkpoints")
    replica = replica_of(values)
    like = jax.eval_shape(lambda: replica.init(0, 0.0))
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.restore(like, step)
    checkpoints.close()
    return replica.encoder, {"params": state.params}
