"""The ledger: claims judged by the results of a study, under the rules of `claims.py`.

Every piece of evidence of all claims, but for controls, is one test in one family, protected by
Holm's method (1979) at half of alpha for differences and half for equivalence. The tests are those
of the tables (`inference.py`) with the same guards: doubt about chosen learning rates, edges of
grids, failed runs, the size of the test set. Effects are counted in units of their margins, so that
one test serves them all. Only whether an arm solves its task is no test: it is read off every seed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from qkv_jax.study.claims import Claim, Evidence
from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import DECIDED, Tuning
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.inference import Difference, Doubt, Judged
from qkv_jax.study.protocol.verdicts import Note, Notes, What
from qkv_jax.study.record import StudyRecord

Outcome = Literal["for", "against", "open"]  # of a piece of evidence, for its claim
FOR, AGAINST, OPEN = get_args(Outcome)
LEDGER_COLUMNS = (
    "claim", "evidence", "control", "task", "arm", "against", "expect", "outcome", "finding", "n",
    "effect", "effect_low", "effect_high", "margin", "unit", "p_value", "p_adjusted",
    "p_equivalence", "seeds_to_decide", "note",
)  # fmt: skip
# What a verdict comes to, said of an effect, which may be of anything.
_FINDINGS = {"worse": "positive", "better": "negative", "equivalent": "within the margin"}
# What each kind of verdict says of each expectation; any other leaves it open.
_POSITIVE = {"worse": FOR, "better": AGAINST, "equivalent": AGAINST}
_NEGATIVE = {"worse": AGAINST, "better": FOR, "equivalent": AGAINST}
_OUTCOMES = {
    "worse": _POSITIVE, "above": _POSITIVE, "better": _NEGATIVE, "below": _NEGATIVE,
    "equivalent": {"worse": AGAINST, "better": AGAINST, "equivalent": FOR},
}  # fmt: skip

# (task, arm, rate, seeds) -> test scores [seeds, examples], or None.
Examples = Callable[[str, str, float, Sequence[int]], np.ndarray | None]
# (task, arm, measure) -> [seeds, 2]: of the trained models and of the untrained ones.
Measured = Callable[[str, str, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim's verdict: `supported`, `refuted`, `depends` or `undecided`, and why."""

    claim: str
    text: str
    verdict: Literal["supported", "refuted", "depends", "undecided"]
    why: str


@dataclasses.dataclass
class _Effect:
    """One effect: the sum of the means of samples [S], each with its sign and of other runs."""

    samples: list[tuple[int, np.ndarray]]
    margin: float
    unit: str
    notes: list[Note]
    control: bool
    level: float | None = None  # to be reached by every seed: no test
    doubt: Doubt = Doubt()
    error: float = 0.0  # squared standard error that the test set leaves
    failed: bool = False
    edge: bool = False
    # Why no test could tell, by task; None where one can.
    untestable: list[verdicts.Verdict | None] = dataclasses.field(default_factory=list)


def write_ledger(
    record: StudyRecord,
    claims: Mapping[str, Claim],
    runs: pd.DataFrame,
    examples: Examples,
    groups: Mapping[str, Sequence[int]],
    measured: Measured,
) -> tuple[pd.DataFrame, list[Judgement]]:
    """All tests and what they come to.

    Args:
      record, runs: study.json and runs.csv.
      claims: of `read_claims`.
      examples, measured: see the types.
      groups: {task: the group of each test example}, where there are such.

    Returns: a row with `LEDGER_COLUMNS` for each piece of evidence, `outcome` being `for`,
      `against` or `open`; and a judgement for each claim. Effects and intervals (t, 95 %) are in
      the metric's unit; `p_adjusted` and `p_equivalence` are adjusted over the whole ledger, so
      that alpha is their level.
    """
    named = [(key, name, e) for key, claim in claims.items() for name, e in claim.evidence.items()]
    sources = _Sources(record, runs, examples, groups, measured)
    effects = [_effect(entry, sources) for *_, entry in named]
    tests = iter(_test([effect for effect in effects if effect.level is None], record))
    rows = [
        _row(key, name, entry, effect, next(tests) if effect.level is None else _check(effect),
             record)
        for (key, name, entry), effect in zip(named, effects, strict=True)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=LEDGER_COLUMNS)
    return table, [
        _judge(key, claim, table[table["claim"] == key]) for key, claim in claims.items()
    ]


@dataclasses.dataclass(frozen=True)
class _Sources:
    """Where effects come from."""

    record: StudyRecord
    runs: pd.DataFrame
    examples: Examples
    groups: Mapping[str, Sequence[int]]
    measured: Measured

    def __post_init__(self):
        object.__setattr__(self, "tables", evaluations(self.record, self.runs))


def _effect(entry: Evidence, sources: _Sources) -> _Effect:
    outcome = sources.record.tasks[entry.task].outcome
    margin = entry.margin or outcome.margin
    effect = _Effect([], margin, outcome.unit, [], entry.control)
    for task, sign in zip(entry.tasks, (1, -1), strict=False):
        if entry.measure:
            _add_measure(effect, entry, task, sign, sources)
        elif entry.level is not None:
            _add_level(effect, entry, sources)
        else:
            _add_difference(effect, entry, task, sign, sources)
    return effect


def _add_measure(effect: _Effect, entry: Evidence, task: str, sign: int, sources) -> None:
    trained, untrained = sources.measured(task, entry.arm, entry.measure).T
    effect.samples.append((sign, trained - (untrained if entry.null is None else entry.null)))
    effect.unit = ""
    if entry.null is not None and not np.isnan(untrained).all():
        # A reader must see whether training has any part in it.
        values = np.nanmean(trained), task, np.nanmean(untrained)
        effect.notes.append(Note(What.BEFORE_TRAINING, values))
    _note_failures(effect, task, (entry.arm,), sources)


def _add_level(effect: _Effect, entry: Evidence, sources) -> None:
    run = sources.tables[entry.task, entry.arm]
    better = 1 if sources.record.tasks[entry.task].higher_is_better else -1
    effect.samples.append((better, run.values - entry.level))
    effect.level = entry.level


def _add_difference(effect: _Effect, entry: Evidence, name: str, sign: int, sources) -> None:
    """The cost of the arm over its rival on one task, added or taken off."""
    record, task = sources.record, sources.record.tasks[name]
    pair = entry.arm, entry.against or record.baseline
    arm, rival = (sources.tables[name, each] for each in pair)
    scores = [sources.examples(name, each, run.rate, run.seeds)
              for each, run in zip(pair, (arm, rival), strict=True)]  # fmt: skip
    if entry.near is None:
        parts, values = [scores], [run.values for run in (arm, rival)]
    else:
        groups = np.asarray(sources.groups[name])
        far, near = groups >= entry.far, groups <= entry.near
        parts = [[None if s is None else s[:, some] for s in scores] for some in (far, near)]
        values = [_mean(run, s_far) - _mean(run, s_near)
                  for run, s_far, s_near in zip((arm, rival), *parts, strict=True)]  # fmt: skip
    better = sign * (1 if task.higher_is_better else -1)
    effect.samples += [(-better, values[0]), (better, values[1])]
    _note_failures(effect, name, pair, sources)
    twins = len({task.program_of(each) for each in pair}) == 1
    lost_both = verdicts.ALL_FAILED if arm.lost and rival.lost else None
    effect.untestable.append(verdicts.SAME_PROGRAM if twins else lost_both)
    effect.error += sum(np.nan_to_num(inference.sampling_error(*part)) ** 2 for part in parts)
    of_task = np.stack([sources.tables[name, each].values for each in task.arms])
    least = inference.common_variance(of_task)
    lost = [Tuning(run.lead, run.tuned).regret(run.values, least) for run in (arm, rival)]
    down, up = lost if sign > 0 else lost[::-1]
    effect.doubt = Doubt(effect.doubt.down + down, effect.doubt.up + up)


def _mean(run, scores: np.ndarray | None) -> np.ndarray:
    """Mean scores [S] of a run's seeds over some test examples. A run that failed counts with the
    failure value everywhere."""
    if scores is None:
        return np.full_like(run.values, np.nan)
    means = np.full_like(run.values, np.nan)
    means[: len(scores)] = scores.mean(1)
    return np.where(run.status == "done", means, run.values)


def _note_failures(effect: _Effect, task: str, arms: Sequence[str], sources) -> None:
    placebo = sources.record.placebo
    involved = [*arms, *[placebo] * ((task, placebo) in sources.tables)]
    if any(np.isin(sources.tables[task, arm].status, ("diverged", "failed")).any()
           for arm in involved):  # fmt: skip
        effect.failed = True
    if any(sources.tables[task, arm].edge for arm in arms):
        effect.edge = True
    for arm in arms:
        if lost := sources.tables[task, arm].lost:
            effect.notes.append(Note(What.LOST, (arm, lost, lost)))


def _check(effect: _Effect) -> dict:
    """Whether every seed reaches a level: no test, since there is nothing to estimate."""
    ((sign, over),) = effect.samples
    n, mean, _ = inference.moments(over)
    seen = sign * over[~np.isnan(over)]
    verdict = verdicts.FEW_SEEDS if n < inference.MIN_SEEDS else verdicts.POWER
    if n >= inference.MIN_SEEDS and len({*(seen >= 0)}) == 1:
        verdict = verdicts.WORSE if seen[0] >= 0 else verdicts.BETTER
    effect_ = Difference(int(n), sign * float(mean) / effect.margin)
    return {"effect": effect_, "verdict": verdict, "p": (np.nan,) * 3, "needed": np.nan}


def _test(effects: list[_Effect], record: StudyRecord) -> list[dict]:
    """The tests of all effects in units of their margins, over all analyses of the study: the
    verdict is that of the first that decides."""
    coarse = [effect.margin < 2 * math.sqrt(effect.error) for effect in effects]
    margins = [None if effect.failed or rough else 1.0
               for effect, rough in zip(effects, coarse, strict=True)]  # fmt: skip
    doubts = [Doubt(*(x / effect.margin for x in effect.doubt)) for effect in effects]
    tests = np.array([not effect.control for effect in effects], bool)
    sizes, alpha = record.analyses, record.alpha
    found: list[dict] = [{"verdict": verdicts.PENDING} for _ in effects]
    lowest = np.full((len(effects), 2), np.nan)
    for size, share in zip(sizes, inference.shares(len(sizes)), strict=True):
        seen = [
            inference.difference([(sign, x[:size] / e.margin) for sign, x in e.samples])
            for e in effects
        ]
        judged = np.array(
            [inference.judge(*each) for each in zip(seen, margins, doubts, strict=True)]
        ).reshape(-1, 4)
        adjusted = judged.copy()
        for column in adjusted.T if tests.any() else ():
            column[tests] = inference.holm(column[tests])
        adjusted = np.minimum(adjusted * 2 / share, 1.0)
        lowest = np.fmin(lowest, adjusted[:, :2])
        for i, kept in enumerate(found):
            kept["effect"], kept["p"] = seen[i], (judged[i, 0], *lowest[i])
            kept["would_be"] = None
            if kept["verdict"].kind in DECIDED:
                continue
            p = Judged(*adjusted[i])
            kept["verdict"] = inference.verdict(seen[i], p, alpha, False)
            if kept["verdict"] == verdicts.TUNING:
                kept["would_be"] = inference.verdict(seen[i], p.beyond_doubt, alpha, False)
    level = alpha * inference.shares(len(sizes) + 1)[-1] / 2 / max(tests.sum(), 1)
    for i, (effect, kept) in enumerate(zip(effects, found, strict=True)):
        kept["needed"] = np.nan
        if kept["verdict"].reason in ("power", "tuning", "few seeds"):
            reason, kept["needed"] = inference.plan(kept["effect"], margins[i], doubts[i], level)
            if kept["verdict"] == verdicts.POWER:
                kept["verdict"] = reason
        _guard(effect, kept, coarse[i])
    return found


def _guard(effect: _Effect, kept: dict, coarse: bool) -> None:
    """Notes what stands in the way of a verdict, and takes away one that cannot be given."""
    if kept["would_be"]:
        effect.notes.append(Note(What.DOUBT, (_finding(kept["would_be"]),)))
    if effect.failed:
        effect.notes.append(Note(What.FAILED_NOT_EQUIVALENT))
    if coarse:
        effect.notes.append(Note(What.COARSE))
    if effect.edge:
        effect.notes.append(Note(What.EDGE_OF_SOME))
        kept["verdict"] = verdicts.EDGE
    if effect.untestable and all(effect.untestable) and kept["effect"].n:
        kept["verdict"] = effect.untestable[0]
    if kept["verdict"].reason not in ("power", "tuning", "few seeds"):
        kept["needed"] = np.nan


def _finding(verdict: verdicts.Verdict) -> str:
    return _FINDINGS.get(verdict.kind) or str(verdict)


def read_finding(cell: str) -> verdicts.Verdict:
    """The verdict on an effect that a cell of claims.csv stands for.

    Raises:
      ConfigError: if it stands for none.
    """
    kinds = {finding: kind for kind, finding in _FINDINGS.items()}
    return verdicts.Verdict.read(kinds.get(cell, cell))


def _row(
    key: str, name: str, entry: Evidence, effect: _Effect, test: dict, record: StudyRecord
) -> dict:
    verdict = test["verdict"]
    against = "" if entry.measure else entry.against or record.baseline
    if entry.level is not None:
        against = f"{entry.level:g}"
    elif entry.measure:
        against = "untrained" if entry.null is None else f"{entry.null:g}"
    found, (p, p_adjusted, p_equivalence) = test["effect"], test["p"]
    low, high = inference.interval(found)
    return {
        "claim": key, "evidence": name, "control": entry.control,
        "task": " − ".join(entry.tasks), "arm": entry.arm, "against": against,
        "expect": entry.expect, "outcome": _OUTCOMES[entry.expect].get(verdict.kind, OPEN),
        "finding": _finding(verdict), "n": found.n, "effect": found.delta * effect.margin,
        "effect_low": low * effect.margin, "effect_high": high * effect.margin,
        "margin": effect.margin, "unit": effect.unit, "p_value": p, "p_adjusted": p_adjusted,
        "p_equivalence": p_equivalence, "seeds_to_decide": test["needed"],
        "note": Notes(effect.notes),
    }  # fmt: skip


def _judge(key: str, claim: Claim, table: pd.DataFrame) -> Judgement:
    """The verdict of one claim from the outcomes of its evidence."""
    controls, tests = table[table["control"]], table[~table["control"]]
    by = {outcome: tests[tests["outcome"] == outcome] for outcome in (FOR, AGAINST, OPEN)}
    failed = controls[controls["outcome"] != FOR]
    count = f"{len(by[FOR])} of {len(tests)} tests for, {len(by[AGAINST])} against"
    if len(failed):
        verdict, why = "undecided", f"a control did not come out as it must: {_names(failed)}"
    elif len(by[FOR]) and len(by[AGAINST]):
        verdict, why = "depends", f"{count}. For: {_names(by[FOR])}. Against: {_names(by[AGAINST])}"
    elif len(by[FOR]) >= claim.needed:
        verdict, why = "supported", count
    elif len(by[AGAINST]) >= claim.needed:
        verdict, why = "refuted", count
    else:
        verdict, why = "undecided", f"{count}; {claim.needed} are asked for"
    if len(by[OPEN]) and not len(failed):
        why += f". Open: {_names(by[OPEN])}"
    return Judgement(key, claim.text, verdict, why)


def _names(rows: pd.DataFrame) -> str:
    """Evidence by name; what several have before a colon is said once."""
    grouped: dict[str, list[str]] = {}
    for name in rows["evidence"]:
        what, _, where = name.partition(": ")
        grouped.setdefault(what, []).append(where)
    return "; ".join(
        f"{what} ({'; '.join(places)})" if all(places) else what for what, places in grouped.items()
    )
