"""Nothing is lost: runs and waves that were stopped or killed end with the bits of those that were
not, whatever of their checkpoints is damaged; and one process at a time writes into a folder."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime.files import LOCK, folder_lock
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.population import DeviceData, Population, RunSpec
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from qkv_jax.training.wave_checkpoints import WaveSaves
from tests.support.fault_cases import events_of

pytestmark = pytest.mark.slow

MODEL = ModelConfig(tie="K=V", layers=1, width=8, heads=2)
TRAIN = TrainConfig(steps=12, report_every=2, batch_size=4, learning_rate=1e-2)
OPTIONS = {"length": 6, "validation_examples": 32, "test_examples": 64}
POLICY = CheckpointPolicy((4,), every=2, last=2)
STEPS = range(2, 12, 2)


@pytest.fixture(scope="module", params=["generated", "streamed"])
def trainer(request, tmp_path_factory):
    """A task whose batches are drawn from seed and step, and one that is read through grain."""
    if request.param == "generated":
        return Trainer(MODEL, make_task("reverse", OPTIONS), TRAIN)
    file = tmp_path_factory.mktemp("text") / "text"
    file.write_bytes(np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes())
    options = {"files": (str(file),), "length": 8, "device_limit_bytes": 1}
    few = {"validation_examples": 4, "test_examples": 4}
    return Trainer(MODEL, make_task("masked_bytes", options | few), TRAIN)


@functools.cache
def program_of(trainer):
    """Compiled once for all runs of a trainer."""
    return LoneProgram(trainer, trainer.task.load())


def train(trainer, folder, **options):
    """A run of seed 3 that keeps a few checkpoints."""
    given = {"config": {"of": "the run"}, "policy": POLICY, **options}
    return train_run(trainer, 3, folder, make_program=lambda *_: program_of(trainer), **given)


def stopping_at(step, stop_signal):
    """A listener that asks for an end at a step."""
    return lambda row: stop_signal.stop("enough") if row["step"] == step else None


def stop_at(trainer, folder, step, **options):
    """Starts a run, or goes on with it, to a step."""
    stop_signal = StopSignal(**options)
    with pytest.raises(Interrupted, match="enough"):
        train(trainer, folder, stop_signal=stop_signal, on_report=stopping_at(step, stop_signal))


@pytest.fixture(scope="module")
def whole(trainer, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(trainer, folder)
    return folder


def events(folder):
    files = folder.glob("events.out.tfevents.*")
    return [event for file in files for event in events_of(file.read_bytes())]


def assert_same_run(trainer, folder, whole):
    """Curve, events, result, the checkpoints that are kept and the parameters in them."""
    for name in ("curve.csv", "result.json", "config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    # NaN is equal to NaN here.
    assert repr(events(folder)) == repr(events(whole))
    kept = lambda place: sorted(int(path.name) for path in (place / "checkpoints").iterdir())
    assert kept(folder) == kept(whole)
    for step in kept(whole):
        ours, theirs = load_of(trainer, folder, step), load_of(trainer, whole, step)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    names = lambda place: {path.name.partition(".tfevents")[0] for path in place.iterdir()}
    assert names(folder) == names(whole)


def load_of(trainer, folder, step):
    """All arrays of a checkpoint and its notes."""
    like = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), jax.eval_shape(lambda: trainer.init(0, 0.0))
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(like, step), _timeless(checkpoints.notes(step))


def _timeless(notes):
    return notes | {"curve": [{**row, "time": 0} for row in notes["curve"]]}


# --- lone runs


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(trainer, whole, tmp_path, step):
    """At every report: curve, events, kept checkpoints, parameters, optimiser, result."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, step)
    assert not (folder / "result.json").exists() and not (folder / LOCK).exists()
    assert (folder / "curve.csv").read_text().count("\n") == 1 + step // 2
    train(trainer, folder)
    assert_same_run(trainer, folder, whole)


def test_a_run_may_be_stopped_time_and_again(trainer, whole, tmp_path):
    """Before its first step, and after every one of them, saving at each."""
    folder = tmp_path / "run"
    stop_signal = StopSignal()
    stop_signal.stop("enough")
    for _ in range(2):  # no step is taken between the two
        with pytest.raises(Interrupted):
            train(trainer, folder, stop_signal=stop_signal)
    for step in STEPS:
        stop_at(trainer, folder, step, save_minutes=0.0)
    train(trainer, folder, stop_signal=StopSignal(save_minutes=0.0))
    assert_same_run(trainer, folder, whole)


def test_what_was_written_after_the_checkpoint_is_written_over(trainer, whole, tmp_path):
    """Rows, half a row and events of steps that no checkpoint has: a crash leaves those."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    file = folder / "curve.csv"
    file.write_text(file.read_text() + "8,0.5,0.5,0.5\n10,0.5,")
    (old,) = folder.glob("events.out.tfevents.*")
    shutil.copy(old, folder / "events.out.tfevents.9999999999.elsewhere")
    (folder / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    train(trainer, folder)
    assert_same_run(trainer, folder, whole)


def test_a_finished_run_is_not_run_again(trainer, whole):
    """The same call gives the same result and touches nothing; another run is refused by name."""
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    reported = []
    result = train(trainer, whole, on_report=reported.append)
    assert result == json.loads((whole / "result.json").read_text()) and not reported
    with pytest.raises(ConfigError, match="seed: given 4; the run in .* has the seed 3"):
        train_run(trainer, 4, whole, config={"of": "the run"})
    with pytest.raises(ConfigError, match="holds another run .its of is 'the run', not 'mine'"):
        train_run(trainer, 3, whole, config={"of": "mine"})
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_another_run_does_not_go_on_with_this_one(trainer, tmp_path):
    """Another seed or config is refused of a run under way as well, which goes on unharmed."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 4)
    with pytest.raises(ConfigError, match="seed: given 4; the run in .* has the seed 3"):
        train_run(trainer, 4, folder, config={"of": "the run"})
    with pytest.raises(ConfigError, match="holds another run"):
        train_run(trainer, 3, folder, config={"of": "mine"})
    (folder / "config.json").write_text('{"of": ')
    with pytest.raises(ConfigError, match="config.json: given 'damaged JSON'"):
        train(trainer, folder)


def damage(file, how):
    """What a crash of the machine or a bad disk may leave of a file."""
    content = file.read_bytes()
    file.unlink() if how == "gone" else file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trainer, whole, tmp_path, how, capfd
):
    """One of its files, every second one in turn, the others in the other way: either it does not
    matter, or one line on stderr names the checkpoint and the run goes on from the one before;
    never does it end otherwise."""
    start = tmp_path / "start"
    stop_at(trainer, start, 8, save_minutes=0.0)
    names = [p.relative_to(start) for p in (start / "checkpoints" / "8").rglob("*") if p.is_file()]
    if isinstance(trainer.task, MaskedBytes):  # a few will do
        names = [name for name in names if name.name in ("manifest.ocdbt", "metadata")]
    else:
        names = sorted(names)[how == "gone" :: 2]
    passed_over = 0
    for number, name in enumerate(names):
        folder = pathlib.Path(shutil.copytree(start, tmp_path / str(number)))
        damage(folder / name, how)
        capfd.readouterr()
        reported = []
        train(trainer, folder, on_report=reported.append)
        message = capfd.readouterr().err
        if reported[0]["step"] == 8:
            passed_over += 1
            assert message.startswith(f"warning: checkpoint {folder}/checkpoints/8 is skipped")
            assert message.count("\n") == 1
        else:
            assert reported[0]["step"] == 10 and message == ""
        assert_same_run(trainer, folder, whole)
    assert passed_over


def test_a_checkpoint_of_another_shape_is_passed_over(trainer, whole, tmp_path, capfd):
    """The last one was saved by a wider model."""
    wide = dataclasses.replace(trainer, model_config=dataclasses.replace(MODEL, width=16))
    stop_at(wide, tmp_path / "wide", 8)
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    shutil.copytree(tmp_path / "wide" / "checkpoints" / "8", folder / "checkpoints" / "8")
    train(trainer, folder)
    assert "checkpoints/8 is skipped" in capfd.readouterr().err
    assert_same_run(trainer, folder, whole)


def test_a_folder_without_a_good_checkpoint_is_refused(trainer, tmp_path):
    """All damaged, or all gone: it is not started anew over what it holds."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    for step in (folder / "checkpoints").iterdir():
        shutil.rmtree(step / "arrays")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match="checkpoints: given .*none of the .* can be restored"):
        train(trainer, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match="workdir: given .*holds a run without its checkpoints"):
        train(trainer, folder)


def test_a_diverging_run_ends_the_same_after_a_stop(tmp_path):
    """It is stopped before the report that tells, and has its last state."""
    config = dataclasses.replace(TRAIN, learning_rate=1e30, report_every=1)
    mad = Trainer(MODEL, make_task("reverse", OPTIONS), config)
    train(mad, tmp_path / "whole")
    stop_at(mad, tmp_path / "run", 1)
    result = train(mad, tmp_path / "run")
    assert result["status"] == "diverged"
    assert_same_run(mad, tmp_path / "run", tmp_path / "whole")


# --- which checkpoints stay


def test_the_newest_and_the_best_stay_and_what_was_asked_for():
    """Of 0, 2, ..., 20 with the best validation at 6: 0, the last, the one asked for, two newest
    of the others, the best; without `every`, no more than was asked for; NaN is never best."""
    rank = {step: -abs(step - 6.0) for step in range(2, 22, 2)} | {4: -np.inf}
    policy = CheckpointPolicy((10,), every=2, last=2)
    assert policy.final(range(0, 22, 2), 20, rank.get) == {0, 6, 10, 16, 18, 20}
    assert CheckpointPolicy((10,)).final((0, 10, 20), 20, rank.get) == {0, 10, 20}
    assert CheckpointPolicy().final((0, 20), 20, lambda step: -np.inf) == {0, 20}
    assert policy.final((0,), 20, rank.get) == {0}


def test_a_run_keeps_the_best_of_its_checkpoints(whole):
    """`best_step` of result.json is the one whose validation the curve says is best."""
    result = json.loads((whole / "result.json").read_text())
    rows = [line.split(",") for line in (whole / "curve.csv").read_text().splitlines()[1:]]
    sign = 1 if result["metric"] == "accuracy" else -1
    value = {int(row[0]): sign * float(row[3]) for row in rows}
    assert value[result["best_step"]] == max(value.values())
    kept = {int(path.name) for path in (whole / "checkpoints").iterdir()}
    assert kept == {0, 4, 8, 10, 12, result["best_step"]}


def test_checkpoints_between_reports_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint_every: given 3; must be a multiple of"):
        train_run(
            Trainer(MODEL, make_task("reverse", OPTIONS), TRAIN), 0, tmp_path / "run", config={},
            policy=CheckpointPolicy(every=3),
        )  # fmt: skip


# --- waves


@pytest.fixture(scope="module")
def population(trainer):
    """One replica per device; chex refuses a second trace of its programs, after a restore too."""
    return Population(trainer, DeviceData(trainer.task.load()), packing=1)


WAVE = [RunSpec(1e-2, seed=0), RunSpec(3e-2, seed=1)]


@pytest.fixture(scope="module")
def undisturbed(population):
    return population.train(WAVE, test=True)


def saves_of(folder, stop_signal):
    return WaveSaves(folder / "waves" / "task" / "arm" / "one", WAVE, stop_signal)


def stop_wave(population, folder, step, **options):
    stop_signal = StopSignal(**options)
    stop = lambda done: stop_signal.stop("enough") if done == step else None
    with saves_of(folder, stop_signal) as saves, pytest.raises(Interrupted):
        population.train(WAVE, test=True, on_report=stop, saves=saves)


def finish_wave(population, folder, on_report=None):
    with saves_of(folder, StopSignal()) as saves:
        finished = population.train(WAVE, test=True, on_report=on_report, saves=saves)
        saves.remove()
    assert not list(folder.iterdir())
    return finished


def assert_same_wave(some, others):
    for one, other in zip(some, others, strict=True):
        for name in ("steps", "train_loss", "value", "scores", "params", "diverged"):
            mine, theirs = getattr(one, name), getattr(other, name)
            jax.tree.map(np.testing.assert_array_equal, mine, theirs)
            assert getattr(mine, "dtype", None) == getattr(theirs, "dtype", None)


@pytest.mark.parametrize("step", STEPS)
def test_a_wave_that_is_stopped_goes_on_as_if_it_had_not_been(
    population, undisturbed, tmp_path, step
):
    """At every report: curves, test scores, parameters of all replicas, without another trace; what
    was kept of it is removed with its folders."""
    stop_wave(population, tmp_path, step)
    reported = []
    assert_same_wave(finish_wave(population, tmp_path, reported.append), undisturbed)
    assert reported == list(range(step + 2, 14, 2))


def test_a_wave_may_be_stopped_time_and_again(population, undisturbed, tmp_path):
    for step in STEPS:
        stop_wave(population, tmp_path, step, save_minutes=0.0)
    assert_same_wave(finish_wave(population, tmp_path), undisturbed)


def test_a_damaged_checkpoint_of_a_wave_is_passed_over(population, undisturbed, tmp_path, capfd):
    """For the one before; if that is damaged too, the wave is refused, and says where it lies."""
    one, other = tmp_path / "one", tmp_path / "other"
    stop_wave(population, one, 6, save_minutes=0.0)
    place = saves_of(one, StopSignal()).folder
    assert sorted(path.name for path in place.iterdir()) == ["4", "6"]
    shutil.copytree(one, other)
    damage(place / "6" / "arrays" / "manifest.ocdbt", "cut")
    reported = []
    assert_same_wave(finish_wave(population, one, reported.append), undisturbed)
    assert reported[0] == 6 and "/6 is skipped and removed" in capfd.readouterr().err
    for step in (4, 6):
        damage(saves_of(other, StopSignal()).folder / f"{step}" / "arrays" / "_METADATA", "gone")
    with pytest.raises(ConfigError, match=f"checkpoints: given '{other}.*none of the"):
        finish_wave(population, other)


def test_a_wave_of_other_runs_is_refused(population, tmp_path):
    stop_wave(population, tmp_path, 6)
    mine = [RunSpec(1e-2, seed=0), RunSpec(3e-2, seed=2)]
    refused = pytest.raises(ConfigError, match="wave: given .*holds other runs")
    with WaveSaves(saves_of(tmp_path, StopSignal()).folder, mine, StopSignal()) as saves, refused:
        population.train(mine, saves=saves)


# --- when


def test_time_decides_when_to_save_and_when_to_stop(monkeypatch):
    """By a clock that only goes forward: setting the machine's clock changes nothing."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: -1e9 if now[0] < 130 else 1e12)
    stop_signal = StopSignal(save_minutes=1.0, max_hours=0.05)
    assert stop_signal.poll() == dataclasses.replace(stop_signal.poll(), save=False, stop=False)
    now[0] = 161.0
    assert stop_signal.poll().save and not stop_signal.poll().stop
    stop_signal.saved()
    assert not stop_signal.poll().save
    now[0] = 280.0
    assert stop_signal.poll().stop
    assert str(stop_signal.interruption()) == "time limit of 0.05 hours reached"
    stop_signal.stop("too late")
    assert str(stop_signal.interruption()) == "time limit of 0.05 hours reached"


# --- the lock

HOLDER = """
import pathlib, sys, time
from qkv_jax.runtime.files import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/"run"."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_until_its_owner_is_gone(trainer, whole, tmp_path, holder):
    """In a line that says which process it is; after kill -9 the lock holds nothing."""
    folder = tmp_path / "run"
    message = f"in use by process {holder.pid} on .*, since 20.*; wait for it to end"
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"workdir: given .*{message}"):
            train(trainer, folder)
    assert [path.name for path in folder.iterdir()] == [LOCK]
    holder.kill()
    holder.wait()
    assert (folder / LOCK).exists()
    train(trainer, folder)
    assert_same_run(trainer, folder, whole)


def test_the_lock_is_given_back(tmp_path):
    """Whatever ends its block; nothing is left of it."""
    for _ in range(2):
        with pytest.raises(KeyError), folder_lock(tmp_path):
            message = f"in use by process {os.getpid()} on"
            with pytest.raises(ConfigError, match=message), folder_lock(tmp_path):
                pass
            raise KeyError
        assert not list(tmp_path.iterdir())
