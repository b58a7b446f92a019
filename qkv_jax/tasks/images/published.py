"""Images with a published training and test set, from files of one's own or from the hub."""

import dataclasses
import functools

import numpy as np

from qkv_jax.config import ConfigError, require_positive
from qkv_jax.tasks import hub_datasets, sources
from qkv_jax.tasks.base import register
from qkv_jax.tasks.images import files
from qkv_jax.tasks.images.files import ImageFiles
from qkv_jax.tasks.images.task import ImageTask
from qkv_jax.tasks.splits import held_out_split, require_seed


@dataclasses.dataclass(frozen=True)
class PublishedImages(ImageTask):
    """Images with a published training and test set. Where there is no validation set,
    `validation_examples` are drawn from the training set by the shares of the classes."""

    validation_examples: int = 5000
    split_seed: int = 0

    def __post_init__(self):
        require_positive(self, "validation_examples")
        require_seed(self, "split_seed")
        super().__post_init__()

    def read(self) -> tuple[ImageFiles, tuple[int | str, ...]]:
        """The published sets with labels numbered from 0, and those in the files, in order."""
        raise NotImplementedError

    @property
    def files(self) -> ImageFiles:
        """The published sets."""
        return self.read()[0]

    @property
    def labels(self) -> tuple[int | str, ...]:
        """The labels in the files, in order."""
        return self.read()[1]

    @property
    def classes(self):
        return len(self.labels)

    @property
    def shape(self):
        return self.files.train.images.shape[1:]

    def fingerprint(self, data):
        return super().fingerprint(data) | {"classes": list(self.labels)}

    def splits(self):
        whole = lambda examples: (examples, np.arange(len(examples.labels)))
        train, test, validation = self.files
        if validation is not None:
            parts = {"train": whole(train), "validation": whole(validation)}
        else:
            sizes = {"validation": self.validation_examples}
            rows = held_out_split(train.labels, sizes, self.split_seed)
            parts = {name: (train, rows[name]) for name in ("train", "validation")}
        return parts | {"test": whole(test)}


@register("idx")
@dataclasses.dataclass(frozen=True)
class Idx(PublishedImages):
    """A folder in IDX format: MNIST, Fashion-MNIST, KMNIST, EMNIST (with its `prefix`), …"""

    title = "Images in IDX format"

    folder: str = ""
    prefix: str = ""  # of the file names, such as "emnist-letters-"

    def __post_init__(self):
        if not self.folder:
            raise ConfigError("folder", self.folder, "name the folder of the images")
        super().__post_init__()

    def sources(self):
        return files.idx_paths(self.folder, self.prefix)

    def read(self):
        return _read_idx(self.folder, self.prefix, self.stamp())


@register("images")
@dataclasses.dataclass(frozen=True)
class DatasetImages(PublishedImages):
    """An image column of a data set on the hub, such as uoft-cs/cifar10, or of a local folder: of
    images in a folder a class, of parquet files, or of what `save_to_disk` wrote."""

    title = "Images of a data set"

    dataset: str = ""
    subset: str = ""
    image_column: str = "image"
    label_column: str = "label"

    def __post_init__(self):
        if not self.dataset:
            raise ConfigError("dataset", self.dataset, "name a data set of images or their folder")
        super().__post_init__()

    def sources(self):
        return hub_datasets.files(self.dataset, self.subset)

    def read(self):
        columns = (self.image_column, self.label_column)
        return _read_dataset(self.dataset, self.subset, *columns, self.stamp())


# Every property asks for the images: they are read once, and anew where a file was changed.
@functools.lru_cache(maxsize=2)
def _read_idx(folder: str, prefix: str, changed: sources.Stamp):
    return files.numbered(files.read_idx_folder(folder, prefix), "folder", folder)


@functools.lru_cache(maxsize=2)
def _read_dataset(
    dataset: str, subset: str, image_column: str, label_column: str, changed: sources.Stamp
):
    found = files.read_dataset(dataset, subset, image_column, label_column, changed)
    return files.numbered(found, "dataset", dataset)
