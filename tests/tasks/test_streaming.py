"""Streamed training data: epochs of the right examples, the same for the same seed, going on
exactly after a restore; and data above the limit train populations and lone runs."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.tasks.streaming import ArrayRows, BatchStream, WindowRows, next_batches
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

pytestmark = pytest.mark.slow

MODEL = ModelConfig(layers=1, width=8, heads=2)
TRAIN = TrainConfig(steps=6, report_every=2, batch_size=4)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Random bytes: any 8 of them in a row are found at one place only."""
    path = tmp_path_factory.mktemp("text") / "text.bin"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes())
    return path


def text_task(text, **options):
    few = {"validation_examples": 4, "test_examples": 4}
    return make_task("masked_bytes", {"files": (str(text),), "length": 8, **few, **options})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 30 images of 4 x 4 in IDX format, the first pixel of each its number; labels 0
    and 1, in turn."""
    place = tmp_path_factory.mktemp("idx")
    for stem, count in (("train", 30), ("t10k", 6)):
        pixels = np.random.default_rng(1).integers(0, 256, (count, 4, 4), np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        header = b"".join(n.to_bytes(4, "big") for n in (0x0803, count, 4, 4))
        (place / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (0x0801, count))
        content = gzip.compress(header + (np.arange(count, dtype=np.uint8) % 2).tobytes())
        (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(content)
    return place


def image_task(images, **options):
    few = {"patch": 2, "validation_examples": 6}
    return make_task("idx", {"folder": str(images), **few, **options})


# --- the stream


def test_an_epoch_holds_every_row_once_and_the_next_is_shuffled_anew():
    """10 rows in batches of 3: 9 of them an epoch, what does not fill a batch left out."""
    rows = ArrayRows({"x": np.arange(20)}, np.arange(0, 20, 2))
    batches = next_batches(BatchStream(rows, 0, 3), 6)["x"]
    assert batches.shape == (6, 3)
    first, second = batches[:3].ravel(), batches[3:].ravel()
    assert len(set(first)) == len(set(second)) == 9 and {*first, *second} <= set(range(0, 20, 2))
    assert not np.array_equal(first, second) and not np.array_equal(first, np.sort(first))


def test_the_seed_decides_the_order():
    draw = lambda seed: next_batches(BatchStream(_numbers(), seed, 4), 3)["x"]
    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


def _numbers():
    return ArrayRows({"x": np.arange(11)}, np.arange(11))


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_restored_stream_goes_on_exactly(before):
    """Its state, through JSON, after some batches: the next are those of the uninterrupted one,
    across the end of an epoch."""
    stream, other = BatchStream(_numbers(), 3, 4), BatchStream(_numbers(), 3, 4)
    for _ in range(before):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    other.set_state(state)
    for _ in range(5):
        np.testing.assert_array_equal(next(stream)["x"], next(other)["x"])


def test_windows_are_all_those_of_the_texts_and_none_across_two():
    """Texts of 5, 2 (too short) and 4 symbols have 3 + 0 + 2 windows of 3."""
    texts = [np.arange(5), np.arange(10, 12), np.arange(20, 24)]
    rows = WindowRows(texts, 3)
    windows = [rows[i]["windows"].tolist() for i in range(len(rows))]
    assert windows == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [20, 21, 22], [21, 22, 23]]


def test_fewer_rows_than_a_batch_holds_are_refused():
    with pytest.raises(ConfigError, match="batch_size: given 12; must be at most the 11 examples"):
        BatchStream(_numbers(), 0, 12)


def test_a_study_refuses_them_before_it_starts(images):
    task = {"folder": str(images), "patch": 2, "validation_examples": 6, "device_limit_bytes": 1}
    tasks = {"mine": {"kind": "idx", "options": task}}
    study = Study({"name": "s", "tasks": tasks, "arms": {"separate": {}},
                   "train": {"batch_size": 1000}})  # fmt: skip
    with pytest.raises(ConfigError, match=r"^tasks.mine, arm 'separate': train.batch_size: given"):
        study.check_data()


# --- tasks


def test_text_above_the_limit_is_streamed_out_of_its_training_part(text):
    """Nothing of it is loaded; held-out data are the same; batches are masked windows of the first
    90 %; one byte more of a limit, and it lies on the device."""
    resident, streamed = (
        text_task(text, device_limit_bytes=1800),
        text_task(text, device_limit_bytes=1799),
    )
    data, lean = resident.load(), streamed.load()
    assert resident.stream(data.train, 0, 4) is None and lean.train is None
    jax.tree.map(np.testing.assert_array_equal, data.held_out, lean.held_out)
    entries = jax.tree.map(
        np.asarray, streamed.schedule(lean.train, jax.random.key(0), jnp.int32(0), 2, 4)
    )
    entries |= next_batches(streamed.stream(lean.train, 0, 4), 2)
    whole = text.read_bytes()
    for step in range(2):
        batch = streamed.batch(lean.train, {n: jnp.asarray(x[step]) for n, x in entries.items()})
        rows = np.arange(4)[:, None]
        windows = batch["inputs"].at[rows, batch["read"]].set(batch["targets"])
        places = [whole.find(np.asarray(w).astype(np.uint8).tobytes()) for w in windows]
        assert min(places) >= 0 and max(places) + 8 <= 1800
        assert (np.asarray(batch["inputs"]) == 256).sum() == batch["read"].size


def test_images_above_the_limit_are_streamed_out_of_the_training_split(images):
    """24 of 30 images, with their labels, the moments of all 24, and no image that is held out."""
    resident, streamed = image_task(images), image_task(images, device_limit_bytes=24 * 16 - 1)
    data, lean = resident.load(), streamed.load()
    assert set(lean.train) == {"mean", "std"} and resident.stream(data.train, 0, 4) is None
    for name in ("mean", "std"):
        np.testing.assert_array_equal(lean.train[name], data.train[name])
    batches = next_batches(streamed.stream(lean.train, 0, 4), 6)
    numbers, labels = batches["images"][..., 0, 0, 0].ravel(), batches["targets"].ravel()
    np.testing.assert_array_equal(labels, numbers % 2)
    assert set(numbers) == set(data.train["images"][:, 0, 0, 0]) and len(set(numbers)) == 24


# --- training


def test_a_population_trains_on_streams(images):
    """Two seeds side by side, each with its own batches: a run does not depend on its neighbour,
    and gives the same bits again."""
    task = image_task(images, device_limit_bytes=1)
    data = DeviceData(task.load())
    population = Population(Trainer(MODEL, task, TRAIN), data)
    pair = population.train([RunSpec(1e-2, 0), RunSpec(1e-2, 1)], test=True)
    (alone,) = population.train([RunSpec(1e-2, 1)], test=True)
    assert [done.diverged for done in pair] == [False, False]
    assert not np.array_equal(pair[0].train_loss, pair[1].train_loss)
    np.testing.assert_array_equal(pair[1].train_loss, alone.train_loss)
    jax.tree.map(np.testing.assert_array_equal, pair[1].params, alone.params)


def test_a_branch_leaves_the_streams_where_they_were(images):
    task = image_task(images, device_limit_bytes=1)
    config = TrainConfig(steps=12, report_every=2, batch_size=4, decay="wsd", cooldown=1 / 6)
    population = Population(Trainer(MODEL, task, config), DeviceData(task.load()))
    plain, branched = (population.train([RunSpec(1e-2, 0)], test=True, branch=b)
                       for b in (0.0, 0.5))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, plain[0].params, branched[0].params)
    assert plain[0].branch is None and np.isfinite(branched[0].branch).all()


def test_a_lone_run_goes_on_from_its_checkpoint_and_its_place_in_the_data(text, tmp_path):
    """State and stream of step 2, restored: steps 3 to 6 end in the parameters of the run that was
    not interrupted; from the stream's beginning they would not."""
    task = text_task(text, device_limit_bytes=1)
    trainer = Trainer(MODEL, task, dataclasses.replace(TRAIN, learning_rate=1e-2))
    folder = tmp_path / "run"
    train_run(trainer, 5, folder, config={}, policy=CheckpointPolicy((2,)))
    checkpoints = Checkpoints(folder / "checkpoints")
    like = jax.eval_shape(lambda: trainer.init(0, 0.0))
    train, schedule = jax.jit(trainer.train), jax.jit(trainer.schedule)

    def go_on(stream):
        state = checkpoints.restore(like, 2)
        for _ in range(2):
            entries = schedule(state.seed, state.step, None) | next_batches(stream, 2)
            state, _ = train(state, entries, None)
        return state

    stream = task.stream(None, 5, TRAIN.batch_size)
    stream.set_state(checkpoints.notes(2)["stream"])
    whole, restored = checkpoints.restore(like, 6), go_on(stream)
    jax.tree.map(np.testing.assert_array_equal, whole.params, restored.params)
    other = go_on(task.stream(None, 5, TRAIN.batch_size))
    assert not np.array_equal(whole.params["readout"]["kernel"], other.params["readout"]["kernel"])
    checkpoints.close()
