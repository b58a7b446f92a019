"""One run in two processes on the loopback interface: the same run as in one process.

Every process is one of `experiments.train`, killed if it hangs.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime import distributed
from qkv_jax.runtime.distributed import Processes, any_process, is_primary, raise_together
from qkv_jax.tasks.streaming import ArrayRows, BatchStream
from qkv_jax.training.checkpoint import load_run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
# Collectives of virtual devices want more threads than devices, before JAX starts.
ENVIRONMENT = os.environ | {"NPROC": "16", "JAX_PLATFORMS": "cpu"}

CONFIG = """
from configs import train
from qkv_jax.config_files import tree
def get_config():
    config = train.get_config()
    config.task = tree({"kind": "masked_bytes", "options": {
        "files": (%r,), "length": 8, "validation_examples": 12, "test_examples": 20,
        "device_limit_bytes": 1}})
    config.model.update(tie="K=V", layers=1, width=16, heads=2)
    config.train.update(steps=%d, report_every=3, batch_size=8)
    config.checkpoint_steps = (3,)
    return config
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(config, workdir, *flags):
    line = ["timeout", "-s", "KILL", "300", sys.executable, "-m", "experiments.train"]
    return [*line, f"--config={config}", f"--workdir={workdir}", *flags]


def one_process(config, workdir, *flags):
    """A run in one process, to its end."""
    own = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True}
    done = subprocess.run(command(config, workdir, *flags), **own)
    assert done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def two_processes(config, workdir, *flags):
    """Both processes of a run, started."""
    together = [*MESH, f"--coordinator=127.0.0.1:{free_port()}", "--processes=2", *flags]
    own = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own |= {"cwd": ROOT, "env": ENVIRONMENT}
    both = [
        subprocess.Popen(command(config, workdir, *together, f"--process={i}"), **own)
        for i in (0, 1)
    ]
    try:
        yield both
    finally:
        for process in both:
            process.kill()
            process.communicate()


def ended(both):
    """[(exit code, stdout, stderr)] of both processes."""
    texts = [process.communicate(timeout=320) for process in both]
    return [(p.returncode, *text) for p, text in zip(both, texts, strict=True)]


def write_place(folder):
    """A text, and the configs of a short and a long run on it."""
    text = np.random.default_rng(0).integers(97, 107, 4000).astype(np.uint8)
    (folder / "text").write_bytes(text.tobytes())
    for name, steps in (("short", 9), ("long", 3000)):
        (folder / f"{name}.py").write_text(CONFIG % (str(folder / "text"), steps))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    write_place(folder)
    return folder


@pytest.fixture(scope="module")
def runs(place):
    """The same run on one device and in two processes of two devices."""
    alone = one_process(place / "short.py", place / "alone")
    with two_processes(place / "short.py", place / "two") as both:
        outcomes = ended(both)
    for code, _, errors in outcomes:
        assert code == 0, errors
    return alone.stdout, outcomes


def largest_difference(own, other):
    """Of two curves, all columns together, relative."""
    curves = [pd.read_csv(folder / "curve.csv") for folder in (own, other)]
    assert curves[0]["step"].tolist() == curves[1]["step"].tolist() == [3, 6, 9]
    return float((curves[0] / curves[1] - 1).abs().max(axis=None))


def test_two_processes_train_as_one_does(place, runs):
    """Each process streams its half of every batch, and the curves agree to 1e-5 with those of one
    device; so do the results and the parameters of every checkpoint, read back here."""
    names = ("alone", "two")
    assert largest_difference(*(place / name for name in names)) < 1e-5
    results = [json.loads((place / name / "result.json").read_text()) for name in names]
    assert results[0].keys() == results[1].keys()
    assert np.isclose(results[0]["test"], results[1]["test"], rtol=1e-5)
    for step in (0, 3, 9):
        trees = [load_run(place / name, step)[1] for name in names]
        kernels = [tree["params"]["layer_0"]["attention"]["key"]["kernel"] for tree in trees]
        np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "mesh", [{"data": 1}, {"data": 1, "fsdp": 2, "tensor": 2}], ids=["one device", "other mesh"]
)
def test_what_two_processes_saved_goes_on_in_one(mesh, place, runs, tmp_path):
    """From step 3, on another number of devices and another mesh: the folder is taken for the run
    that it holds, and ends with the same curve. Without any mesh it is refused: nothing is lost."""
    workdir = tmp_path / "moved"
    shutil.copytree(place / "two", workdir)
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "9")
    if mesh == {"data": 1}:
        line = command(place / "short.py", workdir)
        done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 2 and "its mesh is 'given', not 'not given'" in done.stderr
    flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    done = one_process(place / "short.py", workdir, *flags)
    first, second = done.stdout.splitlines()[:2]
    assert " CPU core" in first and ", mesh " in first and " parameters, " in first
    assert second.startswith("step      6 of 9") and not done.stderr
    assert 0 < largest_difference(workdir, place / "two") < 1e-5


def test_process_0_alone_speaks(runs):
    """The same lines as alone, but for where they were written; gloo's own are not ours."""
    # Two of gloo's lines may be torn into one another.
    spoken = lambda text: [line for line in text.splitlines() if "peer ranks" not in line]
    alone, ((_, first, _), (_, second, _)) = runs
    assert len(spoken(first)) == len(spoken(alone)) >= 5
    assert [line[:18] for line in spoken(first)[1:]] == [line[:18] for line in spoken(alone)[1:]]
    assert all(" parameters, " in spoken(text)[0] for text in (first, alone))
    assert spoken(first)[1].startswith("step      3 of 9")
    assert spoken(second) == []


def test_sigterm_to_one_process_stops_both_and_both_go_on(place):
    """The signal reaches process 1 alone. Both save the same step and exit with 75; two fresh
    processes find it, and stop there when their time is up before they have begun."""
    workdir = place / "stopped"
    with two_processes(place / "long.py", workdir) as both:
        until = time.monotonic() + 200
        while not (workdir / "curve.csv").exists() and time.monotonic() < until:
            time.sleep(0.2)
        # `timeout` passes a signal on, but in a session of its own: find the process itself.
        children = pathlib.Path(f"/proc/{both[1].pid}/task/{both[1].pid}/children").read_text()
        signal.pidfd_send_signal(os.pidfd_open(int(children)), signal.SIGTERM)
        outcomes = ended(both)
    assert [code for code, _, _ in outcomes] == [75, 75], outcomes
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    curve = pd.read_csv(workdir / "curve.csv")
    assert steps[-1] == curve["step"].iloc[-1] < 3000
    with two_processes(place / "long.py", workdir, "--max_hours=0") as both:
        outcomes = ended(both)
    assert [code for code, _, _ in outcomes] == [75, 75], outcomes
    pd.testing.assert_frame_equal(pd.read_csv(workdir / "curve.csv"), curve)


def test_what_one_process_refuses_all_refuse(place):
    """A folder with somebody's files: exit code 2 in both, each with one line, nothing written."""
    workdir = place / "occupied"
    workdir.mkdir()
    (workdir / "mine").write_text("mine")
    with two_processes(place / "short.py", workdir) as both:
        outcomes = ended(both)
    assert [code for code, _, _ in outcomes] == [2, 2], outcomes
    for _, _, errors in outcomes:
        assert sum(line.startswith("error: --workdir: ") for line in errors.splitlines()) == 1
    assert [path.name for path in workdir.iterdir()] == ["mine"]


SHARES = """
import json, runpy, sys
from qkv_jax.runtime import distributed
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.runtime.devices import use_virtual_devices
from qkv_jax.training.mesh import MeshConfig, MeshProgram
config, coordinator, index = sys.argv[1:]
use_virtual_devices(2)
distributed.join(distributed.Processes(coordinator, 2, int(index)))
trainer = trainer_of(runpy.run_path(config)["get_config"]().to_dict())
data, found = trainer.task.load(), []
for sizes in ((2, 2, 1), (2, 1, 2), (1, 1, 4)):
    program = MeshProgram(trainer, data, MeshConfig(*sizes, rules="replicated"))
    found.append(next(program.stream(0))["windows"].tolist())
print(json.dumps(found))
distributed.leave()
"""


def test_each_process_reads_its_own_rows_alone(place):
    """With the batch cut over the processes, by data or by data and fsdp, each reads half of it,
    the halves are not the same, and together they are the batch; where `tensor` spans the processes
    both hold the same rows, and read all."""
    line = ["timeout", "-s", "KILL", "300", sys.executable, "-c", SHARES]
    line += [place / "short.py", f"127.0.0.1:{free_port()}"]
    own = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*line, str(i)], **own) for i in (0, 1)]
    outputs = [process.communicate()[0].splitlines()[-1] for process in both]
    first, second = map(json.loads, outputs)
    batch = first[2]
    assert len(batch) == 8 and second[2] == batch
    for own, other in zip(first[:2], second[:2], strict=True):
        assert len(own) == len(other) == 4
        assert own + other == batch and own != other


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_a_stream_make_its_batches(count):
    """Over three epochs: side by side, what the processes read is what one process would."""
    rows = ArrayRows({"number": np.arange(64)}, np.arange(6 * 3, 6 * 3 + 32))
    whole = BatchStream(rows, 5, 6)
    shares = [BatchStream(rows, 5, 6).share(index, count) for index in range(count)]
    for _ in range(3 * (32 // 6)):
        parts = [next(share)["number"] for share in shares]
        assert {len(part) for part in parts} == {6 // count}
        np.testing.assert_array_equal(np.concatenate(parts), next(whole)["number"])


def test_one_process_is_all_processes():
    """Alone, it is the primary one, agrees with itself and raises what it raised."""
    assert is_primary() and any_process(True) and not any_process(False)
    with pytest.raises(ConfigError, match="field: given 1; no"), raise_together("passage"):
        raise ConfigError("field", 1, "no")
    with raise_together("passage"):
        pass


@pytest.mark.parametrize("error", [ConfigError("field", 1, "no"), OSError(28, "full", "a")])
def test_what_the_disk_refuses_is_shared_as_what_a_config_does_is(error, monkeypatch):
    """The process that it happens to tells the others, and raises it; they raise a line of their
    own, instead of waiting for it at the next step. Anything else is told to nobody."""
    asked = []
    monkeypatch.setattr(distributed, "any_process", lambda flag: asked.append(flag) or True)
    with pytest.raises(type(error)) as raised, raise_together("workdir"):
        raise error
    assert raised.value is error and asked == [True]
    another = pytest.raises(ConfigError, match="workdir: given 'refused'; by another process")
    with another, raise_together("workdir"):
        pass
    assert asked == [True, False]
    with pytest.raises(KeyError), raise_together("workdir"):
        raise KeyError
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (("127.0.0.1", 2, 0), "coordinator: given '127.0.0.1'; must be HOST:PORT"),
        (("host:port", 2, 0), "coordinator: given 'host:port'; must be HOST:PORT"),
        (("host:99999", 2, 0), "coordinator: given 'host:99999'; must be HOST:PORT"),
        (("host:80", 0, 0), "processes: given 0; must be a whole number above 0"),
        (("host:80", 2, 2), "process: given 2; must be from 0 to 1, one of 2 processes"),
    ],
)
def test_processes_that_cannot_be_are_refused(fields, line):
    with pytest.raises(ConfigError) as refusal:
        Processes(*fields)
    assert str(refusal.value) == line
