"""How results are put into words: numbers, units, verdicts, and a task's rows as plain dicts.

Everything that shows results (figures, page, console) takes them from here, so that the same number
is printed the same way everywhere and a verdict is never rephrased into something stronger.
"""

import math
import re
from collections.abc import Sequence

from qkv_jax.output.formats import MISSING, PENDING, integer, known
from qkv_jax.study.protocol import verdict

# Two ways beside colour to tell verdicts apart: a sign and a word.
SIGNS = {
    "better": "▲",
    "worse": "▼",
    "equivalent": "≈",
    "undecided": "?",
    "baseline": "●",
    "pending": PENDING,
    "mixed": "±",  # of several cells, never a verdict
}




def task_rows(study: dict, summary, task: str) -> dict[str, dict]:
    """Rows of one task as {arm: {column: value}}, in the study's order.

    Arms that the summary lacks (a study under way) come out with nothing but name, tie and role;
    columns that are missing or NaN are left out, so `row.get(column)` is None for "not known".
    """
    found = {}
    if summary is not None and len(summary):
        part = summary[summary["task"] == task]
        for record in part.to_dict("records"):
            found[record["arm"]] = {c: v for c, v in record.items() if known(v)}
    rows = {}
    for arm in study["tasks"][task]["arms"]:
        spec = study["arms"][arm]
        base = {"arm": arm, "tie": spec["tie"], "role": spec["role"], "task": task}
        rows[arm] = base | found.get(arm, {})
        rows[arm].setdefault("verdict", verdict.PENDING)
    return rows


def role_group(row: dict) -> int:
    """0 baseline and arms, 1 controls and arms of matched size, 2 the placebo."""
    return {"control": 1, "matched": 1, "placebo": 2}.get(row["role"], 0)


def cost(row: dict, spec: dict) -> float | None:
    """The difference to the baseline, positive where the arm is worse."""
    delta = row.get("delta")
    return None if delta is None else (-delta if spec["higher_is_better"] else delta)


def decimals(spec: dict) -> int:
    """Digits after the point for scores of a task: one more than the margin needs."""
    margin = spec.get("margin")
    if not margin or margin <= 0:
        return 3
    return min(6, max(2, math.ceil(-math.log10(margin)) + 1))




def p_value(p) -> str:
    """ "0.0004", "0.012", "0.35"; below 0.0001 "< 0.0001"."""
    if not known(p):
        return MISSING
    if p < 1e-4:
        return "< 0.0001"
    digits = 4 if p < 0.001 else 3 if p < 0.1 else 2
    return f"{p:.{digits}f}"


def p_equals(p) -> str:
    """As it stands in a sentence: "p = 0.012", "p < 0.0001"."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def rate(value) -> str:
    """A learning rate: "0.003", "3e-5"."""
    if not known(value):
        return MISSING
    text = f"{value:.3g}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].replace('+', '')}{m[2]}", text)






def steps_to_solve(row) -> str:
    """The mean over seeds, cut at the budget: a lower bound where some seeds did not get there."""
    steps = integer(row.get("steps_to_solve"))
    unsolved = known(row.get("steps_to_solve")) and row.get("n_solved", 0) < row.get("n", 0)
    return f"≥{steps}" if unsolved else steps






def places(study: dict, tasks: Sequence[str]) -> list[str]:
    """Tasks as a sentence names them: titles, the cells of one grid counted together."""
    grids: dict[str, list[str]] = {}
    for task, spec in study["tasks"].items():
        if spec.get("axes"):
            grids.setdefault(spec["family"], []).append(task)
    named: dict[str, str] = {}
    for task in tasks:
        spec = study["tasks"][task]
        grid = grids.get(spec.get("family"), []) if spec.get("axes") else []
        mine = [cell for cell in grid if cell in tasks]
        text = spec["title"]
        if len(mine) > 1:
            count = f"all {len(grid)}" if len(mine) == len(grid) else f"{len(mine)} of {len(grid)}"
            text = f"{count} cells of {spec['family_title']}"
        named.setdefault(spec["family"] if grid else task, text)
    return list(named.values())


def task_words(study: dict) -> str:
    """What the study's comparisons are called: "tasks", "cells" of grids, or both."""
    gridded = [bool(spec.get("axes")) for spec in study["tasks"].values()]
    return "cells" if all(gridded) else "tasks and cells" if any(gridded) else "tasks"


def unit_words(spec: dict) -> str:
    """The unit as it reads after a number in a sentence."""
    unit = spec.get("unit") or spec["metric"]
    return "in accuracy" if unit == "accuracy" else unit.replace("/", " per ")


def better_words(spec: dict) -> str:
    return "higher is better" if spec["higher_is_better"] else "lower is better"


def seeds_words(row: dict) -> str:
    """How many seeds would decide: "about 14 seeds", "more than 100 seeds", or "" if unknown."""
    text = row.get("seeds_to_decide")
    if text is None:
        return ""
    text = str(text).strip()
    if text.startswith(">") or text == "inf":
        return f"more than {text.lstrip('>').replace('inf', '100')} seeds"
    return f"about {float(text):.0f} seeds"


def failures(row: dict) -> int:
    """Evaluation runs that diverged or failed."""
    return int(row.get("n_diverged", 0)) + int(row.get("n_failed", 0))








def only_tie(overrides: dict) -> bool:
    """Whether {"tie": …}, {"model.tie": …} or {"model": {"tie": …}} is all that is overridden."""
    return all(
        only_tie(value) if isinstance(value, dict) else str(key).split(".")[-1] == "tie"
        for key, value in overrides.items()
    )


