"""A study as jobs: whatever becomes of jobs and driver, its tables are those of one process.

The scheduler stands in this process and runs parts when it is asked how they are; the real one is
in test_slurm.py.
"""

import dataclasses
import functools
import io
import json
import pathlib
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.runtime.distributed import slurm_settings
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster import slurm
from qkv_jax.study.cluster.driver import Driver, merge
from qkv_jax.study.cluster.jobs import STOPPED, Jobs, State
from qkv_jax.study.cluster.slurm import SlurmLauncher, SlurmOptions
from qkv_jax.study.cluster.slurm_job import Command
from qkv_jax.study.cluster.status import ClusterDisplay, print_status
from qkv_jax.study.cluster.worker import PartWorkdir, run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import rounds as protocol
from qkv_jax.study.protocol.rounds import Part, rounds
from qkv_jax.study.report.estimate import print_plan
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training import costs
from qkv_jax.training.population import Population, RunResult
from tests.support.small_models import shared_programs
from tests.support.studies.tiny_study import SIZES, TINY, run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
VALUES = TINY | {
    "tasks": {**TINY["tasks"], "copy": {"kind": "copy", "options": SIZES, "arms": ("separate",)}},
    "study": {"learning_rates": (1e-3, 1e-2), "tune_seeds": 2, "eval_seeds": 5},
}
# Of this one a program is compiled, once.
TRAINED = VALUES | {"tasks": {"copy": VALUES["tasks"]["copy"]}}
PARTS = 3 + 2  # of a round of both tasks, placebos among them


class Scripted(Population):
    """Stands for a population: a value for every run, best at a rate outside the grid."""

    def __init__(self, trainer, data, packing):
        self.trainer = trainer

    def train(self, wave, *, test, on_report, saves):
        finished = []
        for one in wave:
            rng = np.random.default_rng([one.seed, one.salt, len(str(self.trainer.model_config))])
            value = 0.5 - 0.1 * abs(np.log10(one.learning_rate) + 0.6) + 0.01 * rng.normal()
            curve = np.full(2, value)
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            scores = curve if test else None
            finished.append(
                RunResult(one, np.array([4, 8]), curve, curve, False, scores, params, 0.1)
            )
        return finished


@pytest.fixture(scope="module", autouse=True)
def measured():
    """What an arm costs is worked out once for all studies of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "measure", functools.cache(costs.measure))
        yield


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(engine_module, "Population", Scripted)


class Scheduler:
    """Runs up to two jobs each time it is asked about any, in a random order, in this process.

    Args:
      fate: what becomes of a try: `fate(part, tries)` is None, `fail`, `stop` (within a wave),
        `vanish` (done, but the code is not known) or `lost` (neither done nor known).
    """

    def __init__(self, folder, values=VALUES, fate=lambda part, tries: None, seed=0):
        self.folder, self.values, self.fate = folder, values, fate
        self.rng = random.Random(seed)
        self.jobs = {}  # id: [name, place, part, state]
        self.submissions = []
        self.answers = True
        self.dies = False

    def submit(self, name, commands):
        parts = [Part.parse(line[-1].removeprefix("--part=")) for line in commands]
        living = {job[2] for job in self.jobs.values() if job[3].phase != "ended"}
        assert not living & set(parts), "submitted while its job lives"
        ids = []
        for place, part in enumerate(parts):
            ids.append(f"{len(self.submissions)}_{place}")
            self.jobs[ids[-1]] = [name, place, part, State("waiting")]
        self.submissions.append(parts)
        if self.dies:
            raise KeyboardInterrupt
        return ids

    def find(self, name):
        return {job[1]: job_id for job_id, job in self.jobs.items() if job[0] == name}

    def log(self, job):
        return str(self.folder.absolute() / "cluster" / "jobs" / f"{job}.out")

    def states(self, ids):
        if not self.answers:
            return None
        waiting = [job for job in self.jobs.values() if job[3].phase == "waiting"]
        for job in self.rng.sample(waiting, min(2, len(waiting))):
            tries = sum(job[2] in parts for parts in self.submissions)
            job[3] = State("ended", self.run(job[2], self.fate(job[2], tries)))
        # What is over is soon forgotten.
        return {i: self.jobs[i][3] for i in ids if self.jobs[i][3] != State("ended")}

    def run(self, part, fate):
        if fate in ("fail", "lost"):
            return {"fail": 1, "lost": None}[fate]
        stop_signal = StopSignal()
        if fate == "stop":
            polls = iter([False])
            poll = stop_signal.poll

            def stop_later():
                if not next(polls, True):
                    return poll()
                stop_signal.stop("preempted")
                return poll()

            stop_signal.poll = stop_later
        try:
            run_part(Study(self.values), self.folder, part, stop_signal)
        except Interrupted:
            return STOPPED
        return None if fate == "vanish" else 0


def local(folder, values=VALUES, on_progress=lambda event: None):
    run(folder, values, on_progress)
    return folder


def drive(scheduler, stop_signal=None, on_progress=lambda driver: None, **options):
    """A driver from its start to its end."""
    study, workdir = Study(scheduler.values), Workdir(scheduler.folder)
    with workdir.locked():
        record = workdir.open(study.describe())
        options = {"poll": 0.0, **options}
        stop_signal = stop_signal or StopSignal()
        driver = Driver(
            study, workdir, record, scheduler, ["work"], stop_signal, on_progress, **options
        )
        driver.run()
        merge(workdir, driver.record)
    return local(scheduler.folder, scheduler.values)


def contents(folder):
    """All that a study has written, timing columns, events and study.json apart."""
    runs = pd.read_csv(folder / "runs.csv", dtype=str).drop(columns="seconds").to_csv()
    timing = ["step_time_ratio", "step_time_noise"]
    summary = pd.read_csv(folder / "summary.csv").drop(columns=timing).to_csv()
    others = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not {"events", "cluster"} & set(file.relative_to(folder).parts)
        and file.name not in ("runs.csv", "summary.csv", "study.json")
    }  # fmt: skip
    return runs, summary, others


# --- the same tables


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One process, really trained, and the programs that it compiled."""
    with shared_programs():
        yield local(tmp_path_factory.mktemp("trained") / "study", TRAINED)


def test_jobs_that_train_end_as_one_process_does(trained, tmp_path):
    """Every file is the same, though each job is stopped within its first wave, saved and resumed;
    parts, locks and checkpoints of waves are gone; the machine of the jobs is in study.json."""
    stop = lambda part, tries: "stop" if tries < 2 else None
    scheduler = Scheduler(tmp_path / "jobs", TRAINED, stop)
    drive(scheduler)
    assert contents(scheduler.folder) == contents(trained)
    assert sum(map(len, scheduler.submissions)) == 2 * len(Jobs(scheduler.folder).by_part)
    study = json.loads((scheduler.folder / "study.json").read_text())
    assert study["complete"] and study["machine"]["platform"] == "cpu"
    assert not list(scheduler.folder.rglob(".lock"))


@given(data=st.data())
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_nor_mishap_changes_the_tables(data, scripted, tmp_path_factory):
    """Jobs in any order, failing twice at most, lost or forgotten; the driver closed and opened
    again at any poll, and killed between submitting jobs and noting it."""
    place = tmp_path_factory.mktemp("any")
    mishaps = data.draw(st.dictionaries(
        st.tuples(st.integers(0, 30), st.integers(1, 2)),
        st.sampled_from(["fail", "vanish", "lost"]),
    ))  # fmt: skip
    names = {}
    number = lambda part: names.setdefault(part, len(names))
    fate = lambda part, tries: mishaps.get((number(part), tries))
    scheduler = Scheduler(place / "jobs", fate=fate, seed=data.draw(st.integers(0, 99)))
    closes = data.draw(st.lists(st.integers(1, 4), max_size=4))
    scheduler.dies = data.draw(st.booleans())
    for polls in closes:
        stop_signal, left = StopSignal(), iter(range(polls - 1))

        def on_progress(driver, stop_signal=stop_signal, left=left):
            if next(left, None) is None:
                stop_signal.stop("closed")

        try:
            drive(scheduler, stop_signal, on_progress)
        except Interrupted as stopped:
            assert "jobs go on without it" in str(stopped)
        except KeyboardInterrupt:
            scheduler.dies = False
    scheduler.dies = False
    drive(scheduler)
    assert contents(scheduler.folder) == contents(local(place / "local"))


def test_rounds_follow_from_the_rows(scripted, tmp_path):
    """The grid, two extensions and the evaluation, all arms each; the last that is not whole is the
    last that is known."""
    folder, study = local(tmp_path / "local"), Study(VALUES)
    record, runs = Workdir(folder).read_study(), Workdir(folder).runs()
    task = study.tasks[0].name
    found = list(rounds(record, task, lambda: runs))
    assert [r.name for r in found] == ["tune", "extend1", "extend2", "evaluate"]
    assert all(len(r.parts) == 3 and not r.missing for r in found)
    first = found[0].parts[0]
    assert Part.parse(str(first)) == first and first.rates == (1e-3, 1e-2)
    without = runs[~((runs["phase"] == "tune") & (runs["arm"] == "copies"))]
    (only,) = rounds(record, task, lambda: without)
    assert [part.arm for part in only.missing] == ["copies"]


def test_a_round_that_is_added_in_one_place_is_seen_by_all(scripted, tmp_path, monkeypatch):
    """A confirmation at two seeds more, after the evaluation: engine, jobs, merge, plan, progress
    and status."""
    two_more = lambda record: [[len(record.eval_seeds), len(record.eval_seeds) + 1]]
    confirm = protocol.Stage("confirm", "eval", "confirming", protocol.chosen, two_more)
    monkeypatch.setattr(protocol, "STAGES", [*protocol.STAGES, confirm])
    reported = []
    folder = local(tmp_path / "local", on_progress=reported.append)
    runs = Workdir(folder).runs()
    assert all(
        sorted(rows["seed"]) == list(range(5 + 2))
        for _, rows in runs[runs["phase"] == "eval"].groupby(["task", "arm"])
    )
    *_, last = rounds(load_study(folder).record, "copy", lambda: runs)
    assert last.name == "confirm" and not last.missing
    last = reported[-1]
    assert last.doing == "confirming" and last.waves_done == last.waves_total
    assert contents(drive(Scheduler(tmp_path / "jobs"))) == contents(folder)
    console = Console(record=True, width=100, file=io.StringIO())
    print_plan(Study(VALUES), console)
    print_status(Study(VALUES), Workdir(folder), None, console)
    shown = console.export_text().replace("│", " ")
    assert re.search(rf"all +{PARTS} +{4 * PARTS} +{7 * PARTS} ", shown)
    assert re.search(r"confirm +3 .* 6/6 *\n", shown)


# --- what goes wrong


def test_a_part_that_always_fails_is_counted(scripted, tmp_path):
    """It is tried three times; its runs are failed ones in the tables, and the study ends."""
    bad = lambda part, tries: "fail" if (part.arm, part.round) == ("copies", "evaluate") else None
    scheduler = Scheduler(tmp_path / "jobs", fate=bad)
    study = load_study(drive(scheduler))
    part = next(p for p in Jobs(scheduler.folder).by_part if bad(p, 0))
    assert sum(part in parts for parts in scheduler.submissions) == 3
    job = Jobs(scheduler.folder).by_part[part]
    assert (job.state, job.failures) == ("failed", 3)
    failed = study.runs[study.runs["status"] == "failed"]
    assert set(failed["arm"]) == {"copies"} and failed["seed"].tolist() == [0, 1, 2, 3, 4]
    row = study.summary.query("task == 'reverse' and arm == 'copies'").iloc[0]
    assert row["n"] == 5 and study.record.complete


def test_a_part_is_not_given_up_while_somebody_is_at_it(scripted, tmp_path):
    """Slurm may lose sight of a job that is alive: then no failed rows are written beside it."""
    bad = lambda part, tries: "fail" if (part.task, part.arm) == ("copy", "placebo") else None
    scheduler = Scheduler(tmp_path / "jobs", fate=bad)
    Workdir(scheduler.folder).open(Study(VALUES).describe())
    own = PartWorkdir(scheduler.folder, "copy", "placebo")
    polls = []

    def on_progress(driver):
        polls.append(driver)
        if len(polls) > 30:
            stop_signal.stop("seen enough")

    stop_signal = StopSignal()
    with pytest.raises(Interrupted), own.locked():
        drive(scheduler, stop_signal, on_progress, retries=0)
    assert not own.rows.exists()
    assert (scheduler.folder / "parts" / "copy" / "separate.csv").exists()


def test_where_no_job_gets_anywhere_nothing_is_recorded(scripted, tmp_path):
    """It is the cluster that is at fault, not the arms; when it is mended the study goes on."""
    scheduler = Scheduler(tmp_path / "jobs", fate=lambda part, tries: "fail")
    with pytest.raises(ConfigError, match="no job has finished a run, this one was tried 3 times"):
        drive(scheduler)
    assert not len(Workdir(scheduler.folder).runs())
    assert sum(map(len, scheduler.submissions)) == 3 * PARTS
    scheduler.fate = lambda part, tries: None
    assert contents(drive(scheduler)) == contents(local(tmp_path / "local"))


def test_a_job_that_is_stopped_for_ever_counts_as_one_that_fails(scripted, tmp_path, monkeypatch):
    """A part that is preempted each time it is tried does not keep the driver for ever."""
    monkeypatch.setattr("qkv_jax.study.cluster.driver._STOPS", 3)
    one = lambda part, tries: "stop" if (part.arm, part.round) == ("copies", "tune") else None
    scheduler = Scheduler(tmp_path / "study", fate=one)
    monkeypatch.setattr(Scheduler, "run", lambda self, part, fate, run=Scheduler.run: (
        STOPPED if fate == "stop" else run(self, part, fate)))  # fmt: skip
    drive(scheduler, retries=0)
    runs = load_study(tmp_path / "study").runs
    mine = runs[(runs["arm"] == "copies") & (runs["phase"] == "tune")]
    declared = [rate for part in scheduler.submissions[0] for rate in part.rates]
    assert set(mine["status"][mine["learning_rate"].isin(declared)]) == {"failed"}
    tried = sum(part.arm == "copies" and part.round == "tune"
                for parts in scheduler.submissions for part in parts)  # fmt: skip
    assert tried == 4


def test_what_a_job_refuses_reaches_the_user(scripted, tmp_path):
    """In the job's own words, and at once; nothing is recorded."""
    scheduler = Scheduler(tmp_path / "jobs")
    run, refused = scheduler.run, []

    def refuse(part, fate):
        if refused:
            return run(part, fate)
        log = pathlib.Path(scheduler.log("0_0")).parent
        log.mkdir(parents=True, exist_ok=True)
        for job in scheduler.jobs:
            (log / f"{job}.out").write_text("$ python\nerror: workdir: other waves\nexit code 2\n")
        refused.append(part)
        return 2

    scheduler.run = refuse
    with pytest.raises(ConfigError, match="the job refuses.*; error: workdir: other waves"):
        drive(scheduler)
    assert contents(drive(scheduler)) == contents(local(tmp_path / "local"))


def test_what_the_scheduler_refuses_was_not_submitted(scripted, tmp_path):
    """No job is left behind that anybody would wait for; the same command tries again."""
    scheduler = Scheduler(tmp_path / "jobs")
    submit = scheduler.submit

    def refuse(name, commands):
        raise ConfigError("sbatch", name, "Slurm refuses: no such partition")

    scheduler.submit = refuse
    with pytest.raises(ConfigError, match="no such partition"):
        drive(scheduler)
    assert not Jobs(scheduler.folder).live
    scheduler.submit = submit
    assert contents(drive(scheduler)) == contents(local(tmp_path / "local"))


def test_silence_says_nothing(scripted, tmp_path):
    """While the scheduler does not answer nothing is submitted a second time."""
    scheduler, polls, stop_signal = Scheduler(tmp_path / "jobs"), [], StopSignal()

    def on_progress(driver):
        polls.append(driver)
        scheduler.answers = False
        if len(polls) > 5:
            stop_signal.stop("seen enough")

    with pytest.raises(Interrupted, match=f"{PARTS} jobs go on"):
        drive(scheduler, stop_signal, on_progress)
    assert [len(parts) for parts in scheduler.submissions] == [PARTS]


def test_one_process_does_not_work_beside_jobs(scripted, tmp_path):
    scheduler, stop_signal = Scheduler(tmp_path / "jobs"), StopSignal()
    with pytest.raises(Interrupted):
        drive(scheduler, stop_signal, lambda driver: stop_signal.stop("closed"))
    with pytest.raises(ConfigError, match=f"{PARTS} jobs of this study were not seen to end"):
        Jobs(scheduler.folder).refuse_live()
    (scheduler.folder / "cluster" / "jobs.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        Jobs(scheduler.folder)


def test_a_job_refuses_what_is_not_its_study(scripted, tmp_path):
    """Other devices, another study, a part that there is not, one that has a process already."""
    folder, study = tmp_path / "jobs", Study(VALUES)
    workdir = Workdir(folder)
    record = workdir.open(study.describe())
    part = Part("copy", "placebo", "tune", (1e-3, 1e-2))
    work = functools.partial(run_part, study, folder, stop_signal=StopSignal())
    for text in ("copy/placebo/tune", "copy/placebo/tune/x"):
        with pytest.raises(ConfigError, match="must be TASK/ARM/ROUND/RATE"):
            Part.parse(text)
    with pytest.raises(ConfigError, match="no such task and arm"):
        work(dataclasses.replace(part, arm="copies"))
    with (
        PartWorkdir(folder, "copy", "placebo").locked(),
        pytest.raises(ConfigError, match="in use"),
    ):
        work(part)
    others = {"devices": 8, "packing": 8, "size": 64}
    workdir.write_study(dataclasses.replace(record, wave=others))
    with pytest.raises(ConfigError, match="was started with waves of"):
        work(part)
    workdir.write_study(record)
    other = Study(VALUES | {"train": VALUES["train"] | {"steps": 12}})
    with pytest.raises(ConfigError, match="another study"):
        run_part(other, folder, part, StopSignal())
    before = (folder / "study.json").read_bytes()
    work(part)
    assert (folder / "study.json").read_bytes() == before and not (folder / "runs.csv").exists()


# --- what is seen


def test_the_status_fits_80_columns_and_changes_nothing(scripted, tmp_path):
    """Counts by task and round, jobs by id, logs of what failed; the folder is held by another."""
    bad = lambda part, tries: "fail" if tries < 2 else None
    scheduler, stop_signal, polls = Scheduler(tmp_path / "jobs", fate=bad), StopSignal(), []

    def on_progress(driver):
        polls.append(driver)
        if len(polls) == 5:
            stop_signal.stop("closed")

    with pytest.raises(Interrupted):
        drive(scheduler, stop_signal, on_progress)
    files = {f: f.stat().st_mtime_ns for f in scheduler.folder.rglob("*")}
    console = Console(width=80, record=True, file=io.StringIO())
    workdir = Workdir(scheduler.folder)
    with workdir.locked():
        print_status(Study(VALUES), workdir, scheduler, console)
        print_status(Study(VALUES), workdir, None, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("Study 'tiny'", "tune", "failed before, tried again: job", "Slurm was not asked"):
        assert words in text
    assert any(job.log.endswith(".out") and "cluster/jobs/" in text
               for job in Jobs(scheduler.folder).by_part.values())  # fmt: skip
    assert {f: f.stat().st_mtime_ns for f in scheduler.folder.rglob("*")}.items() >= {
        item for item in files.items() if item[0].is_file()
    }


def test_the_driver_prints_a_line_when_something_changes(scripted, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    with ClusterDisplay(console) as shown:
        drive(Scheduler(tmp_path / "jobs"), on_progress=shown.on_progress)
    lines = console.export_text().splitlines()
    assert lines[0] == f"{PARTS} waiting; 0 runs done"
    assert len(lines) == len(set(lines)) and "running" not in lines[-1]


# --- Slurm without Slurm


def test_slurm_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on the PATH"):
        SlurmLauncher(tmp_path, SlurmOptions())
    for name in ("sbatch", "squeue", "srun", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[cluster\]'"):
        SlurmLauncher(tmp_path, SlurmOptions())
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        SlurmOptions(options=("exclusive",))


def test_jobs_without_a_time_limit_are_refused():
    with pytest.raises(ConfigError, match="slurm_hours: given inf; must be finite"):
        SlurmOptions(hours=float("inf"))


def test_what_squeue_says(tmp_path, monkeypatch):
    """Waiting, running, over, preempted and unknown jobs; the codes of those that came to an end;
    jobs by the name of their submission; None while it does not answer."""
    launcher = object.__new__(SlurmLauncher)
    launcher.folder = tmp_path
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    queue = "7_0|PENDING|qkv-a-0\\n7_1|RUNNING|qkv-a-0\\n7_2|COMPLETED|qkv-a-0\\n"
    queue += "8|PREEMPTED|qkv-a-1000\\n"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '{queue}'\n")
    (tmp_path / "squeue").chmod(0o755)
    (tmp_path / "7_2_0_result.pkl").write_bytes(pickle.dumps(("success", 3)))
    (tmp_path / "9_0_result.pkl").write_bytes(pickle.dumps(("error", "Traceback")))
    assert launcher.states(["7_0", "7_1", "7_2", "8", "9", "10"]) == {
        "7_0": State("waiting"), "7_1": State("running"), "7_2": State("ended", 3),
        "8": State("ended", STOPPED), "9": State("ended", 1), "10": State("ended"),
    }  # fmt: skip
    assert launcher.find("qkv-a") == {0: "7_0", 1: "7_1", 2: "7_2", 1000: "8"}
    assert launcher.find("qkv") == {}
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert launcher.states(["7_0"]) is None


@pytest.mark.parametrize(("state", "asked"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_warned_job_saves_and_is_queued_again(tmp_path, state, asked):
    """The warning reaches the command as SIGTERM; its exit code 75 asks Slurm to queue the job
    again, but not if somebody has cancelled it."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked; exit 1\n")
    for name in ("squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    saves = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(75))\n"
    saves += "import os; os.kill(os.getppid(), signal.SIGUSR2); time.sleep(30); sys.exit(3)"
    line = (sys.executable, "-c", saves)
    job = "import sys; from qkv_jax.study.cluster.slurm_job import Command; "
    job += f"sys.exit(Command({line!r}, '.')())"
    done = subprocess.run(
        [sys.executable, "-c", job], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7",
             "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (STOPPED if asked else 143), done.stderr
    assert (tmp_path / "asked").exists() == asked
    assert not asked or (tmp_path / "asked").read_text() == "requeue 7_2\n"


def test_jobs_import_no_jax_beside_their_command():
    """They stay small while their command has the devices."""
    code = "import sys, qkv_jax.study.cluster.slurm_job; sys.exit('jax' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode
    assert Command(("true",), ".").line == ("true",)


def test_steps_of_a_job_have_ports_of_their_own_and_all_gpus():
    """One process per node gets all its GPUs; one process per GPU, JAX's own choice."""
    srun = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0", "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}  # fmt: skip
    first, second = (slurm_settings(srun | {"SLURM_STEP_ID": step}) for step in "01")
    assert first["JAX_COORDINATOR_PORT"] != second["JAX_COORDINATOR_PORT"]
    assert 61440 <= int(second["JAX_COORDINATOR_PORT"]) < 2**16
    assert first["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    assert "JAX_LOCAL_DEVICE_IDS" not in slurm_settings(srun | {"SLURM_NTASKS": "8"})
    assert slurm_settings({}) == {}


def test_jobs_find_the_package_that_submitted_them(monkeypatch):
    """Also where it is not installed, and before what the environment names."""
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert slurm._python_path() == f"export PYTHONPATH={ROOT}:/mine"
