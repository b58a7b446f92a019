"""A study as jobs: whatever becomes of jobs and driver, its tables are those of one process.

The scheduler stands in this process and runs parts when it is asked how they are; the real one is
in test_slurm.py.
"""

import dataclasses
import functools
import io
import json
import pathlib
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster.jobs import STOPPED, Jobs
from qkv_jax.study.cluster.status import print_status
from qkv_jax.study.cluster.worker import PartWorkdir, run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import fixed
from qkv_jax.study.protocol.rounds import Part, rounds
from qkv_jax.study.report.estimate import print_plan
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training.speed import USUAL
from tests.support.small_models import shared_programs
from tests.support.studies import scheduler
from tests.support.studies.scheduler import (
    PARTS,
    TRAINED,
    VALUES,
    Scheduler,
    contents,
    drive,
    local,
)

measured = scheduler.measured
scripted = scheduler.scripted


pytestmark = pytest.mark.slow


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
    assert Part.parse(str(first)) == first and {rate for rate, _ in first.runs} == {1e-3, 1e-2}
    without = runs[~((runs["round"] == "tune") & (runs["arm"] == "copies"))]
    (only,) = rounds(record, task, lambda: without)
    assert [part.arm for part in only.missing] == ["copies"]


def test_a_round_that_is_added_in_one_place_is_seen_by_all(scripted, tmp_path, monkeypatch):
    """A confirmation at two seeds more, after the evaluation: engine, jobs, merge, plan, progress
    and status."""
    two_more = lambda record: [[len(record.eval_seeds), len(record.eval_seeds) + 1]]
    confirm = fixed.Stage("confirm", "confirming", True, True, fixed.chosen, two_more)
    monkeypatch.setattr(fixed, "STAGES", [*fixed.STAGES, confirm])
    reported = []
    folder = local(tmp_path / "local", on_progress=reported.append)
    runs = Workdir(folder).runs()
    assert all(
        sorted(rows["seed"]) == list(range(5 + 2))
        for _, rows in runs[runs["round"].isin(("evaluate", "confirm"))].groupby(["task", "arm"])
    )
    *_, last = rounds(load_study(folder).record, "copy", lambda: runs)
    assert last.name == "confirm" and not last.missing
    last = reported[-1]
    assert last.doing == "confirming" and last.waves_done == last.waves_total
    assert contents(drive(Scheduler(tmp_path / "jobs"))) == contents(folder)
    console = Console(record=True, width=100, file=io.StringIO())
    print_plan(Study(VALUES), USUAL, console)
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
    mine = runs[(runs["arm"] == "copies") & (runs["round"] == "tune")]
    assert set(mine["status"]) == {"failed"}
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
    part = Part.parse("copy/placebo/tune/0.001:1000000-1000001,0.01:1000000-1000001")
    work = functools.partial(run_part, study, folder, stop_signal=StopSignal())
    for text in ("", "/x", "/0.01:5", "/0.01:5-x"):
        with pytest.raises(ConfigError, match="must be TASK/ARM/ROUND/RATE"):
            Part.parse("copy/placebo/tune" + text)
    with pytest.raises(ConfigError, match="must be TASK/ARM/ROUND/RATE"):
        Part.parse(str(part).replace("tune", "sing"))
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
