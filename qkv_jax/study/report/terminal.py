"""The table of a study for the terminal, while it runs and when it is done."""

import rich
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.study.protocol.grids import families
from qkv_jax.study.protocol.verdicts import POWER
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.grids import verdict_counts

_STYLES = {
    "better": "bold blue",
    "worse": "bold yellow",
    "equivalent": "bold green",
    "undecided": "dim",
    "baseline": "bold",
    "pending": "dim",
}


def console_table(record: StudyRecord, summary, width: int | None = None, averages=None) -> Table:
    """Arms by task with score, difference and verdict; arms without results show "…".

    The cells of a grid are one table: means over the grid and how often each verdict was given.

    Args:
      record: of the study.
      summary: the summary so far, rows may be missing or partly empty; None before the first.
      width: columns of the terminal, by default those of this one. It fits into 78; from 98 on
        it has the learning rate and the adjusted p as well.
      averages: families.csv, for the means over grids.
    """
    width = rich.get_console().width if width is None else width
    results = wording.all_rows(record, summary)
    outer = Table.grid(expand=False)
    grids = {family: cells for family, cells in families(record).items() if len(cells) > 1}
    for name, task in record.tasks.items():
        cells = grids.get(task.grid)
        if cells is not None and name != cells[0]:
            continue
        if outer.rows:
            outer.add_row("")
        goal = task.unit
        about = f"solved at {task.outcome.threshold:g} {goal}" if task.solving else goal
        title = Text(_title(task, cells, 48 if width < 98 else 66), style="bold")
        outer.add_row(title + Text(f"  {about}, {wording.better_words(task)}", style="dim"))
        if cells is None:
            outer.add_row(_task_table(record, results, name, wide=width >= 98))
        else:
            outer.add_row(_grid_table(record, results, cells, averages, wide=width >= 98))
    return outer


def _title(task, cells, most):
    if cells is not None:
        return f"{formats.shorten(task.family_title, most - 12)}, {len(cells)} cells"
    if task.grid is None:
        return formats.shorten(task.title, 48)
    title = formats.shorten(task.family_title, max(most - len(task.cell) - 2, 12))
    return formats.shorten(f"{title}, {task.cell}", most)


def _grid_table(record, results, cells, averages, wide):
    """One row per arm: mean and difference over the grid, how often each verdict was given."""
    digits = wording.digits(record.tasks[cells[0]])
    family = record.tasks[cells[0]].family
    known = {}
    if averages is not None:
        known = averages[averages["family"] == family].set_index("arm").to_dict("index")
    rows = {name: results[name] for name in cells}
    counts = verdict_counts(rows)
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", width=21 if wide else 16)
    for head, size in (("mean", 7), ("difference [95 %]", 27)):
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", width=size)
    table.add_column("verdicts, cells", no_wrap=True, overflow="ellipsis", width=22)
    arms = sorted(counts, key=lambda arm: record.arms[arm].group)
    for arm in arms:
        row, base = known.get(arm, {}), arm == record.baseline
        mean = formats.number(row["mean"], digits) if row else formats.PENDING
        change = formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True)
        change = "" if base else change if row else formats.PENDING
        italic = record.arms[arm].group
        label = Text(arm, style="italic" if italic else "")
        table.add_row(label, mean, change, _signs(counts[arm], base))
    return table


def _signs(counter, base):
    if base:
        return Text(f"{wording.SIGNS['baseline']} baseline", style=_STYLES["baseline"])
    text = Text()
    for kind in _STYLES:
        if counter.get(kind):
            text += Text(f"{wording.SIGNS[kind]} {counter[kind]}  ", style=_STYLES[kind])
    return text


def _task_table(record, results, name, wide):
    task = record.tasks[name]
    solving = task.solving
    score, middle = ("solved", "steps to solve") if solving else ("mean", "difference")
    # (heading, width, cell, whether only a wide terminal has room for it)
    columns = [
        ("rate", 7, lambda row: wording.rate(row.get("learning_rate")), True),
        (score, 7, lambda row: _score(task, row), False),
        (f"{middle} [95 %]", 27, _steps if solving else lambda row: _difference(task, row), False),
        ("p (adj.)", 9, lambda row: wording.p_value(row.get("p_adjusted")), True),
        ("seeds", 5, _seeds, False),
    ]
    columns = [column for column in columns if wide or not column[3]]
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", width=17 if wide else 15)
    for head, size, _, _ in columns:
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", width=size)
    table.add_column("verdict", no_wrap=True, overflow="ellipsis", width=19)
    for arm, row in results[name].items():
        cells = [cell(row) for _, _, cell, _ in columns]
        if not row.get("n"):
            cells = [formats.PENDING if cell == formats.MISSING else cell for cell in cells]
        label = Text(arm, style="italic" if row["group"] else "")
        table.add_row(label, *cells, _verdict(row))
    for reference in task.references or ():
        value = formats.number(reference.value, wording.digits(task))
        cells = [value if head == "mean" else "" for head, *_ in columns]
        word = f"reference {value}" if solving else "reference"
        table.add_row(Text(reference.name, style="dim"), *cells, Text(word, style="dim"))
    return table


def _steps(row):
    if not row.get("n") or row.get("steps_to_solve") is None:
        return formats.PENDING
    text = wording.steps_to_solve(row)
    ends = row.get("steps_to_solve_low"), row.get("steps_to_solve_high")
    return text if None in ends else f"{text} [{', '.join(map(formats.integer, ends))}]"


def _score(task, row):
    if not row.get("n"):
        return formats.PENDING
    if task.solving:
        return f"{row.get('n_solved', 0):.0f}/{row['n']:.0f}"
    return formats.number(row.get("mean"), wording.digits(task))


def _difference(task, row):
    delta = row.get("delta")
    if delta is None:
        return "" if row.get("n") else formats.PENDING
    digits = wording.digits(task)
    text = formats.number(delta, digits, signed=True)
    if row.get("delta_low") is None or row.get("delta_high") is None:
        return text
    low, high = (formats.number(row[f"delta_{end}"], digits) for end in ("low", "high"))
    return f"{text} [{low}, {high}]"


def _seeds(row):
    if not row.get("n"):
        return formats.PENDING
    bad = wording.failures(row)
    return f"{row['n']:.0f}" + (f" ({bad}✗)" if bad else "")


def _verdict(row):
    kind = row["verdict"].kind
    if kind == "pending":
        return Text(formats.PENDING, style="dim")
    text, seeds = row["verdict"].reason or kind, wording.seeds_to_decide(row)
    if row["verdict"] == POWER and seeds:
        text = f"needs {seeds} seeds" if seeds.startswith(">") else f"needs ~{seeds} seeds"
    return Text(f"{wording.SIGNS[kind]} {text}", style=_STYLES[kind])
