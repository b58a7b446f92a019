"""A walk in the terminal: its steps as small tables, coloured by value where there are colours."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.panel import Panel as Frame
from rich.table import Table
from rich.text import Text

from qkv_jax.explain.explanation import QUESTION, Explanation
from qkv_jax.explain.panels import Panel, number
from qkv_jax.explain.steps import View
from qkv_jax.output.colours import colour_of, ink_on

_CELL = 6  # columns of the terminal that a number takes
_WHOLE, _WHOLE_BESIDE = 12, 8  # sides up to which an array is shown whole: alone, beside others
_ROWS, _COLUMNS = 4, 6  # shown of a larger one
_HEADS = 2  # shown, where there are more
_GAP = 2


def print_walks(console: Console, explanation: Explanation) -> None:
    """Prints the steps of some walks, one under the other, and what is to be seen in them."""
    walks = explanation.walks
    console.print(Frame(Text(explanation.about), box=box.ROUNDED, expand=False, padding=(0, 1)))
    for place, step in enumerate(explanation.steps, 1):
        console.print()
        heading = Text(f"{place}. {step.title}", style="bold")
        console.print(heading + Text(f"    {step.formula}", style="not bold cyan"))
        console.print(Text(step.sentence, style="dim"))
        for view in step.views:
            _print_view(console, view, alone=len(step.views) == 1)
    console.print(Text("\nWhat is to be seen", style="bold"))
    if len(walks) > 1:
        console.print(_indented(_comparison(explanation.comparison)))
    for walk, lines in zip(walks, explanation.remarks, strict=True):
        if len(walks) > 1:
            console.print(Text(walk.name, style="bold cyan"))
        for line in lines:
            console.print(_bullet(line))
    console.print(Text(f"\n{QUESTION}", style="bold"))
    for line in explanation.answers:
        console.print(_bullet(line))
    console.print(Text(f"\n{explanation.checked}", style="dim"))


def _comparison(rows: Sequence[Sequence[str]]) -> Table:
    heading, *rest = rows
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for place, column in enumerate(zip(*rows, strict=True)):
        longest = max(len(word) for cell in column for word in cell.split())
        table.add_column(heading[place], style="" if place else "bold cyan", min_width=longest)
    for row in rest:
        table.add_row(*map(Text, row))
    return table


def _print_view(console: Console, view: View, alone: bool) -> None:
    if not alone:
        console.print(Text(f"\n  {view.name}", style="bold cyan"))
    width = console.width - 2
    same = [panel for panel in view.panels if panel.same_as]
    heads = 1 + max((panel.head or 0 for panel in view.panels), default=0)
    most = _HEADS if alone or heads <= _HEADS else 1
    shown = [p for p in view.panels if not p.same_as and (p.head or 0) < most]
    for row in _rows(shown, width, alone):
        # Arrays of one row of tables stand side by side.
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_row(*(_table(panel, width, alone) for panel in row))
        console.print(_indented(grid))
    for reason in dict.fromkeys(panel.same_as for panel in same):
        titles = ", ".join(p.title for p in same if p.same_as == reason and (p.head or 0) < most)
        if titles:
            console.print(_indented(Text(f"{titles}: {reason}", style="dim")))
    if heads > most:
        console.print(_indented(Text(f"… of {heads} heads", style="dim")))
    for line in view.lines:
        console.print(_indented(Text(line)))


def _rows(panels: Sequence[Panel], width: int, alone: bool) -> list[list[Panel]]:
    """As many panels side by side as fit; where a head has several, each head begins a new row."""
    several = len({panel.title.partition(" (")[0] for panel in panels}) > 1
    rows: list[list[Panel]] = []
    for panel in panels:
        row = rows[-1] if rows else []
        used = sum(_width(other, width, alone) + _GAP for other in [*row, panel]) - _GAP
        if row and used <= width and (row[0].head == panel.head or not several):
            row.append(panel)
        else:
            rows.append([panel])
    return rows


def _shape(panel: Panel, width: int, alone: bool) -> tuple[int, int]:
    """How many rows and columns of an array are shown: all, or its corner."""
    rows, columns = panel.matrix.shape
    whole = _WHOLE if alone or panel.kind == "weights" else _WHOLE_BESIDE
    label = 1 + max(map(len, panel.rows))
    if columns > whole:
        columns = _COLUMNS
    if label + _CELL * columns + len(_more(panel)) > width:
        room = max(1, (width - label) // _CELL)
        left = max(1, (width - label - len(_more(panel))) // _CELL)
        columns = columns if columns == panel.matrix.shape[1] and columns <= room else left
    return rows if rows <= whole else _ROWS, columns


def _width(panel: Panel, width: int, alone: bool) -> int:
    rows, columns = _shape(panel, width, alone)
    label = max(len(row) for row in panel.rows[:rows])
    more = len(_more(panel)) if columns < panel.matrix.shape[1] else 0
    return max(label + 1 + _CELL * columns + more, len(panel.title))


def _table(panel: Panel, width: int, alone: bool) -> Group:
    rows, columns = _shape(panel, width, alone)
    table = Table(box=None, padding=0, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("", style="dim", no_wrap=True)
    for name in panel.columns[:columns]:
        table.add_column(
            Text(_short(name)), justify="right", min_width=_CELL, max_width=_CELL, no_wrap=True
        )
    if columns < panel.matrix.shape[1]:
        table.add_column(_more(panel), style="dim", no_wrap=True)
    limit = abs(panel.matrix).max()
    for row in range(rows):
        cells = [_number(value, panel.kind, limit) for value in panel.matrix[row, :columns]]
        table.add_row(Text(f"{panel.rows[row]} "), *cells)
    lines = [Text(panel.title, style="bold"), table]
    if rows < panel.matrix.shape[0]:
        lines.append(Text(f"… of {panel.matrix.shape[0]} rows", style="dim"))
    return Group(*lines)


def _more(panel: Panel) -> str:
    return f" … of {panel.matrix.shape[1]} columns"


def _number(value: float, kind: str, limit: float) -> Text:
    colour = colour_of(value, kind, limit)
    text = number(value, limit).rjust(_CELL - 1)
    return Text(f"{text} ", style=f"{ink_on(colour)} on {colour}")


def _short(name: str) -> str:
    return (name if len(name) < _CELL else name[: _CELL - 2] + "…") + " "


def _indented(what) -> Table:
    grid = Table.grid(padding=0)
    grid.add_row("  ", what)
    return grid


def _bullet(line: str) -> Table:
    grid = Table.grid(padding=0)
    grid.add_row("  • ", Text(line))
    return grid
