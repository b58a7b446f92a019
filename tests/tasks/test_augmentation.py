"""Augmentation: crops and flips, of training images alone, by seed and step."""

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.tasks.images import augmentation
from tests.support.folders import idx_folders
from tests.support.folders.idx_folders import idx_task

folder = idx_folders.folder

KEY = jax.random.key(0)


def test_crops_cut_the_padded_image_and_flips_mirror_it():
    """Against slices and reversals written out in NumPy."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (6, 7, 5, 2), np.uint8)
    offsets = np.array([[0, 0], [4, 4], [8, 8], [0, 8], [3, 5], [6, 1]], np.int32)
    cropped = np.asarray(augmentation.crop(jnp.asarray(images), jnp.asarray(offsets)))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for i, (down, right) in enumerate(offsets):
        np.testing.assert_array_equal(cropped[i], padded[i, down : down + 7, right : right + 5])
    np.testing.assert_array_equal(cropped[1], images[1])
    mirrored = np.asarray(augmentation.flip(jnp.asarray(images), jnp.arange(6) % 2 == 0))
    np.testing.assert_array_equal(mirrored[::2], images[::2, :, ::-1])
    np.testing.assert_array_equal(mirrored[1::2], images[1::2])


def test_every_offset_is_drawn_and_half_the_images_are_flipped():
    """All 81 crops, equally often to within five standard errors."""
    drawn = augmentation.draw(KEY, 40_000)
    counts = np.bincount(np.asarray(drawn["crops"]) @ np.array([9, 1]), minlength=81)
    assert np.abs(counts - 40_000 / 81).max() < 5 * (40_000 / 81) ** 0.5
    assert abs(float(drawn["flips"].mean()) - 0.5) < 5 * 0.5 / 200


def test_augmentation_depends_on_seed_and_step_and_leaves_the_order_alone(folder):
    """Steps 2 to 4 drawn alone begin with the last of steps 0 to 2; another seed crops otherwise;
    and the rows are those of a task that does not crop."""
    plain, cropped = idx_task(folder), idx_task(folder, augment="crop_flip")
    data = cropped.load()
    program = lambda task: jax.jit(lambda key, first: task.schedule(data.train, key, first, 3, 8))
    draw = program(cropped)
    whole, later, other = draw(KEY, 0), draw(KEY, 2), draw(jax.random.key(1), 0)
    assert set(whole) == {"rows", "crops", "flips"}
    for name in whole:
        np.testing.assert_array_equal(whole[name][2], later[name][0])
        assert not np.array_equal(other[name], whole[name])
    assert not np.array_equal(whole["crops"][0], whole["crops"][1])
    np.testing.assert_array_equal(program(plain)(KEY, 0)["rows"], whole["rows"])


def test_only_training_images_are_augmented(folder):
    """Held-out images are equal with and without; the batches are the cropped and mirrored rows."""
    plain, cropped = idx_task(folder), idx_task(folder, augment="crop_flip")
    data, other = (jax.tree.map(jnp.asarray, task.load()) for task in (plain, cropped))
    for ours, theirs in zip(data.held_out.values(), other.held_out.values(), strict=True):
        np.testing.assert_array_equal(ours["inputs"], theirs["inputs"])
    rows = np.array([5, 0, 7, 3, 9, 27, 11, 1])
    entry = {"rows": jnp.asarray(rows), **augmentation.draw(KEY, 8)}
    raw = jnp.asarray(data.train["images"][rows])
    images = augmentation.flip(augmentation.crop(raw, entry["crops"]), entry["flips"])
    mean, std = (np.asarray(data.train[name]) for name in ("mean", "std"))
    expected = (np.asarray(images) / 255 - mean) / std
    batch = cropped.batch(data.train, entry)
    np.testing.assert_allclose(batch["inputs"], expected, atol=1e-5)
    np.testing.assert_array_equal(batch["targets"], data.train["targets"][rows])
    untouched = plain.batch(data.train, {"rows": entry["rows"]})
    assert not np.allclose(untouched["inputs"], expected)
