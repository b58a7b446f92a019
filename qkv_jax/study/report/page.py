"""Writes the report of a study: one self-contained web page, the same as Markdown, the figures.

Everything that needs judgement is elsewhere: verdicts in `protocol/summary.py`, sentences in
`sentences.py` and `headlines.py`, figures in `figures/`, families of tasks in `grids.py`. Here
the pieces are put in order for the templates.
"""

import collections
import json
import pathlib
from collections.abc import Callable

from qkv_jax.output import formats
from qkv_jax.output.html import write_page
from qkv_jax.runtime.files import with_filename
from qkv_jax.study.protocol.evaluated import seed_scores
from qkv_jax.study.protocol.grids import families, family_table
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import headlines, paper, sentences, wording
from qkv_jax.study.report.figures.catalogue import draw_family, draw_task
from qkv_jax.study.report.grids import counted_signs, family_context, verdict_counts
from qkv_jax.study.report.ledger import RULES_SENTENCES, dating_sentences, ledger_context
from qkv_jax.study.report.ledger import SIGNS as LEDGER_SIGNS
from qkv_jax.study.report.matrix import verdict_matrix
from qkv_jax.study.report.methods import protocol
from qkv_jax.study.report.tables import (
    _add_published,
    _add_references,
    _branch_table,
    _cost_table,
    _mean_table,
    _race_table,
    _solve_table,
    contrast_table,
)
from qkv_jax.study.run.outcomes import Outcome, write_tables
from qkv_jax.study.run.workdir import Workdir

# The figures of a cell, where a family has so many that all of them would be too much to load.
_BRIEF = ("forest", "solving", "by-group")
# A study of more tasks and cells than this shows of each the figure of its verdicts alone: drawing
# all would take many minutes, and no page could show them.
_MANY = 24
_VERDICTS = {"mean": ("forest",), "solve": ("solving",)}
_TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write_outcomes(
    workdir: Workdir, pause: Callable[[], None] = lambda: None
) -> tuple[Outcome, pathlib.Path]:
    """Writes tables, page and figures of a study from its folder alone; what it came to, and the
    path of report.html.

    Args: as `outcomes.write_tables`.

    Raises:
      ConfigError: likewise.
    """
    with with_filename(workdir.path):
        found = write_tables(workdir, pause)
        path = write_report(
            workdir.path, found.record, found.runs, found.summary, workdir.curve, pause=pause
        )
    return found, path


def write_report(
    workdir: pathlib.Path,
    record: StudyRecord,
    runs,
    summary,
    curve: Callable,
    *,
    dpi: int = 150,
    pause: Callable[[], None] = lambda: None,
) -> pathlib.Path:
    """Writes report.html, report.md, figures/*.svg|png|pdf and what `paper.py` names into the
    workdir of a study.

    Args:
      workdir: an existing folder; breakdown.csv and the ledger in it are shown, if there are any.
      record, runs, summary: the study, its runs, and `summarise` of them. An unfinished study
        is reported as far as it goes, under a banner.
      curve: (task, arm, learning_rate, seed) -> DataFrame(step, value) or None.
      dpi: resolution of the PNG files.
      pause: is called before each task and page; whoever wants to stop may raise there.

    Returns: the path of report.html.
    """
    workdir = pathlib.Path(workdir)
    folder, tables = workdir / "figures", workdir / "tables"
    for each in (folder, tables):
        each.mkdir(parents=True, exist_ok=True)
    results = wording.all_rows(record, summary)
    context = _context(record, runs, results)
    context |= {"ledger": ledger_context(workdir), "ledger_signs": LEDGER_SIGNS}
    context |= {"ledger_rules": RULES_SENTENCES, "ledger_dated": dating_sentences(record)}
    tabled = map(Workdir(workdir).table, ("breakdown.csv", "branches.csv", "contrasts.csv"))
    groups, branches, contrasts = tabled
    context["contrasts"] = sentences.contrast_findings(record, contrasts)
    for task in context["tasks"]:
        pause()
        rows = results[task["name"]]
        task["against"] = wording.of_task(contrasts, task["name"])
        task["contrasts"] = contrast_table(task["record"], task["against"])
        task["branches"] = _branch_table(task["name"], task["record"], rows, branches)
        table = None if groups is None else groups[groups["task"] == task["name"]]
        task["table_files"] = paper.write_table(tables, task["slug"], task["table"])
        if task["contrasts"]:
            name = f"{task['slug']}-contrasts"
            task["contrast_files"] = paper.write_table(tables, name, task["contrasts"])
        task["figures"] = draw_task(
            folder, record, runs, results, task, curve, table, dpi, only=_wanted(context, task)
        )
        task["more"] = [figure["name"] for figure in task["figures"][1:]] + [
            words for words, shown in
            (("what the verdicts rest on", task["race"]), ("what the arms cost", task["costs"]))
            if shown
        ]  # fmt: skip
    paper.write_words(tables, context["protocol"], context["packages"])
    scores = seed_scores(record, runs) if context["families"] else {}
    for family in context["families"]:
        pause()
        family["figures"] = draw_family(folder, record, results, scores, family, dpi)
    for kind in ("md", "html"):
        pause()
        page = write_page(workdir / f"report.{kind}", _TEMPLATES / f"report.{kind}.jinja", context)
    return page


def _wanted(context: dict, task: dict) -> tuple[str, ...] | None:
    """The figures that a task has, None for all."""
    if len(context["tasks"]) > _MANY:
        return _VERDICTS[task["record"].outcome.kind]
    return _BRIEF if task["family"] is not None and task["family"]["brief"] else None


def _left_out(tasks: list[dict]) -> list[str]:
    if len(tasks) <= _MANY:
        return []
    return [
        f"So that this page stays small, only the figure of the verdicts is drawn for each of the "
        f"{len(tasks)} tasks; the folder of the study has what the others are drawn from."
    ]


def _context(record, runs, results) -> dict:
    grouped = families(record)
    slugs = _slugs([*record.tasks, *grouped])
    averages = family_table(record, runs) if grouped else None
    grids = {
        name: family_context(record, results, averages, name, slugs[place])
        for place, name in enumerate(grouped, len(record.tasks))
    }
    tasks = [
        _task(record, results, name) | {"slug": slug, "family": grids.get(record.tasks[name].grid)}
        for name, slug in zip(record.tasks, slugs, strict=False)
    ]
    for family in grids.values():
        family["members"] = [task for task in tasks if task["family"] is family]
        for task in family["members"]:
            counts = verdict_counts({"": results[task["name"]]})
            task["verdicts"] = counted_signs(sum(counts.values(), collections.Counter()))
    matrix = verdict_matrix(record, results, averages)
    return {
        "record": record,
        "packages": record.versions[-1].packages if record.versions else {},
        "warnings": headlines.warnings(record, runs, results) + _left_out(tasks),
        "matrix": matrix,
        "slugs": dict(zip([*record.tasks, *grouped], slugs, strict=True)),
        "overview": headlines.overview(record, results),
        "tasks": tasks,
        "families": list(grids.values()),
        "sections": _sections(tasks, [column["name"] for column in matrix["columns"]]),
        "size": _size(tasks, grids),
        "protocol": protocol(record, runs, results),
        "number_of_runs": f"{len(runs):,}",
        "duration": _duration(record.seconds, record.compiling),
        "config": json.dumps(record.config, indent=2, default=str, ensure_ascii=False),
        "resolved": _resolved(record),
        "arms": record.arms,
        "signs": wording.SIGNS,
    }


def _resolved(record) -> str:
    """A line for each arm of each task: all of the baseline's config, of others what differs."""
    if len(record.tasks) > _MANY:  # study.json has them
        return ""
    lines = []
    for name, task in record.tasks.items():
        for arm, config in (task.resolved or {}).items():
            fields = [
                f"{part}.{field}={json.dumps(value, ensure_ascii=False)}"
                for part, values in config.items()
                for field, value in values.items()
            ]
            lines.append(f"{name} / {arm}: {', '.join(fields) or 'the same'}")
    return "\n".join(lines)


def _sections(tasks, order: list[str]) -> list[dict]:
    """Families and tasks of their own, in the order of their names."""
    found = []
    for task in tasks:
        if task["family"] is None:
            found.append({"task": task, "family": None})
        elif task is task["family"]["members"][0]:
            found.append({"task": None, "family": task["family"]})
    name = lambda section: (section["family"] or section["task"])["name"]
    return sorted(found, key=lambda section: order.index(name(section)))


def _size(tasks, grids) -> str:
    """"3 tasks", or "2 tasks, 13 cells" with a grid among them."""
    count = len(grids) + sum(task["family"] is None for task in tasks)
    text = f"{count} task{'s' if count != 1 else ''}"
    return f"{text}, {len(tasks)} cells" if grids else text


def _slugs(names) -> list[str]:
    """Names safe in file names and addresses, no two alike."""
    found: list[str] = []
    for name in names:
        slug, count = formats.slug(name), 2
        while slug.casefold() in map(str.casefold, found):  # ends: fewer names than numbers
            slug, count = f"{formats.slug(name)}-{count}", count + 1
        found.append(slug)
    return found


def _duration(seconds, compiling=None) -> str:
    if not formats.known(seconds):
        return formats.MISSING
    minutes, hours = seconds / 60, seconds / 3600
    text = (
        f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90
        else f"{hours:.1f} h"
    )  # fmt: skip
    return f"{text}, {_duration(compiling)} of it compiling" if compiling else text


def _task(record, results, name) -> dict:
    task, rows = record.tasks[name], results[name]
    table = _solve_table(task, rows) if task.solving else _mean_table(task, rows)
    # Of a family's cells the published numbers stand beside the mean over the grid.
    published = task.published if task.grid is None else {}
    _add_published(table, published)
    _add_references(table, task)
    notes = {arm: record.arms[arm].note for arm in rows if record.arms[arm].note}
    placebo = rows.get(record.placebo, {})
    if record.protocol == "race" and formats.known(placebo.get("delta")) and not task.solving:
        mean = formats.number(placebo["mean"] - placebo["delta"], wording.digits(task))
        notes[record.placebo] = f"{sentences.placebo_words(record)}, whose mean is {mean}"
    notes |= {r.name: r.note for r in task.references or () if r.note}
    return {
        "name": name,
        "record": task,
        "direction": wording.better_words(task),
        "findings": sentences.task_findings(record, results, name),
        "table": table,
        "published": list(published),
        "race": _race_table(task, rows) if record.protocol == "race" else None,
        "costs": _cost_table(record.baseline, rows),
        "notes": notes,
    }
