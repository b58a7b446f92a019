"""One run with everything kept: curve, TensorBoard events, Orbax checkpoints, test result.

A run that was killed goes on from its last checkpoint and ends with the same bits as one that was
not. All that it writes before `result.json` is made of what a checkpoint holds: what lies in the
folder from after the checkpoint is written over.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from qkv_jax import arguments
from qkv_jax.config import (
    ConfigError,
    as_dict,
    build,
    first_difference,
    require_positive,
    settle,
)
from qkv_jax.runtime.distributed import any_process, is_primary, raise_together
from qkv_jax.runtime.events import Events
from qkv_jax.runtime.files import folder_lock, foreign_files, json_text, with_filename, write_whole
from qkv_jax.runtime.stopping import StopSignal
from qkv_jax.tasks import Data
from qkv_jax.tasks.fingerprint import check_same_data
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.rehearsal import first_batch, rehearse
from qkv_jax.training.single import LoneProgram, Program
from qkv_jax.training.step import Trainer

_COLUMNS = ("step", "train_loss", "gradient_norm", "value")
_SCORES = ("validation", "test")  # of result.json
_DATA = "data"  # what config.json has beside the config
_SPARE = 2  # newest checkpoints that stay while a run is under way, whatever they are for

Row = dict[str, float | int]  # of the curve: its columns, and the time, which is for TensorBoard


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """Which checkpoints stay: those of step 0, of the last step and of `steps` for good.

    Attributes:
      steps: the steps that are asked for.
      every: one more every so many steps, of which the `last` newest stay; none, if 0.
      last: how many these are. Of all of these the one with the best validation stays too.
    """

    steps: tuple[int, ...] = ()
    every: int = 0
    last: int = 3

    def __post_init__(self):
        settle(self)
        require_positive(self, "last")
        arguments.whole("every", self.every)

    def check(self, report_every: int, steps: int) -> None:
        """Refuses steps between two reports, before the first or after the last one."""
        with_filename = [("checkpoint_steps", step) for step in self.steps]
        for field, step in [*with_filename, ("checkpoint_every", self.every)]:
            if step % report_every or not 0 <= step <= steps:
                allowed = f"must be a multiple of report_every = {report_every}, at most {steps}"
                raise ConfigError(field, step, allowed)

    def is_due(self, step: int) -> bool:
        return step in self.steps or bool(self.every) and step % self.every == 0

    def final(self, steps: Sequence[int], end: int, rank: Callable[[int], float]) -> set[int]:
        """Of the steps there are, those that stay when the run is over.

        Args:
          steps: in order.
          end: the last step of the run.
          rank: how good the validation was; the best step is the earliest of highest rank.
        """
        asked = {0, end, *self.steps}.intersection(steps)
        due = [step for step in steps if step and (self.is_due(step) or step == end)]
        newest = [step for step in due if step not in asked][-self.last :]
        best = [max(due, key=lambda step: (rank(step), -step))] if due else []
        return {*asked, *newest, *best}


def train_run(
    trainer: Trainer,
    seed: int,
    workdir: pathlib.Path,
    *,
    config: dict[str, Any],
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008 (frozen)
    stop_signal: StopSignal | None = None,
    make_program: Callable[[Trainer, Data], Program] = LoneProgram,
    on_report: Callable[[dict], None] = lambda row: None,
    on_start: Callable[[], None] = lambda: None,
) -> dict:
    """Trains one run from its seed, or from where its folder says that it was, and writes into
    `workdir`:

    `config.json`, `curve.csv` (step, train_loss, gradient_norm, value on validation), TensorBoard
    events, `checkpoints/` (those of `policy`; while it is under way those that `stop_signal` asks
    for as well), and, last, `result.json`, which is returned. A finished run is not run again.

    Raises:
      ConfigError: if the folder holds other files, another run or one that was started with other
        data, is in use by another process or holds no checkpoint that is whole, or if a checkpoint
        step falls between reports.
      Interrupted: when `stop_signal` says so, after saving: the same call goes on.
      OSError: if something cannot be written; what was saved before is intact.
    """
    arguments.whole("seed", seed, most=2**32 - 1)
    policy.check(trainer.train_config.report_every, trainer.train_config.steps)
    config = json.loads(json_text(as_dict(config)))
    with raise_together("workdir"):
        status = _status(workdir, config)
    if any_process(is_primary() and status == "finished"):
        return _finished(workdir, seed)
    with raise_together("task"):
        try:
            data = trainer.task.load()
        except ConfigError as error:
            raise error.under("task.options") from None
        found = as_dict(trainer.task.fingerprint(data))
    with raise_together("data"):
        known = _read_config(workdir) if status == "begun" else {}
        check_same_data(known.get(_DATA), found, "task", f"the run in {workdir}")
        program = make_program(trainer, data)
        try:
            batch = first_batch(trainer, data)
        except ConfigError as error:
            raise error.under("train") from None
        rehearse(trainer, batch, data)
    with contextlib.ExitStack() as lock:
        with raise_together("workdir"):
            if is_primary():
                lock.enter_context(folder_lock(workdir))
                if _status(workdir, config) == "new":  # nobody came first
                    started = config | {_DATA: found}
                    write_whole(workdir / "config.json", json_text(started))
        stop_signal = stop_signal or StopSignal()
        result = _train(program, seed, workdir, policy, stop_signal, on_report, on_start)
        if is_primary():
            write_whole(workdir / "result.json", json_text(result))
    return result


def _status(workdir: pathlib.Path, config: dict) -> Literal["new", "begun", "finished"]:
    """What a folder holds of this run.

    Raises:
      ConfigError: if it holds anything else.
    """
    if not workdir.exists():
        return "new"
    names = foreign_files(workdir, "config.json") if workdir.is_dir() else {workdir.name}
    if not names:
        return "new"
    if "config.json" not in names:
        raise ConfigError("workdir", str(workdir), "holds other files; name a new folder")
    known, asked = _identity(_read_config(workdir)), _identity(config)
    if known != asked:
        allowed = f"holds another run ({first_difference(known, asked)}); name another folder"
        raise ConfigError("workdir", str(workdir), allowed)
    return "finished" if "result.json" in names else "begun"


def _read_config(workdir: pathlib.Path) -> dict:
    """config.json, which has what the data were beside what was asked for."""
    file = workdir / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(str(file), "damaged JSON", str(error)) from None
    if not isinstance(found, dict):
        raise ConfigError(str(file), "other JSON", "holds the fields of a run")
    return found


def _identity(config: dict) -> dict:
    """What makes a run the one it is: everything but the mesh, since a checkpoint is restored onto
    whatever devices there are. Whether there is one counts: it changes what the optimiser keeps.
    The data are compared when they are there."""
    mesh = build(MeshConfig, config.get("mesh") or {}, "mesh")
    asked = {name: value for name, value in config.items() if name != _DATA}
    return asked | {"mesh": "given" if mesh.is_given else "not given"}


def _finished(workdir: pathlib.Path, seed: int) -> dict:
    result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    _check_seed(workdir, result["seed"], seed)
    return {name: _number(value) if name in _SCORES else value for name, value in result.items()}


def _check_seed(workdir: pathlib.Path, known: int, seed: int) -> None:
    if known != seed:
        raise ConfigError("seed", seed, f"the run in {workdir} has the seed {known}")


def _train(
    program: Program,
    seed: int,
    workdir: pathlib.Path,
    policy: CheckpointPolicy,
    stop_signal: StopSignal,
    on_report: Callable[[dict], None],
    on_start: Callable[[], None],
) -> dict:
    trainer, outcome = program.trainer, program.trainer.task.outcome
    every, last = trainer.train_config.report_every, trainer.train_config.steps
    curve: list[Row] = []

    def rank(step: int) -> float:
        value = next(row["value"] for row in curve if row["step"] == step)
        return -np.inf if np.isnan(value) else value if outcome.higher_is_better else -value

    def kept(steps: Sequence[int]) -> set[int]:
        return policy.final(steps, last, rank) | set(steps[-_SPARE:])

    with Checkpoints(workdir / "checkpoints", kept) as checkpoints:
        with raise_together("checkpoints"):
            found = checkpoints.restore_last(lambda _: program.abstract())
            if found is None and (workdir / "curve.csv").exists():
                raise ConfigError("workdir", str(workdir), "holds a run without its checkpoints")
        stream = program.stream(seed)

        def save() -> None:
            place = stream.get_state() if stream else None
            # A copy: notes are written in the background, while the curve grows.
            notes = {"curve": json.loads(json_text(curve)), "stream": place}
            checkpoints.save(state, notes, step)
            stop_signal.saved()

        if found is None:
            step, state = 0, program.start(seed)
            save()
            checkpoints.wait()  # from here on there is one to go on from
        else:
            step, state, notes = found
            with raise_together("seed"):
                _check_seed(workdir, int(state.seed), seed)
            curve += [{name: _number(x) for name, x in row.items()} for row in notes["curve"]]
            if stream:
                stream.set_state(notes["stream"])
        with _Curve(workdir, outcome.metric, curve) as written:
            while step < last and not bool(state.diverged):
                due = stop_signal.poll()
                if (due.save or due.stop) and step not in checkpoints.steps:
                    save()
                if due.stop:
                    checkpoints.wait()
                    raise stop_signal.interruption()
                on_start()  # before the first step is compiled
                on_start = lambda: None
                state, metrics = program.advance(state, stream)
                step += every
                row = {
                    "step": step,
                    "train_loss": float(metrics["loss"]),
                    "gradient_norm": float(metrics["gradient_norm"]),
                    "value": _mean(program.scores(state, "validation")),
                }
                curve.append({**row, "time": time.time()})
                written.add(curve[-1])
                if step == last or bool(metrics["diverged"]) or policy.is_due(step):
                    save()
                on_report(row)
        checkpoints.wait()  # nothing goes before the last one is there
        stay = policy.final(checkpoints.steps, step, rank)
        checkpoints.keep_only(stay)
        return {
            "seed": seed,
            "status": "diverged" if bool(state.diverged) else "done",
            "metric": outcome.metric,
            "unit": outcome.unit,
            "validation": curve[-1]["value"],
            "test": _mean(program.scores(state, "test")),
            "best_step": max(stay - {0}, key=lambda step: (rank(step), -step)),
        }


class _Curve:
    """curve.csv and the TensorBoard events: written anew with the rows that a checkpoint held, and
    then row by row. Of several processes one has files to write them to."""

    def __init__(self, workdir: pathlib.Path, metric: str, rows: list[Row]):
        self._metric, self._path = metric, workdir / "curve.csv"
        if not is_primary():
            return
        for old in workdir.glob("events.out.tfevents.*"):
            old.unlink()
        lines = [",".join(_COLUMNS), *map(self._line, rows)]
        write_whole(self._path, "".join(f"{line}\n" for line in lines))
        self._file = self._path.open("a")
        self._events = Events(workdir)
        for row in rows:
            self._report(row)

    def add(self, row: Row) -> None:
        if not is_primary():
            return
        with with_filename(self._path):
            self._file.write(self._line(row) + "\n")
            self._file.flush()
        self._report(row)
        self._events.flush()

    def _line(self, row: Row) -> str:
        return ",".join(repr(row[name]) for name in _COLUMNS)

    def _report(self, row: Row) -> None:
        for tag, name in (
            ("train/loss", "train_loss"),
            ("train/gradient_norm", "gradient_norm"),
            (f"validation/{self._metric}", "value"),
        ):
            self._events.add(tag, row[name], row["step"], row["time"])

    def __enter__(self) -> "_Curve":
        return self

    def __exit__(self, *_exception) -> None:
        if is_primary():
            with with_filename(self._path), self._file, self._events:
                self._file.flush()
                os.fsync(self._file.fileno())


def _number(value: Any) -> float | int:
    """A number of a curve as JSON has it (`json_text`)."""
    return math.nan if value is None else float(value) if isinstance(value, str) else value


def _mean(scores: np.ndarray) -> float:
    return float(scores.astype(np.float64).mean())
