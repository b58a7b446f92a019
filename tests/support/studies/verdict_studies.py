"""Made-up studies of one task, and the verdicts that they get."""

import dataclasses

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import summary
from qkv_jax.study.protocol.selection import choose_rates
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.record import ArmRecord, StudyRecord, TaskRecord
from qkv_jax.tasks.base import Outcome

GRID = [1e-3, 2e-3, 4e-3, 8e-3]
TUNE_SEEDS = (0, 1)
SEEDS = list(range(100, 106))


def make_study(arms=("separate", "placebo", "K=V"), seeds=SEEDS, **fields):
    """A record of one task; `fields` are of it or of its outcome."""
    outcome = {"kind": "mean", "metric": "loss", "unit": "nats", "margin": 0.1}
    outcome |= {"failure_value": 9.0}
    outcome |= {f.name: fields.pop(f.name) for f in dataclasses.fields(Outcome) if f.name in fields}
    task = TaskRecord(
        title="t", description="", outcome=Outcome(**outcome), steps=1000, arms=tuple(arms),
        family="task", family_title="t", **({"learning_rates": tuple(GRID)} | fields),
    )  # fmt: skip
    roles = {"separate": "baseline", "placebo": "placebo"}
    return StudyRecord(
        name="made up", baseline="separate", placebo="placebo", alpha=0.05, looks=(len(seeds),),
        protocol="fixed", tune_seeds=TUNE_SEEDS, eval_seeds=tuple(seeds), tasks={"task": task},
        wave={}, claims={},
        arms={arm: ArmRecord(arm, roles.get(arm, "arm")) for arm in arms}, config={},
    )  # fmt: skip


def rows(arm, rate, values, seeds, status=None, steps=None):
    """Runs that score the same on both kinds of data; tuning seeds are not tested."""
    count, values = len(values), np.asarray(values, float)
    return pd.DataFrame(
        {
            "task": "task", "arm": arm, "learning_rate": rate, "seed": list(seeds), "round": "some",
            "status": status or ["done"] * count, "metric": "loss",
            "validation": values, "test": np.where(np.isin(seeds, TUNE_SEEDS), np.nan, values),
            "steps": 1000, "seconds": 1.0,
            "steps_to_solve": np.full(count, np.nan) if steps is None else steps,
        }
    )  # fmt: skip


def tuning(runs):
    """Which runs tune."""
    return runs["seed"].isin(TUNE_SEEDS)


def tuned(arm, means, rates=GRID, **kwargs):
    return [rows(arm, r, [m - 0.01, m + 0.01], TUNE_SEEDS, **kwargs)
            for r, m in zip(rates, means, strict=True)]  # fmt: skip


def make_runs(scores, rate=2e-3, seeds=SEEDS, tune=(0.5, 0.1, 0.3, 0.9), status=None, steps=None):
    """Runs where every arm is best at `rate` and its evaluation scores are `scores[arm]`."""
    tables = []
    for arm, values in scores.items():
        tables += tuned(arm, tune)
        tables.append(
            rows(arm, rate, values, seeds[: len(values)], (status or {}).get(arm),
                 (steps or {}).get(arm))
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def scores(*shifts, sd=0.02, n=6, seed=0, arms=("separate", "placebo", "K=V")):
    noise = np.random.default_rng(seed).normal(0, sd, (len(arms), n))
    return {arm: 1 + shift + e for arm, shift, e in zip(arms, shifts, noise, strict=True)}


def worse_at_one_percent():
    """Two arms whose Welch's t is 3.1692 with 10 degrees of freedom: p = 0.0100. They go against
    each other, so that there is no correlation to reckon with."""
    z = np.array([-1.2, -0.7, -0.1, 0.3, 0.6, 1.1])
    z = 0.02 * z / z.std(ddof=1)
    return {"separate": 1 + z, "K=V": 1 - z + 3.1692 * 0.02 * np.sqrt(2 / 6)}


def summarise(*args, **kwargs):
    """The summary with verdicts and notes as summary.csv has them."""
    table = summary.summarise(*args, **kwargs)
    for cell in table.verdict:
        assert Verdict.read(str(cell)) == cell
    return table.assign(verdict=table.verdict.map(str), note=table.note.map(str))


def verdict(record, runs, arm="K=V", **kwargs):
    return summarise(record, runs, **kwargs).set_index("arm").loc[arm]


def chosen(tables, record=None, arm="separate"):
    return choose_rates(record or make_study(), pd.concat(tables)).loc[("task", arm)]
