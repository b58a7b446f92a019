"""Arms x tasks at a glance: each cell's verdict and what was measured, decisive tasks first."""

from __future__ import annotations

import pandas as pd

from qkv_jax.output import formats
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.grids import counted_signs, verdict_counts


def verdict_matrix(record: StudyRecord, results: wording.Results) -> dict:
    """`columns`, of a task or all cells of a grid each: name and title; and `rows`: arm, group,
    role and `cells`, of which each has the `kind` and `verdict` of a comparison, its `change` and
    `span`; None where the arm is not on that task.
    """
    columns: dict[str, list[str]] = {}
    for name, task in record.tasks.items():
        columns.setdefault(name if task.grid is None else task.grid, []).append(name)
    order = sorted(columns, key=lambda column: -_decisive(results, columns[column]))
    arms = {arm: row for rows in results.values() for arm, row in rows.items()}
    rows = [
        {
            "arm": arm, "group": row["group"], "role": row["role"],
            "cells": [_cell(record, results, columns[column], arm) for column in order],
        }
        for arm, row in sorted(arms.items(), key=lambda item: item[1]["group"])
    ]  # fmt: skip
    return {"columns": [_column(record, name, columns[name]) for name in order], "rows": rows}


def frame(matrix: dict) -> pd.DataFrame:
    """The same for a notebook, as texts."""
    text = lambda cell: "" if cell is None else " ".join(
        part for part in (cell["sign"], cell["verdict"], cell["change"], cell["span"]) if part
    )  # fmt: skip
    cells = {row["arm"]: [text(cell) for cell in row["cells"]] for row in matrix["rows"]}
    titles = [column["title"] for column in matrix["columns"]]
    return pd.DataFrame.from_dict(cells, orient="index", columns=titles)


def _decisive(results: wording.Results, tasks: list[str]) -> float:
    """The share of a column's comparisons that told a difference."""
    kinds = [row["verdict"].kind for name in tasks for row in results[name].values()]
    return sum(kind in ("worse", "better") for kind in kinds) / len(kinds)


def _column(record: StudyRecord, name: str, tasks: list[str]) -> dict:
    task = record.tasks[tasks[0]]
    if task.grid is not None:
        return {"name": name, "title": f"{task.family_title}, {len(tasks)} cells", "unit": ""}
    return {"name": name, "title": task.title, "unit": task.unit}


def _cell(record: StudyRecord, results: wording.Results, tasks: list[str], arm: str) -> dict | None:
    rows = [results[name][arm] for name in tasks if arm in results[name]]
    if not rows:
        return None
    if record.tasks[tasks[0]].grid is not None:
        counts = verdict_counts({name: {arm: results[name][arm]} for name in tasks})[arm]
        kind = next(iter(counts)) if len(counts) == 1 else "mixed"
        return dict.fromkeys(("sign", "change", "span"), "") | {
            "kind": kind, "verdict": counted_signs(counts),
        }  # fmt: skip
    (row,), task = rows, record.tasks[tasks[0]]
    kind, digits = row["verdict"].kind, wording.digits(task)
    change = span = ""
    if kind == "baseline":
        change = formats.number(row.get("mean"), digits)
    elif task.solving:
        change = f"{row.get('n_solved', 0):.0f} of {row.get('n', 0):.0f} solve it"
    elif row.get("delta") is not None:
        change = formats.number(row["delta"], digits, signed=True)
        low, high = (formats.number(row.get(f"delta_{end}"), digits) for end in ("low", "high"))
        span = f"[{low}, {high}]" if formats.known(row.get("delta_low")) else ""
    return {
        "kind": kind, "sign": wording.SIGNS[kind], "verdict": str(row["verdict"]),
        "change": change, "span": span,
    }  # fmt: skip
