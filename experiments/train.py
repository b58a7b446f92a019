"""Trains one model: `python -m experiments.train --config=configs/train.py --workdir=runs/one`.

Writes the curve, TensorBoard events and Orbax checkpoints; load the model back with
`qkv_jax.training.checkpoint.load_run("runs/one")`. Stopped (SIGTERM, Ctrl-C, `--max_hours`: exit
code 75) or killed, it goes on with the same command and ends with the same bits.

With `--config.mesh.data=2 --config.mesh.fsdp=4` it is sharded over devices, with `--coordinator`,
`--processes` and `--process`, or `--distributed`, over processes as well: docs/parallelism.md.
With `--compile_only=v5e:4x4` nothing is trained: docs/compile_only.md.
"""

import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from qkv_jax.compile import estimate
from qkv_jax.config import ConfigError, as_dict, build, check_plain, require_positive
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime import distributed
from qkv_jax.runtime.compiled import keep_compiled
from qkv_jax.runtime.devices import devices_in_words, use_virtual_devices
from qkv_jax.tasks import Data, Task, options_class
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.mesh import MeshConfig, MeshProgram
from qkv_jax.training.pmap import PmapProgram
from qkv_jax.training.single import LoneProgram, Program
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

from .cli import defects, entry
from .cli.paths import path_flag

_WORKDIR = path_flag("workdir", "runs/one", "Folder of the run, new or to go on with.")
_COMPILE_ONLY = flags.DEFINE_string(
    "compile_only", "", "A TPU topology such as v5e:4x4: compile for it, say what comes out, stop."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the processes that srun or a TPU pod has started."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where several processes are started by hand."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many they are.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which one this is, from 0.")
@dataclasses.dataclass(frozen=True)
class TaskPart:
    """The task of a run."""

    kind: str
    options: Annotated[dict[str, Any], options_class] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainFile:
    """What `configs/train.py` returns."""

    task: Annotated[dict[str, Any], TaskPart]
    model: Annotated[dict[str, Any], ModelConfig] = dataclasses.field(default_factory=dict)
    train: Annotated[dict[str, Any], TrainConfig] = dataclasses.field(default_factory=dict)
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (frozen); nothing given: one device
    seed: int = 0  # of initial values, data and dropout
    checkpoint_steps: tuple[int, ...] = ()  # kept whatever comes after them
    checkpoint_every: int = 0  # steps between further ones; 0: none
    checkpoints_kept: int = 3  # the newest of those, beside the best

    def __post_init__(self):
        require_positive(self, "checkpoints_kept")
        if not 0 <= self.seed < 2**32:
            raise ConfigError("seed", self.seed, "must be a whole number, 0 or above, below 2**32")


_CONFIG = entry.config_flag("train", TrainFile)
_STOP_SIGNAL = entry.stop_flags()


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    defects.keep_in(workdir)
    keep_compiled(workdir.parent)
    stop_signal = None if _COMPILE_ONLY.value else _STOP_SIGNAL()
    values = _CONFIG().to_dict()
    file = build(TrainFile, values)
    check_plain(as_dict(values))
    trainer = trainer_of(values)
    policy = CheckpointPolicy(file.checkpoint_steps, file.checkpoint_every, file.checkpoints_kept)
    mesh = file.mesh
    if stop_signal is None:
        found = estimate.step_costs(trainer, mesh, _COMPILE_ONLY.value)
        print("\n".join(estimate.describe(found)))
        return
    join_processes(mesh)
    console = Console(quiet=not distributed.is_primary(), highlight=False, soft_wrap=True)
    unit, steps = trainer.task.outcome.unit, trainer.train_config.steps
    tokens = trainer.train_config.batch_size * trainer.task.max_length
    pace = Pace(steps, tokens)

    def begin() -> None:
        sizes = f"{_size(trainer)}, {tokens:,} tokens a step"
        console.print(f"On {_devices(mesh)}: {sizes}. Compiling …")

    def show(row: dict) -> None:
        console.print(
            f"step {row['step']:>6} of {steps}   train loss {row['train_loss']:.4f}   "
            f"validation {row['value']:.4f} {unit}{pace.since(row['step'])}",
        )

    result = train_run(
        trainer,
        file.seed,
        workdir,
        config=values,
        policy=policy,
        stop_signal=stop_signal,
        make_program=program_maker(mesh),
        on_report=show,
        on_start=begin,
    )
    score = f"test {result['test']:.4f} {unit}{_also(trainer.task, result['test'])}"
    console.print(f"{result['status']}: {score}. Written to {workdir}")
    distributed.leave()


def _also(task: Task, score: float) -> str:
    """The test score in other units, of tasks that have some: bits per byte, perplexity."""
    if type(task).also is Task.also:
        return ""
    found = task.also(score, task.load())
    return f" ({', '.join(f'{name} {value:.4g}' for name, value in found.items())})"


class Pace:
    """How fast steps go, from report to report."""

    def __init__(self, steps: int, tokens: int):
        self.steps, self.tokens = steps, tokens
        self.last: tuple[int, float] | None = None

    def since(self, step: int) -> str:
        """Tokens a second since the report before, and what time is left; nothing at the first,
        whose time went into compiling."""
        now = time.monotonic()
        before, self.last = self.last, (step, now)
        if before is None:
            return ""
        seconds = (now - before[1]) / (step - before[0])
        left = f", {seconds * (self.steps - step):,.0f} s left" if step < self.steps else ""
        return f"   {self.tokens / seconds:,.0f} tokens/s{left}"


def _devices(mesh: MeshConfig) -> str:
    """The devices, and what of them a run takes."""
    found = devices_in_words()
    if not mesh.is_given:
        return found + (", of which it takes one" if jax.device_count() > 1 else "")
    axes = ((name, getattr(mesh, name)) for name in ("data", "fsdp", "tensor"))
    return f"{found}, mesh " + " x ".join(f"{name} {size}" for name, size in axes if size)


def _size(trainer: Trainer) -> str:
    shapes = jax.eval_shape(trainer.init_params, np.uint32(0))
    return f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)):,} parameters"


def program_maker(mesh: MeshConfig) -> Callable[[Trainer, Data], Program]:
    """The way of running that a mesh asks for."""
    if not mesh.is_given:
        return LoneProgram
    if mesh.by == "pmap":
        mesh.sizes(jax.device_count())  # refuses what does not fit
        return PmapProgram
    return functools.partial(MeshProgram, config=mesh)


def join_processes(mesh: MeshConfig) -> None:
    """Joins the other processes, if there are any, and makes the CPU devices that a mesh needs.

    Raises:
      ConfigError: if the flags do not fit together.
    """
    several = _DISTRIBUTED.value or bool(_COORDINATOR.value)
    if _PROCESSES.value != 1 and not _COORDINATOR.value:
        allowed = "needs --coordinator=HOST:PORT (--distributed asks the environment instead)"
        raise ConfigError("--processes", _PROCESSES.value, allowed)
    if several and not mesh.is_given:
        allowed = "several processes train on one mesh: give --config.mesh.data or another axis"
        raise ConfigError("mesh", None, allowed)
    if several and _DISTRIBUTED.value and _COORDINATOR.value:
        raise ConfigError("--coordinator", _COORDINATOR.value, "not beside --distributed")
    sizes = (mesh.data or 1, mesh.fsdp or 1, mesh.tensor or 1)
    processes = _PROCESSES.value
    if _DISTRIBUTED.value:
        processes = int(os.environ.get("SLURM_NTASKS", "1"))
    if mesh.is_given and min(sizes) > 0 and math.prod(sizes) % max(processes, 1) == 0:
        use_virtual_devices(math.prod(sizes) // max(processes, 1))
    if _DISTRIBUTED.value:
        distributed.join_detected()
    elif several:
        given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        distributed.join(distributed.Processes(*given))


if __name__ == "__main__":
    entry.enter(main)
