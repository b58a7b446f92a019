"""A survey in the terminal: what it found, in a short table and a few sentences."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qkv_jax.survey.remarks import HEADINGS, NULLS, remarks, table
from qkv_jax.survey.subjects import Subject
from qkv_jax.survey.survey import Survey


def print_survey(console: Console, subject: Subject, survey: Survey) -> None:
    """Prints the table, means over the heads, and the findings."""
    console.print(f"{escape(subject.name)}, on {subject.inputs}, {survey.tokens} tokens.")
    console.print(f"{escape(subject.note)}\n" if subject.note else "")
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in HEADINGS:
        grid.add_column(heading, justify="right", overflow="fold")
    for layer, *cells in table(survey.figures):
        # Value above null: two short lines fit where a long one would not.
        grid.add_row(layer, *(escape(cell.replace(" (", "\n(")) for cell in cells))
    console.print(grid)
    console.print(NULLS, style="dim")
    console.print()
    for line in remarks(survey):
        console.print(f"• {escape(line)}")
