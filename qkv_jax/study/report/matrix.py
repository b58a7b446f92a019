"""Arms x tasks at a glance: each cell's verdict and what was measured, decisive tasks first."""

from __future__ import annotations

import pandas as pd

from qkv_jax.output import formats
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.grids import counted_signs, verdict_counts


def verdict_matrix(
    record: StudyRecord, results: wording.Results, averages: pd.DataFrame | None = None
) -> dict:
    """`columns`, of a task or all cells of a grid each: name and title; and `rows`: arm, group,
    role and `cells`, of which each has the `kind` and `verdict` of a comparison, its `change` and
    `span`; None where the arm is not on that task. Of a grid the verdicts of its cells are counted,
    and `averages`, a `grids.family_table`, has the mean difference over them.
    """
    means = [] if averages is None else averages.to_dict("records")
    found = {(row["family"], row["arm"]): row for row in means}
    columns: dict[str, list[str]] = {}
    for name, task in record.tasks.items():
        columns.setdefault(name if task.grid is None else task.grid, []).append(name)
    order = sorted(columns, key=lambda column: -_decisive(results, columns[column]))
    arms = {arm: row for rows in results.values() for arm, row in rows.items()}
    rows = [
        {
            "arm": arm, "group": row["group"], "role": row["role"],
            "cells": [
                _cell(record, results, columns[column], arm, found.get((column, arm), {}))
                for column in order
            ],
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
        title = f"{task.family_title}, {len(tasks)} cells"
        return {"name": name, "title": title, "unit": "" if task.solving else f"mean {task.unit}"}
    return {"name": name, "title": task.title, "unit": task.unit}


def _cell(
    record: StudyRecord, results: wording.Results, tasks: list[str], arm: str, mean: dict
) -> dict | None:
    rows = [results[name][arm] for name in tasks if arm in results[name]]
    if not rows:
        return None
    task = record.tasks[tasks[0]]
    if task.grid is not None:
        counts = verdict_counts({name: {arm: results[name][arm]} for name in tasks})[arm]
        kind = next(iter(counts)) if len(counts) == 1 else "mixed"
        change, span = _change(record, tasks[0], arm, {} if task.solving else mean)
        return {
            "kind": kind, "sign": "", "verdict": counted_signs(counts), "change": change,
            "span": span,
        }  # fmt: skip
    (row,) = rows
    kind = row["verdict"].kind
    if task.solving and kind != "baseline":
        change, span = f"{row.get('n_solved', 0):.0f} of {row.get('n', 0):.0f} solve it", ""
    else:
        change, span = _change(record, tasks[0], arm, row)
    return {
        "kind": kind, "sign": wording.SIGNS[kind], "verdict": str(row["verdict"]),
        "change": change, "span": span,
    }  # fmt: skip


def _change(record: StudyRecord, task: str, arm: str, row: dict) -> tuple[str, str]:
    """The baseline's mean, of others the difference to it; and its interval."""
    digits = wording.digits(record.tasks[task])
    if arm == record.baseline:
        return (formats.number(row["mean"], digits) if formats.known(row.get("mean")) else ""), ""
    if not formats.known(row.get("delta")):
        return "", ""
    low, high = (formats.number(row.get(f"delta_{end}"), digits) for end in ("low", "high"))
    span = f"[{low}, {high}]" if formats.known(row.get("delta_low")) else ""
    return formats.number(row["delta"], digits, signed=True), span
