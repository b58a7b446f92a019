"""One run with everything kept: curve, TensorBoard events, Orbax checkpoints, test result."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorboardX

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.tasks import Data
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.distributed import alike, is_primary
from qkv_jax.training.program import LoneProgram, Program
from qkv_jax.training.step import Replica


def train_run(
    replica: Replica,
    seed: int,
    workdir: pathlib.Path,
    *,
    config: dict[str, Any],
    checkpoint_steps: tuple[int, ...] = (),
    make_program: Callable[[Replica, Data], Program] = LoneProgram,
    on_report: Callable[[dict], None] = lambda row: None,
) -> dict:
    """Trains one replica from its seed and writes into `workdir`:

    `config.json`, `curve.csv` (step, train_loss, gradient_norm, value on validation), TensorBoard
    events, `checkpoints/` at step 0, at `checkpoint_steps` and at the end, with the place in the
    data where these are streamed, and `result.json`.

    Raises:
      ConfigError: if the folder already holds files, or a checkpoint step falls between reports.
    """
    every, last = replica.config.report_every, replica.config.steps
    for step in checkpoint_steps:
        if step % every or not 0 <= step <= last:
            allowed = f"must be a multiple of report_every = {every}, at most {last}"
            raise ConfigError("checkpoint_steps", step, allowed)
    with alike("workdir"):
        occupied = workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir()))
        if is_primary() and occupied:
            raise ConfigError("workdir", str(workdir), "holds files already; name a new folder")
    with alike("task"):
        try:
            data = replica.task.load()
        except ConfigError as error:
            raise error.under("task.options") from None
        program = make_program(replica, data)
    if is_primary():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(as_dict(config), indent=1))
    state, stream = program.start(seed), program.stream(seed)
    checkpoints = Checkpoints(workdir / "checkpoints")
    keep = {0, last, *checkpoint_steps}
    checkpoints.save(state, stream)
    outcome = replica.task.outcome
    # Of several processes all take part in everything, and one has files to write it to.
    here = workdir if is_primary() else pathlib.Path(os.devnull)
    with (
        tensorboardX.SummaryWriter(str(here), write_to_disk=is_primary()) as events,
        (workdir / "curve.csv" if is_primary() else here).open("w", buffering=1) as curve,
    ):
        curve.write("step,train_loss,gradient_norm,value\n")
        for step in range(every, last + 1, every):
            state, metrics = program.advance(state, stream)
            value = _mean(program.scores(state, "validation"))
            row = {
                "step": step,
                "train_loss": float(metrics["loss"]),
                "gradient_norm": float(metrics["gradient_norm"]),
                "value": value,
            }
            curve.write(",".join(map(repr, row.values())) + "\n")
            events.add_scalar("train/loss", row["train_loss"], step)
            events.add_scalar("train/gradient_norm", row["gradient_norm"], step)
            events.add_scalar(f"validation/{outcome.metric}", value, step)
            if step in keep:
                checkpoints.save(state, stream)
            on_report(row)
            if bool(metrics["diverged"]):
                break
    checkpoints.close()
    result = {
        "seed": seed,
        "status": "diverged" if bool(state.diverged) else "done",
        "metric": outcome.metric,
        "unit": outcome.unit,
        "validation": value,
        "test": _mean(program.scores(state, "test")),
    }
    if is_primary():
        (workdir / "result.json").write_text(json.dumps(result, indent=1))
    return result


def _mean(scores: np.ndarray) -> float:
    return float(scores.astype(np.float64).mean())
