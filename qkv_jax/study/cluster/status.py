"""How the jobs of a study are doing: `--status`, and what its driver shows while it waits."""

import dataclasses
import itertools
import pathlib
from collections import Counter

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qkv_jax.study.cluster.driver import Driver
from qkv_jax.study.cluster.jobs import LIVE, Job, Jobs, Launcher
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part, rounds
from qkv_jax.study.record import KEY, StudyRecord
from qkv_jax.study.run.workdir import Workdir

_LISTED = 12  # jobs that are named one by one
_COLUMNS = ("parts", "waiting", "running", "done", "failed", "runs")


class ClusterDisplay:
    """Listens to a driver; a context manager. On a terminal the table is redrawn, otherwise a line
    is printed whenever a number in it changes."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._last = ""

    # Entered and left as `report.progress.Display` is; they have nothing else in common.
    def __enter__(self) -> "ClusterDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_exception) -> None:
        self.live.stop()

    def on_progress(self, driver: Driver) -> None:
        """Shows how the jobs of a driver are."""
        if self.console.is_terminal:
            runs = pd.concat(list(driver.runs.values()), ignore_index=True)
            shown = status(driver.study, driver.record, runs, driver.jobs, driver.workdir.path)
            self.live.update(shown, refresh=True)
            return
        counts = Counter(job.state for job in driver.jobs.by_part.values())
        due = sum(map(len, driver.due.values())) - len(driver.jobs.live)
        counted = ", ".join(
            f"{count} {what}"
            for what, count in (("parts to submit", due), *sorted(counts.items()))
            if count
        )
        done = sum(len(rows) for rows in driver.runs.values())
        line = f"{counted or 'nothing to submit'}; {done} runs done"
        if line != self._last:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)
            self._last = line


def print_status(
    study: Study, workdir: Workdir, launcher: Launcher | None, console: Console | None = None
) -> None:
    """Prints how a study is doing. Nothing is written and no lock taken.

    Raises:
      ConfigError: if there is no such study.
    """
    known = workdir.read_study()
    record = workdir.read_same(dataclasses.replace(study.describe(), wave=known.wave))
    jobs = Jobs(workdir.path)
    live = jobs.live
    states = launcher.states([job.id for job in live.values()]) if launcher and live else None
    for job in live.values() if states is not None else ():
        # What is over and not yet seen by a driver is shown as running: it may have failed.
        found = states.get(job.id)
        job.state = found.phase if found and found.phase != "ended" else "running"
    console = console or Console()
    console.print(status(study, record, workdir.runs(), jobs, workdir.path))
    if live and states is None:
        console.print("As the driver saw it last: Slurm was not asked or did not answer.")


def status(
    study: Study, record: StudyRecord, runs: pd.DataFrame, jobs: Jobs, path: pathlib.Path
) -> Group:
    """Parts and runs by task and round, then the jobs that run or failed; fits into 80 columns."""
    title = f"Study {record.name!r}" + (", complete" if record.complete else "")
    table = Table(title=title, title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("round", no_wrap=True)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    there = set(runs[list(KEY)].itertuples(index=False, name=None))
    total: Counter = Counter()
    for plan in study.tasks:
        name = plan.name
        by_name = itertools.groupby(
            rounds(record, plan.name, lambda: runs), lambda found: found.name
        )
        for label, group in by_name:  # one look may take several rounds
            counts, has, of = Counter(), 0, 0
            for part, missing in ((p, p in one.missing) for one in group for p in one.parts):
                job = jobs.by_part.get(part)
                counts[_state(job, missing)] += 1
                has, of = has + sum(key in there for key in part.keys), of + len(part.keys)
            numbers = (counts.total(), counts["waiting"], counts["running"], counts["done"],
                       counts["failed"])  # fmt: skip
            table.add_row(name, label, *map(str, numbers), f"{has}/{of}")
            total.update(dict(zip(_COLUMNS, (*numbers, has), strict=True)))
            name = ""
    table.add_section()
    table.add_row("all so far", "", *(str(total[heading]) for heading in _COLUMNS))
    return Group(table, *_job_lines(jobs, path))


def _state(job: Job | None, missing: bool) -> str:
    if job is not None and job.state == "failed":
        return "failed"
    if not missing:
        return "done"
    return "running" if job is not None and job.state == "running" else "waiting"


def _job_lines(jobs: Jobs, path: pathlib.Path) -> list[Text]:
    lines = []
    for what, of in (
        ("failed", lambda job: job.state == "failed"),
        ("failed before, tried again", lambda job: job.failures and job.state != "failed"),
        ("running", lambda job: job.state == "running"),
        ("waiting", lambda job: job.state in LIVE and job.state != "running"),
    ):
        found = [(part, job) for part, job in jobs.by_part.items() if of(job)]
        for part, job in found[:_LISTED]:
            log = f"  {_relative(job.log, path)}" if "failed" in what and job.log else ""
            lines.append(Text(f"{what}: job {job.id or '?'}, {_short(part)}{log}"))
        if len(found) > _LISTED:
            lines.append(Text(f"{what}: {len(found) - _LISTED} more"))
    return lines


def _short(part: Part) -> str:
    return f"{part.task} / {part.arm} / {part.round}"


def _relative(log: str, path: pathlib.Path) -> str:
    file = pathlib.Path(log)
    return str(file.relative_to(path.absolute())) if file.is_relative_to(path.absolute()) else log
