"""Verdicts of claims, from the one-sided p-values of their tests and the rules of `claims.py`.

For each claim and each direction, for and against: the p's of the tests on one kind of task are
combined, those of the kinds give the p's of "at least one holds" and of "at least as many as are
asked for", and these are adjusted over all claims and both directions (`conjunction.py`). So alpha
bounds the chance that any of these statements of the whole ledger is false, and with it any
verdict: `supported` and `refuted` are the second statement, `depends` is the first in both
directions. That one comes first: what fails somewhere is not supported as a whole.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from qkv_jax.output import formats
from qkv_jax.study.claims import Claim
from qkv_jax.study.protocol import conjunction, inference


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A claim's verdict and why.

    Attributes:
      kinds, needed: how many kinds of task it was tested on, and on how many it must hold.
      p_supported, p_refuted: that it holds, or fails, on so many.
      p_holds, p_fails: that it does on at least one. All four are adjusted over all claims, so that
        alpha is their level; a control that is refuted does not show in them.
    """

    claim: str
    text: str
    verdict: Literal["supported", "refuted", "depends", "undecided"]
    why: str
    kinds: int
    needed: int
    p_supported: float
    p_refuted: float
    p_holds: float
    p_fails: float


def judge_claims(claims: Mapping[str, Claim], table: pd.DataFrame, alpha: float) -> list[Judgement]:
    """The verdict on each claim.

    Args: table: the ledger, a row for each piece of evidence.
    """
    tests = table[~table["control"].astype(bool)]
    parts = [_Part(tests[tests["claim"] == key], claim) for key, claim in claims.items()]
    some = np.array([part.holding[:, 0] for part in parts]).ravel()
    enough = np.array([part.holding[:, part.needed - 1] for part in parts]).ravel()
    first, whole = (x.reshape(-1, 2) for x in conjunction.family(some, enough))
    shown = int((whole <= alpha).sum())
    found = []
    for (key, claim), part, one, all_ in zip(claims.items(), parts, first, whole, strict=True):
        # What each direction was tested at when it was shown, or in the end.
        levels = [alpha / (whole.size - shown + (p <= alpha)) for p in all_]
        verdict, why = _verdict(part, one <= alpha, all_ <= alpha, levels)
        controls = table[(table["claim"] == key) & table["control"].astype(bool)]
        refuted = controls[controls["outcome"] == "against"]
        unsure = controls[controls["outcome"] == "open"]
        if len(refuted):
            verdict, why = "undecided", f"a control is refuted: {_names(refuted)}"
        elif len(unsure):
            why += f". Controls that are open, which stands in no verdict's way: {_names(unsure)}"
        found.append(
            Judgement(key, claim.text, verdict, why, len(part.names), part.needed,
                      *map(float, all_), *map(float, one))
        )  # fmt: skip
    return found


class _Part:
    """The tests of one claim, by kind of task.

    Attributes:
      names: of the kinds.
      kinds: [2, kinds] the p of each, for and against.
      holding: [2, kinds] the p of "at least u hold".
    """

    def __init__(self, tests: pd.DataFrame, claim: Claim):
        by_kind = dict(iter(tests.groupby("kind", sort=False)))
        self.tests, self.names, self.needed = tests, list(by_kind), claim.needed(len(by_kind))
        self.kinds = np.array([
            [conjunction.combined(rows[way]) for rows in by_kind.values()]
            for way in ("p_for", "p_against")
        ])  # fmt: skip
        self.holding = np.array([conjunction.at_least(row) for row in self.kinds])

    def outcome(self, outcome: str) -> pd.DataFrame:
        return self.tests[self.tests["outcome"] == outcome]


def _verdict(part: _Part, some, enough, levels) -> tuple[str, str]:
    """The verdict but for controls, and why; each of `some`, `enough` and `levels` is of the two
    directions."""
    named = [
        [name for name, p in zip(part.names, inference.holm(row), strict=True) if p <= level]
        for row, level in zip(part.kinds, levels, strict=True)
    ]
    for_it, against_it = (f" ({formats.join(names)})" if names else "" for names in named)
    total = len(part.names)
    why = f"for it on {len(named[0])} of {total} kind{'s' * (total > 1)} of task{for_it}, "
    why += f"against it on {len(named[1]) or 'none'}{against_it}"
    if all(some):
        verdict = "depends"
    elif enough[0]:
        verdict = "supported"
    elif enough[1]:
        verdict = "refuted"
    else:
        verdict = "undecided"
        why += f"; {part.needed} {'is' if part.needed == 1 else 'are'} asked for"
    for outcome in ("for", "against", "open"):
        if len(rows := part.outcome(outcome)) and (verdict == "depends" or outcome == "open"):
            why += f". {outcome.capitalize()}: {_names(rows)}"
    return verdict, why


def _names(rows: pd.DataFrame) -> str:
    """Evidence by name; what several have before a colon is said once."""
    grouped: dict[str, list[str]] = {}
    for name in rows["evidence"]:
        what, _, where = name.partition(": ")
        grouped.setdefault(what, []).append(where)
    return "; ".join(
        f"{what} ({'; '.join(places)})" if all(places) else what for what, places in grouped.items()
    )
