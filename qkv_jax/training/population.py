"""Populations: many runs of one program at a time, pmap over devices and vmap inside each.

Replicas never talk to each other, so no collective is involved. Every wave has the same size
(devices x packing, the last one padded), so that tuning, extension and evaluation of an arm share
one trace of train and one of evaluate. Initial values are drawn op by op on the host side of JAX:
compiling thirty random draws takes longer than most of these models train.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np

from qkv_jax.tasks import Data
from qkv_jax.training.state import TrainState
from qkv_jax.training.step import Replica

# Replicas a device: on a CPU core one is fastest; accelerators have room for more.
PACKING = {"cpu": 1, "gpu": 8, "tpu": 8}
_SERIAL = itertools.count()
_EVAL_BLOCK = 256  # examples a call of evaluate: one shape for validation and test


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells the replicas of a population apart."""

    learning_rate: float
    seed: int
    salt: int = 0


@dataclasses.dataclass
class Finished:
    """One run, done: its curve, its test scores (an item an example), its final parameters.

    Attributes:
      steps, train_loss, value: the curve, an entry a report; `value` is the validation metric.
      diverged: whether a training loss was not finite.
      scores: the metric of every test example, or None if the test was not asked for.
      params: final parameters as NumPy arrays, or None likewise.
      seconds: wall time of the wave, compilation left out.
    """

    run: Run
    steps: np.ndarray
    train_loss: np.ndarray
    value: np.ndarray
    diverged: bool
    scores: np.ndarray | None
    params: Any
    seconds: float


def wave_shape(
    packing: int | None = None, devices: Sequence[jax.Device] | None = None
) -> dict[str, int]:
    """Devices, replicas a device, and replicas a wave; all local devices by default."""
    devices = devices or jax.local_devices()
    packing = packing or PACKING.get(devices[0].platform, 1)
    return {"devices": len(devices), "packing": packing, "size": len(devices) * packing}


class Population:
    """Trains runs of one `Replica` in waves of a fixed size.

    Args:
      replica: the program.
      data: what its task loads; put on every device once.
      devices: by default all local ones.
      packing: replicas a device; by default `PACKING` of the backend.
    """

    def __init__(
        self,
        replica: Replica,
        data: Data,
        devices: Sequence[jax.Device] | None = None,
        packing: int | None = None,
    ):
        self.replica = replica
        self.devices = list(devices or jax.local_devices())
        shape = wave_shape(packing, self.devices)
        self.packing, self.wave_size = shape["packing"], shape["size"]
        pmap = functools.partial(jax.pmap, in_axes=(0, None), devices=self.devices)
        train = jax.vmap(_traced_once(replica.train), in_axes=(0, None))
        evaluate = jax.vmap(_traced_once(replica.evaluate), in_axes=(0, None))
        self._train, self._evaluate = pmap(train, donate_argnums=0), pmap(evaluate)
        # pmap traces anew for arrays that it did not lay out itself, so let it lay out all.
        self._place = jax.pmap(lambda state: state, devices=self.devices)
        everywhere = jax.pmap(
            lambda _, data: data, in_axes=(0, None), out_axes=None, devices=self.devices
        )
        broadcast = functools.partial(everywhere, np.zeros(len(self.devices)))
        held_out = ("validation", "test")
        self._data = broadcast({name: x for name, x in data.items() if name not in held_out})
        self._blocks = {
            name: [(broadcast(block), real) for block, real in _blocks(data[name])]
            for name in held_out
        }
        self._init_cache: dict[tuple[int, int], TrainState] = {}
        self._compiled = False

    def train(
        self,
        wave: Sequence[Run],
        *,
        test: bool = False,
        on_report: Callable[[int], None] | None = None,
    ) -> list[Finished]:
        """Trains one wave to the end; `on_report` hears the steps done, twice a report at most.

        A replica whose loss is not finite is marked as diverged; its neighbours go on untouched.
        """
        if not 0 < len(wave) <= self.wave_size:
            raise ValueError(f"a wave holds 1 to {self.wave_size} runs, not {len(wave)}")
        config, reports = self.replica.config, []
        state = self._init(list(wave) + [wave[-1]] * (self.wave_size - len(wave)))
        if not self._compiled:
            self._warm_up(wave)
        start = time.perf_counter()
        for done in range(config.report_every, config.steps + 1, config.report_every):
            state, metrics = self._train(state, self._data)
            scores = self._scores(state.params, "validation")
            reports.append((metrics["loss"], scores, metrics["diverged"]))
            # Dispatch runs ahead of the arithmetic; wait for the report before this one only.
            if len(reports) > 1 and np.all(jax.device_get(reports[-2][2])):
                break
            if on_report:
                on_report(done)
        losses, scores, diverged = _gather(reports)
        seconds = time.perf_counter() - start
        tests = _join(self._scores(state.params, "test")) if test else None
        params = jax.device_get(state.params) if test else None
        steps = config.report_every * (1 + np.arange(len(losses)))
        finished = []
        for lane, run in enumerate(wave):
            place = divmod(lane, self.packing)
            finished.append(
                Finished(
                    run=run,
                    steps=steps,
                    train_loss=losses[(slice(None), *place)],
                    value=scores[(slice(None), *place)],
                    diverged=bool(diverged[(-1, *place)]),
                    scores=None if tests is None else tests[place],
                    params=None if params is None else jax.tree.map(lambda a: a[place], params),
                    seconds=seconds,
                )
            )
        return finished

    def _init(self, wave: Sequence[Run]) -> TrainState:
        states = []
        for run in wave:
            # The rates of a grid share their seeds, and so their initial values.
            known = self._init_cache.get((run.seed, run.salt))
            if known is None:
                state = self.replica.init(run.seed, 0.0, run.salt)
                known = self._init_cache[run.seed, run.salt] = jax.device_get(state)
            states.append(known.replace(learning_rate=np.float32(run.learning_rate)))
        shape = (len(self.devices), self.packing)
        stack = lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0]))
        return self._place(jax.tree.map(stack, *states))

    def _warm_up(self, wave: Sequence[Run]) -> None:
        """Compiles and runs both programs once, so that `seconds` measures training alone."""
        state = self._init([wave[0]] * self.wave_size)
        state, _ = self._train(state, self._data)
        jax.block_until_ready(self._evaluate(state.params, self._blocks["validation"][0][0]))
        self._compiled = True

    def _scores(self, params: Any, split: str) -> list[tuple[jax.Array, int]]:
        return [(self._evaluate(params, block), real) for block, real in self._blocks[split]]


def _traced_once(function: Callable) -> Callable:
    """Refuses a second trace: two waves that differ in shape are a defect, not a slow day."""

    def once(*args):
        return function(*args)

    # chex tells functions apart by name and place; each population counts for itself.
    once.__name__ = f"{function.__name__} of population {next(_SERIAL)}"
    return chex.assert_max_traces(once, n=1)


def _blocks(split: dict) -> list[tuple[dict, int]]:
    """A split cut into blocks of one size, each with its number of real examples."""
    total = split["targets"].shape[0]
    blocks = []
    for start in range(0, total, _EVAL_BLOCK):
        rows = np.minimum(start + np.arange(_EVAL_BLOCK), total - 1)
        block = jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], split)
        blocks.append((block, min(_EVAL_BLOCK, total - start)))
    return blocks


def _join(blocks: list[tuple[jax.Array, int]]) -> np.ndarray:
    """[devices, packing, examples] of a split, padding taken off."""
    return np.concatenate([np.asarray(scores)[..., :real] for scores, real in blocks], axis=-1)


def _gather(reports: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, mean validation scores and divergence: [reports, devices, packing]."""
    losses, scores, diverged = zip(*reports, strict=True)
    means = [_join(blocks).astype(np.float64).mean(-1) for blocks in scores]
    return np.stack(jax.device_get(losses)), np.stack(means), np.stack(jax.device_get(diverged))


