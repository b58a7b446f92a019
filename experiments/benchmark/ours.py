"""Our sides: a wave of runs as a population, the same runs one at a time, and one run alone."""

import time
from typing import Any

import jax

from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.step import Trainer

from .sides import Side

CHECKED = 10  # steps whose losses every side must share


def population(trainer: Trainer, packing: int | None) -> tuple[Side, int]:
    """One report of a wave, and how many runs the wave holds."""
    whole = Population(trainer, DeviceData(trainer.task.load()), packing)
    rate = trainer.train_config.learning_rate
    wave = whole.start([RunSpec(rate, seed) for seed in range(whole.wave_size)])
    return _reports(whole, wave), whole.wave_size


def copies(trainer: Trainer, packing: int) -> tuple[Side, int]:
    """Likewise on the first device alone, of runs of one seed: as much work to train, and initial
    values to be drawn but once."""
    data = DeviceData(trainer.task.load(), jax.local_devices()[:1])
    whole = Population(trainer, data, packing)
    wave = whole.start([RunSpec(trainer.train_config.learning_rate, 0)])  # which fills it up
    return _reports(whole, wave), whole.wave_size


def _reports(whole: Population, wave: Any) -> Side:
    def block() -> float:
        # The state is donated: each block trains the wave on from where it was.
        nonlocal wave
        start = time.perf_counter()
        wave, metrics = whole.advance(wave)
        jax.block_until_ready((wave, metrics))
        return time.perf_counter() - start

    return block


def alone(trainer: Trainer, means: list[float] | None = None) -> Side:
    """One report of one run, which every core may help with; `means` is told its mean loss."""
    program = LoneProgram(trainer, trainer.task.load())
    state = jax.device_put(program.start(0))

    def block() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = program.advance(state, None)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        if means is not None:
            means.append(float(metrics["loss"]))
        return seconds

    return block


def inference(trainer: Trainer, packing: int | None) -> Side:
    """The forward passes of the batches of one report, for a wave of runs."""
    whole = Population(trainer, DeviceData(trainer.task.load()), packing)
    rate = trainer.train_config.learning_rate
    params = whole.start([RunSpec(rate, seed) for seed in range(whole.wave_size)]).params
    batches = jax.device_get(batches_of(trainer, trainer.train_config.report_every))

    def scores(params: Any, batches: Any) -> Any:
        return jax.lax.map(lambda batch: trainer.evaluate(params, batch), batches)

    mapped = jax.pmap(jax.vmap(scores, in_axes=(0, None)), in_axes=(0, None))

    def block() -> float:
        start = time.perf_counter()
        jax.block_until_ready(mapped(params, batches))
        return time.perf_counter() - start

    return block


def batches_of(trainer: Trainer, count: int) -> Any:
    """The first batches of seed 0, of those of one report: a tree with that leading axis."""
    data = trainer.task.load().train
    schedule = jax.jit(trainer.schedule)(0, 0, data)
    drawn = jax.vmap(lambda entry: trainer.task.batch(data, entry))(schedule)
    return jax.tree.map(lambda array: array[:count], drawn)


def losses(trainer: Trainer, batches: Any) -> list[float]:
    """The losses of the first steps of seed 0, which the other sides must come to as well."""
    step = jax.jit(trainer.train_step)
    state = trainer.init(0, trainer.train_config.learning_rate)
    found = []
    for place in range(len(batches["inputs"])):
        state, metrics = step(state, jax.tree.map(lambda array: array[place], batches))  # noqa: B023
        found.append(float(metrics["loss"]))
    return found
