"""Trains one model: `python -m experiments.train --config=configs/train.py --workdir=runs/one`.

Writes the curve, TensorBoard events and Orbax checkpoints; load the model back with
`qkv_jax.training.checkpoint.load_run("runs/one")`.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags
from rich.console import Console

from experiments import door
from qkv_jax.config import ConfigError, build
from qkv_jax.training.checkpoint import replica_of
from qkv_jax.training.loop import train_run

_WORKDIR = flags.DEFINE_string("workdir", "runs/one", "Folder of the run; must not hold files.")
_CONFIG = door.config_flag("configs/train.py")


@dataclasses.dataclass(frozen=True)
class TrainFile:
    """What `configs/train.py` returns."""

    task: dict[str, Any]
    model: dict[str, Any]
    train: dict[str, Any]
    seed: int = 0
    checkpoint_steps: tuple[int, ...] = ()

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ConfigError("seed", self.seed, "must be a whole number, 0 or above, below 2**32")


def main() -> None:
    values = _CONFIG().to_dict()
    file = build(TrainFile, values)
    replica = replica_of(values)
    console, unit = Console(), replica.task.outcome.unit

    def show(row: dict) -> None:
        console.print(
            f"step {row['step']:>6} of {replica.config.steps}   train loss "
            f"{row['train_loss']:.4f}   validation {row['value']:.4f} {unit}",
            highlight=False,
        )

    workdir = pathlib.Path(_WORKDIR.value)
    result = train_run(
        replica,
        file.seed,
        workdir,
        config=values,
        checkpoint_steps=file.checkpoint_steps,
        on_report=show,
    )
    console.print(f"{result['status']}: test {result['test']:.4f} {unit}. Written to {workdir}")


if __name__ == "__main__":
    door.enter(main)
