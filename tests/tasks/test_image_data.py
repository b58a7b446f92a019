"""Image data: every published format is read as it was written, held-out splits are what they say,
and what is wrong with a folder is said in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qkv_jax.tasks import make_task
from qkv_jax.tasks.images.files import read_idx_folder
from qkv_jax.tasks.images.task import pixel_moments
from qkv_jax.tasks.splits import held_out_split
from tests.support.folders import idx_folders
from tests.support.folders.idx_folders import idx_bytes, idx_task, refusal, write_idx
from tests.support.folders.image_sets import image_set, saved

folder = idx_folders.folder


# --- formats


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"zipped": True},
        {"spell": "."},
        {"spell": ".", "zipped": True},
        {"prefix": "emnist-letters-", "shape": (8, 6)},
    ],
)
def test_idx_folders_are_read_as_written(layout, tmp_path):
    """Zipped or not, with either spelling and any prefix; sides may differ."""
    holds = write_idx(tmp_path, **layout)
    files = read_idx_folder(str(tmp_path), layout.get("prefix", ""))
    for part, stem in ((files.train, "train"), (files.test, "t10k")):
        np.testing.assert_array_equal(part.images[..., 0], holds[stem][0])
        np.testing.assert_array_equal(part.labels, holds[stem][1])
    task = idx_task(tmp_path, prefix=layout.get("prefix", ""), patch=2)
    sides = layout.get("shape", (8, 8))
    assert (task.classes, task.shape, task.max_length) == (
        4,
        (*sides, 1),
        sides[0] * sides[1] // 4 + 1,
    )
    assert task.outcome.failure_value == 1 / 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_data_sets_of_images_are_read_as_written(mode, tmp_path):
    """Grey images have one channel; classes are ordered by name; validation is drawn."""
    train, pixels, kinds = image_set(30, mode)
    test, others, _ = image_set(12, mode, seed=1)
    task = make_task("images", saved(tmp_path / "set", train=train, test=test))
    np.testing.assert_array_equal(task.files.train.images, pixels)
    np.testing.assert_array_equal(task.files.test.images, others)
    np.testing.assert_array_equal(task.files.train.labels, np.array([1, 0, 2])[kinds])
    assert task.labels == ("ape", "cat", "dog")
    assert (task.shape, task.max_length) == ((32, 32, 3 if mode == "RGB" else 1), 17)
    sizes = {name: len(rows) for name, (_, rows) in task.splits().items()}
    assert sizes == {"train": 24, "validation": 6, "test": 12}


def test_a_validation_split_is_used_as_it_is_and_tests_where_there_is_no_other(tmp_path):
    """Nothing is held out of the training split where all three are published."""
    (train, *_), (valid, pixels, _), (test, *_) = (image_set(n, side=8) for n in (30, 9, 12))
    three = make_task("images", saved(tmp_path / "3", train=train, validation=valid, test=test))
    assert [len(rows) for _, rows in three.splits().values()] == [30, 9, 12]
    two = make_task("images", saved(tmp_path / "2", train=train, valid=valid))
    assert [len(rows) for _, rows in two.splits().values()] == [24, 6, 9]
    np.testing.assert_array_equal(two.splits()["test"][0].images, pixels)


def test_a_folder_of_image_files_is_a_data_set(tmp_path, monkeypatch):
    """A folder a split, in it one a class, without a network. One grey file among coloured ones is
    coloured too; one that is cut or of another size is refused."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for i in range(count):
            place = tmp_path / "set" / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            shape = (8, 8) if i == 3 else (8, 8, 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(place / f"{i}.png")
    options = {"dataset": str(tmp_path / "set"), "validation_examples": 2}
    task = make_task("images", options)
    assert (task.labels, task.shape, len(task.load().test["targets"])) == (("a", "b"), (8, 8, 3), 4)
    file = tmp_path / "set" / "test" / "a" / "0.png"
    Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(file)
    message = "column 'image' of its test split holds images of several sizes, such as "
    assert f"; {message}8 x 8 x 3 and 8 x 9 x 3" in refusal(options, "images")
    file.write_bytes(file.read_bytes()[:40])
    assert "; column 'image' of its test split cannot be read: " in refusal(options, "images")


def test_data_sets_that_are_no_images_are_refused(tmp_path):
    """No name, no test split, columns that are missing or hold something else."""
    train, *_ = image_set(12, side=8)
    options = saved(tmp_path / "set", train=train)
    given = f"dataset: given {options['dataset']!r}; "
    message = "dataset: given ''; name a data set of images or their folder"
    assert refusal({}, "images") == message
    assert refusal(options, "images") == f"{given}has neither a test nor a validation split"
    line = refusal(options | {"image_column": "kind"}, "images")
    assert line.startswith(f"{given}column 'kind' of its train split holds ClassLabel(")
    assert line.endswith(", not images") or "…" in line
    line = refusal(options | {"image_column": "image"}, "images")
    assert line == f"{given}its train split has no column 'image'; columns: 'img', 'kind'"


def test_cifar_has_a_new_spelling():
    """Its batches are a data set of the hub, as any other."""
    line = refusal({"folder": "cifar-10-batches-py"}, "cifar")
    assert line.startswith("task.kind: given 'cifar'; say kind 'images' with options dataset='uoft")


def test_digits_are_those_of_scikit_learn():
    """All 1797, each in one split, of the sizes stated, 16 levels of grey."""
    task = make_task("digits", {"validation_examples": 100, "test_examples": 200})
    data = task.load()
    assert {name: len(split["targets"]) for name, split in data._asdict().items()} == {
        "train": 1497, "validation": 100, "test": 200,
    }  # fmt: skip
    counts = sum(np.bincount(split["targets"]) for split in data)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    levels = np.unique(data.train["images"])
    np.testing.assert_allclose(levels / 255 * 16, np.arange(17), atol=0.04)


# --- splits and pixels


@settings(max_examples=30)
@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=60),
    sizes=st.fixed_dictionaries(
        {"validation": st.integers(1, 6)}, optional={"test": st.integers(1, 5)}
    ),
    seed=st.integers(0, 3),
)
def test_held_out_splits_are_disjoint_stratified_and_seeded(labels, sizes, seed):
    """Every example is in one split; a class has its share of each to within one example (two where
    a split before it took the class's spare one), and one at least to train on."""
    labels = np.array(labels)
    splits = held_out_split(labels, sizes, seed)
    together = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
    assert set(labels[splits["train"]]) == set(labels)
    again = held_out_split(labels, sizes, seed)
    assert all(np.array_equal(splits[name], again[name]) for name in splits)
    counts = np.bincount(labels, minlength=5)
    if counts[counts > 0].min() > sum(sizes.values()):  # no class can run out
        for name, size in sizes.items():
            assert len(splits[name]) == size
            shares = np.bincount(labels[splits[name]], minlength=5)
            assert np.abs(shares - size * counts / len(labels)).max() < 1


def test_a_class_of_one_stays_in_training():
    """Its fair share of the held-out examples, one half, would round to all there is of it."""
    labels = np.array([0, 0, 1, 2])
    splits = held_out_split(labels, {"validation": 2})
    assert labels[splits["validation"]].tolist() == [0]
    assert sorted(labels[splits["train"]]) == [0, 1, 2]


def test_another_seed_holds_out_other_images(folder):
    """And the test set is the published one whatever the seed."""
    first, second = (idx_task(folder, split_seed=seed).load() for seed in (0, 1))
    assert not np.array_equal(first.validation["targets"], second.validation["targets"])
    # Normalised by another training set, so equal but for scale.
    for data in (first, second):
        images = np.asarray(data.test["inputs"] * data.train["std"] + data.train["mean"])
        published = read_idx_folder(str(folder)).test
        np.testing.assert_allclose(images * 255, published.images, atol=1e-3)
        np.testing.assert_array_equal(data.test["targets"], published.labels)


def test_validation_images_are_not_trained_on(folder):
    """12 of 40 random images, 3 of each of the 4 classes."""
    data = idx_task(folder).load()
    images = np.asarray(data.validation["inputs"] * data.train["std"] + data.train["mean"])
    held_out = {image.tobytes() for image in np.round(images * 255).astype(np.uint8)}
    trained = {image.tobytes() for image in data.train["images"]}
    assert (len(held_out), len(trained)) == (12, 28) and not held_out & trained
    assert np.bincount(data.validation["targets"]).tolist() == [3] * 4


def test_moments_are_those_of_the_training_images():
    """By channel, from counts; a channel of one value is not divided by zero."""
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)
    images[..., 1] //= 3
    images[..., 2] = 7
    rows = np.array([8, 1, 2, 5])
    mean, std = pixel_moments(images, rows)
    pixels = (images[rows] / 255).reshape(-1, 3)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, [*pixels.std(0)[:2], 1 / 255], rtol=1e-5)


# --- refusals


def test_folders_that_cannot_be_are_refused(tmp_path):
    """No name, none there, a file, an empty one, one of other files."""
    place = tmp_path / "idx"
    given = f"folder: given {str(place)!r}; "
    message = "folder: given ''; name the folder of the images"
    assert refusal({"folder": ""}) == refusal({}) == message
    assert refusal({"folder": str(place)}) == f"{given}no such folder"
    place.mkdir()
    assert refusal({"folder": str(place)}) == f"{given}is empty"
    file = place / "notes.txt"
    file.write_text("mine")
    assert refusal({"folder": str(place)}) == f"{given}holds no train-images-idx3-ubyte[.gz]"
    line = refusal({"folder": str(file)})
    assert line == f"folder: given {str(file)!r}; cannot be read: Not a directory"


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "is empty"),
        (IMAGES, idx_bytes(np.zeros((40, 8, 8), np.uint8))[:-5],
         "is truncated: 2571 bytes, not 2576"),
        (IMAGES, idx_bytes(np.zeros((40, 8, 8), np.uint8))[:9], "is truncated: 9 bytes of header"),
        (IMAGES, idx_bytes(np.zeros((40, 8, 8), np.uint8)) + b"x",
         "is too long: 2577 bytes, not 2576"),
        (IMAGES, idx_bytes(np.zeros((40, 8, 8), np.uint8), magic=0x0D03),
         "has the magic number 0x00000d03; 0x00000803 is that of bytes in IDX format with 3 "
         "dimensions"),
        (LABELS, idx_bytes(np.zeros((40, 1), np.uint8)),
         "has the magic number 0x00000802; 0x00000801 is that of bytes in IDX format with 1 "
         "dimensions"),
        (LABELS, idx_bytes(np.zeros(39, np.uint8)),
         "holds 39 labels for the 40 images of train-images-idx3-ubyte"),
        (IMAGES, idx_bytes(np.zeros((0, 8, 8), np.uint8)), "holds no examples"),
    ],
)  # fmt: skip
def test_damaged_idx_files_are_refused_by_name(name, content, message, tmp_path):
    """What is wrong with which file."""
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    line = refusal({"folder": str(tmp_path)})
    assert line == f"folder: given {str(tmp_path / name)!r}; {message}"


def test_idx_sets_at_odds_with_each_other_are_refused(tmp_path):
    """Images of two sizes, a label that was never trained on, a missing file, damaged gzip."""
    sizes, labels, missing, damaged = (tmp_path / name for name in ("s", "l", "m", "d"))
    for place in (sizes, labels, missing):
        write_idx(place)
    write_idx(damaged, zipped=True)
    (sizes / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((20, 8, 9), np.uint8)))
    message = "holds images of two sizes: 8 x 8 (train) and 8 x 9 (test)"
    assert refusal({"folder": str(sizes)}) == f"folder: given {str(sizes)!r}; {message}"
    (labels / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20, dtype=np.uint8)))
    message = "the label 4 is in the test set only"
    assert refusal({"folder": str(labels)}) == f"folder: given {str(labels)!r}; {message}"
    (missing / "t10k-labels-idx1-ubyte").unlink()
    assert refusal({"folder": str(missing)}).endswith("holds no t10k-labels-idx1-ubyte[.gz]")
    file = damaged / f"{IMAGES}.gz"
    whole = file.read_bytes()
    for content in (whole[:-20], b"plain", whole[:30] + bytes(9) + whole[39:]):
        file.write_bytes(content)
        line = refusal({"folder": str(damaged)})
        assert line.startswith(f"folder: given {str(file)!r}; is truncated or no gzip file: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patch: given 3; must divide the side, 8"),
        ({"validation_examples": 40},
         "validation_examples: given 40; nothing is left to train on: there are 40 examples"),
        ({"validation_examples": 0},
         "validation_examples: given 0; must be a whole number above 0"),
        ({"augment": "flip"}, "augment: given 'flip'; did you mean 'crop_flip'? allowed: "
                              "none, crop, crop_flip"),
        ({"prefix": "qmnist-"}, "holds no qmnist-train-images-idx3-ubyte[.gz]"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options, message, folder):
    assert refusal({"folder": str(folder), **options}).endswith(message)
