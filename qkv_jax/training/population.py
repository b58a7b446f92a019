"""Populations: many runs of one program at a time, pmap over devices and vmap inside each.

Replicas never talk to each other, so no collective is involved. Every wave has the same size
(devices x packing, the last one padded), so that tuning, extension and evaluation of an arm share
one trace of train and one of evaluate. Initial values are drawn op by op on the host side of JAX:
compiling thirty random draws takes longer than most of these models train.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from qkv_jax import arguments
from qkv_jax.config import (
    ConfigError,
    require_positive,
    settle,
)
from qkv_jax.tasks.base import HeldOut
from qkv_jax.tasks.streaming import BatchStream, next_batches
from qkv_jax.training import shared
from qkv_jax.training.device_data import DeviceData, layout, wave_shape
from qkv_jax.training.programs import programs_of, schedule_of
from qkv_jax.training.state import TrainConfig, TrainState
from qkv_jax.training.step import Trainer
from qkv_jax.training.wave_checkpoints import WaveSaves

# The columns of a wave's curves, and their types.
_CURVES = {"loss": np.float32, "value": np.float64, "diverged": np.bool_}


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What tells the replicas of a population apart."""

    learning_rate: float
    seed: int
    salt: int = 0

    def __post_init__(self):
        settle(self)
        require_positive(self, "learning_rate")
        arguments.whole("seed", self.seed, most=2**32 - 1)
        arguments.whole("salt", self.salt, most=2**32 - 1)


@dataclasses.dataclass
class RunResult:
    """One run, done: its curve, its test scores (one item per example), its final parameters.

    Attributes:
      steps, train_loss, value: the curve, one entry per report; `value` is the validation metric.
      diverged: whether a training loss was not finite.
      scores: the metric of every test example, or None if the test was not asked for.
      branch: validation and test score of the copy that branched off, or None.
      params: final parameters as NumPy arrays, or None likewise.
      seconds: wall time of the wave, compilation left out.
    """

    run: RunSpec
    steps: np.ndarray
    train_loss: np.ndarray
    value: np.ndarray
    diverged: bool
    scores: np.ndarray | None
    params: Any
    seconds: float
    branch: tuple[float, float] | None = None


class Population:
    """Trains runs of one `Trainer` in waves of a fixed size.

    Args:
      trainer: the program.
      data: its task's data, on the devices that the population is to use.
      packing: replicas per device; by default `PACKING` of the backend.
    """

    def __init__(self, trainer: Trainer, data: "DeviceData", packing: int | None = None):
        arguments.instance("trainer", trainer, Trainer)
        arguments.instance("data", data, DeviceData)
        trainer.check_platform(data.devices[0].platform)
        self.trainer, self.data, self.devices = trainer, data, data.devices
        shape = wave_shape(packing, self.devices)
        self.packing, self.wave_size = shape["packing"], shape["size"]
        program = shared.program_of(trainer)
        self._programs = programs_of(
            program, self.devices, self.packing, data.shapes, trainer.task.stamp()
        )
        # The arms of a task share the program that draws their batches.
        self._schedule = schedule_of(trainer.task, trainer.train_config, self.devices)
        self._init_cache: dict[tuple[int, int], TrainState] = {}

    def train(
        self,
        wave: Sequence[RunSpec],
        *,
        test: bool = False,
        branch: float = 0.0,
        on_report: Callable[[int], None] | None = None,
        saves: WaveSaves | None = None,
    ) -> list[RunResult]:
        """Trains one wave to the end; `on_report` is called with the number of steps dispatched.

        With `branch`, a share of the steps, a copy of each run cools down before the others and is
        scored as well: a run of so many steps, for the price of its cooldown.

        A replica whose loss is not finite is marked as diverged; its neighbours go on untouched.
        With `saves`, the wave goes on from the last checkpoint there and is saved when that is due.

        Raises:
          Interrupted: after saving, if training is to stop.
        """
        config = self.trainer.train_config
        if not self._programs.compiled:
            self._warm_up(wave)
        streams = self.streams(wave)
        found = saves.restore(self._saved_shapes) if saves else None
        if found:
            first, arrays, notes = found
            state = jax.device_put(arrays["state"], layout(self.devices))
            reports = list(zip(*(arrays[name] for name in _CURVES), strict=True))
            for stream, place in zip(streams or (), notes["streams"], strict=True):
                stream.set_state(place)
            before, branched = notes["seconds"], notes["branched"]
        else:
            first, state, reports, before, branched = 0, self.start(wave), [], 0.0, None
        fork = branch_step(config, branch) if branch else None
        start = time.perf_counter()
        for done in range(first + config.report_every, config.steps + 1, config.report_every):
            entries = self._entries(wave, done, state)
            state, metrics = self.advance(state, streams, entries)
            scores = self._scores(state.params, "validation")
            reports.append((metrics["loss"], scores, metrics["diverged"]))
            # Dispatch runs ahead of the arithmetic; wait for the report before this one only.
            if len(reports) > 1 and np.all(jax.device_get(reports[-2][2])):
                break
            if done == fork:
                branched = self._branch(wave, state, streams).tolist()
            if on_report:
                on_report(done)
            if saves and done < config.steps:
                seconds = before + time.perf_counter() - start
                places = [stream.get_state() for stream in streams or ()]
                notes = {"streams": places, "seconds": seconds, "branched": branched}
                saves.report(done, lambda: (_snapshot(state, reports), notes))  # noqa: B023
        losses, scores, diverged = _gather(reports)
        seconds = before + time.perf_counter() - start
        tests = _join(self._scores(state.params, "test")) if test else None
        params = jax.device_get(state.params) if test else None
        if test and self._programs.trainer != self.trainer:
            params = shared.narrowed(params, self.trainer)
        steps = config.report_every * (1 + np.arange(len(losses)))

        def one(run: RunSpec, device: int, lane: int) -> RunResult:
            pick = lambda tree: jax.tree.map(lambda a: a[device, lane], tree)  # None stays None
            return RunResult(
                run=run,
                steps=steps,
                train_loss=losses[:, device, lane],
                value=scores[:, device, lane],
                diverged=bool(diverged[-1, device, lane]),
                scores=pick(tests),
                params=pick(params),
                seconds=seconds,
                branch=tuple(branched[device][lane]) if branched else None,
            )

        return [one(run, *divmod(place, self.packing)) for place, run in enumerate(wave)]

    def start(self, wave: Sequence[RunSpec]) -> TrainState:
        """Initial states [devices, packing, ...] of a wave; its last run fills what is empty."""
        states = []
        for run in self._filled(wave):
            # The rates of a grid share their seeds, and so their initial values.
            known = self._init_cache.get((run.seed, run.salt))
            if known is None:
                state = self._initial(run)
                known = self._init_cache[run.seed, run.salt] = jax.device_get(state)
            states.append(known.replace(learning_rate=np.float32(run.learning_rate)))
        return self._place(states)

    def _initial(self, run: RunSpec) -> TrainState:
        trainer, program = self.trainer, self._programs.trainer
        if program == trainer:
            return trainer.init(run.seed, 0.0, run.salt)
        # Drawn once for all arms of the program: op by op that is a tenth of a second.
        whole = shared.separate(trainer)
        draw = lambda: jax.device_get(whole.init_params(run.seed, run.salt))
        params = self.data.drawn((whole, run.seed, run.salt), draw)
        params = shared.widened(shared.narrowed(params, trainer), trainer)
        return program.start(params, run.seed, 0.0)

    def streams(self, wave: Sequence[RunSpec]) -> list[BatchStream] | None:
        """The training data of each replica of a wave, where they do not lie on the devices."""
        task, batch_size = self.trainer.task, self.trainer.train_config.batch_size
        # The rates of a grid share their seeds, and so their data.
        made = {
            seed: task.stream(self.data.train, seed, batch_size)
            for seed in {run.seed for run in wave}
        }
        return None if None in made.values() else [made[r.seed] for r in self._filled(wave)]

    def _entries(self, wave: Sequence[RunSpec], done: int, state: TrainState) -> Any:
        """The schedule that leads a wave to so many steps."""
        seeds = tuple(run.seed for run in self._filled(wave))
        draw = lambda: self._schedule(state.seed, state.step, self.data.train)
        return self.data.drawn((self._schedule, seeds, done), draw)

    def advance(
        self, state: TrainState, streams: list[BatchStream] | None = None, entries: Any = None
    ) -> tuple[TrainState, Any]:
        """`report_every` steps of every replica, of a schedule that is drawn here by default; the
        state that is passed in is used up."""
        if entries is None:
            entries = self._schedule(state.seed, state.step, self.data.train)
        if streams:
            steps = self.trainer.train_config.report_every
            drawn = {stream: next_batches(stream, steps) for stream in set(streams)}
            entries = entries | self._place([drawn[stream] for stream in streams])
        return self._programs.train(state, entries, self.data.train)

    def _branch(
        self, wave: Sequence[RunSpec], state: TrainState, streams: list[BatchStream] | None
    ) -> np.ndarray:
        """[devices, packing, 2] validation and test scores of copies of runs that leave out what
        is left of them but the cooldown."""
        places = [stream.get_state() for stream in streams or ()]
        config = self.trainer.train_config
        skipped = config.steps - config.cooldown_steps - np.asarray(state.step)
        # A copy: the state that is trained on is used up.
        state = jax.tree.map(lambda leaf: leaf.copy(), state)
        state = state.replace(step=state.step + jax.device_put(skipped, state.step.sharding))
        every = config.report_every
        for done in range(config.steps - config.cooldown_steps + every, config.steps + 1, every):
            state, _ = self.advance(state, streams, self._entries(wave, done, state))
        for stream, place in zip(streams or (), places, strict=True):
            stream.set_state(place)
        scores = [_join(self._scores(state.params, split)) for split in ("validation", "test")]
        means = np.stack([each.astype(np.float64).mean(-1) for each in scores], -1)
        return np.where(np.asarray(state.diverged)[..., None], np.nan, means)

    def _filled(self, wave: Sequence[RunSpec]) -> list[RunSpec]:
        """As many runs as a wave holds: the last one fills what is empty."""
        if not all(isinstance(run, RunSpec) for run in wave):
            raise ConfigError("wave", list(wave), "must hold runs: Run(learning_rate, seed)")
        if not 0 < len(wave) <= self.wave_size:
            raise ValueError(f"a wave holds 1 to {self.wave_size} runs, not {len(wave)}")
        return [*wave, *[wave[-1]] * (self.wave_size - len(wave))]

    def _place(self, replicas: Sequence[Any]) -> Any:
        """Trees of a wave's replicas as one, [devices, packing, ...], on its devices."""
        shape = (len(self.devices), self.packing)
        stack = lambda *leaves: np.stack(leaves).reshape(*shape, *np.shape(leaves[0]))
        return jax.device_put(jax.tree.map(stack, *replicas), layout(self.devices))

    def _saved_shapes(self, step: int) -> dict[str, Any]:
        """What a checkpoint of a wave holds, as arrays to be filled."""
        lanes = (len(self.devices), self.packing)
        one = jax.eval_shape(lambda: self._programs.trainer.init(0, 0.0))
        reports = (step // self.trainer.train_config.report_every, *lanes)
        return {
            "state": jax.tree.map(lambda leaf: np.empty((*lanes, *leaf.shape), leaf.dtype), one),
            **{name: np.empty(reports, dtype) for name, dtype in _CURVES.items()},
        }

    def _warm_up(self, wave: Sequence[RunSpec]) -> None:
        """Compiles and runs all programs once, so that `seconds` measures training alone."""
        state, _ = self.advance(self.start(wave), self.streams(wave))
        block, _ = self.data.blocks["validation"][0]
        jax.block_until_ready(self._programs.evaluate(state.params, block))
        self._programs.compiled = True

    def _scores(self, params: Any, split: HeldOut) -> list[tuple[jax.Array, int]]:
        evaluate = self._programs.evaluate
        return [(evaluate(params, block), real) for block, real in self.data.blocks[split]]


def branch_step(config: TrainConfig, share: float) -> int:
    """The step at which runs of a share of the steps branch off to cool down.

    Raises:
      ConfigError: if they cannot.
    """
    if config.decay != "wsd":
        allowed = f"needs train.decay 'wsd', which stays at its peak; this is {config.decay!r}"
        raise ConfigError("branch", share, allowed)
    every, step = config.report_every, share * config.steps - config.cooldown_steps
    fits = math.isclose(step, round(step)) and not round(step) % every
    if not (fits and not config.cooldown_steps % every and step >= max(config.warmup_steps, every)
            and 0 < share < 1):  # fmt: skip
        allowed = (
            f"of {config.steps} steps, less a cooldown of {config.cooldown_steps}, must be past "
            f"the warm-up of {config.warmup_steps}; it and the cooldown must be multiples of "
            f"report_every = {every}"
        )
        raise ConfigError("branch", share, allowed)
    return round(step)


def _join(blocks: list[tuple[jax.Array, int]]) -> np.ndarray:
    """[devices, packing, examples] of a split, padding taken off."""
    return np.concatenate([np.asarray(scores)[..., :real] for scores, real in blocks], axis=-1)


def _gather(reports: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, mean validation scores and divergence: [reports, devices, packing]."""
    columns = zip(*map(_on_host, reports), strict=True)
    return tuple(np.stack(column) for column in columns)


def _on_host(report: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of one report: [devices, packing]. Means that were restored are taken as they are.
    """
    loss, scores, diverged = report
    mean = scores if isinstance(scores, np.ndarray) else _join(scores).astype(np.float64).mean(-1)
    return jax.device_get(loss), mean, jax.device_get(diverged)


def _snapshot(state: TrainState, reports: list) -> dict[str, Any]:
    """The arrays that a wave under way is made of, as copies on the host."""
    reports[:] = map(_on_host, reports)
    return {
        "state": jax.tree.map(np.array, state),
        **dict(zip(_CURVES, _gather(reports), strict=True)),
    }
