"""What a race says of the arms of a task, as columns of their rows."""

import math

import numpy as np

from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import DECIDED
from qkv_jax.study.protocol.evaluated import Evaluated, Standing
from qkv_jax.study.protocol.margins import LEAST_SDS, is_narrow, seeds_for
from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_plan import seeds_to_decide
from qkv_jax.study.protocol.verdicts import Note, Notes, Verdict, What
from qkv_jax.study.record import TaskRecord


def compare_race(
    standing: Standing, rows: list[dict], found: dict[str, Evaluated], coarse: dict[str, float]
) -> None:
    """Fills the comparison columns of the rows of a task, in place.

    Args:
      standing: of the race.
      rows: of all arms; found: their runs.
      coarse: {arm: the standard error that the test set leaves}, as far as that is known.
    """
    field, race = standing.field, standing.race
    by_arm = {row["arm"]: row for row in rows}
    for number, arm in enumerate(field.arms):
        by_arm[arm].update(_counts(standing, number))
    base = found[field.record.baseline]
    for number, arm in enumerate(field.arms[1:], 1):
        row = by_arm[arm]
        row.update(_estimate(race, found[arm].values, base.values))
        row.update(_judged(standing, number, row, coarse.get(arm, math.nan)))
    if field.record.placebo in by_arm:
        placebo = by_arm[field.record.placebo]
        second = found[field.record.placebo]
        placebo.update(_estimate(race, second.values, base.values[: len(second.seeds)]))
        placebo.update(_placebo_verdict(standing, placebo, second, base))


def _estimate(race: Race, values: np.ndarray, reference: np.ndarray) -> dict:
    """The difference of all scores that there are, with the interval and p of it alone."""
    pair = [(1, values), (-1, reference)]
    effect = inference.difference(pair, correlation=race.correlation, least=race.least)
    low, high = inference.interval(effect)
    return {
        "delta": effect.delta, "delta_low": low, "delta_high": high,
        "p_value": inference.p_difference(effect), "correlation": race.correlation,
    }  # fmt: skip


def _counts(standing: Standing, number: int) -> dict:
    """How many of an arm's runs at rates that may be its best have collapsed."""
    field, race = standing.field, standing.race
    state = race.arms[number]
    live = [place for place in state.live if (number, place) in race.used]
    if not live or (0, race.arms[0].lead) not in race.used or race.rules.solving:
        return {}
    n = sum(race.used[number, place] for place in live)
    collapsed = sum(race.collapsed(number, place) for place in live)
    low, high = inference.solve_interval(collapsed, n)
    return {
        "live_rates": "; ".join(f"{field.rate(place):.3g}" for place in live), "n_live": n,
        "n_collapsed": collapsed, "collapsed_low": float(low), "collapsed_high": float(high),
    }  # fmt: skip


def _judged(standing: Standing, number: int, row: dict, error: float) -> dict:
    """The verdict on an arm, with what it rests on and what is to be said of it."""
    field, race = standing.field, standing.race
    state, rules = race.arms[number], race.rules
    sign = -1 if field.record.tasks[field.name].higher_is_better else 1
    times = rules.alpha / rules.level
    found: dict = {"sampling_error": error, "n": row["n"]}
    if state.seeds:
        worse, apart = (max(p.get(place, 1.0) for place in state.live)
                        for p in (state.worse, state.apart))  # fmt: skip
        p_adjusted = min(2 * min(worse, state.better) * times, 1.0)
        # Where a rate has not been tested, 1 says nothing.
        untested = p_adjusted == 1.0 and not {*state.live} <= {*state.worse}
        found["p_adjusted"] = math.nan if untested else p_adjusted
        if not rules.solving:
            found["p_equivalence"] = min(max(state.within, apart) * times, 1.0)
        ends = sorted((sign * state.low, sign * state.high))
        finite = all(map(math.isfinite, ends))
        found["delta_low_simultaneous"], found["delta_high_simultaneous"] = (
            ends if finite else (math.nan, math.nan)
        )
    verdict, notes = state.verdict, []
    if verdict == verdicts.PENDING and row["n"]:
        if not race.wanted:
            verdict = verdicts.POWER  # all seeds that it may have
        elif field.spent(race):
            verdict = verdicts.BUDGET
        else:
            notes.append(Note(What.SO_FAR, (row["n"], rules.max_seeds)))
    if not rules.solving and rules.margin < 2 * error:
        notes.append(Note(What.COARSE))
        verdict = verdicts.POWER if verdict == verdicts.EQUIVALENT else verdict
    decided = verdict.kind in DECIDED
    if not rules.solving and not decided and is_narrow(rules.margin, race.least):
        task = field.record.tasks[field.name]
        verdict, note = narrow(task, race.least, rules.level, verdict, row["delta"])
        notes.append(note)
    collapsed = _counts(standing, number)
    if verdict == verdicts.EQUIVALENT and math.isfinite(rules.failure):
        share = 100 * collapsed["collapsed_high"]
        notes.append(Note(What.WHEN_IT_TRAINS, (0, collapsed["n_live"], share)))
    elif collapsed.get("n_collapsed"):
        notes.append(Note(What.COLLAPSED, (collapsed["n_collapsed"], collapsed["n_live"])))
    if verdict == verdicts.EDGE:
        own = row["edge"] or race.arms[0].verdict != verdicts.EDGE
        notes.append(Note(What.EDGE if own else What.EDGE_OF_BASELINE))
    if len(field.grid) < 2:
        notes.append(Note(What.UNTUNED))
    base = _counts(standing, 0)
    if collapsed and base:
        counts = (collapsed["n_collapsed"], base["n_collapsed"], collapsed["n_live"])
        found["p_collapsed"] = inference.solved_p(*counts, base["n_live"])
    if verdict in (verdicts.POWER, verdicts.BUDGET) and state.seeds:
        found["seeds_to_decide"] = seeds_to_decide(race, number) or math.nan
        notes += [
            Note(What.OTHER_RATE, (f"{field.rate(place):.3g}", race.used[number, place]))
            for place in state.live if place not in state.worse
        ]  # fmt: skip
    if decided:
        found["decided_at"] = float(state.seeds)
    return found | {"verdict": verdict, "note": Notes(notes)}


def narrow(
    task: TaskRecord, variance: float, level: float, verdict: Verdict, delta: float
) -> tuple[Verdict, Note]:
    """The verdict where the margin is too small, and what it would take: of an arm that is at the
    ceiling as its baseline is, no number of seeds."""
    if task.declared_margin is not None:
        open_ = verdict in (verdicts.POWER, verdicts.TUNING)
        there = open_ and not abs(delta) > task.declared_margin
        return verdicts.CEILING if there else verdict, Note(What.AT_CEILING)
    sd, margin = math.sqrt(variance), task.outcome.margin
    seeds = seeds_for(margin, variance, level)
    return verdict, Note(What.NARROW, (margin / sd, LEAST_SDS * sd, seeds))


def _placebo_verdict(standing: Standing, row: dict, second: Evaluated, base: Evaluated) -> dict:
    """The second half of the baseline against the first, at alpha and at once."""
    field, rules = standing.field, standing.race.rules
    task, n = field.record.tasks[field.name], int(row["n"])
    if n < inference.MIN_SEEDS:
        return {"verdict": verdicts.FEW_SEEDS if n else verdicts.PENDING}
    low, high = row["delta_low"], row["delta_high"]
    verdict = verdicts.POWER
    if task.solving:
        own, first = (int(np.nansum(each.solved(task)[:n])) for each in (second, base))
        p = inference.solved_p(own, first, n, n)
        if p <= rules.alpha:
            verdict = verdicts.BETTER if own > first else verdicts.WORSE
        elif own == first and own in (0, n):
            verdict = verdicts.CEILING
        return {"verdict": verdict, "p_value": p}
    if math.isnan(low):
        verdict = verdicts.CEILING
    elif -rules.margin <= low and high <= rules.margin:
        verdict = verdicts.EQUIVALENT
    elif not low <= 0 <= high:
        up = (low > 0) == task.higher_is_better
        verdict = verdicts.BETTER if up else verdicts.WORSE
    return {"verdict": verdict}
