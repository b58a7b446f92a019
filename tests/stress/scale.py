"""Thousands of runs merged and reported, with the time and memory it takes: `make scale`.

    python tests/stress/scale.py --runs=10000 --points 20 2000

Makes up the folder of a study that many writers worked on (a part file for each arm of each task,
curves, scores of test examples), once for every length of the curves, and does in a process of its
own what a study does at its end: merge the rows, write the tables, write the report. Memory is that
process's peak, in all and beyond what it had when its libraries were imported.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script

import numpy as np
import pandas as pd

from qkv_jax.study.plan import Study, tie_arms
from qkv_jax.study.protocol.breakdown import breakdown_table
from qkv_jax.study.protocol.grids import family_table
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report.page import write_report
from qkv_jax.study.run.rows import append_runs, in_order, read_parts
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks.base import Breakdown

TIES = ("separate", "K=V", "Q=K", "Q=V", "Q=K=V", "Q=X", "K=X", "V=X", "Q=X,K=V")
RATES, TUNE_SEEDS, EVAL_SEEDS, EXAMPLES = (1e-3, 3e-3, 1e-2, 3e-2), 2, 6, 1024
RUNS_OF_A_TASK = (len(TIES) + 1) * (len(RATES) * TUNE_SEEDS + EVAL_SEEDS)  # with the placebo
VARIANTS = 16  # curves that differ
GROUPS = np.arange(EXAMPLES) % 8


def make_folder(folder: pathlib.Path, tasks: int, points: int, *, grid: bool, seed: int = 0) -> int:
    """Writes the folder of a study of so many tasks; returns the number of its runs.

    Args:
      points: of every curve.
      grid: the cells of one grid; else tasks of their own, which have more figures each.
    """
    study = Study(_config(tasks, grid))
    workdir, rng = Workdir(folder), np.random.default_rng(seed)
    record = workdir.open(study.describe())
    curves = [_curve(points, study.file.train["steps"], rng) for _ in range(VARIANTS)]
    costs: dict = {}
    number = 0
    for plan in study.tasks:
        record = record.with_task(plan.name, references=())
        costs[plan.name] = {}
        for place, arm in enumerate(plan.arms):
            costs[plan.name][arm.name] = {
                "params": 50_000 - 4096 * place, "attention_params": 16_384 - 1024 * place,
                "flops_per_token": 3e5 - 2e4 * place, "kv_cache_bytes_per_token": 256,
                "step_time_ratio": 1.0,
            }  # fmt: skip
            best = float(rng.choice(RATES[1:-1]))
            runs = [("tune", rate, run) for rate in RATES for run in record.tune_seeds]
            runs += [("evaluate", best, run) for run in record.eval_seeds]
            rows = []
            for round_, rate, run in runs:
                value = 0.9 - 0.02 * place - 0.2 * abs(np.log10(rate / best))
                value = float(value + rng.normal(0, 0.01))
                rows.append({
                    "task": plan.name, "arm": arm.name, "learning_rate": rate, "seed": run,
                    "round": round_, "status": "done", "metric": "accuracy", "validation": value,
                    "test": value if round_ == "evaluate" else float("nan"),
                    "steps": arm.trainer.train_config.steps, "steps_to_solve": float("nan"),
                    "seconds": 1.5,
                })  # fmt: skip
                name = f"lr{rate:g}_seed{run}"
                number += 1
                file = folder / "curves" / plan.name / arm.name / f"{name}.csv"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(curves[number % VARIANTS])
                if round_ == "evaluate":
                    file = folder / "examples" / plan.name / arm.name / f"{name}.npy"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.save(file, (rng.random(EXAMPLES) < value).astype(np.float32))
            append_runs(folder / "parts" / plan.name / f"{arm.name}.csv", rows)
    workdir.write("costs.json", json.dumps(costs))
    workdir.write_study(dataclasses.replace(
        record, platform="cpu", devices=("TFRT_CPU_0",), started="2026-01-02T03:04:05",
        command="make scale", seconds=3600.0, complete=True,
    ))  # fmt: skip
    return number


def _config(tasks: int, grid: bool) -> dict:
    lengths = range(8, 8 + tasks)
    if grid:
        # Two axes, as square as the number allows.
        width = max(n for n in range(1, int(tasks**0.5) + 1) if tasks % n == 0)
        axes = {"options.length": (*lengths[: tasks // width],),
                "model.width": tuple(32 * (1 + i) for i in range(width))}  # fmt: skip
        entries = {"reverse": {"kind": "reverse", "axes": axes}}
    else:
        kinds = "reverse", "copy"
        entries = {
            f"task {n}": {"kind": kinds[n % 2], "options": {"length": n}} for n in lengths
        }  # fmt: skip
    return {
        "name": "scale", "tasks": entries, "arms": tie_arms(*TIES),
        "train": {"steps": 10_000},
        "study": {"protocol": "fixed", "learning_rates": RATES, "tune_seeds": TUNE_SEEDS,
                  "eval_seeds": EVAL_SEEDS},
    }  # fmt: skip


def _curve(points: int, steps: int, rng: np.random.Generator) -> str:
    step = np.linspace(steps / points, steps, points).astype(int)
    value = 0.9 - 0.8 * np.exp(-5 * step / steps) + rng.normal(0, 0.01, points)
    loss = (1 - value).astype(np.float32)
    curve = pd.DataFrame({"step": step, "train_loss": loss, "value": value.astype(np.float32)})
    return curve.to_csv(index=False)


def finish(folder: pathlib.Path) -> dict[str, float]:
    """Merges and reports; returns the seconds of each stage and the peak of memory in MB."""
    found = {"MB before": _peak()}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        found[stage], clock = now - clock, now
        found[f"MB {stage}"] = _peak()

    workdir = Workdir(folder)
    record = workdir.read_study()
    runs = in_order(record, read_parts(folder))
    found["runs"] = len(runs)
    lap("merge")
    costs = json.loads((folder / "costs.json").read_text())
    summary = summarise(record, runs, costs, workdir.examples, points=workdir.points)
    workdir.write("summary.csv", summary.to_csv(index=False))
    workdir.write("families.csv", family_table(record, runs).to_csv(index=False))
    named = {task: Breakdown("distance", GROUPS.tolist()) for task in record.tasks}
    table = breakdown_table(record, runs, named, workdir.examples)
    workdir.write("breakdown.csv", table.to_csv(index=False))
    lap("tables")
    write_report(folder, record, runs, summary, workdir.curve)
    lap("report")
    found["processor"] = time.process_time()  # says more on a machine that others use, too
    return found


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(runs: int, points: int, *, grid: bool) -> dict[str, float]:
    """`finish` in a process of its own, on a folder of about so many runs."""
    with tempfile.TemporaryDirectory(prefix="scale") as place:
        folder = pathlib.Path(place) / "study"
        make_folder(folder, max(round(runs / RUNS_OF_A_TASK), 1), points, grid=grid)
        command = [sys.executable, __file__, f"--finish={folder}"]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--points", type=int, nargs="+", default=[20, 2000], help="of a curve")
    parser.add_argument("--finish", type=pathlib.Path, help="merge and report this folder, only")
    given = parser.parse_args()
    if given.finish:
        print(json.dumps(finish(given.finish)))
        return
    for grid in (True, False):
        for points in given.points:
            found = measure(given.runs, points, grid=grid)
            seconds = sum(found[stage] for stage in ("merge", "tables", "report"))
            print(
                f"{found['runs']:,} runs, {'cells of a grid' if grid else 'tasks of their own'}, "
                f"curves of {points} points: {seconds:.1f} s (merge {found['merge']:.1f}, tables "
                f"{found['tables']:.1f}, report {found['report']:.1f}; "
                f"{found['processor']:.1f} s of one core, imports included), peak of memory "
                f"{found['MB report']:.0f} MB ({found['MB report'] - found['MB before']:.0f} "
                "beyond the libraries)",
                flush=True,
            )


if __name__ == "__main__":
    main()
