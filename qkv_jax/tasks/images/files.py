"""Readers of image folders in their data sets' own formats: IDX (the MNIST family) and CIFAR.

Each gives `ImageFiles`: uint8 images [N, height, width, channels] and int32 labels of the published
training and test sets. Raw IDX images are memory-mapped; everything else is read into memory.
"""

import gzip
import io
import math
import pathlib
import pickle
import zlib
from typing import Any, NamedTuple

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks import sources

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_IDX_UBYTE = 0x08
CIFAR_SHAPE = (32, 32, 3)
# The published files of a set and their label fields: python pickles, then the binary version.
_CIFAR = {
    10: {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    100: {"train": ["train"], "test": ["test"]},
}
_CIFAR_LABELS = {10: b"labels", 100: b"fine_labels"}


class Examples(NamedTuple):
    """Images uint8 [N, height, width, channels] and labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


class ImageFiles(NamedTuple):
    """The two published sets of a folder."""

    train: Examples
    test: Examples


def numbered(files: ImageFiles, folder: str) -> tuple[ImageFiles, tuple[int, ...]]:
    """The sets with labels numbered from 0, gaps closed, and what the labels were, in order.

    Raises:
      ConfigError: `folder`, if training has one label only or lacks one that the test set has.
    """
    names = np.unique(files.train.labels)
    if len(names) < 2:
        raise ConfigError("folder", folder, f"has one label only, {names[0]}, in the training set")
    if len(new := np.setdiff1d(files.test.labels, names)):
        raise ConfigError("folder", folder, f"the label {new[0]} is in the test set only")
    number = lambda labels: np.searchsorted(names, labels).astype(np.int32)
    sets = (Examples(part.images, number(part.labels)) for part in files)
    return ImageFiles(*sets), tuple(names.tolist())


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


def read_cifar_folder(folder: str) -> ImageFiles:
    """A folder of CIFAR-10 or CIFAR-100 batches, python pickles or the binary version, told apart
    by the names; fine labels of CIFAR-100 (cs.toronto.edu/~kriz/cifar.html).

    Raises:
      ConfigError: `folder`, naming the file that is missing or damaged.
    """
    place = existing_folder(folder)
    classes, suffix = cifar_layout(place)
    read = _read_cifar_binary if suffix else _read_cifar_pickle
    sets = {}
    for split, names in _CIFAR[classes].items():
        parts = [read(_existing(place / f"{name}{suffix}"), classes) for name in names]
        sizes = {f"{name}{suffix}": len(some) for name, (some, _) in zip(names, parts, strict=True)}
        whole = max(sizes, key=sizes.get)
        for name, size in sizes.items():
            if size != sizes[whole]:  # a binary file cut between two rows reads well
                what = f"holds {size} images, not {sizes[whole]} as {whole}"
                raise ConfigError("folder", str(place / name), what)
        images = np.concatenate([images for images, _ in parts])
        # Stored as three planes; wanted as pixels of three channels.
        images = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        sets[split] = Examples(images, np.concatenate([labels for _, labels in parts]))
    trained, tested = (len(sets[split].labels) for split in ("train", "test"))
    if trained != 5 * tested:  # as published; the equal batches above do not tell of a lone file
        cut = "test" if 5 * tested < trained else "train"
        what = f"{trained} images for training and {tested} for test, not 5 to 1: a file is cut"
        name = f"{_CIFAR[classes][cut][-1]}{suffix}"
        raise ConfigError("folder", str(place / name), what)
    return ImageFiles(**sets)


def cifar_paths(folder: str) -> tuple[pathlib.Path, ...]:
    """The files of `read_cifar_folder`: those of training, then those of test.

    Raises:
      ConfigError: `folder`, if there is none or it lacks a file.
    """
    place = existing_folder(folder)
    classes, suffix = cifar_layout(place)
    names = (f"{name}{suffix}" for names in _CIFAR[classes].values() for name in names)
    return sources.distinct((_existing(place / name) for name in names), "folder")


def cifar_layout(place: pathlib.Path) -> tuple[int, str]:
    """The number of classes and the suffix (".bin" or none) that the names in a folder mean."""
    for classes, files in _CIFAR.items():
        for suffix in ("", ".bin"):
            if any((place / f"{name}{suffix}").is_file() for name in files["train"]):
                return classes, suffix
    allowed = "holds no CIFAR batches: data_batch_1 … or train, each with .bin or without"
    raise ConfigError("folder", str(place), allowed)


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


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_file():
        raise ConfigError("folder", str(path.parent), f"holds no {path.name}")
    return path


def _unreadable(path: pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError("folder", str(path), f"cannot be read: {error.strerror}")


def _read_cifar_binary(path: pathlib.Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one label byte (CIFAR-100: coarse, then fine) and 3072 of the image."""
    labels = 1 if classes == 10 else 2
    row = labels + math.prod(CIFAR_SHAPE)
    content = np.frombuffer(_bytes(path), np.uint8)
    if len(content) % row:
        what = f"is truncated: {len(content)} bytes are no multiple of {row}"
        raise ConfigError("folder", str(path), what)
    rows = content.reshape(-1, row)
    return rows[:, labels:], _labels(path, rows[:, labels - 1], classes)


def _read_cifar_pickle(path: pathlib.Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    content = _bytes(path)
    try:
        batch = _SafeUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        what = f"is truncated or no CIFAR batch: {error}"
        raise ConfigError("folder", str(path), what) from None
    field = _CIFAR_LABELS[classes]
    values = {_as_bytes(k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    images, labels = values.get(b"data"), values.get(field)
    if not isinstance(images, np.ndarray) or not isinstance(labels, (list, np.ndarray)):
        raise ConfigError("folder", str(path), f"holds no `data` and `{field.decode()}`")
    if images.dtype != np.uint8 or images.shape[1:] != (math.prod(CIFAR_SHAPE),):
        what = f"holds images of another size: rows of {images.shape[1:]} {images.dtype}, not 3072"
        raise ConfigError("folder", str(path), what)
    if len(images) != len(labels):
        what = f"holds {len(labels)} labels for {len(images)} images"
        raise ConfigError("folder", str(path), what)
    return images, _labels(path, np.asarray(labels), classes)


def _bytes(path: pathlib.Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not content:
        raise ConfigError("folder", str(path), "is empty")
    return content


def _labels(path: pathlib.Path, labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        what = f"holds a label outside 0 … {classes - 1}: {labels.max()}"
        raise ConfigError("folder", str(path), what)
    return labels.astype(np.int32)


def _as_bytes(name: Any) -> bytes:
    return name.encode() if isinstance(name, str) else name


class _SafeUnpickler(pickle.Unpickler):
    """Makes arrays, bytes, lists and dicts; whatever else a pickle names is refused unrun."""

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return np._core.multiarray._reconstruct
        elif (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        elif (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
