"""PyTorch at its best: eager and compiled, as one process of all threads or a process a core.

All variants are timed and the fastest counts. It trains our model to the letter: it is given our
initial parameters and batches, and its first losses must be ours, or nothing of it is shown.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from qkv_jax.config import ConfigError
from qkv_jax.training.state import rate_schedule
from qkv_jax.training.step import Trainer

from . import ours, plain_flax
from .floor import cores
from .sides import Side, Spread
from .workers import Worker, WorkerError, started

_TOLERANCE = 1e-4  # of losses, relative: the order of sums differs, and steps make it grow
OF_MEANS = 0.01  # of mean losses in bfloat16, which rounds differently where programs are cut
KINDS = ("eager", "compiled")


def version(python: str) -> str | None:
    """The version of PyTorch that a Python has; None, having said so, if it has none."""
    code = "import numpy, torch; print(torch.__version__)"
    try:
        asked = [python, "-I", "-c", code]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode:
        lacks = "is no Python that runs" if done is None else "has no PyTorch with NumPy"
        left_out(f"--torch={python} {lacks}; `make benchmark` makes one")
        return None
    return done.stdout.strip()


def left_out(reason: str) -> None:
    """Says in one line why PyTorch, or a variant of it, is not among the sides."""
    print(f"PyTorch is left out: {reason}", file=sys.stderr)


class Peer:
    """The workers of one benchmark, which go from size to size.

    Args:
      groups: how PyTorch may use the cores, by name: workers that train at the same time.
    """

    def __init__(self, groups: Mapping[str, Sequence[Worker]], folder: pathlib.Path):
        self._groups, self._file = groups, folder / "run.npz"

    def sides(self, trainer: Trainer, expected: Sequence[float]) -> dict[str, tuple[Side, int]]:
        """Every variant that works here: a side, and how many runs it trains at once.

        Raises:
          ConfigError: if PyTorch comes to other losses.
        """
        _write(trainer, self._file)
        steps, found = trainer.train_config.report_every, {}
        for name, workers in self._groups.items():
            for kind in KINDS:
                try:
                    for worker in workers:
                        if kind == KINDS[0]:
                            worker.ask({"do": "load", "file": str(self._file)})
                        losses = worker.ask({"do": "check", "kind": kind})["losses"]
                        require_equal(f"PyTorch, {kind}", losses, expected)
                except WorkerError as error:
                    left_out(f"{kind}, {name}: {error}")
                    continue
                found[f"{kind}, {name}"] = _side(workers, kind, steps), len(workers)
        return found


def groups(*, together: bool) -> dict[str, tuple[int, int, bool]]:
    """How PyTorch may use the cores, by name: processes, threads of each, and whether threads that
    wait for each other spin, as they do by default.

    Spinning is a third faster on a quiet machine and many times slower where another job has a
    core. It is tried where one process is all there is.
    """
    found = {f"1 x {cores()}": (1, cores(), False)}
    if cores() > 1 and together:
        found[f"{cores()} x 1"] = (cores(), 1, False)
    elif cores() > 1:
        found[f"1 x {cores()}, spinning"] = (1, cores(), True)
    return found


def variants(*, together: bool) -> list[str]:
    """The names of all that is tried."""
    return [f"{kind}, {group}" for group in groups(together=together) for kind in KINDS]


def columns(row: Mapping[str, Any], *, together: bool) -> dict[str, float]:
    """The times of all variants in a row of results; those that were left out have empty ones."""
    found: dict[str, float] = {}
    for variant in variants(together=together):
        column = variant.replace(" x ", "x").replace(", ", "_")
        found |= row.get(variant, Spread()).columns(f"torch_{column}_ms")
    return found


@contextlib.contextmanager
def peer(python: str, *, together: bool) -> Iterator[Peer]:
    """PyTorch's workers: one of all threads and, where several runs may train at once (`together`),
    one of one thread for each core."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = lambda threads, spins: stack.enter_context(
            started(python, "torch_worker.py", threads, _environment(threads, spins, folder))
        )
        yield Peer(
            {
                name: [start(threads, spins) for _ in range(processes)]
                for name, (processes, threads, spins) in groups(together=together).items()
            },
            folder,
        )


class Alone:
    """One process on a device ("cuda", "cpu"), for large models: each of their layers compiled."""

    def __init__(self, worker: Worker, file: pathlib.Path, device: str):
        self._worker, self._file, self._device = worker, file, device
        self.limited = worker.limited

    def side(self, trainer: Trainer, loss: float) -> Side:
        """Blocks of a trainer's reports, of which ours has this mean loss in the first.

        Raises:
          ConfigError: if PyTorch comes to another one.
          WorkerError: if it comes to none.
        """
        steps = trainer.train_config.report_every
        _write(trainer, self._file, self._device, steps)
        self._worker.ask({"do": "load", "file": str(self._file)})
        self._file.unlink()  # of gigabytes
        losses = self._worker.ask({"do": "check", "kind": "layers"})["losses"]
        require_equal("PyTorch", [statistics.fmean(losses)], [loss], OF_MEANS)
        return _side([self._worker], "layers", steps)


@contextlib.contextmanager
def alone(python: str, device: str) -> Iterator[Alone]:
    """PyTorch's one worker of all threads on a device."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "run.npz"
        environment = _environment(cores(), False, file.parent)
        with started(python, "torch_worker.py", cores(), environment) as worker:
            yield Alone(worker, file, device)


def require_equal(
    side: str,
    losses: Sequence[float],
    expected: Sequence[float],
    tolerance: float = _TOLERANCE,
) -> None:
    """Refuses a side that trains something else.

    Raises:
      ConfigError: saying where it parts from ours.
    """
    for step, (theirs, our) in enumerate(zip(losses, expected, strict=True), 1):
        if not abs(theirs - our) <= tolerance * abs(our):
            allowed = f"must be ours, {our:.6f}: it trains another model, its times are not shown"
            raise ConfigError(f"loss of step {step} of {side}", f"{theirs:.6f}", allowed)


def _side(workers: Sequence[Worker], kind: str, steps: int) -> Side:
    def block() -> float:
        for worker in workers:
            worker.tell({"do": "steps", "kind": kind, "count": steps})
        return max([worker.answer()["seconds"] for worker in workers])

    return block


def _environment(threads: int, spins: bool, folder: pathlib.Path) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **({} if spins else {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "passive"}),
        # What is compiled knows the number of threads.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"compiled-{threads}"),
    }


def _write(
    trainer: Trainer, file: pathlib.Path, device: str = "cpu", checked: int = ours.CHECKED
) -> None:
    """All that a worker needs of a run, in one file."""
    model, config = trainer.model_config, trainer.train_config
    batches = jax.device_get(ours.batches_of(trainer, config.report_every))
    rates = config.learning_rate * np.asarray(
        jax.vmap(rate_schedule(config))(np.arange(config.steps)), np.float64
    )
    setup = {
        "model": {
            "symbols": trainer.task.classes,
            "length": trainer.task.max_length,
            "width": model.width,
            "layers": model.layers,
            "heads": model.heads,
            "epsilon": model.norm_epsilon,
            "dtype": model.dtype,
        },
        "device": device,
        "betas": (config.beta1, config.beta2),
        "eps": 1e-8,  # Optax's
        "weight_decay": config.weight_decay,
        "clip_norm": config.clip_norm,
        "rates": rates.tolist(),
        "checked": checked,
    }
    params = plain_flax.mapped(trainer.init_params(0))
    np.savez(file, setup=json.dumps(setup), **batches, **_renamed(params))


def _renamed(params: Any) -> dict[str, np.ndarray]:
    """The parameters of plain Flax under PyTorch's names."""
    renamed = {}
    for path, array in flatten_dict(params).items():
        words = [word for word in path if word != "attention"]
        words = [*words[0].replace("layer_", "layers.").split("."), *words[1:]]
        if words[-1] in ("kernel", "scale", "embedding"):
            words[-1] = "weight"
        renamed[".".join(words)] = np.asarray(array)
    return renamed
