"""How results are put into words: numbers, units, verdicts, and the rows of arms as plain dicts.

Everything that shows results (figures, page, console) takes them from here, so that the same number
is printed the same way everywhere and a verdict is never rephrased into something stronger.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from qkv_jax.output.formats import MISSING, PENDING, integer, known, number
from qkv_jax.study.protocol import verdicts
from qkv_jax.study.record import Change, StudyRecord, TaskRecord

# {task: {arm: {column: value}}}: the summary as sentences, tables and figures take it.
Results = dict[str, dict[str, dict[str, Any]]]

_CHANGES = 8  # that are named; study.json has all
_MOST_SEEDS = 100  # what takes more is not told apart

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


def all_rows(record: StudyRecord, summary) -> Results:
    """The rows of the summary as {task: {arm: {column: value}}}, in the record's order.

    Arms that the summary lacks (a study under way) come out with nothing but name, tie, role, group
    and verdict; columns that are missing or NaN are left out, so `row.get(column)` is None for "not
    known".
    """
    found = {}
    for row in [] if summary is None else summary.to_dict("records"):
        found[row["task"], row["arm"]] = {c: v for c, v in row.items() if known(v)}
    results: Results = {}
    for name, task in record.tasks.items():
        results[name] = {}
        for arm in task.arms:
            entry = record.arms[arm]
            base = {
                "arm": arm, "tie": entry.tie, "role": entry.role, "group": entry.group,
                "task": name, "verdict": verdicts.PENDING,
            }  # fmt: skip
            results[name][arm] = base | found.get((name, arm), {})
    return results


def of_task(table, task: str) -> list[dict]:
    """The rows of a table of the study that are of one task; none without a table."""
    return [] if table is None else table[table["task"] == task].to_dict("records")


def cost(row: dict, task: TaskRecord) -> float | None:
    """The difference to the baseline, positive where the arm is worse."""
    delta = row.get("delta")
    return None if delta is None else (-delta if task.higher_is_better else delta)


def decimals(margin: float) -> int:
    """Digits after the point for scores of a task: one more than its margin needs."""
    return min(6, max(2, math.ceil(-math.log10(margin)) + 1))


def digits(task: TaskRecord) -> int:
    """Digits after the point for scores of a task. Near a ceiling the margin in force is a tiny
    part of the declared one, and whoever reads does not need all of its digits."""
    found = decimals(task.outcome.margin)
    return found if task.declared_margin is None else min(found, 4)


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


def more_steps(row) -> str:
    """"+37 % [+21, +60]": what the difference is worth in steps; "" where that is not known.

    Beyond the curve there is a bound at most: "beyond (> +400 %)".
    """
    value, low, high = (row.get(f"more_steps{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    if _beyond(value):
        sign, bound = (">", low) if value > 0 else ("<", high)
        said = f" ({sign} {number(bound, 0, signed=True)} %)"
        return "beyond" + said * (bound is not None and not _beyond(bound))
    text = f"{number(value, 0, signed=True)} %"
    if low is None or high is None:
        return text
    low, high = ("beyond" if _beyond(end) else number(end, 0, signed=True) for end in (low, high))
    return f"{text} [{low}, {high}]"


def _beyond(more: float) -> bool:
    return math.isinf(more) or more <= -100


def places(record: StudyRecord, tasks: Sequence[str]) -> list[str]:
    """Tasks as a sentence names them: titles, the cells of one grid counted together."""
    grids: dict[str, list[str]] = {}
    for name, task in record.tasks.items():
        if task.grid is not None:
            grids.setdefault(task.grid, []).append(name)
    named: dict[str, str] = {}
    for name in tasks:
        task = record.tasks[name]
        grid = grids.get(task.grid, [])
        mine = [cell for cell in grid if cell in tasks]
        text = task.title
        if len(mine) > 1:
            count = f"all {len(grid)}" if len(mine) == len(grid) else f"{len(mine)} of {len(grid)}"
            text = f"{count} cells of {task.family_title}"
        named.setdefault(task.family if grid else name, text)
    return list(named.values())


def task_words(record: StudyRecord) -> str:
    """What the study's comparisons are called: "tasks", "cells" of grids, or both."""
    gridded = [task.grid is not None for task in record.tasks.values()]
    return "cells" if all(gridded) else "tasks and cells" if any(gridded) else "tasks"


def unit_words(task: TaskRecord) -> str:
    """The unit as it reads after a number in a sentence."""
    return "in accuracy" if task.unit == "accuracy" else task.unit.replace("/", " per ")


def margin(task: TaskRecord) -> str:
    """The margin with its unit, and what it is of the one that was declared."""
    text = f"{task.outcome.margin:g} {unit_words(task)}"
    if task.declared_margin is not None:
        text += f" (in log-odds what the declared {task.declared_margin:g} is at 90 %)"
    return text


def changes(found: Sequence[Change], words: Callable[[Any], str] = repr) -> str:
    """What was changed, as in "a was 1, then 2; ...", not all of it where that is much."""
    parts = [f"{c.field} was {words(c.before)}, then {words(c.now)}" for c in found]
    more = f"; and {len(parts) - _CHANGES} more, see study.json" if len(parts) > _CHANGES else ""
    return "; ".join(parts[:_CHANGES]) + more


def better_words(task: TaskRecord) -> str:
    return "higher is better" if task.higher_is_better else "lower is better"


def seeds_to_decide(row: dict) -> str:
    """How many seeds would decide: "14", ">100", or "" where that is not known."""
    seeds = row.get("seeds_to_decide")
    if seeds is None:
        return ""
    return f">{_MOST_SEEDS}" if seeds > _MOST_SEEDS else f"{seeds:.0f}"


def seeds_words(row: dict) -> str:
    """The same in a sentence: "about 14 seeds", "more than 100 seeds", or ""."""
    seeds = seeds_to_decide(row)
    if not seeds:
        return ""
    return f"more than {seeds[1:]} seeds" if seeds.startswith(">") else f"about {seeds} seeds"


def failures(row: dict) -> int:
    """Evaluation runs that diverged or failed."""
    return int(row.get("n_diverged", 0)) + int(row.get("n_failed", 0))
