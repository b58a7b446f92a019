"""The table of a study for the terminal, while it runs and when it is done."""

import rich
from rich.table import Table
from rich.text import Text

from qkv_jax.output import formats
from qkv_jax.study.protocol.grids import families, family_of
from qkv_jax.study.protocol.verdict import UNDECIDED
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


def console_table(study: dict, summary, width: int | None = None, averages=None) -> Table:
    """Arms by task with score, difference and verdict; arms without results show "…".

    The cells of a grid are one table: means over the grid and how often each verdict was given.

    Args:
      study: the dict of study.json.
      summary: the summary so far, rows may be missing or partly empty; None before the first.
      width: columns of the terminal, by default those of this one. It fits into 78; from 98 on
        it has the learning rate and p after Holm as well.
      averages: families.csv, for the means over grids.
    """
    width = rich.get_console().width if width is None else width
    outer = Table.grid(expand=False)
    grids = {family: cells for family, cells in families(study).items() if len(cells) > 1}
    for task, spec in study["tasks"].items():
        cells = grids.get(family_of(study, task))
        if cells is not None and task != cells[0]:
            continue
        if outer.rows:
            outer.add_row("")
        goal = spec.get("unit") or spec["metric"]
        about = f"solved at {spec['threshold']:g} {goal}" if _solving(spec) else goal
        title = Text(_title(spec, cells, 48 if width < 98 else 66), style="bold")
        outer.add_row(title + Text(f"  {about}, {wording.better_words(spec)}", style="dim"))
        if cells is None:
            outer.add_row(_task_table(study, summary, task, wide=width >= 98))
        else:
            outer.add_row(_grid_table(study, summary, cells, averages, wide=width >= 98))
    return outer


def _title(spec, cells, most):
    if cells is not None:
        return f"{formats.shorten(spec['family_title'], most - 12)}, {len(cells)} cells"
    if not spec.get("axes"):
        return formats.shorten(spec["title"], 48)
    name = formats.shorten(spec["family_title"], max(most - len(spec["cell"]) - 2, 12))
    return formats.shorten(f"{name}, {spec['cell']}", most)


def _grid_table(study, summary, cells, averages, wide):
    """A row an arm: mean and difference over the grid, how often each verdict was given."""
    digits = wording.decimals(study["tasks"][cells[0]])
    family = study["tasks"][cells[0]]["family"]
    known = {}
    if averages is not None:
        known = averages[averages["family"] == family].set_index("arm").to_dict("index")
    rows = {task: wording.task_rows(study, summary, task) for task in cells}
    counts = verdict_counts(rows)
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True, overflow="ellipsis", width=24 if wide else 17)
    for head, size in (("mean", 7), ("difference [95 %]", 24)):
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", width=size)
    table.add_column("verdicts, cells", no_wrap=True, overflow="ellipsis", width=24)
    arms = sorted(counts, key=lambda arm: wording.role_group({"role": study["arms"][arm]["role"]}))
    for arm in arms:
        row, base = known.get(arm, {}), arm == study["baseline"]
        mean = formats.number(row["mean"], digits) if row else formats.PENDING
        change = formats.bracket(row, "delta", "delta_low", "delta_high", digits, signed=True)
        change = "" if base else change if row else formats.PENDING
        italic = wording.role_group({"role": study["arms"][arm]["role"]})
        name = Text(arm, style="italic" if italic else "")
        table.add_row(name, mean, change, _signs(counts[arm], base))
    return table


def _signs(counter, base):
    if base:
        return Text(f"{wording.SIGNS['baseline']} baseline", style=_STYLES["baseline"])
    text = Text()
    for kind in _STYLES:
        if counter.get(kind):
            text += Text(f"{wording.SIGNS[kind]} {counter[kind]}  ", style=_STYLES[kind])
    return text


def _task_table(study, summary, task, wide):
    spec = study["tasks"][task]
    solving = _solving(spec)
    score, middle = ("solved", "steps to solve") if solving else ("mean", "difference")
    # (heading, width, cell, whether only a wide terminal has room for it)
    columns = [
        ("rate", 7, lambda row: wording.rate(row.get("learning_rate")), True),
        (score, 7, lambda row: _score(spec, row), False),
        (f"{middle} [95 %]", 24, _steps if solving else lambda row: _difference(spec, row), False),
        ("p (Holm)", 9, lambda row: wording.p_value(row.get("p_holm")), True),
        ("seeds", 6, _seeds, False),
    ]
    columns = [column for column in columns if wide or not column[3]]
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True, overflow="ellipsis", width=20 if wide else 17)
    for head, size, _, _ in columns:
        table.add_column(head, justify="right", no_wrap=True, overflow="ellipsis", width=size)
    table.add_column("verdict", no_wrap=True, overflow="ellipsis", width=19)
    for arm, row in wording.task_rows(study, summary, task).items():
        cells = [cell(row) for _, _, cell, _ in columns]
        if not row.get("n"):
            cells = [formats.PENDING if cell == formats.MISSING else cell for cell in cells]
        name = Text(arm, style="italic" if wording.role_group(row) else "")
        table.add_row(name, *cells, _verdict(row))
    for reference in spec.get("references") or ():
        value = formats.number(reference["value"], wording.decimals(spec))
        cells = [value if head == "mean" else "" for head, *_ in columns]
        word = f"reference {value}" if solving else "reference"
        table.add_row(Text(reference["name"], style="dim"), *cells, Text(word, style="dim"))
    return table


def _solving(spec):
    return spec["kind"] == "solve" and spec.get("threshold") is not None


def _steps(row):
    if not row.get("n") or row.get("steps_to_solve") is None:
        return formats.PENDING
    text = wording.steps_to_solve(row)
    ends = row.get("steps_to_solve_low"), row.get("steps_to_solve_high")
    return text if None in ends else f"{text} [{', '.join(map(formats.integer, ends))}]"


def _score(spec, row):
    if not row.get("n"):
        return formats.PENDING
    if spec["kind"] == "solve":
        return f"{row.get('n_solved', 0):.0f}/{row['n']:.0f}"
    return formats.number(row.get("mean"), wording.decimals(spec))


def _difference(spec, row):
    delta = row.get("delta")
    if delta is None:
        return "" if row.get("n") else formats.PENDING
    digits = wording.decimals(spec)
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
    text = f"{wording.SIGNS[kind]} {row['verdict'].reason or kind}"
    seeds = row.get("seeds_to_decide") if row["verdict"] == UNDECIDED else None
    if seeds is not None:
        text += f" ({seeds})" if str(seeds).startswith(">") else f" (~{seeds})"
    return Text(text, style=_STYLES[kind])
