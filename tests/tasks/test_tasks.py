"""Tasks: splits that cannot meet, targets that are right, data order that only the seed decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.tasks.base import epoch_schedule
from qkv_jax.tasks.generated.base import split_symbols
from qkv_jax.tasks.generated.sequences import Reverse
from qkv_jax.tasks.images.task import stratified_split
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

SPLITS = ("train", "validation", "test")
GENERATED = {
    "reverse": {"length": 6, "symbols": 5},
    "relation": {"length": 5, "names": 9, "labels": 4},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of random bytes: any 8 of them in a row are found at one place only."""
    path = tmp_path_factory.mktemp("text") / "text.bin"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes())
    return path


@pytest.fixture(scope="module")
def masked_bytes(text):
    return make_task("masked_bytes", {"files": (str(text),), "length": 16, "masked": 0.25})


@pytest.fixture(scope="module")
def mnist():
    task = make_task("mnist5k", {"patch": 14})
    return task, task.load()


@functools.cache
def generator(kind, split, size):
    """Draws a batch of a split from a seed, compiled once."""
    task = make_task(kind, GENERATED[kind])
    draw = jax.jit(lambda seed: task.generate(jax.random.key(seed), size, split))
    return lambda seed: draw(np.uint32(seed))


def batches(task, train, seed, first, steps, size):
    """Training batches of some steps, one after the other: leaves [steps, ...]."""

    def draw(key, first, train):
        entries = task.schedule(train, key, first, steps, size)
        return jax.lax.map(lambda entry: task.batch(train, entry), entries)

    return jax.jit(draw)(jax.random.key(seed), jnp.int32(first), train)


def checksums(task, batch):
    """The sum of an example's free symbols modulo their number."""
    symbols = np.asarray(batch["inputs"])
    symbols = symbols if isinstance(task, Reverse) else symbols[..., 2]
    return symbols.sum(-1) % task.classes


def unmask(batch):
    """The windows of a batch with their hidden bytes put back."""
    windows = np.array(batch["inputs"])
    np.put_along_axis(windows, np.asarray(batch["read"]), np.asarray(batch["targets"]), axis=1)
    return windows


# --- splits


@pytest.mark.parametrize("kind", GENERATED)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_generated_splits_are_disjoint_at_every_key(kind, seed):
    """The checksum is 0 in validation, 1 in test, another in training: no example is in two."""
    task = make_task(kind, GENERATED[kind])
    sums = {s: checksums(task, generator(kind, s, 32)(seed)) for s in SPLITS}
    assert set(sums["validation"]) == {0}
    assert set(sums["test"]) == {1}
    assert set(sums["train"]) <= set(range(2, task.classes))


def test_what_is_trained_on_is_the_train_split():
    """The batches that training sees carry the checksums of training, all of them."""
    task = make_task("reverse", GENERATED["reverse"])
    sums = checksums(task, batches(task, None, seed=3, first=0, steps=8, size=32))
    assert set(sums.ravel()) == set(range(2, task.classes))


@pytest.mark.parametrize("split", SPLITS)
def test_the_checksum_does_not_betray_the_split_in_a_part_of_a_sequence(split):
    """Each symbol alone is uniform in every split, the last one (which carries the sum) too."""
    symbols, size = 4, 4096
    draw = jax.jit(lambda key: split_symbols(key, (size, 3), symbols, split))
    values = np.asarray(draw(jax.random.key(0)))
    assert values.min() == 0 and values.max() == symbols - 1
    counts = np.stack([np.bincount(column, minlength=symbols) for column in values.T])
    expected = size / symbols
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("kind", ["reverse", "masked_bytes"])
def test_held_out_data_are_the_same_every_time(kind, masked_bytes):
    """Validation and test belong to the task: no seed enters, two loads are equal to the bit."""
    task = masked_bytes if kind == "masked_bytes" else make_task(kind, GENERATED[kind])
    first, second = task.load(), task.load()
    jax.tree.map(np.testing.assert_array_equal, first.held_out, second.held_out)
    assert not np.array_equal(first.validation["targets"][:50], first.test["targets"][:50])


def test_text_splits_are_disjoint_by_position(text, masked_bytes):
    """Every window lies within its own stretch of the file: 90 %, 5 %, 5 %, in this order."""
    whole, data = text.read_bytes(), masked_bytes.load()
    held_out = int(len(whole) * 0.05)
    bounds = {
        "train": (0, len(whole) - 2 * held_out),
        "validation": (len(whole) - 2 * held_out, len(whole) - held_out),
        "test": (len(whole) - held_out, len(whole)),
    }
    drawn = batches(masked_bytes, data.train, seed=0, first=0, steps=4, size=64)
    windows = {"train": unmask(jax.tree.map(np.concatenate, drawn))}
    windows |= {name: unmask(split) for name, split in data.held_out.items()}
    for split, (low, high) in bounds.items():
        places = [whole.find(row.astype(np.uint8).tobytes()) for row in windows[split]]
        assert min(places) >= low
        assert max(places) + masked_bytes.length <= high
    assert len(windows["test"]) == held_out // masked_bytes.length


def test_every_file_gives_its_own_end_to_the_held_out_splits(text, tmp_path):
    """Of several files each is split: none is held out whole, none is missing from a split."""
    other = tmp_path / "zeros.txt"
    other.write_bytes(bytes(4096))
    task = make_task("masked_bytes", {"files": (str(text), str(other)), "length": 16})
    data = task.load()
    for split in data.held_out.values():
        zeros = (unmask(split) == 0).all(axis=1)
        assert zeros.any() and not zeros.all()
    assert len(data.train) == 2 * (4096 - 2 * 204)


@pytest.mark.parametrize(("length", "wanted", "size"), [(16, 99, 1000), (8, 5, 41), (8, 1, 50)])
def test_held_out_windows_do_not_overlap(length, wanted, size):
    """Windows of a split share no byte, however many are asked for, and reach its very end."""
    task = make_task("masked_bytes", {"length": length, "masked": 0.5})
    numbers = np.arange(size)  # stands for bytes: each says its place
    windows = unmask(task._windows(numbers, "validation", wanted))
    assert len(windows) == min(wanted, size // length)
    assert len(np.unique(windows)) == windows.size
    assert (np.diff(windows, axis=1) == 1).all()
    assert len(windows) == 1 or windows.max() == size - 1


@settings(max_examples=30)
@given(st.permutations([0] * 8 + [1] * 7 + [2] * 9))
def test_stratified_splits_are_disjoint_and_balanced(labels):
    """No image is in two splits; each holds the stated number of every class, and the same images
    every time."""
    labels = np.asarray(labels)
    splits = stratified_split(labels, {"train": 4, "test": 3})
    assert len(np.unique(np.concatenate([*splits.values()]))) == 3 * 7
    assert (np.bincount(labels[splits["train"]]) == 4).all()
    assert (np.bincount(labels[splits["test"]]) == 3).all()
    again = stratified_split(labels, {"train": 4, "test": 3})
    jax.tree.map(np.testing.assert_array_equal, splits, again)


def test_mnist_splits_are_disjoint_and_balanced(mnist):
    """The real images: 350, 50 and 100 of each digit, and no image is in two splits."""
    task, data = mnist
    sizes = {"train": 350, "validation": 50, "test": 100}
    for split, per_class in sizes.items():
        assert (np.bincount(getattr(data, split)["targets"]) == [per_class] * 10).all()
    shown = task.batch(data.train, {"rows": np.arange(3500)})
    images = [shown["inputs"], *(split["inputs"] for split in data.held_out.values())]
    hashes = [{np.asarray(image).tobytes() for image in part} for part in images]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
    assert sum(map(len, hashes)) == 5000


def test_mnist_is_normalised_alike_in_all_splits(mnist):
    """Training and held-out pixels pass through the same map: about mean 0 and deviation 1."""
    task, data = mnist
    parts = [task.batch(data.train, {"rows": np.arange(500)})["inputs"], data.test["inputs"]]
    for pixels in parts:
        assert abs(float(np.mean(pixels))) < 0.05
        assert abs(float(np.std(pixels)) - 1) < 0.05


# --- targets


def test_reverse_asks_for_the_sequence_back_to_front():
    """Place t of the answer is place T - 1 - t of the question."""
    batch = generator("reverse", "train", 32)(1)
    for question, answer in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        assert answer == question[::-1]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_relation_asks_for_the_label_of_the_named_token(seed):
    """Found by looking every name up; names are distinct and nobody names itself."""
    task = make_task("relation", GENERATED["relation"])
    batch = generator("relation", "train", 32)(seed)
    for tokens, answer in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        label_of = {own: label for own, _, label in tokens}
        assert len(label_of) == task.length
        assert [label_of[named] for _, named, _ in tokens] == answer
        assert all(own != named for own, named, _ in tokens)


def test_relation_uses_all_names():
    """No name is left out, or models could learn the others by heart."""
    task = make_task("relation", GENERATED["relation"])
    batch = generator("relation", "train", 32)(0)
    assert set(np.unique(batch["inputs"][:, :, 0])) == set(range(task.names))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    length=st.sampled_from([4, 16]),
    masked=st.sampled_from([0.25, 0.4, 0.9]),
)
def test_masks_hide_exactly_the_stated_bytes(seed, length, masked):
    """As many distinct places a window as the share says: hidden there, untouched elsewhere, and
    asked for in the order of `read`."""
    task = make_task("masked_bytes", {"length": length, "masked": masked})
    windows = jax.random.randint(jax.random.key(seed), (8, length), 0, 256)
    places = task.masked_places(jax.random.key(seed + 1), 8)
    batch = task.mask(windows, places)
    hidden = np.zeros((8, length), bool)
    np.put_along_axis(hidden, np.asarray(places), True, axis=1)
    assert (hidden.sum(1) == max(1, round(masked * length))).all()
    assert (np.asarray(batch["inputs"]) == np.where(hidden, 256, windows)).all()
    np.testing.assert_array_equal(
        batch["targets"], np.take_along_axis(np.asarray(windows), np.asarray(places), axis=1)
    )
    np.testing.assert_array_equal(batch["read"], places)


def test_the_loss_is_that_of_the_answers_and_the_score_their_share():
    """Against a loop: nats averaged over an example's answers; the share of right ones."""
    task = make_task("reverse", {"length": 3, "symbols": 4})
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4))
    targets = np.array([[0, 1, 2], [3, 3, 0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats, right = np.zeros((2, 3)), np.zeros((2, 3))
    for place, target in np.ndenumerate(targets):
        nats[place] = -np.log(probabilities[place][target])
        right[place] = probabilities[place].argmax() == target
    assert 0 < right.sum() < 6
    batch = {"targets": jnp.asarray(targets)}
    np.testing.assert_allclose(task.loss(logits, batch), nats.mean(1), rtol=1e-5)
    np.testing.assert_allclose(task.score(logits, batch), right.mean(1), rtol=1e-6)


# --- data order


@pytest.mark.parametrize(("examples", "batch_size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_an_epoch_is_a_permutation(examples, batch_size):
    """In an epoch no example comes twice, and none is missing but what fills no batch; the next
    epoch has another order."""
    per_epoch = examples // batch_size
    places = epoch_schedule(jax.random.key(0), jnp.int32(0), 3 * per_epoch, batch_size, examples)
    epochs = np.asarray(places).reshape(3, -1)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == per_epoch * batch_size
        assert set(epoch.tolist()) <= set(range(examples))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


@functools.partial(jax.jit, static_argnums=1)
def places_of_epochs(first, steps):
    """Three batches of 3 per epoch, from 10 examples."""
    return epoch_schedule(jax.random.key(1), first, steps, 3, 10)


@settings(max_examples=15)
@given(cuts=st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=8))
def test_an_epoch_does_not_feel_how_it_is_cut_into_calls(cuts):
    """Reports cut the steps anywhere, also across epochs: the order of examples stays the same."""
    first = 0
    for steps in cuts:
        part = places_of_epochs(np.int32(first), steps)
        np.testing.assert_array_equal(part, places_of_epochs(np.int32(0), 40)[first:][:steps])
        first += steps


def test_a_batch_larger_than_the_data_is_refused():
    """Instead of an epoch without batches."""
    with pytest.raises(ConfigError, match="batch_size: given 11; must be at most the 10 examples"):
        epoch_schedule(jax.random.key(0), jnp.int32(0), 1, 11, 10)


@pytest.mark.parametrize("kind", ["reverse", "masked_bytes", "mnist5k"])
def test_batches_depend_on_the_seed_and_the_step_only(kind, masked_bytes, mnist):
    """Not on the model, the rate of reports, or the number of steps; but on both of these."""
    if kind == "mnist5k":
        task, data = mnist
    else:
        task = masked_bytes if kind == "masked_bytes" else make_task(kind, GENERATED[kind])
        data = task.load()

    def program(every, steps, tie):
        model = ModelConfig(tie=tie, width=16, heads=2)
        config = TrainConfig(steps=steps, report_every=every, batch_size=4)
        schedule = jax.jit(Trainer(model, task, config).schedule)
        return lambda seed, first: schedule(np.uint32(seed), np.int32(first), data.train)

    def equal(some, others):
        pairs = zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    entries, others = program(4, 12, "separate"), program(2, 60, "copies")
    reference = entries(seed=5, first=0)
    halves = [others(seed=5, first=first) for first in (0, 2)]
    assert equal(jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves), reference)
    assert not equal(entries(seed=6, first=0), reference)
    assert not equal(entries(seed=5, first=4), reference)
