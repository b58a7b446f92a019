"""Benchmarks, side by side in one run: `python -m experiments.benchmark population`.

`population`: the same training runs as a population (pmap x vmap over all devices) and one at a
time (jit, every core at the disposal of one run), in the same process, interleaved.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.cli import entry
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime.devices import use_cpu_cores
from qkv_jax.tasks import make_task
from qkv_jax.training.population import DeviceData, Population, RunSpec, wave_shape
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

_REPEATS = flags.DEFINE_integer("repeats", 7, "Times each side is run.", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 100, "Training steps of a run.", lower_bound=10)
_PACKING = flags.DEFINE_integer("packing", None, "Replicas per device.", lower_bound=1)

# width, length, batch size
_SIZES = ((32, 16, 32), (64, 16, 32), (64, 32, 64))


def main() -> None:
    use_cpu_cores()
    console, shape = Console(), wave_shape(_PACKING.value)
    table = Table(title="Training: models per second per 1000 steps", title_justify="left")
    for heading in ("width/length/batch", "population", "one at a time", "ratio", "ratio, range"):
        table.add_column(heading, justify="right")
    for width, length, batch in _SIZES:
        sides = _population_and_alone(width, length, batch)
        seconds = _interleaved(sides, _REPEATS.value)
        speeds = [[shape["size"] * _STEPS.value / 1000 / s for s in side] for side in seconds]
        ratios = [alone / together for together, alone in zip(*seconds, strict=True)]
        table.add_row(
            f"{width}/{length}/{batch}",
            *(f"{statistics.median(s):.3f}" for s in speeds),
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    console.print(table)
    console.print(
        f"{shape['devices']} {jax.default_backend()} devices × {shape['packing']} replicas; "
        f"2 layers, 4 heads, reverse; medians of {_REPEATS.value} interleaved pairs, "
        f"jax {jax.__version__}."
    )


def _population_and_alone(width: int, length: int, batch: int) -> list[Callable[[], None]]:
    """Two ways to train one wave's runs, both compiled."""
    task = make_task("reverse", {"length": length})
    steps = _STEPS.value
    config = TrainConfig(steps=steps, report_every=steps, batch_size=batch)
    trainer = Trainer(ModelConfig(width=width), task, config)
    population = Population(trainer, DeviceData(task.load()), packing=_PACKING.value)
    runs = [RunSpec(3e-3, seed) for seed in range(population.wave_size)]
    train, schedule = jax.jit(trainer.train), jax.jit(trainer.schedule)
    states = [jax.device_put(trainer.init(run.seed, run.learning_rate)) for run in runs]
    wave = population.start(runs)

    def together() -> None:
        # The state is donated: each repeat trains the wave on from where it was.
        nonlocal wave
        wave, metrics = population.advance(wave)
        jax.block_until_ready(metrics)

    def alone() -> None:
        for lane, state in enumerate(states):
            states[lane], metrics = train(state, schedule(state.seed, state.step, None), None)
            jax.block_until_ready(metrics)

    together(), alone()
    return [together, alone]


def _interleaved(sides: list[Callable[[], None]], repeats: int) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats):
        # Each side goes first as often as the other.
        for side in np.roll(range(len(sides)), repeat):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    entry.enter_one("benchmark", {"population": main})
