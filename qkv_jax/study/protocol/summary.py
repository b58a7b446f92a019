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
from qkv_jax.study.protocol.inference import Level
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
    "delta_high", "p_holm", "p_equivalence", "margin", "verdict", *COSTS, "role", "sd", "p_value",
    "delta_low_simultaneous", "delta_high_simultaneous", "seeds_to_decide", "sampling_error",
    "steps_to_solve_low", "steps_to_solve_high", "n_failed", "look", "alpha_look", "note", NOISE,
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

    Returns: DataFrame with `COLUMNS`, rows in the order of the study. `sd` is that of the paired
      differences (of the scores in the baseline's row); `ci_*`, `delta_*`, `solve_*` are plain
      95 % intervals, `delta_*_simultaneous` hold for all arms of the task at the level of the
      analysis; p_holm and p_equivalence are Holm-adjusted and are to be compared with `alpha_look`.
      `step_time_noise` is how far the placebo's `step_time_ratio` is from the 1 that it must be.
      `seeds_to_decide` is text: "" (does not apply), a number, or ">100". `verdict` is a `Verdict`
      and `note` `Notes`.
    """
    table = by_arm(record, runs)
    chosen = choices(record, table)
    level = Level.of_analysis(record.alpha, record.analysis)
    rows = []
    for name in record.tasks:
        rows += _summarise_task(record, name, table, chosen, level, costs, examples)
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


def _summarise_task(record, name, table, chosen, level, costs, examples) -> list[dict]:
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
    rows = []
    for row, arm in enumerate(arms):
        entry = record.arms[arm]
        cost = ((costs or {}).get(name) or {}).get(arm) or {}
        rows.append(
            dict(
                task=name, arm=arm, tie=entry.tie, role=entry.role, baseline=base,
                learning_rate=rates[arm].learning_rate, edge=rates[arm].edge,
                margin=task.outcome.margin, look=level.analysis, alpha_look=level.alpha,
                seeds_to_decide="", verdict=verdicts.BASELINE if arm == base else verdicts.PENDING,
                **{key: column[row] for key, column in columns.items()},
                **{key: math.nan if cost.get(key) is None else cost[key] for key in COSTS},
                step_time_noise=noise,
            )  # fmt: skip
        )
    others = [row for row, arm in enumerate(arms) if arm != base]
    if base in arms and others:
        lost = [_lost(table, name, arm, status[row]) for row, arm in enumerate(arms)]
        _compare(record, name, rows, others, rates, values, solved, level, examples, lost)
    return rows


def _compare(record, name, rows, others, rates, values, solved, level, examples, lost) -> None:
    """Fills the comparison columns of the rows `others`, in place."""
    task, base = record.tasks[name], record.baseline
    home = list(task.arms).index(base)
    margin = None if task.solving else task.outcome.margin
    notes: list[list[Note]] = [[] for _ in others]
    refuse = np.zeros(len(others), bool)
    reference = examples(name, base) if examples is not None else None
    failed = [rows[row]["n_diverged"] + rows[row]["n_failed"] for row in others]
    failed_base = rows[home]["n_diverged"] + rows[home]["n_failed"]
    placebos = [rows[row]["arm"] == record.placebo for row in others]
    failed_placebo = any(np.compress(placebos, failed))
    for i, row in enumerate(others):
        if reference is not None:
            error = inference.sampling_error(examples(name, rows[row]["arm"]), reference)
            rows[row]["sampling_error"] = error
            if margin is not None and margin < 2 * error:
                refuse[i] = True
                notes[i].append(Note(What.COARSE))
        if failed[i] or failed_base or failed_placebo:
            # Rare failures make the mean's t-distribution a fiction just where it matters. The
            # placebo is the baseline again: if it can fail, so can the baseline.
            refuse[i] = refuse[i] or margin is not None
            if not lost[row]:
                notes[i].append(Note(What.FAILED_NOT_EQUIVALENT if margin else What.FAILED))
        for place in (row, home):
            if lost[place]:
                notes[i].append(Note(What.LOST, (rows[place]["arm"], lost[place], lost[place])))
    result = inference.compare_means(
        values[others], values[home], margin=margin, level=level,
        higher_is_better=task.higher_is_better, refuse_equivalence=refuse,
    )  # fmt: skip
    if not task.solving:
        own = [rates[rows[row]["arm"]] for row in others]
        # No doubt where both sides chose alike: what one may have lost, so has the other.
        same = [same_rate(arm.learning_rate, rates[base].learning_rate) for arm in own]
        regret, regret_base = (
            inference.tuning_regret(
                result["sd"], result["n"],
                np.where(same, np.inf, [choice.lead for choice in side]),
                np.array([choice.seeds for choice in side]),
            )
            for side in (own, [rates[base]] * len(own))
        )  # fmt: skip
        doubtful = inference.tuning_may_explain(
            result, regret=regret, regret_base=regret_base, margin=margin, level=level,
            higher_is_better=task.higher_is_better,
        )  # fmt: skip
        for i in np.flatnonzero(doubtful):
            notes[i].append(Note(What.DOUBT, (result["verdict"][i],)))
            result["verdict"][i] = verdicts.UNDECIDED
    pairs = result.pop("n")
    if task.solving:
        same = result["verdict"] == verdicts.SAME_SCORES
        result.update(inference.compare_solved(solved[others], solved[home], level=level))
        result.pop("n")
        same &= result["verdict"] == verdicts.UNDECIDED
        result["verdict"][same] = verdicts.SAME_SCORES
        result["seeds_to_decide"][same] = ""
    for i, row in enumerate(others):
        rows[row].update({key: column[i] for key, column in result.items()})
        if pairs[i] and (rates[base].edge or rates[rows[row]["arm"]].edge):
            own = rates[rows[row]["arm"]].edge
            notes[i].append(Note(What.EDGE if own else What.EDGE_OF_BASELINE))
            if pairs[i] >= inference.MIN_SEEDS:
                rows[row].update(verdict=verdicts.EDGE, seeds_to_decide="")
        twin = task.program_of(rows[row]["arm"]) == task.program_of(base)
        if pairs[i] and (twin or (lost[row] and lost[home])):
            found = verdicts.SAME_PROGRAM if twin else verdicts.ALL_FAILED
            rows[row].update(verdict=found, seeds_to_decide="")
        if 0 < pairs[i] < len(record.eval_seeds):
            notes[i].append(Note(What.SO_FAR, (pairs[i], len(record.eval_seeds))))
        if len(task.learning_rates) < 2:
            notes[i].append(Note(What.UNTUNED))
        rows[row]["note"] = Notes(notes[i])
