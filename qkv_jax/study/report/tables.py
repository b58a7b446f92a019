"""The tables of a report, as rows of text."""

from qkv_jax.output import formats
from qkv_jax.study.protocol.summary import NOISE
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.record import TaskRecord
from qkv_jax.study.report import wording


def _add_published(table, published) -> None:
    """Columns of numbers that others published, beside a task's means."""
    place = _mean_column(table) + 1
    table["head"][place:place] = published
    for row in table["rows"]:
        numbers = [formats.number(column.get(row["arm"]), 3) for column in published.values()]
        row["cells"][place:place] = numbers


def _add_references(table, task: TaskRecord) -> None:
    """Rows of other methods' scores, under a task's arms."""
    place = _mean_column(table)
    for reference in task.references or ():
        cells = [""] * len(table["head"])
        cells[place] = formats.number(reference.value, wording.digits(task))
        table["rows"].append({
            "arm": reference.name, "group": 3, "role": "reference", "cells": cells,
            "verdict": "", "kind": "reference",
        })  # fmt: skip


def _mean_column(table) -> int:
    return next(i for i, head in enumerate(table["head"]) if head.startswith("mean "))


def _rows(rows, cells) -> list[dict]:
    return [
        {
            "arm": arm,
            "group": row["group"],
            "role": row["role"],
            "cells": cells(row),
            "verdict": str(row["verdict"]) or "no verdict yet",
            "kind": row["verdict"].kind,
        }
        for arm, row in sorted(rows.items(), key=lambda item: item[1]["group"])
    ]


def _seeds(row) -> str:
    bad = wording.failures(row)
    return f"{row.get('n', 0):.0f}" + (f" ({bad} failed)" if bad else "")


def _rate(row) -> str:
    edge = f" ({row['edge']} edge)" if row.get("edge") else ""
    return wording.rate(row.get("learning_rate")) + edge


def _where_known(rows, head, text) -> list[tuple]:
    """The column of a text about each row, [(head, text)]; none where no row has any."""
    return [(head, text)] if any(map(text, rows.values())) else []


def _more_steps(rows) -> list[tuple]:
    return _where_known(rows, "more steps [95 %]", wording.more_steps)


def _plan(rows) -> list[tuple]:
    return _where_known(rows, "seeds to decide", wording.seeds_to_decide)


def _mean_table(task: TaskRecord, rows) -> dict:
    digits = wording.digits(task)
    timed = task.outcome.threshold is not None  # then seeds can solve the task, if not decide it
    more, plan = _more_steps(rows), _plan(rows)

    def cells(row):
        solved = [f"{row.get('n_solved', 0):.0f} of {_seeds(row)}", wording.steps_to_solve(row)]
        return [
            _rate(row),
            formats.bracket(row, "mean", "ci_low", "ci_high", digits),
            formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True),
            *(text(row) for _, text in more),
            wording.p_value(row.get("p_adjusted")), wording.p_value(row.get("p_equivalence")),
            *(solved if timed else [_seeds(row)]), *(text(row) for _, text in plan),
        ]  # fmt: skip

    head = [
        "rate", f"mean {task.outcome.metric} [95 %]", "difference [95 %]",
        *(head for head, _ in more),
        "p (adjusted)", "p (equivalence)",
        *(["seeds solved", "steps to solve"] if timed else ["seeds"]), *(head for head, _ in plan),
    ]  # fmt: skip
    return {"head": head, "rows": _rows(rows, cells)}


def _solve_table(task: TaskRecord, rows) -> dict:
    digits = wording.digits(task)
    more, plan = _more_steps(rows), _plan(rows)

    def cells(row):
        get = row.get
        share = f"{get('n_solved', 0):.0f} of {get('n', 0):.0f}" if get("n") else formats.MISSING
        if formats.known(get("solve_low")):
            share += f" [{100 * get('solve_low'):.0f}, {100 * get('solve_high'):.0f} %]"
        steps = wording.steps_to_solve(row)
        if formats.known(get("steps_to_solve_low")) and formats.known(get("steps_to_solve_high")):
            ends = map(formats.integer, (get("steps_to_solve_low"), get("steps_to_solve_high")))
            steps += f" [{', '.join(ends)}]"
        mean = formats.number(get("mean"), digits)
        p = wording.p_value(get("p_adjusted"))
        taken, needed = ([text(row) for _, text in column] for column in (more, plan))
        return [_rate(row), share, steps, *taken, mean, p, _seeds(row), *needed]

    head = [
        "rate", "seeds solved [95 %]", "steps to solve [95 %]",
        *(head for head, _ in more), f"mean {task.outcome.metric}", "p (adjusted)", "seeds",
        *(head for head, _ in plan),
    ]  # fmt: skip
    return {"head": head, "rows": _rows(rows, cells)}


def _race_table(task: TaskRecord, rows) -> dict:
    """What each arm of a race took, and what its verdict rests on."""
    digits = wording.digits(task)

    def cells(row):
        get = row.get
        share = formats.MISSING
        if formats.known(get("n_live")):
            share = f"{get('n_collapsed'):.0f} of {get('n_live'):.0f}"
            share += f" (≤ {100 * get('collapsed_high'):.0f} %)"
        ends = get("delta_low_simultaneous"), get("delta_high_simultaneous")
        span = ""
        if all(map(formats.known, ends)):
            span = formats.interval(*ends, digits)
        decided = f"{get('decided_at'):.0f}" if formats.known(get("decided_at")) else ""
        return [get("live_rates", formats.MISSING), f"{get('n', 0):.0f}", f"{get('runs', 0):.0f}",
                share, decided, span]  # fmt: skip

    head = ["rates alive", "seeds at the best", "runs", "collapsed [95 %]", "decided at",
            "difference at best rates, all looks"]  # fmt: skip
    return {"head": head, "rows": _rows(rows, cells)}


def _branch_table(name: str, task: TaskRecord, rows, branches) -> dict | None:
    """The verdicts on copies of runs that branched off; None if the task has none.

    Args: rows: of the arms; branches: branches.csv, or None.
    """
    mine = [] if branches is None else branches[branches["task"] == name].to_dict("records")
    copies = {row["arm"]: row for row in mine}
    if not any(row["n"] for row in mine):
        return None
    digits = wording.digits(task)
    own = {arm: {"group": rows[arm]["group"], "role": rows[arm]["role"], **row,
                 "verdict": Verdict.read(row["verdict"])}
           for arm, row in copies.items()}  # fmt: skip

    def cells(row):
        return [wording.rate(row["learning_rate"]), formats.number(row["mean"], digits),
                formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True),
                f"{row['n']:.0f}"]  # fmt: skip

    head = ["rate", f"mean {task.outcome.metric}", "difference [95 %]", "seeds"]
    return {"head": head, "rows": _rows(own, cells)}


def contrast_table(task: TaskRecord, contrasts) -> dict | None:
    """Arms against other arms than the baseline; None if the task has no such comparison.

    Args: contrasts: the rows of contrasts.csv of the task.
    """
    if not contrasts:
        return None
    digits = wording.digits(task)
    rows = {
        f"{row['arm']} against {row['against']}": row
        | {"group": 0, "role": "contrast", "verdict": Verdict.read(row["verdict"])}
        for row in contrasts
    }

    def cells(row):
        return [formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True),
                wording.p_value(row["p_adjusted"]), wording.p_value(row["p_equivalence"]),
                f"{row['n']:.0f}"]  # fmt: skip

    head = ["difference [95 %]", "p (adjusted)", "p (equivalence)", "seeds"]
    return {"head": head, "rows": _rows(rows, cells)}


def _cost_table(baseline: str, rows) -> dict | None:
    """Costs with their change against the baseline; None if none is known."""
    columns = {
        "params": "parameters",
        "attention_params": "in attention",
        "flops_per_token": "FLOPs per token",
        "kv_cache_bytes_per_token": "state bytes per token",
    }
    shown = [c for c in columns if any(row.get(c) is not None for row in rows.values())]
    timed = any(row.get("step_time_ratio") is not None for row in rows.values())
    if not (shown or timed):
        return None
    base = rows.get(baseline, {})

    def cell(row, column):
        value, reference = row.get(column), base.get(column)
        exact = value is not None and abs(value) < 100_000
        text = formats.integer(value) if exact else formats.count(value)
        if value is None or not reference or value == reference:
            return text
        change = 100 * (value / reference - 1)
        size = f"{abs(change):.0f}" if abs(change) >= 9.5 else f"{abs(change):.1f}"
        return f"{text} ({formats.MINUS if change < 0 else '+'}{size} %)"

    def cells(row):
        ratio = row.get("step_time_ratio")
        time = f"{ratio:.2f} ×" if ratio is not None else formats.MISSING
        if ratio is not None and row.get(NOISE) is not None and row is not base:
            time += f" ± {row[NOISE]:.2f}"
        return [cell(row, c) for c in shown] + ([time] if timed else [])

    head = [columns[c] for c in shown] + (["step time, of the baseline's"] if timed else [])
    return {"head": head, "rows": _rows(rows, cells)}
