"""Runs a study as jobs of a cluster: hands out parts, round by round, and gathers their rows.

The driver computes nothing. It asks which parts are due (`rounds.py`), submits them as one array,
looks now and then at how they are, and merges what they wrote when all is there; then the engine
finds nothing left to run and writes tables and report as it always does. A part is done when its
rows are on the disk, whatever the scheduler says. The driver may be stopped and started again:
jobs go on without it.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from typing import NoReturn

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster.jobs import LIVE, REFUSED, STOPPED, Job, Jobs, Launcher, State
from qkv_jax.study.cluster.worker import PartWorkdir
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part, rounds
from qkv_jax.study.record import KEY, Machine, StudyRecord
from qkv_jax.study.run.engine import write_costs
from qkv_jax.study.run.rows import append_runs, in_order, read_parts, run_row
from qkv_jax.study.run.workdir import Workdir, now_text
from qkv_jax.training.population import RunSpec

_POLL = 0.2  # seconds from one question whether to stop to the next
_STOPS = 1000  # how often a part may be stopped, saving its work, until that counts as failing
_POLLS_UNTIL_GONE = 2  # polls of a job that is over until rows that are not seen count as not there


class Driver:
    """One study on one cluster.

    Args:
      study: what to run.
      workdir: an opened `Workdir`, locked.
      record: as `Workdir.open` returned it.
      launcher: starts jobs.
      command: the command line that runs a part, but for `--part`.
      stop_signal: says when to stop.
      on_progress: is called with this driver after every poll of the jobs.
      retries: how often a part that failed is tried again.
      poll: seconds from one poll to the next.
    """

    def __init__(
        self,
        study: Study,
        workdir: Workdir,
        record: StudyRecord,
        launcher: Launcher,
        command: Sequence[str],
        stop_signal: StopSignal,
        on_progress: Callable[["Driver"], None] = lambda driver: None,
        retries: int = 2,
        poll: float = 10.0,
    ):
        self.study, self.workdir, self.record = study, workdir, record
        self.launcher, self.command = launcher, list(command)
        self.stop_signal, self.on_progress = stop_signal, on_progress
        self.retries, self.poll = retries, poll
        self.jobs = Jobs(workdir.path)
        rows = workdir.runs()
        self.runs = {plan.name: rows[rows["task"] == plan.name] for plan in study.tasks}
        self.due: dict[str, list[Part]] = {}  # parts that lack runs, by task; absent: not known
        self._polls: dict[Part, int] = {}
        self._may_still_finish = True  # that another job than one that has failed will finish a run

    def run(self) -> None:
        """Runs what is missing, to the end.

        Raises:
          Interrupted: when the stop signal says so; jobs go on.
        """
        started, before = time.monotonic(), self.record.seconds or 0.0
        started_at = self.record.started or now_text()
        self.record = dataclasses.replace(self.record, started=started_at)
        write_costs(self.study, self.workdir)
        try:
            self._adopt()
            while True:
                self._poll()
                self._submit(self._waiting())
                self.on_progress(self)
                if not any(self.due.values()):
                    break
                self._wait()
        finally:
            seconds = before + time.monotonic() - started
            self.record = dataclasses.replace(self.record, seconds=seconds)
            self.workdir.write_study(self.record)

    def _adopt(self) -> None:
        """Finds jobs again that were submitted while the last driver died."""
        names = {job.name for job in self.jobs.by_part.values() if job.state == "submitting"}
        for name in names:
            found = self.launcher.find(name)
            for job in self.jobs.by_part.values():
                if job.name == name and job.state == "submitting":
                    self._set(job, found.get(job.place))

    def _set(self, job: Job, job_id: str | None) -> None:
        if job_id is None:
            job.state = "again"
        else:
            job.id, job.state, job.log = job_id, "waiting", self.launcher.log(job_id)

    def _poll(self) -> None:
        """Takes note of jobs that have started or ended."""
        live = self.jobs.live
        states = self.launcher.states([job.id for job in live.values()]) if live else {}
        if states is None:
            return  # a scheduler that does not answer says nothing about its jobs
        self._may_still_finish = any(
            states.get(job.id, State("ended")).phase != "ended" or job.failures < self.retries
            for job in live.values()
        )
        for part, job in live.items():
            state = states.get(job.id, State("ended"))
            if state.phase != "ended":
                job.state = state.phase
            else:
                self._end(part, job, state.code)

    def _end(self, part: Part, job: Job, code: int | None) -> None:
        missing = self._read(part)
        self._polls[part] = self._polls.get(part, 0) + 1
        if not missing:
            job.state = "done"
        elif code == STOPPED and job.stops < _STOPS:
            job.state, job.stops = "again", job.stops + 1
        elif code == REFUSED:
            self._refuse(part, job, "the job refuses")
        elif not code and self._polls[part] < _POLLS_UNTIL_GONE:
            return  # on a network's file system rows may show late
        elif job.failures < self.retries:
            job.state, job.failures = "again", job.failures + 1
        elif not self._give_up(part, missing):
            return
        else:
            job.state, job.failures = "failed", job.failures + 1
        self._polls.pop(part)
        self.due.pop(part.task, None)

    def _read(self, part: Part) -> list[tuple]:
        """Reads the rows of a part anew; the keys of those that are not there."""
        own = PartWorkdir(self.workdir.path, part.task, part.arm).runs()
        others = self.runs[part.task]
        tables = [table for table in (others[others["arm"] != part.arm], own) if len(table)]
        self.runs[part.task] = pd.concat(tables, ignore_index=True) if tables else own
        there = set(_keys(own))
        return [key for key in part.keys if key not in there]

    def _give_up(self, part: Part, missing: list[tuple]) -> bool:
        """Records the runs of a part that are not there as failed; not while a job is at it.

        Raises:
          ConfigError: if no job of the study has finished a run: that is the cluster's doing.
        """
        if not any(len(table) for table in self.runs.values()):
            if self._may_still_finish:
                return False
            for job in self.jobs.live.values():  # all have ended
                job.state, job.failures = "again", 0
            tries = f"no job has finished a run, this one was tried {self.retries + 1} times"
            self._refuse(part, self.jobs.by_part[part], tries)
        plan, arm = self.study.find(part.task, part.arm)
        rows = [
            run_row(plan, arm, part, RunSpec(rate, seed, arm.salt), None)
            for *_, rate, seed in missing
        ]
        own = PartWorkdir(self.workdir.path, part.task, part.arm)
        try:
            with own.locked():
                own.append_runs(rows)
        except ConfigError:
            return False  # the scheduler has lost sight of it, but it is alive
        self._read(part)
        return True

    def _refuse(self, part: Part, job: Job, what: str) -> NoReturn:
        """Stops the study for what would be as wrong the next time; a mended one tries again."""
        job.state, job.failures = "again", 0
        self.jobs.write()
        file = pathlib.Path(job.log)
        lines = file.read_text(errors="replace").splitlines() if job.log and file.exists() else []
        lines = [line for line in lines if line.strip() and not line.startswith(("$", "exit code"))]
        raise ConfigError(
            str(part), what, f"{lines[-1] if lines else 'it left no log'} ({job.log})"
        )

    def _waiting(self) -> list[Part]:
        """The parts to submit: those that lack runs and have no job."""
        for name in self.runs:
            if name not in self.due:
                *_, last = rounds(self.record, name, lambda name=name: self.runs[name])
                self.due[name] = list(last.missing)
        parts = [part for due in self.due.values() for part in due]
        jobs = self.jobs.by_part
        return [part for part in parts if part not in jobs or jobs[part].state not in LIVE]

    def _submit(self, parts: list[Part]) -> None:
        if parts:
            name = f"qkv-{uuid.uuid4().hex[:12]}"
            for place, part in enumerate(parts):
                old = self.jobs.by_part.get(part)
                again = old if old and old.state == "again" else Job(str(part), name, place)
                self.jobs.by_part[part] = Job(
                    str(part), name, place, failures=again.failures, stops=again.stops
                )
            self.jobs.write()
            commands = [[*self.command, f"--part={part}"] for part in parts]
            try:
                ids = self.launcher.submit(name, commands)
            except ConfigError:
                for part in parts:
                    self.jobs.by_part[part].state = "again"
                self.jobs.write()
                raise
            for part, job_id in zip(parts, ids, strict=True):
                self._set(self.jobs.by_part[part], job_id)
        self.jobs.write()

    def _wait(self) -> None:
        until = time.monotonic() + self.poll
        while True:
            if self.stop_signal.poll().stop:
                self.jobs.write()
                raise Interrupted(
                    f"{self.stop_signal.interruption()}; "
                    f"{len(self.jobs.live)} jobs go on without it"
                )
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL))


def merge(workdir: Workdir, record: StudyRecord) -> None:
    """Puts the rows of all parts into runs.csv, in the order of one process, and removes the parts.

    Nothing is lost if this is cut off: what was merged and what was not is read as one table.
    """
    folder = workdir.path / "parts"
    if not folder.exists():
        return
    files = sorted(folder.glob("*/*/machine.json"))
    machines = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if machines:
        devices = {device for machine in machines for device in machine["devices"]}
        machine = Machine(tuple(sorted(devices)), machines[-1]["platform"])
        workdir.write_study(dataclasses.replace(record, machine=machine))
    rows = in_order(record, read_parts(workdir.path))
    merged, table = workdir.path / "runs.csv.merged", workdir.path / "runs.csv"
    merged.unlink(missing_ok=True)
    append_runs(merged, rows.to_dict("records"))
    os.replace(merged, table)
    shutil.rmtree(folder)


def _keys(rows: pd.DataFrame) -> list[tuple]:
    return list(rows[list(KEY)].itertuples(index=False, name=None))
