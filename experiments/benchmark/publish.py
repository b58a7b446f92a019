"""What a benchmark leaves behind: a table on the terminal, a CSV, a figure, and a line of JSON;
where it has several tables, one page of all of them as well.
"""

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import json
import math
import pathlib
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from qkv_jax.output import style
from qkv_jax.runtime.devices import devices_in_words
from qkv_jax.runtime.files import with_filename, write_whole

from . import options
from .floor import cores

_WIDTH = 100  # columns, of a terminal or of a page


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one benchmark found.

    Attributes:
      name: the benchmark, and the name of its files.
      rows: a mapping per row of the CSV, all with the same keys.
      headings, cells: the table: a heading per column, a text per cell.
      caption: what the numbers are, precisely.
      figure: of the numbers, if there is one.
      torch: the version of PyTorch that was one of the sides, if any was.
    """

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    caption: str
    figure: Figure | None = None
    torch: str | None = None


def publish(findings: Findings) -> None:
    """Writes the files, then prints the table and, as the last line, rows and machine as JSON."""
    write(findings)
    show(findings)
    last = {
        "benchmark": findings.name,
        "rows": plain_rows(findings),
        "machine": machine(findings.torch),
    }
    print(json.dumps(last, allow_nan=False))


def write(findings: Findings) -> None:
    """The CSV, and the figure if there is one."""
    folder = _folder()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(findings.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain_rows(findings))
    write_whole(folder / f"{findings.name}.csv", text.getvalue())
    if findings.figure is not None:
        style.save(findings.figure, folder / findings.name)


def write_page(name: str, sections: Sequence[str]) -> None:
    """NAME.md, of sections of Markdown."""
    write_whole(_folder() / f"{name}.md", "\n\n".join(sections) + "\n")


def _folder() -> pathlib.Path:
    folder = pathlib.Path(options.OUT.value)
    with with_filename(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def markdown(findings: Findings) -> str:
    """A section: title, table and caption."""
    lines = [
        [" ".join(heading.split("\n")) for heading in findings.headings],
        ["---"] * len(findings.headings),
        *([_in_line(cell) for cell in row] for row in findings.cells),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {findings.title}\n\n{table}\n\n{' '.join(findings.caption.split())}"


def _in_line(cell: str) -> str:
    """What is below the first line of a cell, in brackets behind it."""
    first, _, below = cell.partition("\n")
    return f"{first} ({below})" if below else first


def show(findings: Findings) -> None:
    """The table with its caption, on the terminal."""
    table = Table(
        title=findings.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )  # fmt: skip
    for place, heading in enumerate(findings.headings):
        table.add_column(heading, justify="right" if place else "left")
    for place, row in enumerate(findings.cells):
        table.add_row(*row, end_section=place < len(findings.cells) - 1)
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    console.print(" ".join(findings.caption.split()), markup=False)


def plain_rows(findings: Findings) -> list[dict[str, Any]]:
    """The rows as they are written."""
    return [_plain(row) for row in findings.rows]


def machine(torch: str | None) -> dict[str, Any]:
    """What the numbers were measured on, and when."""
    return {
        "cores": cores(),
        "devices": devices_in_words(),
        "cpu": _cpu_model(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "torch": torch,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows on a terminal, and only there, what takes so long."""
    with Console(file=sys.stderr).status(what):
        yield


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Five digits are more than are reproducible; what is not known is empty."""
    rounded = lambda x: None if math.isnan(x) else float(f"{x:.5g}")
    return {k: rounded(v) if isinstance(v, float) else v for k, v in row.items()}


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
