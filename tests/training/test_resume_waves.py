"""Nothing is lost of waves that were stopped; when to save; and the lock of a folder."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import LOCK, folder_lock
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.wave_checkpoints import WaveSaves
from tests.support.studies import resumable_runs
from tests.support.studies.resumable_runs import STEPS, assert_same_run, damage, train

trainer = resumable_runs.trainer
whole = resumable_runs.whole

pytestmark = pytest.mark.slow


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
