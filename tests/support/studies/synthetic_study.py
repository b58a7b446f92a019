"""A made-up study for the tests of the report: no training, only plausible tables."""

import dataclasses
import math

import numpy as np
import pandas as pd

from qkv_jax.study.axes import expand
from qkv_jax.study.protocol.breakdown import BREAKDOWN_COLUMNS
from qkv_jax.study.protocol.selection import choose_rates
from qkv_jax.study.record import ArmRecord, Start, StudyRecord, TaskRecord
from qkv_jax.tasks.base import Outcome

TIES = (
    "separate", "K=V", "Q=K", "Q=V", "Q=K=V", "Q=X", "K=X", "V=X", "Q=X,K=V", "K=X,Q=V",
    "V=X,Q=K", "Q=K=X", "Q=V=X", "K=V=X", "Q=K=V=X",
)  # fmt: skip
COSTS_OF = {"separate": 0, "Q=K": 0.06, "Q=V": 0.016, "K=V": 0.012, "Q=X": 0.002, "K=X": 0.004}
GRID = (0.0003, 0.001, 0.003, 0.01)
TEXT = TaskRecord(
    title="Masked bytes of Shakespeare", family="text", family_title="Masked bytes of Shakespeare",
    outcome=Outcome("mean", "loss", "nats/byte", 0.02, 5.55, chance=5.55), steps=1000,
    description="Fill in masked bytes of Shakespeare's plays with a two-layer encoder.",
    arms=(), learning_rates=GRID,
)  # fmt: skip
DIGITS = TaskRecord(
    title="Handwritten digits", family="digits", family_title="Handwritten digits",
    outcome=Outcome("mean", "accuracy", "accuracy", 0.01, 0.1, chance=0.1), steps=600,
    description="Classify 8x8 images of digits by patches.", arms=(), learning_rates=GRID,
)  # fmt: skip
RECALL = TaskRecord(
    title="Associative recall", family="recall", family_title="Associative recall",
    outcome=Outcome("solve", "accuracy", "accuracy", 0.01, 0.0, threshold=0.99, chance=0.0625),
    steps=2000, description="Give the value that followed a key.", arms=(), learning_rates=GRID,
)  # fmt: skip


def effect(arm: str, tie: str) -> float:
    """How much worse an arm is, in nats."""
    if arm in ("placebo", "separate"):
        return 0.0
    if tie in COSTS_OF:
        return COSTS_OF[tie]
    return 0.05 * tie.count("=") + (0.3 if tie.count("=") == 3 else 0.0)


def make_study(tasks=("text", "digits", "recall"), seeds=6, extra_arms=(), seed=0, name="quick"):
    """Returns (record, runs, costs, curve): what `write_report` and `summarise` are given."""
    rng = np.random.default_rng(seed)
    arms = {}
    for tie in TIES:
        overrides = {"model": {"tie": tie}, "train": {}}
        role = "baseline" if tie == "separate" else "arm"
        arms["copies" if tie == "Q=K=V=X" else tie] = ArmRecord(tie, role, overrides=overrides)
    overrides = {"model": {"tie": "copies", "scale": "learned_per_head"}, "train": {}}
    note = "copies with a learned temperature"
    arms["copies, scale"] = ArmRecord("Q=K=V=X", "control", note, overrides)
    for arm, tie in extra_arms:
        arms[arm] = ArmRecord(tie, "arm", overrides={"tie": tie, "x": 1})
    arms["placebo"] = ArmRecord("separate", "placebo", "salted key")
    few = ("separate", "K=V", "Q=K", "Q=X", "Q=K=V", "copies", "copies, scale", "placebo")
    made = {"text": TEXT, "digits": DIGITS, "recall": RECALL}
    packages = {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.0"}
    record = StudyRecord(
        name=name, baseline="separate", placebo="placebo", alpha=0.05, looks=(seeds,),
        protocol="fixed", tune_seeds=(1, 2), eval_seeds=tuple(range(100, 100 + seeds)), arms=arms,
        tasks={t: dataclasses.replace(made[t], arms=tuple(arms) if t == "text" else few)
               for t in tasks},
        command="python -m experiments.ablate --config=configs/quick.py --workdir=runs/quick",
        config={"study": {"name": name, "protocol": "fixed", "eval_seeds": seeds},
                "model": {"d_model": 64}},
        versions=(Start("2026-01-02T03:04:05", packages),), claims={},
        devices=("TFRT_CPU_0", "TFRT_CPU_1"), platform="cpu",
        wave={"devices": 2, "packing": 1, "size": 2}, started="2026-01-02T03:04:05",
        seconds=612.3, complete=True,
    )  # fmt: skip
    rows, costs = [], {}
    for task, spec in record.tasks.items():
        shift = rng.normal(0, 0.01, seeds + 2)
        costs[task] = {arm: _costs(arms[arm].tie) for arm in spec.arms}
        for arm in spec.arms:
            bad = effect(arm, arms[arm].tie)
            best = GRID[2] if bad < 0.1 else GRID[1]
            for j, seed_ in enumerate(record.tune_seeds):
                for rate in GRID:
                    off = bad + 0.25 * math.log10(rate / best) ** 2
                    rows.append(_run(task, arm, rate, seed_, spec, off, shift[j], rng))
            for j, seed_ in enumerate(record.eval_seeds):
                rows.append(_run(task, arm, None, seed_, spec, bad, shift[2 + j], rng))
    runs = pd.DataFrame(rows)
    chosen = choose_rates(record, runs)["learning_rate"]
    runs["learning_rate"] = [
        r if s in record.tune_seeds else chosen[t, a]
        for t, a, s, r in zip(runs.task, runs.arm, runs.seed, runs.learning_rate, strict=True)
    ]
    return record, runs, costs, make_curve(record, runs)


def _run(task, arm, rate, seed, spec, bad, shift, rng):
    score, solved = _score(spec, bad, shift, rng)
    return {
        "task": task, "arm": arm, "learning_rate": rate, "seed": seed, "round": "some",
        "status": "done", "metric": spec.outcome.metric, "validation": score, "test": score,
        "steps": spec.steps, "steps_to_solve": solved, "seconds": 1.5,
    }  # fmt: skip


def _score(spec, bad, shift, rng):
    noise = shift + rng.normal(0, 0.008)
    if spec.solving:
        solved = rng.random() < 1 - min(1, 4 * bad)
        steps = 600 + 2500 * bad + rng.normal(0, 60)
        return (0.995 if solved else 0.6 - bad), float(steps) if solved else np.nan
    if spec.higher_is_better:
        return 0.95 - 0.3 * bad + 0.4 * noise, np.nan
    return 1.72 + bad + noise, np.nan


def _costs(tie):
    learned = 3 - tie.count("=")
    cache = 128 * (1 if {"K=V", "Q=K=V", "Q=X,K=V", "K=V=X", "Q=K=V=X"} & {tie} else 2)
    return {
        "params": 50_000 + 4096 * (learned + 1), "attention_params": 4096 * (learned + 1),
        "flops_per_token": 300_000 + 24_576 * learned, "kv_cache_bytes_per_token": cache,
        "step_time_ratio": 0.85 + 0.05 * learned if learned else None,
    }  # fmt: skip


def make_curve(record, runs):
    """A curve for every evaluation run that falls towards the run's final value."""
    index = runs.set_index(["task", "arm", "learning_rate", "seed"])["test"].to_dict()

    def curve(task, arm, learning_rate, seed):
        final = index.get((task, arm, learning_rate, seed))
        if final is None:
            return None
        spec = record.tasks[task]
        steps = np.linspace(0, spec.steps, 21).astype(int)
        start = spec.outcome.chance
        part = np.exp(-6 * steps / spec.steps)
        wiggle = np.random.default_rng(seed).normal(0, 0.01, len(steps))
        value = final + (start - final) * part + wiggle * part
        return pd.DataFrame({"step": steps, "train_loss": value, "value": value})

    return curve


def make_family(axes, *, base=TEXT, arms=("K=V", "Q=K", "copies"), seeds=6, name="scaling", seed=0,
                breakdown=False):  # fmt: skip
    """A study of one family, `axes` {field: values}: (record, runs, costs, curve, breakdown table).

    The cost of a tie halves with every value of the first axis; the placebo has none.
    """
    cells = expand(axes, Anything, "tasks.plays")
    record, runs, costs, _ = make_study(tasks=("text",), seeds=seeds, name=name, seed=seed,
                                       extra_arms=[(a, "Q=K") for a in arms if a not in TIES
                                                   and a != "copies"])  # fmt: skip
    listed = ["separate", *arms, "placebo"]
    rows, tasks = [], {}
    rng = np.random.default_rng(seed)
    first = next(iter(axes))
    for cell in cells:
        task = cell.name("plays")
        tasks[task] = dataclasses.replace(
            base, arms=tuple(listed), family="plays", cell=cell.label, axes=cell.values,
            title=f"{base.title}, {cell.label}", references=(),
        )  # fmt: skip
        costs[task] = {arm: costs["text"][arm] for arm in listed}
        share = 0.5 ** list(axes[first]).index(cell.values[first])
        shift = rng.normal(0, 0.01, seeds + 2)
        for arm in listed:
            bad = share * effect(arm, record.arms[arm].tie)
            for j, seed_ in enumerate(record.tune_seeds):
                for rate in GRID:
                    off = bad + 0.25 * math.log10(rate / GRID[2]) ** 2
                    rows.append(_run(task, arm, rate, seed_, tasks[task], off,
                                     shift[j], rng))  # fmt: skip
            for j, seed_ in enumerate(record.eval_seeds):
                rows.append(_run(task, arm, GRID[2], seed_, tasks[task], bad,
                                 shift[2 + j], rng))  # fmt: skip
    kept = {arm: record.arms[arm] for arm in listed}
    record = dataclasses.replace(record, arms=kept, tasks=tasks)
    runs = pd.DataFrame(rows)
    chosen = choose_rates(record, runs)["learning_rate"]
    evaluated = ~runs["seed"].isin(record.tune_seeds)
    runs.loc[evaluated, "learning_rate"] = [
        chosen[t, a] for t, a in zip(runs.task[evaluated], runs.arm[evaluated], strict=True)
    ]
    table = make_breakdown(runs) if breakdown else None
    return record, runs, costs, make_curve(record, runs), table


def make_breakdown(runs, groups=range(1, 9)):
    """The rows of breakdown.csv: the further away, the worse."""
    mean = runs[runs.seed >= 100].groupby(["task", "arm"])["test"].mean()
    rows = [
        (task, arm, "distance", g, 6, value * (1 - 0.04 * g), value * (0.98 - 0.04 * g),
         value * (1.02 - 0.04 * g))
        for (task, arm), value in mean.items() for g in groups
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=BREAKDOWN_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Anything:
    """Stands for a task's class: the options that the axes of made-up families may name."""

    length: int = 16
    symbols: int = 10
