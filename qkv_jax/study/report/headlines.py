"""What stands at the top of a report: the answer in short, and what must be known before it."""

import itertools

from qkv_jax.output import formats
from qkv_jax.study.protocol.verdict import SAME_PROGRAM, Note, Verdict, What
from qkv_jax.study.report import wording
from qkv_jax.study.report.sentences import is_tie

_SAID = (What.FAILED, What.EDGE, What.EDGE_OF_BASELINE)  # of an arm, in a warning of its own
_NAMED = 8  # changes that the page names; study.json has all


def overview(study: dict, summary) -> list[str]:
    """The answer in short, then what holds across tasks for the arms that are no controls."""
    tasks = list(study["tasks"])
    lines = _answer(study, summary)
    if len(tasks) < 2:
        return lines
    verdicts_of: dict[str, list[Verdict]] = {}
    for task in tasks:
        for arm, row in wording.task_rows(study, summary, task).items():
            if row["role"] == "arm":
                verdicts_of.setdefault(arm, []).append(row["verdict"])
    kinds = {arm: [verdict.kind for verdict in given] for arm, given in verdicts_of.items()}
    everywhere = {arm: k for arm, k in kinds.items() if len(k) == len(tasks)}
    count, nouns = formats.small(len(tasks)), wording.task_words(study)
    on, noun = ("in", "cell") if nouns == "cells" else ("on", "task")
    base = study["baseline"]
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


def _answer(study, summary) -> list[str]:
    """Whether three copies of the input do what separate projections do, by the verdicts."""
    titles: dict[str, list[str]] = {}
    for task in study["tasks"]:
        for row in wording.task_rows(study, summary, task).values():
            overrides = study["arms"][row["arm"]].get("overrides") or {}
            plain = row["role"] == "arm" and wording.only_tie(overrides)
            if plain and is_tie(row, "copies"):
                titles.setdefault(row["verdict"].kind, []).append(task)
    titles.pop("pending", None)
    if not titles:
        return []
    base = study["baseline"]
    said = {"worse": "worse", "better": "better", "equivalent": "equivalent within the margin",
            "undecided": "undecided"}  # fmt: skip
    named = {k: formats.join(wording.places(study, tasks)) for k, tasks in titles.items()}
    places = formats.join([f"{said[k]} on {text}" for k, text in named.items()])
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


def warnings(study: dict, runs, summary) -> list[str]:
    """What the reader must know first: failures, rates at the edge, too few seeds, other notes.

    What holds alike in several cells of a grid is said once."""
    found: dict[tuple[str, str], list[str]] = {}  # (family, what): tasks

    def note(task, text):
        found.setdefault((study["tasks"][task].get("family", task), text), []).append(task)

    for task, spec in study["tasks"].items():
        for text in spec.get("data_notes") or ():
            note(task, text)
        rows = wording.task_rows(study, summary, task)
        bad = [
            f"{a} ({wording.failures(r)} of {r.get('n', 0):.0f})"
            for a, r in rows.items()
            if wording.failures(r)
        ]
        if bad:
            note(
                task,
                "evaluation runs diverged or failed and count with the value "
                f"{spec['failure_value']:g}: {formats.join(bad)}.",
            )
        tuning = runs[(runs["task"] == task) & (runs["phase"] == "tune")]
        lost = tuning[tuning["status"] != "done"].groupby("arm").size()
        if len(lost):
            named = [f"{arm} ({lost[arm]})" for arm in spec["arms"] if arm in lost.index]
            note(task, f"tuning runs that diverged or failed: {formats.join(named)}.")
        edge = [f"{arm} ({row['edge']} end)" for arm, row in rows.items() if row.get("edge")]
        if edge:
            note(
                task,
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
            note(task, f"{remark}{of}.")
    return [
        f"{formats.join(wording.places(study, tasks))}: {text}"
        for (_, text), tasks in found.items()
    ] + _changed_packages(study) + _accepted(study)


def _changed_packages(study) -> list[str]:
    """Packages that were others at a later start: the runs of one table were not made alike."""
    starts = [start["packages"] for start in study.get("versions", ())]
    names = [n for n in (starts[0] if starts else ()) if len({s.get(n) for s in starts}) > 1]
    if not names:
        return []
    said = (f"{name} {', then '.join(_in_turn(s.get(name) for s in starts))}" for name in names)
    return [f"Packages changed while the study was under way: {'; '.join(said)}."]


def _in_turn(versions) -> list[str]:
    """Each version as often as there was a change to it."""
    return [str(version) for version, _ in itertools.groupby(versions)]


def _accepted(study) -> list[str]:
    """Configs that became others, by a default or a version, where going on was asked for."""
    lines = []
    for entry in study.get("accepted", ()):
        said = [f"{c['field']} was {c['before']!r}, then {c['now']!r}" for c in entry["changes"]]
        more = f"; and {len(said) - _NAMED} more, see study.json" if len(said) > _NAMED else ""
        lines.append(
            f"From {entry['at']} on, models or training were others than before, which was "
            f"accepted: {'; '.join(said[:_NAMED])}{more}."
        )
    return lines
