"""The findings of a study in plain sentences, computed from its summary.

A sentence never says more than its verdict: "equivalent" only where the verdict is so, and an
undecided arm is one for which neither a difference nor equivalence could be shown.
"""

import dataclasses

from qkv_jax.output import formats
from qkv_jax.study.protocol.verdicts import POWER, Verdict, What
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.tie import Tie, TieError


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence, the arms it speaks of, and the kind of its verdict for the chip."""

    kind: str
    text: str
    arms: tuple[str, ...]


# The order in which verdicts are reported: first what is free, then what costs.
_ORDER = ("better", "equivalent", "worse", "undecided")
_SINGLY = 2  # up to so many arms of one verdict have a sentence each


def task_findings(record: StudyRecord, results: wording.Results, name: str) -> list[Finding]:
    """All findings of a task: the four made one, the other arms by verdict, controls, placebo."""
    task, rows = record.tasks[name], dict(results[name])
    baseline = rows.pop(record.baseline, None)
    found = []
    if baseline is None:
        return found
    copies = [a for a, r in rows.items() if r["role"] == "arm" and is_tie(r, "copies")]
    found += [arm_finding(record, task, rows[arm], baseline) for arm in copies]
    rest = {a: r for a, r in rows.items() if a not in copies}
    found += _grouped(record, task, rest, 0, baseline, "")
    found += _grouped(record, task, rest, 1, baseline, "Control: ")
    for row in rest.values():
        if row["group"] == 2:
            found.append(placebo_finding(record, task, row, baseline))
    return found


def contrast_findings(record: StudyRecord, table) -> list[Finding]:
    """A sentence about each arm that is compared with another than the baseline, on each task."""
    found = []
    for name, task in record.tasks.items():
        for row in wording.of_task(table, name):
            verdict, n = Verdict.read(row["verdict"]), row["n"]
            digits = wording.digits(task)
            text = f"{task.title}: “{row['arm']}” against “{row['against']}”: "
            if not n:
                text += "no result yet."
            else:
                size = formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True)
                p, unit = wording.p_equals(row["p_adjusted"]), wording.unit_words(task)
                text += f"{verdict} ({size} {unit}; adjusted {p}, {_seeds(row)})."
            found.append(Finding(verdict.kind, text, (row["arm"],)))
    return found


def is_tie(row: dict, tie: str) -> bool:
    """Whether the row's tie is that one; False for a schedule of ties."""
    try:
        return Tie.parse(row["tie"]) == Tie.parse(tie)
    except TieError:
        return False


def _grouped(record, task, rows, group, baseline, prefix):
    rows = [row for row in rows.values() if row["group"] == group]
    given = dict.fromkeys(row["verdict"] for row in rows)
    order = {kind: place for place, kind in enumerate(_ORDER)}
    found = []
    for verdict in sorted(given, key=lambda verdict: order.get(verdict.kind, 9)):
        same = [row for row in rows if row["verdict"] == verdict]
        if len(same) <= _SINGLY and verdict.kind != "pending":
            found += [arm_finding(record, task, row, baseline, prefix) for row in same]
        else:
            found.append(_group_finding(record, task, same, verdict, baseline, prefix))
    return found


def subject(record: StudyRecord, row: dict) -> str:
    """How a sentence names an arm: "equating all of X, Q, K and V (copies)", "tying K=V"."""
    arm = row["arm"]
    if row["role"] != "arm" or not is_tie(row, arm):
        named = f"“{arm}”"
        if row["role"] == "arm" and is_tie(row, "copies"):
            named = f"equating all of X, Q, K and V ({arm})"
        return named
    if is_tie(row, "copies"):
        return f"equating all of X, Q, K and V ({arm})"
    return f"tying {arm}"


def arm_finding(record, task, row, baseline, prefix="") -> Finding:
    """The sentence about one arm."""
    kind = row["verdict"].kind
    who = prefix + subject(record, row)
    solving = task.solving
    sentence = _pending if kind == "pending" else _solve_sentence if solving else _mean_sentence
    text = sentence(record, task, row, baseline, who)
    return Finding(kind, text[0].upper() + text[1:], (row["arm"],))


def _pending(record, task, row, baseline, who):
    return f"{who}: {f'open, {_seeds(row)} so far' if row.get('n') else 'no result'}."


def _seeds(row) -> str:
    seeds = row.get("n", 0)
    return f"{seeds:.0f} seed{'' if seeds == 1 else 's'}"


def _amount(task, row):
    """("costs" or "gains", the size, the interval), all counted towards that word."""
    digits = wording.digits(task)
    cost = wording.cost(row, task)
    sign = -1 if cost < 0 else 1
    ends = row.get("delta_low"), row.get("delta_high")
    span = ""
    if None not in ends:
        turn = sign * (-1 if task.higher_is_better else 1)
        low, high = sorted(turn * end for end in ends)
        span = formats.interval(low, high, digits)
    return ("gains" if cost < 0 else "costs"), formats.number(abs(cost), digits), span


def _mean_sentence(record, task, row, baseline, who):
    if row.get("delta") is None:
        return f"{who}: {row['verdict']}, without a difference to report."
    verb, size, span = _amount(task, row)
    unit, base, kind = wording.unit_words(task), record.baseline, row["verdict"].kind
    single = "of one seed" if row.get("n") == 1 else "all seeds differ alike"
    interval = f"95 % interval {span}" if span else f"no interval: {single}"
    detail = f"{interval}; {row['verdict']}"
    if row.get("p_adjusted") is not None:
        detail += f", adjusted {wording.p_equals(row['p_adjusted'])}"
    if kind in ("better", "worse"):
        return f"{who} {verb} {size} {unit} ({detail}, {_seeds(row)})."
    measured = {"costs": "cost", "gains": "gain"}[verb]
    measured = "difference" if not size.strip("0.") else measured
    if kind == "equivalent":
        p = wording.p_equals(row.get("p_equivalence"))
        text = (
            f"{who} is equivalent to {base} within ±{row.get('margin', 0):g} {unit} (measured "
            f"{measured} {size}; {interval}; equivalence {p}, {_seeds(row)})."
        )
        if row.get("p_adjusted", 1) <= record.alpha:
            p = wording.p_equals(row["p_adjusted"])
            text += f" It differs, within the margin (adjusted {p})."
        trains = [str(note) for note in row.get("note", ()) if note.what is What.WHEN_IT_TRAINS]
        return " ".join([text, *(f"That is, {remark}." for remark in trains)])
    text = f"{who}: measured {measured} {size} {unit} ({detail}, {_seeds(row)})."
    return text + " " + _undecided(record, task, row)


_REASONS = {
    "same program": "This is the program of {base} under another name: there is nothing to decide.",
    "same scores": "The same numbers as {base} at every seed: is it the same program?",
    "ceiling": "Both are at the ceiling: this task cannot tell.",
    "all failed": "No run came through, nor did one of {base}: there is nothing to compare.",
    "edge": "A best learning rate lies at the edge of the grid, so no verdict is given.",
    "collapses": "It would be equivalent, but runs of it or of {base} ended near failing.",
    "budget": "What the study may spend on the task was spent before a verdict.",
    "few seeds": "So few seeds allow no verdict, whatever they score.",
}


def _undecided(record, task, row) -> str:
    """Why there is no verdict, and what it would take."""
    reason, seeds = row["verdict"].reason, wording.seeds_words(row)
    if reason in _REASONS:
        return _REASONS[reason].format(base=record.baseline)
    if reason == "tuning":
        count = len(record.tune_seeds)
        more = f"{seeds} would allow one" if seeds else "no number of evaluation seeds would"
        return (
            f"Rates were chosen on {formats.small(count)} tuning seed{'s' * (count > 1)}, and what"
            f" luck in that choice may have cost allows no verdict; {more}."
        )
    plan = f"; it would take {seeds} to decide" if seeds else ""
    others = [str(note) for note in row.get("note", ()) if note.what is What.OTHER_RATE]
    plan += "".join(f"; {remark}" for remark in others)
    if task.solving:
        return f"No difference could be shown, which does not mean that there is none{plan}."
    return f"Neither a difference nor equivalence could be shown{plan}."


def _solved(row) -> str:
    return f"{row.get('n_solved', 0):.0f} of {row.get('n', 0):.0f}"


def _solve_sentence(record, task, row, baseline, who):
    span = ""
    if "solve_low" in row and "solve_high" in row:
        low, high = round(100 * row["solve_low"]), round(100 * row["solve_high"])
        span = f"95 % interval {low} to {high} %; "
    p = wording.p_equals(row.get("p_adjusted"))
    text = (
        f"{who} solves the task on {_solved(row)} seeds, {record.baseline} on "
        f"{_solved(baseline)} ({span}{row['verdict']}, Boschloo's exact test, adjusted {p})."
    )
    if row["verdict"].kind == "undecided":
        text += " " + _undecided(record, task, row)
    return text


def _group_finding(record, task, rows, verdict, baseline, prefix):
    """Several arms of one verdict in one sentence, those that cost most last."""
    kind, base, count = verdict.kind, record.baseline, formats.small(len(rows))
    unit = wording.unit_words(task)
    metric = unit.removeprefix("in ")
    rows = sorted(rows, key=lambda row: wording.cost(row, task) or 0)
    named = "; ".join(_item(task, row, kind) for row in rows)
    arms = tuple(row["arm"] for row in rows)
    p = [row["p_adjusted"] for row in rows if row.get("p_adjusted") is not None]
    largest = f"adjusted {wording.p_equals(max(p)).replace('=', '≤')}" if p else ""
    gains = any((wording.cost(row, task) or 0) < 0 for row in rows)
    negative = " (negative: a gain)" if gains else ""
    what = "controls and matched arms" if prefix else "arms"
    if kind == "pending":
        text = f"{prefix}no verdict yet on {formats.join(arms)}."
    elif task.solving:
        of = f"{base}: {_solved(baseline)} seeds solve the task"
        if kind in ("better", "worse"):
            text = f"{count} {what} are {kind} than {base} at solving ({of}; {largest}): {named}."
        else:
            text = f"{count} {what} are {verdict} ({of}): {named}. {_why_group(record, task, rows)}"
    elif kind in ("better", "worse"):
        verb = "cost" if kind == "worse" else "gain"
        text = (
            f"{count} {what} are {kind} than {base} and {verb}, in {metric} with 95 % intervals: "
            f"{named} (all with {largest})."
        )
    elif kind == "equivalent":
        margin = rows[0].get("margin", 0)
        text = (
            f"{count} {what} are equivalent to {base} within ±{margin:g} {unit}; measured cost"
            f"{negative} with 95 % intervals: {named}."
        )
        remarks = [note for row in rows for note in row.get("note", ())]
        trains = [note for note in remarks if note.what is What.WHEN_IT_TRAINS]
        if trains:
            most = max(share for note in trains for share in note.values[2:])
            text += f" That is, when they train: no run collapsed, of each at most {most:.0f} %."
    else:
        text = (
            f"{count} {what} are {verdict}; measured cost{negative} in {metric} with 95 % "
            f"intervals: {named}. {_why_group(record, task, rows)}"
        )
    return Finding(kind, text[0].upper() + text[1:], arms)


def _why_group(record, task, rows):
    row = {k: v for k, v in rows[0].items() if k not in ("seeds_to_decide", "note")}
    return _undecided(record, task, row)


def _item(task, row, kind):
    """"Q=K 0.021 (0.010 to 0.032)", or "copies 0 of 6", with the seeds it would take."""
    seeds = wording.seeds_words(row) if kind == "undecided" else ""
    seeds = f", {seeds} would decide" if seeds else ""
    if task.solving:
        return f"{row['arm']} {_solved(row)}{seeds}"
    if row.get("delta") is None:
        return row["arm"]
    digits, cost = wording.digits(task), wording.cost(row, task)
    turn = -1 if task.higher_is_better else 1
    if kind == "better":
        turn, cost = -turn, -cost
    ends = row.get("delta_low"), row.get("delta_high")
    span = ""
    if None not in ends:
        low, high = sorted(turn * end for end in ends)
        span = f" ({formats.interval(low, high, digits)}{seeds})"
    return f"{row['arm']} {formats.number(cost, digits)}{span}"


def placebo_words(record) -> str:
    """What the placebo is compared with."""
    if record.protocol == "race":
        return f"the second half of {record.baseline}'s seeds against the first"
    return f"{record.baseline} against itself, with other initial values"


def placebo_finding(record, task, row, baseline) -> Finding:
    """The placebo's verdict and what it means for the rest."""
    kind = row["verdict"].kind
    who = f"The {row['arm']} ({placebo_words(record)})"
    if kind == "pending":
        return Finding(kind, f"{who} has no result.", (row["arm"],))
    if task.solving:
        size = f"{_solved(row)} seeds solved"
        size += f", against {_solved(baseline)}" * (record.protocol == "fixed")
    else:
        digits = wording.digits(task)
        size = f"difference {formats.number(row.get('delta'), digits, signed=True)}"
        size += f" {wording.unit_words(task)}"
    if kind == "equivalent":
        end = "as it should"
    elif kind in ("better", "worse"):
        end = "as happens by chance on one task in twenty at most: read the rest with care"
    elif row["verdict"] == POWER:
        end = "as it may: no difference was shown"
        seeds = wording.seeds_words(row)
        if not task.solving:
            end += ", though it would take " + seeds + " to show equivalence" if seeds else ""
    else:
        end = "so it says nothing about the method here"
    return Finding(kind, f"{who} came out {row['verdict']} ({size}), {end}.", (row["arm"],))
