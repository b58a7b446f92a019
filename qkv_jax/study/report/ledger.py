"""The ledger of claims as reports and the terminal show it."""

import collections
import json
import pathlib

import rich
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.study.protocol.ledger import read_finding
from qkv_jax.study.report import wording
from qkv_jax.study.run.workdir import Workdir

# Beside colour, a sign and a word tell them apart.
SIGNS = {
    "supported": "✓", "refuted": "✗", "depends": "±", "undecided": "?",
    "for": "✓", "against": "✗", "open": "?",
}  # fmt: skip
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
