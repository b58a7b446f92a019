"""The protocol of a study on its table of runs: choose rates, extend grids, summarise.

Pure functions from (record, runs) to tables: study.json as a `StudyRecord` and the DataFrame of
runs.csv. The tests themselves are in `inference.py`. Every number of a report comes
from here, and `calibration.py` sends thousands of simulated studies through the same functions,
which is why the inner loops run over plain arrays and not over DataFrames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import Design, Tuning, compare_means, compare_solved
from qkv_jax.study.protocol.selection import Choice, by_arm, choices
from qkv_jax.study.protocol.verdicts import Note, Notes, What
from qkv_jax.study.rates import same_rate
from qkv_jax.study.record import StudyRecord

COSTS = (
    "params", "attention_params", "flops_per_token", "kv_cache_bytes_per_token", "step_time_ratio",
)  # fmt: skip
NOISE = "step_time_noise"
COLUMNS = (
    "task", "arm", "tie", "baseline", "learning_rate", "edge", "n", "n_diverged", "n_solved",
    "solve_low", "solve_high", "steps_to_solve", "mean", "ci_low", "ci_high", "delta", "delta_low",
    "delta_high", "p_adjusted", "p_equivalence", "margin", "verdict", *COSTS, "role", "sd",
    "p_value", "delta_low_simultaneous", "delta_high_simultaneous", "seeds_to_decide",
    "sampling_error", "steps_to_solve_low", "steps_to_solve_high", "n_failed", "look", "alpha_look",
    "note", NOISE, "decided_at", "correlation",
)  # fmt: skip


class Evaluated(NamedTuple):
    """The evaluation runs of one arm on one task, by seed, and how its learning rate was chosen."""

    values: np.ndarray  # [S]; the failure value where a run failed, NaN where there is none
    status: np.ndarray  # [S] of done, diverged, failed, or ""
    rate: float
    edge: str
    lead: float  # of the chosen rate over the next best, validation mean
    seeds: int  # tuning seeds at the chosen rate
    lost: int  # the number of all its runs, tuning included, if every one failed; else 0


def summarise(
    record: StudyRecord,
    runs: pd.DataFrame,
    costs: dict | None = None,
    examples: Callable[[str, str], np.ndarray | None] | None = None,
) -> pd.DataFrame:
    """One row per task and arm: outcome, difference from the baseline, verdict, cost.

    Evaluates what there is: missing runs leave an arm with fewer seeds (n, and the verdict
    `FEW_SEEDS` under five), an arm without evaluation runs has n = 0, NaN and the verdict
    `PENDING`. Only runs at the chosen rate and on the seeds of the current analysis are read.

    Args:
      record, runs: study.json and runs.csv.
      costs: {task: {arm: {...}}}, merged in; NaN where absent.
      examples: (task, arm) -> per-example test scores [seeds, examples], or None.

    Returns: DataFrame with `COLUMNS`, rows in the order of the study. `sd` is that of the scores;
      `ci_*`, `delta_*`, `solve_*` are plain 95 % intervals, `delta_*_simultaneous` hold for all
      arms of the task at `alpha_look`, which this analysis tests at. `p_value` is that of this
      analysis; `p_adjusted` and `p_equivalence` are the smallest of all analyses, adjusted for the
      arms and for what each analysis may spend, so that alpha is their level. `decided_at` is the
      number of seeds at which the verdict fell, `seeds_to_decide` the one at which an undecided
      arm would be decided if its estimates held (NaN: does not apply, or none would).
      `correlation` is what arms were taken to share with the baseline at the same seed, see
      `pooled_correlation`. `step_time_noise` is how far the placebo's `step_time_ratio` is from
      the 1 that it must be. `verdict` is a `Verdict` and `note` `Notes`.
    """
    table = by_arm(record, runs)
    chosen = choices(record, table)
    rows = []
    for name in record.tasks:
        rows += _summarise_task(record, name, table, chosen, costs, examples)
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluations(record: StudyRecord, runs: pd.DataFrame) -> dict[tuple[str, str], Evaluated]:
    """{(task, arm): the evaluation runs of this analysis}, as `summarise` reads them."""
    table = by_arm(record, runs)
    chosen = choices(record, table)
    found = {}
    for name, task in record.tasks.items():
        values, _, status, rates = _evaluations(record, name, table, chosen)
        for row, arm in enumerate(task.arms):
            choice = rates[arm]
            found[name, arm] = Evaluated(
                values[row], status[row], choice.learning_rate, choice.edge, choice.lead,
                choice.seeds, _lost(table, name, arm, status[row]),
            )  # fmt: skip
    return found


def seed_scores(record: StudyRecord, runs: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """{task: {arm: [S] scores of the evaluation seeds of this analysis}}."""
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in record.tasks}
    for (task, arm), evaluated in evaluations(record, runs).items():
        scores[task][arm] = evaluated.values
    return scores


def _evaluations(record, name, table, chosen):
    """Scores, steps to solve and status [A, S] of a task's evaluation runs, and {arm: _Choice}."""
    task = record.tasks[name]
    arms = list(task.arms)
    seeds = {seed: place for place, seed in enumerate(record.eval_seeds)}
    values = np.full((len(arms), len(seeds)), np.nan)
    steps, status, rates = values.copy(), np.full(values.shape, "", object), {}
    for row, arm in enumerate(arms):
        evaluated = table.get((name, arm, "eval"), [])
        # A grid of one rate may skip tuning: then the runs themselves say what was chosen.
        only = {run.learning_rate for run in evaluated} or set(task.learning_rates)
        fallback = Choice(only.pop() if len(only) == 1 else math.nan, "", math.nan, math.inf, 1)
        rates[arm] = chosen.get((name, arm), fallback)
        for run in evaluated:
            if run.seed in seeds and same_rate(run.learning_rate, rates[arm].learning_rate):
                place = row, seeds[run.seed]
                values[place], steps[place] = run.value, run.steps_to_solve
                status[place] = run.status
    return values, steps, status, rates


def _lost(table, name, arm, status) -> int:
    """How many runs an arm has, evaluation with the status that is given, if every one failed."""
    evaluated = [word for word in status if word]
    words = [run.status for run in table.get((name, arm, "tune"), [])] + evaluated
    return len(words) if evaluated and "done" not in words else 0


def _summarise_task(record, name, table, chosen, costs, examples) -> list[dict]:
    task = record.tasks[name]
    arms, base = list(task.arms), record.baseline
    values, steps, status, rates = _evaluations(record, name, table, chosen)

    n, mean, sd = inference.moments(values)
    low, high = inference.t_interval(mean, sd, n)
    columns = {
        "n": n, "mean": mean, "ci_low": low, "ci_high": high, "sd": sd,
        "n_diverged": (status == "diverged").sum(1), "n_failed": (status == "failed").sum(1),
    }  # fmt: skip
    solved = None
    if task.outcome.threshold is not None:
        sign = 1 if task.higher_is_better else -1
        # Not the value alone: a failure value may lie beyond the threshold by mistake.
        solved = (status == "done") & (sign * values >= sign * task.outcome.threshold)
        solved = np.where(np.isnan(values), np.nan, solved)
        columns["n_solved"] = n_solved = np.nansum(solved, 1)
        columns["solve_low"], columns["solve_high"] = inference.solve_interval(n_solved, n)
        budgets = np.array([task.steps_for(arm) for arm in arms])
        restricted = inference.restricted_steps(steps, budgets)
        for key, column in zip(("", "_low", "_high"), restricted, strict=True):
            columns["steps_to_solve" + key] = column
    # The placebo is the baseline's program, so its step times differ by noise alone.
    placebo = ((costs or {}).get(name) or {}).get(record.placebo) or {}
    ratio = placebo.get("step_time_ratio")
    noise = math.nan if ratio is None else abs(ratio - 1)
    level = record.alpha * inference.shares(record.analysis)[-1]
    rows = []
    for row, arm in enumerate(arms):
        entry = record.arms[arm]
        cost = ((costs or {}).get(name) or {}).get(arm) or {}
        rows.append(
            dict(
                task=name,
                arm=arm,
                tie=entry.tie,
                role=entry.role,
                baseline=base,
                learning_rate=rates[arm].learning_rate,
                edge=rates[arm].edge,
                margin=task.outcome.margin,
                look=record.analysis,
                alpha_look=level,
                note=Notes(),
                seeds_to_decide=math.nan,
                verdict=verdicts.BASELINE if arm == base else verdicts.PENDING,
                **{key: column[row] for key, column in columns.items()},
                **{key: math.nan if cost.get(key) is None else cost[key] for key in COSTS},
                step_time_noise=noise,
            )  # fmt: skip
        )
    others = [row for row, arm in enumerate(arms) if arm != base]
    if base in arms and others:
        lost = [_lost(table, name, arm, status[row]) for row, arm in enumerate(arms)]
        _compare(record, name, rows, others, rates, values, solved, examples, lost, status)
    return rows


def _compare(record, name, rows, others, rates, values, solved, examples, lost, status) -> None:
    """Fills the comparison columns of the rows `others`, in place."""
    task, base = record.tasks[name], record.baseline
    home = list(task.arms).index(base)
    margin = None if task.solving else task.outcome.margin
    notes: list[list[Note]] = [[] for _ in others]
    refused = np.zeros((len(others), values.shape[1]), bool)
    reference = examples(name, base) if examples is not None else None
    failed = np.isin(status, ("diverged", "failed"))
    placebos = [row for row in others if rows[row]["arm"] == record.placebo]
    for i, row in enumerate(others):
        if reference is not None:
            error = inference.sampling_error(examples(name, rows[row]["arm"]), reference)
            rows[row]["sampling_error"] = error
            if margin is not None and margin < 2 * error:
                refused[i] = True
                notes[i].append(Note(What.COARSE))
        # Rare failures make the mean's t-distribution a fiction just where it matters. The placebo
        # is the baseline again: if it can fail, so can the baseline.
        failures = np.logical_or.accumulate(failed[[row, home, *placebos]].any(0))
        refused[i] |= failures
        if failures.any() and not lost[row]:
            notes[i].append(Note(What.FAILED_NOT_EQUIVALENT if margin else What.FAILED))
        for place in (row, home):
            if lost[place]:
                notes[i].append(Note(What.LOST, (rows[place]["arm"], lost[place], lost[place])))
    asked = sum(rows[row]["role"] == "arm" for row in others)
    design = Design(record.analyses, record.alpha, max(asked, 1), margin, task.higher_is_better)
    tuning = [Tuning(rates[rows[row]["arm"]].lead, rates[rows[row]["arm"]].seeds)
              for row in (home, *others)]  # fmt: skip
    means, correlation = compare_means(values[others], values[home], design, tuning, refused)
    asked_of = compare_solved(solved[others], solved[home], design) if task.solving else means
    for i, (row, mean, compared) in enumerate(zip(others, means, asked_of, strict=True)):
        verdict, needed = compared.verdict, compared.needed
        if task.solving and mean.effect.alike and verdict == verdicts.POWER:
            verdict, needed = mean.effect.alike, math.nan
        if compared.would_be is not None:
            notes[i].append(Note(What.DOUBT, (compared.would_be,)))
        n = compared.effect.n
        if n and (rates[base].edge or rates[rows[row]["arm"]].edge):
            own = rates[rows[row]["arm"]].edge
            notes[i].append(Note(What.EDGE if own else What.EDGE_OF_BASELINE))
            if n >= inference.MIN_SEEDS:
                verdict, needed = verdicts.EDGE, math.nan
        twin = task.program_of(rows[row]["arm"]) == task.program_of(base)
        if n and (twin or (lost[row] and lost[home])):
            verdict, needed = verdicts.SAME_PROGRAM if twin else verdicts.ALL_FAILED, math.nan
        if 0 < n < len(record.eval_seeds):
            notes[i].append(Note(What.SO_FAR, (n, len(record.eval_seeds))))
        if len(task.learning_rates) < 2:
            notes[i].append(Note(What.UNTUNED))
        settled = verdict == compared.verdict
        rows[row].update(
            p_value=compared.p, p_adjusted=compared.p_adjusted,
            p_equivalence=compared.p_equivalence, verdict=verdict, seeds_to_decide=needed,
            decided_at=compared.decided_at if settled else math.nan, note=Notes(notes[i]),
            delta=mean.effect.delta, delta_low=mean.low, delta_high=mean.high,
            delta_low_simultaneous=mean.wide_low, delta_high_simultaneous=mean.wide_high,
            correlation=correlation,
        )  # fmt: skip
