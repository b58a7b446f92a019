"""What a report says of a family, the cells of one grid taken together: findings and the table."""

import collections

from qkv_jax.output import formats
from qkv_jax.study.protocol import grids
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.sentences import Finding

DETAILED = 6  # more cells than these are shown with fewer figures each


def family_context(
    record: StudyRecord, results: wording.Results, table, family: str, slug: str
) -> dict:
    """The family for the templates. `table`: `grids.family_table` of the study."""
    tasks = grids.families(record)[family]
    task = record.tasks[tasks[0]]
    rows = {name: results[name] for name in tasks}
    axes = grids.axis_values(record, tasks)
    return {
        "name": family,
        "title": task.family_title,
        "slug": slug,
        "tasks": tasks,
        "record": task,
        "direction": wording.better_words(task),
        "margin": None if task.solving else task.outcome.margin,
        "axes": {field: ", ".join(map(_value, values)) for field, values in axes.items()},
        "findings": family_findings(record, rows),
        "published": list(task.published),
        "table": _table(record, rows, table[table["family"] == family].set_index("arm")),
        "brief": len(tasks) > DETAILED,
    }


def family_findings(record: StudyRecord, rows: wording.Results) -> list[Finding]:
    """Arms grouped by how their verdicts are spread over the cells; the placebo last."""
    base, cells = record.baseline, len(rows)
    counts = verdict_counts(rows)
    found: list[Finding] = []
    for group, prefix in ((0, ""), (1, "Controls and matched arms: ")):
        mine = [a for a in counts if a != base and record.arms[a].group == group]
        for kind in ("better", "equivalent", "worse", "undecided", "pending"):
            arms = [a for a in mine if set(counts[a]) == {kind}]
            if arms:
                phrase = _PHRASES[kind].format(base=base)
                text = f"{prefix}{phrase} in {_all(cells)}: {formats.join(arms)}."
                found.append(Finding(kind, text[0].upper() + text[1:], tuple(arms)))
        mixed = [a for a in mine if len(counts[a]) > 1]
        if mixed:
            groups: dict[str, list[str]] = {}
            for arm in sorted(mixed, key=lambda a: -counts[a]["worse"]):
                groups.setdefault(_spread(counts[arm]), []).append(arm)
            named = "; ".join(f"{formats.join(arms)} {how}" for how, arms in groups.items())
            text = f"{prefix}differing between the {cells} cells: {named}."
            found.append(Finding("mixed", text[0].upper() + text[1:], tuple(mixed)))
    for arm in counts:
        if record.arms[arm].group == 2:
            kind = next(iter(counts[arm])) if len(counts[arm]) == 1 else "mixed"
            text = f"The {arm} ({base} against itself) came out {_spread(counts[arm])}."
            if {"better", "worse"} & set(counts[arm]):
                text += " By chance that happens in at most one cell in twenty."
            found.append(Finding(kind, text, (arm,)))
    return found


_PHRASES = {
    "better": "better than {base}", "equivalent": "equivalent to {base}",
    "worse": "worse than {base}", "undecided": "undecided", "pending": "no verdict yet",
}  # fmt: skip


def verdict_counts(rows: wording.Results) -> dict[str, collections.Counter]:
    """{arm: {kind of verdict: number of cells}} of the rows of some tasks."""
    counts: dict[str, collections.Counter] = {}
    for cell in rows.values():
        for arm, row in cell.items():
            counts.setdefault(arm, collections.Counter())[row["verdict"].kind] += 1
    return counts


def counted_signs(counter: collections.Counter) -> str:
    """"▼ 10 ? 2": how often each verdict was given."""
    return "  ".join(f"{sign}\u00a0{counter[k]}" for k, sign in wording.SIGNS.items()
                     if counter.get(k) and k != "baseline")  # fmt: skip


def _all(cells: int) -> str:
    return "the only cell" if cells == 1 else f"all {cells} cells"


def _spread(counter) -> str:
    parts = [f"{_PHRASES[k].split(' ')[0] if k != 'pending' else 'no verdict yet'} in {counter[k]}"
             for k in _PHRASES if counter[k]]  # fmt: skip
    return formats.join(parts)


def _value(value) -> str:
    return str(value) if not isinstance(value, float) else f"{value:g}"


def _table(record, rows, averages) -> dict:
    """Arms by cells, before them the mean over the grid and what others published."""
    tasks = list(rows)
    task, base = record.tasks[tasks[0]], record.baseline
    digits, published = wording.digits(task), task.published
    counts = verdict_counts(rows)
    arms = sorted(grids.family_arms(record, tasks), key=lambda arm: record.arms[arm].group)
    body = []
    for arm in arms:
        mean = averages.loc[arm].to_dict() if arm in averages.index else {}
        body.append({
            "arm": arm, "group": record.arms[arm].group, "role": record.arms[arm].role,
            "base": arm == base,
            "verdicts": counted_signs(counts[arm]),
            "grid": [
                formats.bracket(mean, "mean", "ci_low", "ci_high", digits),
                "" if arm == base else
                formats.bracket(mean, "delta", "delta_low", "delta_high", digits, signed=True),
            ],
            "published": [formats.number(column.get(arm), 3) for column in published.values()],
            "cells": [_cell(record.tasks[name], rows[name].get(arm), digits) for name in tasks],
        })  # fmt: skip
    return {
        "cells": [record.tasks[name].cell.split(", ") for name in tasks],
        "published": list(published),
        "averaged": len(averages) > 0,
        "rows": body,
    }


def _cell(task, row, digits) -> dict:
    """Mean, verdict mark, and the difference (the seeds solved, where that is the outcome)."""
    if row is None or not row.get("n"):
        return {"mean": formats.MISSING, "change": "", "kind": "pending"}
    kind = row["verdict"].kind
    change = f"{wording.SIGNS[kind]} " if kind not in ("baseline", "pending") else ""
    if task.solving:
        change += f"{row.get('n_solved', 0):.0f}/{row['n']:.0f}"
    elif kind != "baseline":
        change += formats.number(row.get("delta"), digits, signed=True)
    return {"mean": formats.number(row.get("mean"), digits), "change": change, "kind": kind}
