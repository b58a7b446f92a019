"""The protocol of a study on its table of runs: choose rates, extend grids, summarise.

Pure functions from (record, runs) to tables: study.json as a `StudyRecord` and the DataFrame of
runs.csv. The tests themselves are in `inference.py`. Every number of a report comes
from here, and `calibration.py` sends thousands of simulated studies through the same functions,
which is why the inner loops run over plain arrays and not over DataFrames.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import DECIDED, Design, Tuning, compare_means, compare_solved
from qkv_jax.study.protocol.evaluated import Standing, evaluations, standings
from qkv_jax.study.protocol.margins import is_narrow
from qkv_jax.study.protocol.measured_curves import MeasuredCurves, Points
from qkv_jax.study.protocol.race_summary import compare_race, narrow
from qkv_jax.study.protocol.verdicts import Note, Notes, What
from qkv_jax.study.record import StudyRecord
from qkv_jax.tasks.base import Outcome

COSTS = (
    "params", "attention_params", "flops_per_token", "kv_cache_bytes_per_token", "step_time_ratio",
)  # fmt: skip
NOISE = "step_time_noise"
DELTAS = ("delta_low", "delta_high", "delta_low_simultaneous", "delta_high_simultaneous")
MORE_STEPS = "more_steps", "more_steps_low", "more_steps_high"
COLUMNS = (
    "task", "arm", "tie", "baseline", "learning_rate", "edge", "n", "n_diverged", "n_solved",
    "solve_low", "solve_high", "steps_to_solve", "mean", "ci_low", "ci_high", "delta", "delta_low",
    "delta_high", "p_adjusted", "p_equivalence", "margin", "verdict", *COSTS, "role", "sd",
    "p_value", "delta_low_simultaneous", "delta_high_simultaneous", "seeds_to_decide",
    "sampling_error", "steps_to_solve_low", "steps_to_solve_high", "n_failed", "look", "alpha_look",
    "note", NOISE, "decided_at", "correlation", "runs", "live_rates", "n_live", "n_collapsed",
    "collapsed_low", "collapsed_high", "p_collapsed", *MORE_STEPS,
)  # fmt: skip


def summarise(
    record: StudyRecord,
    runs: pd.DataFrame,
    costs: dict | None = None,
    examples: Callable[..., np.ndarray | None] | None = None,
    standing: dict[str, Standing] | None = None,
    points: Points | None = None,
) -> pd.DataFrame:
    """One row per task and arm: outcome, difference from the baseline, verdict, cost.

    Evaluates what there is: missing runs leave an arm with fewer seeds (n, and the verdict
    `FEW_SEEDS` under five), an arm without evaluation runs has n = 0, NaN and the verdict
    `PENDING`.

    Args:
      record, runs: study.json, with the margins that are in force, and runs.csv.
      costs: {task: {arm: {...}}}, merged in; NaN where absent.
      examples: (task, arm, rate, seeds) -> test scores [seeds, examples], or None.
      standing: of the races, if that is known.
      points: of the runs' learning curves; without them `more_steps` is NaN.

    Returns: DataFrame with `COLUMNS`, rows in the order of the study. `sd` is that of the scores;
      `ci_*`, `delta_*`, `solve_*` are 95 % intervals of one mean, difference or share,
      `delta_*_simultaneous` hold for all arms of the task at `alpha_look`, which this analysis
      tests at. In differences no variance is taken for less than `common_variance`, as in the
      tests; intervals end where scores do (`Outcome.bounds`). `p_value` is that of this analysis;
      `p_adjusted` and `p_equivalence` are the smallest of all analyses, adjusted for the
      arms and for what each analysis may spend, so that alpha is their level. `decided_at` is the
      number of seeds at which the verdict fell, `seeds_to_decide` the one at which an undecided
      arm would be decided if its estimates held (NaN: does not apply, or none would).
      Of a race, `mean` is of scores each at the rate that the other seeds chose,
      `learning_rate` and `n` are of the rate that leads, `live_rates` those that may yet be the
      best, `n_collapsed` of the `n_live` runs there collapsed (Clopper-Pearson interval; p against
      the baseline by Boschloo's test), and `delta_*_simultaneous` is the interval of the verdict:
      it holds at best rates, for all arms and all looks together. `runs` counts all of an arm's.
      `correlation` is what arms were taken to share with the baseline at the same seed, see
      `pooled_correlation`. `step_time_noise` is how far the placebo's `step_time_ratio` is from
      the 1 that it must be. `more_steps` is in per cent, with its 95 % interval, see `MoreSteps`.
      `verdict` is a `Verdict` and `note` `Notes`.
    """
    standing = standings(record, runs) if standing is None else standing
    table = evaluations(record, runs, standing)
    spent = runs.groupby(["task", "arm"]).size() if len(runs) else {}
    curves = None if points is None else MeasuredCurves(record, runs, points)
    rows = []
    for name, task in record.tasks.items():
        found = {arm: table[name, arm] for arm in task.arms}
        own = _summarise_task(record, name, found, standing.get(name), costs, examples)
        taken = {} if curves is None else curves.more_steps(name, found)
        for row in own:
            row["runs"] = int(spent.get((name, row["arm"]), 0))
            row |= zip(MORE_STEPS, taken.get(row["arm"], ()), strict=False)
        rows += own
    return pd.DataFrame(rows, columns=COLUMNS)


def _summarise_task(record, name, found, standing, costs, examples) -> list[dict]:
    """The rows of a task: its runs `found` by arm, and how its race stands, if it is one."""
    task = record.tasks[name]
    arms, base = list(task.arms), record.baseline
    values, steps = (np.stack([getattr(found[arm], what) for arm in arms])
                     for what in ("values", "steps"))  # fmt: skip
    status = np.stack([found[arm].status for arm in arms])

    n, mean, sd = inference.moments(values)
    low, high = inference.t_interval(mean, sd, n)
    columns = {
        "n": n, "mean": mean, "ci_low": low, "ci_high": high, "sd": sd,
        "n_diverged": (status == "diverged").sum(1), "n_failed": (status == "failed").sum(1),
    }  # fmt: skip
    solved = None
    if task.outcome.threshold is not None:
        solved = np.stack([found[arm].solved(task) for arm in arms])
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
    level = record.alpha
    if standing is None:
        level *= inference.shares(record.analysis)[-1]
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
                learning_rate=found[arm].rate,
                edge=found[arm].edge,
                margin=task.outcome.margin,
                look=record.analysis,
                alpha_look=level,
                note=Notes(),
                live_rates="",
                seeds_to_decide=math.nan,
                verdict=verdicts.BASELINE if arm == base else verdicts.PENDING,
                **{key: column[row] for key, column in columns.items()},
                **{key: math.nan if cost.get(key) is None else cost[key] for key in COSTS},
                step_time_noise=noise,
            )  # fmt: skip
        )
    others = [row for row, arm in enumerate(arms) if arm != base]
    if standing is not None:
        compare_race(standing, rows, found, _coarse(record, name, found, examples))
    elif base in arms and others:
        _compare(record, name, rows, others, found, values, solved, examples, status)
    for row in rows:
        row |= bounded(row, task.outcome)
    return rows


def bounded(row: dict, outcome: Outcome) -> dict:
    """The ends of a row's intervals, none beyond what scores and their differences can be."""
    low, high = outcome.bounds
    ends = {
        key: (low, high) if key.startswith("ci_") else (low - high, high - low)
        for key in ("ci_low", "ci_high", *DELTAS)
        if key in row
    }
    return {key: float(np.clip(row[key], *within)) for key, within in ends.items()}


def _coarse(record, name, found, examples) -> dict[str, float]:
    """{arm: the standard error that the test set leaves in its difference to the baseline}."""
    if examples is None:
        return {}

    def scores(arm):
        return examples(name, arm, found[arm].rate, found[arm].seeds)

    reference = scores(record.baseline)
    if reference is None:
        return {}
    return {
        arm: inference.sampling_error(scores(arm), reference)
        for arm in record.tasks[name].arms
        if arm != record.baseline
    }


def _compare(record, name, rows, others, found, values, solved, examples, status) -> None:
    """Fills the comparison columns of the rows `others`, in place."""
    task, base = record.tasks[name], record.baseline
    home = list(task.arms).index(base)
    margin = None if task.solving else task.outcome.margin
    notes: list[list[Note]] = [[] for _ in others]
    refused = np.zeros((len(others), values.shape[1]), bool)
    coarse, lost = _coarse(record, name, found, examples), [found[arm].lost for arm in task.arms]
    failed = np.isin(status, ("diverged", "failed"))
    placebos = [row for row in others if rows[row]["arm"] == record.placebo]
    for i, row in enumerate(others):
        if coarse:
            rows[row]["sampling_error"] = error = coarse[rows[row]["arm"]]
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
    variance, asked = inference.common_variance(values), max(asked, 1)
    too_small = margin is not None and is_narrow(margin, variance)
    refused |= too_small
    design = Design(record.analyses, record.alpha, asked, margin, task.higher_is_better)
    tuned = (found[rows[row]["arm"]] for row in (home, *others))
    tuning = [Tuning(arm.lead, arm.tuned) for arm in tuned]
    means, correlation = compare_means(values[others], values[home], design, tuning, refused)
    asked_of = compare_solved(solved[others], solved[home], design) if task.solving else means
    for i, (row, mean, compared) in enumerate(zip(others, means, asked_of, strict=True)):
        verdict, needed = compared.verdict, compared.needed
        if task.solving and mean.effect.alike and verdict == verdicts.POWER:
            verdict, needed = mean.effect.alike, math.nan
        if compared.would_be is not None:
            notes[i].append(Note(What.DOUBT, (compared.would_be,)))
        n = compared.effect.n
        own = found[rows[row]["arm"]].edge
        if n and (found[base].edge or own):
            notes[i].append(Note(What.EDGE if own else What.EDGE_OF_BASELINE))
            if n >= inference.MIN_SEEDS:
                verdict, needed = verdicts.EDGE, math.nan
        twin = task.program_of(rows[row]["arm"]) == task.program_of(base)
        if n and (twin or (lost[row] and lost[home])):
            verdict, needed = verdicts.SAME_PROGRAM if twin else verdicts.ALL_FAILED, math.nan
        if n and too_small and verdict.kind not in DECIDED:
            delta = mean.effect.delta
            verdict, note = narrow(task, variance, record.alpha / asked, verdict, delta)
            notes[i].append(note)
            needed = math.nan if verdict == verdicts.CEILING else needed
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
