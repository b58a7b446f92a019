"""The ledger of claims as reports and the terminal show it."""

import collections
import json
import pathlib
import textwrap
from typing import Any

import rich
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.study.protocol.ledger import read_finding
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.run.workdir import Workdir

# Beside colour, a sign and a word tell them apart.
SIGNS = {
    "supported": "✓", "refuted": "✗", "depends": "±", "undecided": "?",
    "for": "✓", "against": "✗", "open": "?",
}  # fmt: skip
RULES_SENTENCES = (
    "A claim is judged by the kinds of task on which tests are for it and against it. A test is "
    "for it by the one-sided p of an effect in the expected direction, unless the effect is shown "
    "to lie within its margin, and against it by that of an effect which is not as large as the "
    "margin: nothing that matters, or the opposite. Of the tests on one kind of task the strongest "
    "counts, times their number (Bonferroni); from the p's of the kinds follow those of “on at "
    "least one” and of “on at least as many as the config asks for” (partial conjunction, "
    "Benjamini & Heller 2008), adjusted over all claims and both directions (Holm), so that α "
    "bounds the chance of any false verdict. Supported: for it on as many as are asked for; "
    "refuted: against it on as many; depends: for it on some and against it on some, however "
    "many; else undecided.",
    "A control must come out as expected if the claim is to mean anything. It is tested alone and "
    "stands in the way of a verdict only where it is refuted; that an arm reaches a level is "
    "refuted where most seeds are shown to fall short of it. The outcome of each single test, for, "
    "against or open, is that of one family of all tests of all claims (Holm, half of α for "
    "differences and half for equivalence; adjusted p-values are to be compared with α): a claim "
    "may have a verdict though no single test of it can be named.",
)
_STYLES = {"supported": "bold green", "refuted": "bold yellow", "depends": "bold blue"}


def ledger_context(workdir: pathlib.Path) -> list[dict] | None:
    """The claims with their evidence, ready for the templates; None if the study has none."""
    table, file = Workdir(workdir).table("claims.csv"), workdir / "claims.json"
    if table is None or not file.exists():
        return None
    found = []
    for claim in json.loads(file.read_text(encoding="utf-8")):
        mine = table[table["claim"] == claim["claim"]].to_dict("records")
        counts = collections.Counter(row["outcome"] for row in mine if not row["control"])
        ordered = {outcome: counts[outcome] for outcome in ("for", "against", "open")}
        found.append(claim | {"rows": [_evidence(row) for row in mine], "counts": ordered})
    return found


def dating_sentences(record: StudyRecord) -> list[str]:
    """When the claims were fixed, and what was amended since."""
    dated = record.claims_dated
    fixed = [entry for entry in dated[:1] if not entry.changes]
    said = ["The claims are not dated: nothing shows that they were fixed before the first run."]
    if fixed:
        said = [
            f"The claims, their margins and the rules of their verdicts were fixed on "
            f"{fixed[0].at}, before the first run (SHA-256 {fixed[0].digest[:16]}, whole in "
            "study.json)."
        ]
    for entry in dated[len(fixed) :]:
        said.append(
            f"Amended on {entry.at}, after runs had been made (SHA-256 {entry.digest[:16]}): "
            f"{wording.changes(entry.changes, _short)}."
        )
    return said


def _short(value: Any) -> str:
    return "not there" if value is None else textwrap.shorten(f"{value!r}", 80, placeholder=" …")


def _evidence(row: dict) -> dict:
    """One line of the table of evidence."""
    found = read_finding(row["finding"])
    digits = wording.decimals(row["margin"])
    effect = formats.bracket(row, "effect", "effect_low", "effect_high", digits, signed=True)
    relation = f"{row['expect']} than" if row["expect"] in ("worse", "better") else (
        "equivalent to" if row["expect"] == "equivalent" else row["expect"]
    )  # fmt: skip
    return {
        "name": row["evidence"],
        "control": row["control"],
        "expected": f"{row['arm']} {relation} {row['against']}",
        "task": row["task"],
        "outcome": row["outcome"],
        "effect": f"{effect} {row['unit']}".strip(),
        "margin": f"{row['margin']:g}",
        "p": wording.p_value(row["p_adjusted"]),
        "p_equivalence": wording.p_value(row["p_equivalence"]),
        "seeds": formats.integer(row["n"]),
        # What a finding adds to the outcome is why it is open.
        "note": "; ".join(filter(None, (str(found) if found.reason else "", row["note"]))),
    }


def console_ledger(ledger: list[dict], width: int | None = None) -> Table:
    """Claims and verdicts for the terminal; fits into 78 columns.

    Args: ledger: of `ledger_context`.
    """
    width = rich.get_console().width if width is None else width
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("claim", width=min(width - 18, 84))
    table.add_column("verdict", no_wrap=True, width=13)
    for claim in ledger:
        verdict = Text(f"{SIGNS[claim['verdict']]} {claim['verdict']}")
        verdict.stylize(_STYLES.get(claim["verdict"], "dim"))
        text = Text(f"{claim['claim']}. {claim['text']}\n") + Text(claim["why"], style="dim")
        table.add_row(text, verdict)
    return table
