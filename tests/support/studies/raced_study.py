"""A made-up study whose protocol is the race: losses by arm, rate and seed, no training."""

import dataclasses

import numpy as np

from qkv_jax.study.record import ArmRecord, StudyRecord, TaskRecord
from qkv_jax.tasks.base import Outcome

GRID = (1e-3, 3e-3, 1e-2)
BELOW = 2  # places of a table of losses before the grid's first
TASK = "task"


def race_record(arms, margin=1.0, seeds=32, *, grid=GRID, controls=(), wave=2, failure=1e9,
                solving=False, **changes):  # fmt: skip
    """The record of a study of one task, `arms` beside the baseline."""
    names = ["separate", *(f"arm{number}" for number in range(1, arms + 1)), "placebo"]
    roles = {"separate": "baseline", "placebo": "placebo"} | dict.fromkeys(controls, "control")
    outcome = Outcome(
        kind="solve" if solving else "mean", metric="loss", unit="loss", margin=margin,
        failure_value=failure, threshold=0.5 if solving else None,
    )  # fmt: skip
    task = TaskRecord(
        title="A task", description="", family=TASK, family_title="A task", outcome=outcome,
        steps=10, arms=tuple(names), learning_rates=grid,
    )  # fmt: skip
    return StudyRecord(
        name="raced", baseline="separate", placebo="placebo", alpha=0.05, protocol="race",
        eval_seeds=tuple(range(seeds)), looks=(seeds,), wave={"size": wave}, claims={}, config={},
        arms={name: ArmRecord("separate", roles.get(name, "arm")) for name in names},
        tasks={TASK: task}, **changes,
    )  # fmt: skip


def with_seeds(record, *looks):
    """The same study, given seeds so often."""
    return dataclasses.replace(record, looks=looks, eval_seeds=tuple(range(looks[-1])))


def steep(effects, seeds=96, noise=0.1, curve=3.0, rng=0, grid=GRID):
    """Losses of arms that are best in the middle of the grid, clearly so."""
    rng = np.random.default_rng(rng)
    away = np.abs(np.arange(-BELOW, len(grid) + BELOW) - len(grid) // 2)
    mean = np.array(effects)[:, None, None] + curve * away[:, None]
    return mean + noise * rng.standard_normal((2, len(effects), len(away), seeds))
