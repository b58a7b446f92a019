"""What a running study shows: a live table on a terminal, plain lines elsewhere; and its plan."""

import pathlib
import shlex
import time

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from qkv_jax.runtime.devices import devices_in_words
from qkv_jax.runtime.stopping import Interrupted
from qkv_jax.study.plan import Study
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report.estimate import Workload, duration, setting_out
from qkv_jax.study.report.ledger import console_ledger, ledger_context
from qkv_jax.study.report.terminal import console_table
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.engine import Progress as Event
from qkv_jax.study.run.workdir import Workdir


class Display:
    """Listens to an engine; a context manager. On a terminal the table of the task in progress is
    redrawn; otherwise a line is printed for every arm that is tuned, and one for its result."""

    def __init__(self, study: Study, console: Console | None = None):
        self.study, self.console = study, console or Console()
        self.engine: Engine | None = None
        self.summary: pd.DataFrame | None = None  # of the task in progress
        self.summarised = ""
        self.tuning = ("", "")  # task and arm last printed as being tuned
        self.task = ""  # in progress
        self.started = time.monotonic()
        self.work = Workload(study)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16, complete_style="blue", finished_style="blue"),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
        )
        self.bar_task = self.bar.add_task("starting", total=1.0, left="")
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        self.started = time.monotonic()
        line = f"On {devices_in_words()}: {setting_out(self.study)}"
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, _kind, error, _traceback) -> None:
        self.live.stop()
        if isinstance(error, Interrupted) and self.engine is not None:
            self._print_so_far(self.engine)

    def follow(self, engine: Engine) -> None:
        """Shows this engine's tables."""
        self.engine = engine

    def _print_so_far(self, engine: Engine) -> None:
        """What is saved of a study that was stopped, and how to look at it."""
        if self.console.is_terminal and self.summary is not None:
            self.console.print(console_table(engine.record.only(self.summarised), self.summary))
        saved = f"{len(engine.runs)} runs are saved"
        folder = shlex.quote(str(engine.workdir.path))
        report = f"; a report so far: qkv report --workdir={folder}"
        line = saved + report * bool(len(engine.runs))
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def on_progress(self, event: Event) -> None:
        """Takes an event of the engine and redraws what changed."""
        self.work.count(event)
        if self.task not in ("", event.task) and self.console.is_terminal and self.engine:
            # What is printed beside the live table stays above it.
            record = self.engine.record.only(self.task)
            self.console.print(console_table(record, self.engine.summary(self.task)), "")
        self.task = event.task
        new_task = self.engine is not None and event.task != self.summarised
        if event.arm_finished or (new_task and len(self.engine.runs)):
            # One task at a time: a grid of them, each with its files, takes long to go through.
            self.summary, self.summarised = self.engine.summary(event.task), event.task
        if self.console.is_terminal:
            self._redraw(event)
        elif event.arm_finished:
            self._print_line(event)
        elif not event.compares and event.step and (event.task, event.arm) != self.tuning:
            self.tuning = event.task, event.arm
            self._print(event, f"{event.doing} {event.arm}")

    def _redraw(self, event: Event) -> None:
        what = f"{event.task} · {event.doing} {event.arm}"
        self.bar.update(
            self.bar_task, description=what[:40], completed=self.work.shown,
            left=f"{duration(time.monotonic() - self.started)}, {self._time_left()}",
        )  # fmt: skip
        parts = [self.bar]
        if self.engine:
            record = self.engine.record
            parts = [console_table(record.only(event.task), self.summary), "", self.bar]
        self.live.update(Group(*parts), refresh=True)

    def _print_line(self, event: Event) -> None:
        row = self.summary.query("task == @event.task and arm == @event.arm").iloc[0]
        verdict = str(row["verdict"]) or "open"
        what = f"{event.arm}: mean {row['mean']:.4f}, {verdict} ({self._time_left()})"
        self._print(event, what)

    def _print(self, event: Event, what: str) -> None:
        line = f"[{self.work.shown:4.0%}] {event.task}: {what}"
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _time_left(self) -> str:
        spent = time.monotonic() - self.started
        if self.work.fresh <= 0:
            return "time left: …"
        left = spent * (1 - self.work.share) / self.work.fresh
        return f"{duration(left)} left"


def print_end(record: StudyRecord, summary: pd.DataFrame, path: pathlib.Path) -> None:
    """The whole table, the time, and where the report lies."""
    console = Console()
    averages = Workdir(path.parent).table("families.csv")
    console.print(console_table(record, summary, console.width, averages))
    ledger = ledger_context(path.parent)
    if ledger:
        console.print("", console_ledger(ledger, console.width))
    if part := record.config.get("part"):
        console.print(f"\nA part of the study “{record.name}”: {part}.", soft_wrap=True)
    spent = f"{(record.seconds or 0.0) / 60:.1f} minutes"
    if record.compiling:
        spent += f", {record.compiling / 60:.1f} of them compiling"
    console.print(f"\n{spent}. Report: {path}", soft_wrap=True)
