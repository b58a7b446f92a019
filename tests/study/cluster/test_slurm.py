"""A study and a run on a real Slurm of two nodes, started for these tests: `make test-slurm`.

Jobs are cancelled and preempted, the driver is closed and opened; the tables must be those of the
local launcher. A transcript is printed (pytest -s).
"""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from tests.support.slurm_cluster import impossible, slurm, wait_for

ROOT = pathlib.Path(__file__).parents[3]
STUDY = """
from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms
def get_config():
    return tree({
        "name": "tiny",
        "model": {"layers": 1, "width": 8, "heads": 2},
        "train": {"steps": 30_000, "report_every": 50, "batch_size": 4},
        "arms": tie_arms("separate"),
        "tasks": {"reverse": {"kind": "reverse", "options": {
            "length": 6, "validation_examples": 32, "test_examples": 64}}},
        "study": {"protocol": "fixed", "baseline": "separate", "learning_rates": (1e-2,),
                  "tune_seeds": 2, "eval_seeds": 5, "match": "none"},
    })
"""
TWO_DEVICES = "--xla_force_host_platform_device_count=2"
RUN = """
from configs import train
from qkv_jax.config_files import tree
def get_config():
    config = train.get_config()
    config.task = tree({"kind": "reverse", "options": {
        "length": 6, "validation_examples": 32, "test_examples": 64}})
    config.model.update(tie="K=V", layers=1, width=16, heads=2)
    config.train.update(steps=%d, report_every=5, batch_size=8)
    return config
"""

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = impossible()
    if reason:
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def say():
    """`say(line)` adds a line to the transcript."""
    start = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - start:5.1f} s] {line}", flush=True)


@pytest.fixture
def hurry(cluster):
    """What Slurm has queued again starts at once, not after two minutes."""
    over = threading.Event()

    def push():
        while not over.wait(1):
            for job, state, reason in cluster.jobs():
                if state == "PENDING" and reason == "BeginTime":
                    cluster("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(70)


def environment(cluster):
    return cluster.environment | {"PYTHONPATH": str(ROOT), "NPROC": "16"}


def ablate(folder, name, *flags):
    line = [sys.executable, "-m", "experiments.ablate", f"--config={folder / 'study.py'}"]
    return [*line, f"--workdir={folder / name}", *flags]


def tables(folder):
    """Every table of a study, timing columns apart, in the order of the file."""
    runs = pd.read_csv(folder / "runs.csv", dtype=str).drop(columns="seconds")
    timing = ["step_time_ratio", "step_time_noise"]
    summary = pd.read_csv(folder / "summary.csv", dtype=str).drop(columns=timing)
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for name in ("curves", "examples", "checkpoints")
        for file in sorted((folder / name).rglob("*.*"))
    }
    return runs.to_csv(), summary.to_csv(), files


@contextlib.contextmanager
def driver(command, cluster, log):
    """A driver in the background, killed at the latest when its test is over."""
    with log.open("a") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(cluster), stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def jobs_of(folder):
    file = folder / "cluster" / "jobs.json"
    return json.loads(file.read_text())["jobs"] if file.exists() else []


def training(folder):
    """The live jobs that have reached their devices: {part: job id}."""
    return {
        job["part"]: job["id"]
        for job in jobs_of(folder)
        for task, arm, *_ in [job["part"].split("/")]
        if job["state"] == "running" and list((folder / "parts" / task / arm).glob(".lock"))
    }


def test_a_study_survives_its_cluster(cluster, hurry, say, tmp_path):
    """One job is cancelled and tried again, two are preempted and go on within their waves, the
    driver is stopped and started; the tables, curves and models are the local launcher's."""
    (tmp_path / "study.py").write_text(STUDY)
    local = subprocess.Popen(
        ["timeout", "-s", "KILL", "500", *ablate(tmp_path, "local")],
        cwd=ROOT, env=environment(cluster) | {"XLA_FLAGS": TWO_DEVICES},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    errors = local.communicate(timeout=520)[1]
    assert local.returncode == 0, errors
    folder, log = tmp_path / "jobs", tmp_path / "driver.log"
    flags = ["--launcher=slurm", "--slurm_partition=low", "--slurm_cpus=2", "--slurm_hours=0.5",
             "--slurm_poll=1", "--checkpoint_minutes=60"]  # fmt: skip
    command = ablate(tmp_path, "jobs", *flags)
    with driver(command, cluster, log) as first:
        say("driver started: an arm and its placebo, 2 nodes")
        running = wait_for(lambda: training(folder), 240, "a job that trains")
        part, job = running.popitem()
        cluster("scancel", job)
        say(f"scancel {job} ({part})")
        again = lambda: [j for j in jobs_of(folder) if j["part"] == part and j["failures"]]
        wait_for(again, 60, "the cancelled job is submitted again")
        say(f"tried again as job {again()[0]['id']}")
        running = wait_for(lambda: training(folder), 240, "a job that trains")
        time.sleep(3)  # into its wave
        started = cluster("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null",
                          "--wrap=sleep 3").split()[-1]  # fmt: skip
        say(f"job {started} of more priority wants both nodes; running: {sorted(running.values())}")
        seen = lambda: {j: s for j, s, _ in cluster.jobs("-t", "all")}
        wait_for(lambda: seen().get(started) == "RUNNING", 120, "the job of more priority")
        queued = [j for j, s, _ in cluster.jobs() if s == "PENDING"]
        say(f"it runs; queued again or waiting: {queued}")
        assert set(running.values()) & set(queued)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75, log.read_text()
        say(f"driver closed with exit code 75: {log.read_text().splitlines()[-1]}")
    narrow = environment(cluster) | {"COLUMNS": "80"}
    shown = subprocess.run([*command, "--status"], cwd=ROOT, env=narrow, capture_output=True,
                           text=True, timeout=120)  # fmt: skip
    assert shown.returncode == 0 and "failed before, tried again" in shown.stdout, shown
    assert max(map(len, shown.stdout.splitlines())) <= 80
    print(shown.stdout)
    known = {j["part"]: j["id"] for j in jobs_of(folder)}
    with driver(command, cluster, log) as second:
        say("driver opened again")
        assert second.wait(600) == 0, log.read_text()
    say("driver ended with exit code 0")
    jobs = {job["part"]: job for job in jobs_of(folder)}
    # Those that it found were waited for, not submitted a second time.
    assert {part: jobs[part]["id"] for part in known} == known
    assert {job["state"] for job in jobs.values()} == {"done"}
    assert sum(job["failures"] for job in jobs.values()) == 1
    logs = "".join(file.read_text() for file in (folder / "cluster" / "jobs").glob("*_log.out"))
    assert "scontrol requeue" in logs and "the same command goes on from here" in logs
    assert tables(folder) == tables(tmp_path / "local")
    assert not (folder / "parts").exists()
    say("runs.csv, summary.csv, curves, scores and parameters equal the local launcher's")


def train_line(folder, name, config, *flags):
    line = [sys.executable, "-m", "experiments.train", f"--config={folder / config}"]
    return [*line, f"--workdir={folder / name}", "--config.mesh.data=4", *flags]


def test_one_run_on_two_nodes(cluster, say, tmp_path):
    """srun starts one process per node, two devices each; JAX reads who takes part from Slurm. The
    run is that of one process with four devices."""
    (tmp_path / "run.py").write_text(RUN % 20)
    alone = subprocess.run(
        ["timeout", "-s", "KILL", "200", *train_line(tmp_path, "one", "run.py")],
        cwd=ROOT, env=environment(cluster), capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    both = subprocess.run(
        ["timeout", "-s", "KILL", "200", "srun", "-N2", "-n2", "-c2", "--kill-on-bad-exit=1",
         *train_line(tmp_path, "two", "run.py", "--distributed")],
        cwd=ROOT, env=environment(cluster), capture_output=True, text=True,
    )  # fmt: skip
    assert both.returncode == 0, both.stdout + both.stderr
    curves = [pd.read_csv(tmp_path / name / "curve.csv") for name in ("one", "two")]
    assert curves[0]["step"].tolist() == [5, 10, 15, 20]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    say("srun -N2: experiments.train --distributed, 2 × 2 devices, the curve of one process")


BATCH = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --time=30
#SBATCH --requeue --open-mode=append --signal=B:TERM@120 --partition=low
trap 'kill -TERM "$step"' TERM
srun --kill-on-bad-exit=0 {line} & step=$!
while :; do wait "$step"; code=$?; kill -0 "$step" 2>/dev/null || break; done
if [ "$code" = 75 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"; sleep 60
fi
exit "$code"
"""


def test_a_run_on_two_nodes_is_preempted(cluster, hurry, say, tmp_path):
    """The batch script of the README: it passes TERM on, both processes save at one step, and Slurm
    queues it again, until it is done."""
    (tmp_path / "run.py").write_text(RUN % 1000)
    script, out = tmp_path / "run.sh", tmp_path / "run.out"
    line = train_line(tmp_path, "two", "run.py", "--distributed", "--checkpoint_minutes=60")
    script.write_text(BATCH.format(line=" ".join(line)))
    submitted = subprocess.run(["sbatch", f"--output={out}", str(script)], cwd=ROOT,
                          env=environment(cluster), capture_output=True, text=True)  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.split()[-1]
    text = lambda: out.read_text() if out.exists() else ""
    wait_for(lambda: "step    100" in text(), 150, "step 100")
    high = cluster("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null",
                   "--wrap=sleep 3").split()[-1]  # fmt: skip
    state = lambda name: {j: s for j, s, _ in cluster.jobs("-t", "all")}.get(name)
    wait_for(lambda: state(high) == "RUNNING", 120, "the job of more priority")
    assert state(job) == "PENDING", text()
    say(f"two-node job {job} preempted: {[x for x in text().splitlines() if 'goes on' in x][:2]}")
    wait_for(lambda: state(job) == "COMPLETED", 300, "the end of the job")
    steps = pd.read_csv(tmp_path / "two" / "curve.csv")["step"].tolist()
    assert steps == list(range(5, 1001, 5))
    shown = [int(line.split()[1]) for line in text().splitlines() if line.startswith("step ")]
    assert len(shown) == len(set(shown)) and shown[-1] == 1000  # nothing was done twice
    say(f"it went on from there to step {shown[-1]}, no step twice")
