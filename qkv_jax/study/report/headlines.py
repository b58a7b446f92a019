"""What stands at the top of a report: the answer in short, and what must be known before it."""

import itertools
import math

from qkv_jax.output import formats
from qkv_jax.study.protocol.selection import tuning_runs
from qkv_jax.study.protocol.verdicts import SAME_PROGRAM, Note, Verdict, What
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.sentences import is_tie

# Of an arm, in a warning of its own, in its sentence or its table.
_SAID = (
    What.FAILED, What.EDGE, What.EDGE_OF_BASELINE, What.WHEN_IT_TRAINS, What.COLLAPSED,
    What.OTHER_RATE,
)  # fmt: skip


def overview(record: StudyRecord, results: wording.Results) -> list[str]:
    """The answer in short, then what holds across tasks for the arms that are no controls."""
    tasks = list(record.tasks)
    lines = _answer(record, results)
    if len(tasks) < 2:
        return lines
    verdicts_of: dict[str, list[Verdict]] = {}
    for name in tasks:
        for arm, row in results[name].items():
            if row["role"] == "arm":
                verdicts_of.setdefault(arm, []).append(row["verdict"])
    kinds = {arm: [verdict.kind for verdict in given] for arm, given in verdicts_of.items()}
    everywhere = {arm: k for arm, k in kinds.items() if len(k) == len(tasks)}
    count, nouns = formats.small(len(tasks)), wording.task_words(record)
    on, noun = ("in", "cell") if nouns == "cells" else ("on", "task")
    base = record.baseline
    for kind, words in (("equivalent", f"equivalent to {base}"), ("worse", f"worse than {base}"),
                        ("better", f"better than {base}")):  # fmt: skip
        arms = [arm for arm, k in everywhere.items() if set(k) == {kind}]
        if arms:
            lines.append(f"{on.title()} all {count} {nouns} {words}: {formats.join(arms)}.")
    if not any("better" in k for k in kinds.values()):
        lines.append(f"No arm was shown to be better than {base} {on} any {noun}.")
    same = [arm for arm, given in verdicts_of.items() if set(given) == {SAME_PROGRAM}]
    if same:
        lines.append(f"The program of {base} under another name: {formats.join(same)}.")
    undecided = [
        a for a, k in kinds.items()
        if "undecided" in k and not {"worse", "better"} & set(k) and a not in same
    ]  # fmt: skip
    if undecided:
        arms = formats.join(undecided)
        lines.append(f"Still open {on} some {noun}, and worse {on} none: {arms}.")
    return lines


def _answer(record, results) -> list[str]:
    """Whether three copies of the input do what separate projections do, by the verdicts, unless
    the study has another question."""
    if not record.asks_of_copies:
        return []
    titles: dict[str, list[str]] = {}
    for name in record.tasks:
        for row in results[name].values():
            plain = row["role"] == "arm" and record.arms[row["arm"]].plain_tie
            if plain and is_tie(row, "copies"):
                titles.setdefault(row["verdict"].kind, []).append(name)
    titles.pop("pending", None)
    if not titles:
        return []
    base = record.baseline
    words = {"worse": "worse", "better": "better", "equivalent": "equivalent within the margin",
            "undecided": "undecided"}  # fmt: skip
    named = {k: formats.join(wording.places(record, tasks)) for k, tasks in titles.items()}
    places = formats.join([f"{words[k]} on {text}" for k, text in named.items()])
    if "worse" in titles:
        does = "separate projections do" if base == "separate" else f"“{base}” does"
        start = f"No: three copies of the input do not do all that {does}"
    elif set(titles) == {"equivalent"}:
        start = f"Here they might as well be: three copies of the input did as well as {base}"
    elif "undecided" in titles:
        start = "This study cannot tell yet"
    else:
        start = f"Three copies of the input were not shown to do worse than {base}"
    return [f"{start}. Equating all of X, Q, K and V came out {places}."]


def warnings(record: StudyRecord, runs, results: wording.Results) -> list[str]:
    """What the reader must know first: failures, rates at the edge, too few seeds, other notes.

    What holds alike in several cells of a grid is said once."""
    found: dict[tuple[str, str], list[str]] = {}  # (family, what): tasks

    def note(name, text):
        found.setdefault((record.tasks[name].family, text), []).append(name)

    for name, task in record.tasks.items():
        for text in task.data_notes or ():
            note(name, text)
        rows = results[name]
        ahead = _ahead(task, rows.get(record.baseline, {}))
        if ahead:
            what = "verdicts are about models that have not learned what that knows"
            note(name, f"{record.baseline} does worse than {formats.join(ahead)}: {what}.")
        bad = [
            f"{a} ({wording.failures(r)} of {r.get('n', 0):.0f})"
            for a, r in rows.items()
            if wording.failures(r)
        ]
        if bad:
            note(
                name,
                "evaluation runs diverged or failed and count with the value "
                f"{task.outcome.failure_value:g}: {formats.join(bad)}.",
            )
        tuning = tuning_runs(record, runs[runs["task"] == name])
        lost = tuning[tuning["status"] != "done"].groupby("arm").size()
        if len(lost):
            named = [f"{arm} ({lost[arm]})" for arm in task.arms if arm in lost.index]
            note(name, f"tuning runs that diverged or failed: {formats.join(named)}.")
        edge = [f"{arm} ({row['edge']} end)" for arm, row in rows.items() if row.get("edge")]
        if edge:
            note(
                name,
                f"the best learning rate is at the edge of the grid for {formats.join(edge)}; "
                "the true optimum may lie beyond, so there is no verdict.",
            )
        noted: dict[Note, list[str]] = {}
        for arm, row in rows.items():
            for remark in row.get("note", ()):
                if remark.what not in _SAID:
                    noted.setdefault(remark, []).append(arm)
        for remark, arms in noted.items():
            # Who failed is in the words; it stands in the rows of all that are compared with it.
            of = "" if remark.what is What.LOST else f": {formats.join(arms)}"
            note(name, f"{remark}{of}.")
    part = record.config.get("part")
    return [f"This is a part of the study “{record.name}”: {part}."] * bool(part) + [
        f"{formats.join(wording.places(record, tasks))}: {text}"
        for (_, text), tasks in found.items()
    ] + _changed_packages(record) + _accepted(record)


def _ahead(task: TaskRecord, baseline) -> list[str]:
    """The simple methods that do better than the whole interval of the baseline's mean."""
    best = baseline.get("ci_high" if task.higher_is_better else "ci_low", math.nan)
    sign = 1 if task.higher_is_better else -1
    return [r.name for r in task.references or () if sign * r.value > sign * best]


def _changed_packages(record) -> list[str]:
    """Packages that were others at a later start: the runs of one table were not made alike."""
    starts = [start.packages for start in record.versions]
    names = [n for n in (starts[0] if starts else ()) if len({s.get(n) for s in starts}) > 1]
    if not names:
        return []
    parts = (f"{name} {', then '.join(_in_turn(s.get(name) for s in starts))}" for name in names)
    return [f"Packages changed while the study was under way: {'; '.join(parts)}."]


def _in_turn(versions) -> list[str]:
    """Each version as often as there was a change to it."""
    return [str(version) for version, _ in itertools.groupby(versions)]


def _accepted(record) -> list[str]:
    """Configs that became others, by a default or a version, where going on was asked for."""
    return [
        f"From {entry.at} on, models or training were others than before, which was accepted: "
        f"{wording.changes(entry.changes)}."
        for entry in record.accepted
    ]
