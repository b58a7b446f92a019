"""Small runs that are stopped, damaged and gone on with."""

import functools

import jax
import numpy as np
import pytest

from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.tasks import make_task
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.fault_cases import events_of

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


def damage(file, how):
    """What a crash of the machine or a bad disk may leave of a file."""
    content = file.read_bytes()
    file.unlink() if how == "gone" else file.write_bytes(content[: len(content) // 2])
