"""The ledger: every piece of evidence of the claims of a study, tested, see `claims.py`.

Each test has two results. What it shows by itself, its `outcome`, is that of one family of all
tests but controls, protected by Holm's method (1979) at half of alpha for differences and half for
equivalence. What it adds to its claim are its one-sided p-values for and against, of which
`judgements.py` makes the claim's verdict. Both are of the tests of the tables (`inference.py`) with
the same guards: doubt about chosen learning rates, edges of grids, failed runs, the size of the
test set. Effects are counted in units of their margins, so that one test serves them all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import stats

from qkv_jax.study.claims import Claim, Evidence
from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import DECIDED
from qkv_jax.study.protocol.directions import Directions, directions
from qkv_jax.study.protocol.effects import Effect, Examples, Measured, Sources, effect_of
from qkv_jax.study.protocol.inference import Difference, Doubt, Judged
from qkv_jax.study.protocol.judgements import Judgement, judge_claims
from qkv_jax.study.protocol.verdicts import Note, Notes, What
from qkv_jax.study.record import StudyRecord

Outcome = Literal["for", "against", "open"]  # of a piece of evidence, for its claim
FOR, AGAINST, OPEN = get_args(Outcome)
LEDGER_COLUMNS = (
    "claim", "evidence", "control", "task", "arm", "against", "expect", "outcome", "finding", "n",
    "effect", "effect_low", "effect_high", "margin", "unit", "p_value", "p_adjusted",
    "p_equivalence", "seeds_to_decide", "note", "kind", "p_for", "p_against",
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
      that alpha is their level. `p_for` and `p_against`, one-sided, are adjusted for analyses
      alone, and NaN for controls; `kind` is that of the task.
    """
    named = [(key, name, e) for key, claim in claims.items() for name, e in claim.evidence.items()]
    sources = Sources(record, runs, examples, groups, measured)
    effects = [effect_of(entry, sources) for *_, entry in named]
    tested = [(entry, effect) for (*_, entry), effect in zip(named, effects, strict=True)
              if effect.level is None]  # fmt: skip
    tests = iter(_test(tested, record))
    rows = [
        _row(*each, effect, next(tests) if effect.level is None else _check(effect, record), record)
        for each, effect in zip(named, effects, strict=True)
    ]
    table = pd.DataFrame(rows, columns=LEDGER_COLUMNS)
    return table, judge_claims(claims, table, record.alpha)


def _check(effect: Effect, record: StudyRecord) -> dict:
    """Whether most seeds reach a level, or most fall short of it, see `Evidence`."""
    ((sign, over),) = effect.samples
    n, mean, _ = inference.moments(over)
    reached = int((sign * over[~np.isnan(over)] >= 0).sum())
    verdict = verdicts.FEW_SEEDS if n < inference.MIN_SEEDS else verdicts.POWER
    if n >= inference.MIN_SEEDS and stats.binom.cdf(n - reached, n, 0.5) <= record.alpha:
        verdict = verdicts.WORSE
    elif n >= inference.MIN_SEEDS and stats.binom.cdf(reached, n, 0.5) <= record.alpha:
        verdict = verdicts.BETTER
    if n:
        effect.notes.append(Note(What.REACHED, (reached, int(n), effect.level)))
    found = Difference(int(n), sign * float(mean) / effect.margin)
    return {"effect": found, "verdict": verdict, "p": (np.nan,) * 3, "needed": np.nan}


def _test(tested: list[tuple[Evidence, Effect]], record: StudyRecord) -> list[dict]:
    """The tests of all effects in units of their margins, over all analyses of the study: the
    verdict is that of the first that decides, the one-sided p's are the smallest."""
    effects = [effect for _, effect in tested]
    coarse = [effect.margin < 2 * math.sqrt(effect.error) for effect in effects]
    margins = [None if effect.failed or rough else 1.0
               for effect, rough in zip(effects, coarse, strict=True)]  # fmt: skip
    doubts = [Doubt(*(x / effect.margin for x in effect.doubt)) for effect in effects]
    tests = np.array([not effect.control for effect in effects], bool)
    sizes, alpha = record.analyses, record.alpha
    found: list[dict] = [{"verdict": verdicts.PENDING, "ways": Directions()} for _ in effects]
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
            ways = directions(tested[i][0].expect, seen[i], margins[i], doubts[i], alpha * share)
            kept["ways"] = Directions(*np.minimum(kept["ways"], np.divide(ways, share)))
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


def _guard(effect: Effect, kept: dict, coarse: bool) -> None:
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
    if effect.edge or (effect.untestable and all(effect.untestable)):
        kept["ways"] = Directions()
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
    key: str, name: str, entry: Evidence, effect: Effect, test: dict, record: StudyRecord
) -> dict:
    verdict = test["verdict"]
    against = "" if entry.measure else entry.against or record.baseline
    if entry.level is not None:
        against = f"{entry.level:g}"
    elif entry.measure:
        null = "untrained" if entry.null is None else f"{entry.null:g}"
        against = entry.against or null
    ways = (np.nan, np.nan) if entry.control else test["ways"]
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
        "note": Notes(effect.notes), "kind": entry.kind or record.tasks[entry.task].family,
        "p_for": ways[0], "p_against": ways[1],
    }  # fmt: skip
