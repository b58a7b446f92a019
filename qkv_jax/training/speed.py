"""How fast this machine trains populations, measured in a few seconds."""

import dataclasses
import statistics
import time

import jax

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import REGISTRY
from qkv_jax.training import costs, shared
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

_STEPS, _REPEATS = 25, 3
# Two sizes: of the small one a step is mostly what each costs, of the large one its arithmetic.
_SIZES = ({"layers": 1, "width": 32, "heads": 2}, {"layers": 2, "width": 64, "heads": 2})


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step of a wave and a compilation take.

    Attributes:
      step: seconds of a step, whatever its size.
      flops: per second and device, of the matrix products of training.
      compilation: seconds per program.
    """

    step: float
    flops: float
    compilation: float

    def seconds(self, trainer: Trainer, packing: int) -> float:
        """A step of a wave with so many replicas on each device."""
        return self.step + packing * costs.step_flops(shared.program_of(trainer)) / self.flops


# Of two CPU cores, to weigh parts of a study against each other where nothing was measured.
USUAL = Speed(step=8e-4, flops=5e10, compilation=4.0)


def measure(packing: int) -> Speed:
    """Times steps of two small populations on all devices of this process."""
    task = REGISTRY["relation"](length=16)
    config = TrainConfig(batch_size=32, steps=_STEPS, report_every=_STEPS)
    data, seconds, flops, compiling = DeviceData(task.load()), [], [], []
    for size in _SIZES:
        trainer = Trainer(ModelConfig(**size), task, config)
        population = Population(trainer, data, packing)
        wave = [RunSpec(1e-3, seed) for seed in range(population.wave_size)]
        start = time.perf_counter()
        state = population.start(wave)
        population.train(wave)
        first = time.perf_counter() - start
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(population.advance(state))
            times.append(time.perf_counter() - start)
        seconds.append(statistics.median(times) / _STEPS)
        flops.append(packing * costs.step_flops(shared.program_of(trainer)))
        compiling.append(max(first - 2 * _STEPS * seconds[-1], 0.0))
    rate = (flops[1] - flops[0]) / max(seconds[1] - seconds[0], 1e-9)
    return Speed(
        step=max(seconds[0] - flops[0] / rate, 0.0), flops=rate,
        compilation=statistics.mean(compiling),
    )  # fmt: skip
