"""Image sets as they are published, with a training and a test set: a folder in IDX format (the
MNIST family) or a data set of `datasets`.

Raw IDX images are memory-mapped; everything else is read into memory.
"""

import gzip
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks import hub_datasets, sources

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_IDX_UBYTE = 0x08


class Examples(NamedTuple):
    """Images uint8 [N, height, width, channels] and labels [N]."""

    images: np.ndarray
    labels: np.ndarray


class ImageFiles(NamedTuple):
    """The published sets; few bring a validation set of their own."""

    train: Examples
    test: Examples
    validation: Examples | None = None


def numbered(files: ImageFiles, field: str, given: str) -> tuple[ImageFiles, tuple[int | str, ...]]:
    """The sets with labels int32 numbered from 0, gaps closed, and what the labels were, in order.

    Raises:
      ConfigError: `field`, if training has one label only or lacks one that another set has.
    """
    names = np.unique(files.train.labels)
    if len(names) < 2:
        raise ConfigError(field, given, f"has one label only, {names[0]}, in the training set")
    sets = {name: part for name, part in files._asdict().items() if part is not None}
    for name, (images, labels) in sets.items():
        if len(new := np.setdiff1d(labels, names)):
            raise ConfigError(field, given, f"the label {new[0]} is in the {name} set only")
        sets[name] = Examples(images, np.searchsorted(names, labels).astype(np.int32))
    return ImageFiles(**sets), tuple(names.tolist())


def read_dataset(
    dataset: str, subset: str, image_column: str, label_column: str, changed: sources.Stamp
) -> ImageFiles:
    """A data set of `datasets`; its validation split is the test set where it has no other.

    Raises:
      ConfigError: `dataset`, if it has neither, or whatever `hub_datasets.read_images` refuses.
    """
    found = hub_datasets.read_images(dataset, subset, image_column, label_column, changed)
    sets = {name: Examples(*split) for name, split in found.items()}
    if not {"test", "validation"} & set(sets):
        raise ConfigError("dataset", dataset, "has neither a test nor a validation split")
    return ImageFiles(
        **sets if "test" in sets else {"train": sets["train"], "test": sets["validation"]}
    )


def read_idx_folder(folder: str, prefix: str = "") -> ImageFiles:
    """The folder of an MNIST-like set: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and
    `t10k-…` (or `test-…`) likewise, also spelled `….idx3-ubyte`, gzipped (`.gz`) or not.

    Args:
      folder: where the four files lie.
      prefix: what their names begin with, as `emnist-letters-`.

    Raises:
      ConfigError: `folder`, naming the file that is missing, damaged or at odds with another.
    """
    paths = idx_paths(folder, prefix)
    sets = {}
    for split, image_path, label_path in zip(_IDX_STEMS, paths[::2], paths[1::2], strict=True):
        images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
        if len(images) != len(labels):
            what = f"holds {len(labels)} labels for the {len(images)} images of {image_path.name}"
            raise ConfigError("folder", str(label_path), what)
        sets[split] = Examples(images[..., None], labels.astype(np.int32))
    sizes = {split: part.images.shape[1:3] for split, part in sets.items()}
    if sizes["train"] != sizes["test"]:
        both = " and ".join(f"{h} x {w} ({split})" for split, (h, w) in sizes.items())
        raise ConfigError("folder", folder, f"holds images of two sizes: {both}")
    return ImageFiles(**sets)


def idx_paths(folder: str, prefix: str = "") -> tuple[pathlib.Path, ...]:
    """The files of `read_idx_folder`: images and labels of training, then those of test.

    Raises:
      ConfigError: `folder`, if there is none or it lacks a file.
    """
    place = existing_folder(folder)
    kinds = ("images-idx3", "labels-idx1")
    paths = (_idx_path(place, prefix, split, kind) for split in _IDX_STEMS for kind in kinds)
    return sources.distinct(paths, "folder")


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """One IDX file of unsigned bytes: 0, 0, type, dimensions, sizes (big-endian), data
    (yann.lecun.com/exdb/mnist).

    Raises:
      ConfigError: `folder`, for a wrong magic number, or more or fewer bytes than announced.
    """
    header_size = 4 * (1 + dimensions)
    try:
        if path.suffix == ".gz":
            content = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        elif path.stat().st_size:
            content = np.asarray(np.memmap(path, np.uint8, "r"))
        else:
            content = np.zeros(0, np.uint8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError("folder", str(path), f"is truncated or no gzip file: {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) == 0:
        raise ConfigError("folder", str(path), "is empty")
    magic = int.from_bytes(content[:4].tobytes(), "big")
    wanted = _IDX_UBYTE << 8 | dimensions
    if len(content) >= 4 and magic != wanted:
        what = f"has the magic number 0x{magic:08x}; 0x{wanted:08x} is that of bytes in IDX format"
        raise ConfigError("folder", str(path), f"{what} with {dimensions} dimensions")
    if len(content) < header_size:
        raise ConfigError("folder", str(path), f"is truncated: {len(content)} bytes of header")
    sizes = [int(size) for size in content[4:header_size].view(">u4")]
    announced = header_size + math.prod(sizes)
    if len(content) != announced:
        what = "is truncated" if len(content) < announced else "is too long"
        raise ConfigError("folder", str(path), f"{what}: {len(content)} bytes, not {announced}")
    if not math.prod(sizes):
        raise ConfigError("folder", str(path), "holds no examples")
    return content[header_size:].reshape(sizes)


def existing_folder(folder: str) -> pathlib.Path:
    """The folder, which must be one.

    Raises:
      ConfigError: `folder`, if it is missing, no folder, empty or closed to us.
    """
    place = sources.expanded(folder, "folder")
    try:
        if not any(place.iterdir()):
            raise ConfigError("folder", folder, "is empty")
    except FileNotFoundError:
        raise ConfigError("folder", folder, "no such folder") from None
    except OSError as error:
        raise _unreadable(place, error) from None
    return place


def _idx_path(place: pathlib.Path, prefix: str, split: str, kind: str) -> pathlib.Path:
    names = [
        f"{prefix}{stem}-{spelled}-ubyte{suffix}"
        for stem in _IDX_STEMS[split]
        for spelled in (kind, kind.replace("-", "."))
        for suffix in ("", ".gz")
    ]
    try:
        for name in names:
            if (place / name).is_file():
                return place / name
    except OSError as error:  # a prefix that no file system has
        raise _unreadable(place / name, error) from None
    raise ConfigError("folder", str(place), f"holds no {names[0]}[.gz]")


def _unreadable(path: pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError("folder", str(path), f"cannot be read: {error.strerror}")
