"""What stands at the top of a report: the answer in short, and what must be known before it."""

from qkv_jax.study import wording
from qkv_jax.study.findings import is_tie


def overview(study: dict, summary) -> list[str]:
    """The answer in short, then what holds across tasks for the arms that are no controls."""
    tasks = list(study["tasks"])
    lines = _answer(study, summary)
    if len(tasks) < 2:
        return lines
    kinds = {}
    for task in tasks:
        for arm, row in wording.task_rows(study, summary, task).items():
            if row["role"] == "arm":
                kinds.setdefault(arm, []).append(wording.kind(row["verdict"]))
    everywhere = {arm: k for arm, k in kinds.items() if len(k) == len(tasks)}
    count = wording.small(len(tasks))
    base = study["baseline"]
    for kind, words in (("equivalent", f"equivalent to {base}"), ("worse", f"worse than {base}"),
                        ("better", f"better than {base}")):  # fmt: skip
        arms = [arm for arm, k in everywhere.items() if set(k) == {kind}]
        if arms:
            lines.append(f"On all {count} tasks {words}: {wording.join(arms)}.")
    if not any("better" in k for k in kinds.values()):
        lines.append(f"No arm was shown to be better than {base} on any task.")
    undecided = [
        a for a, k in kinds.items() if "undecided" in k and not {"worse", "better"} & set(k)
    ]
    if undecided:
        lines.append(f"Still open on some task, and worse on none: {wording.join(undecided)}.")
    return lines


def _answer(study, summary) -> list[str]:
    """Whether three copies of the input do what separate projections do, by the verdicts."""
    titles: dict[str, list[str]] = {}
    for task, spec in study["tasks"].items():
        for row in wording.task_rows(study, summary, task).values():
            overrides = study["arms"][row["arm"]].get("overrides") or {}
            plain = row["role"] == "arm" and wording.only_tie(overrides)
            if plain and is_tie(row, "copies"):
                titles.setdefault(wording.kind(row["verdict"]), []).append(spec["title"])
    titles.pop("pending", None)
    if not titles:
        return []
    base = study["baseline"]
    said = {"worse": "worse", "better": "better", "equivalent": "equivalent within the margin",
            "undecided": "undecided"}  # fmt: skip
    places = wording.join([f"{said[k]} on {wording.join(t)}" for k, t in titles.items()])
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
    """What the reader must know first: failures, rates at the edge, too few seeds, other notes."""
    lines = []
    for task, spec in study["tasks"].items():
        rows = wording.task_rows(study, summary, task)
        title = spec["title"]
        bad = [
            f"{a} ({wording.failures(r)} of {r.get('n', 0):.0f})"
            for a, r in rows.items()
            if wording.failures(r)
        ]
        if bad:
            lines.append(
                f"{title}: evaluation runs diverged or failed and count with the value "
                f"{spec['failure_value']:g}: {wording.join(bad)}."
            )
        tuning = runs[(runs["task"] == task) & (runs["phase"] == "tune")]
        lost = tuning[tuning["status"] != "done"].groupby("arm").size()
        if len(lost):
            named = [f"{arm} ({lost[arm]})" for arm in spec["arms"] if arm in lost.index]
            lines.append(f"{title}: tuning runs that diverged or failed: {wording.join(named)}.")
        edge = [f"{arm} ({row['edge']} end)" for arm, row in rows.items() if row.get("edge")]
        if edge:
            lines.append(
                f"{title}: the best learning rate is at the edge of the grid for "
                f"{wording.join(edge)}; the true optimum may lie beyond, so there is no verdict."
            )
        noted: dict[str, list[str]] = {}
        for arm, row in rows.items():
            for note in filter(None, str(row.get("note", "")).split("; ")):
                if "edge" not in note and note != "runs failed":
                    noted.setdefault(note, []).append(arm)
        for note, arms in noted.items():
            lines.append(f"{title}: {note}: {wording.join(arms)}.")
    return lines
