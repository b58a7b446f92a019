"""Data sets of the Hugging Face hub or of a local folder, as columns of texts, images and labels.

Needs the package `datasets` (extra `text`), which only those who name a data set import.
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks import sources
from qkv_jax.tasks.text.tables import is_no_label

# What splits are called, by what they are here.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves

# Types of values, as the library calls them: texts, and what can name a class as it is printed.
_TEXTS = ("string", "large_string", "string_view")
_WHOLE = ("int", "uint", "bool")

Table = dict[str, list[str]]


def files(dataset: str, subset: str) -> tuple[pathlib.Path, ...]:
    """The files of a data set that is a local folder; of another the library's own copies.

    Raises:
      ConfigError: if `datasets` is not installed, or nothing can be loaded.
    """
    if local := _local_files(dataset):
        return local
    parts = _loaded(dataset, subset, ()).values()
    return tuple(sorted({pathlib.Path(c["filename"]) for part in parts for c in part.cache_files}))


def read_splits(
    dataset: str, subset: str, text_column: str, label_column: str | None = None
) -> dict[str, Table]:
    """Some columns of the splits `train`, `validation` and `test`, as far as there are.

    Args:
      dataset: a local folder (of `save_to_disk`, or of parquet, csv or json files), or a name.
      subset: which of a data set's parts, such as `sst2` of `glue`; "" where there is one.
      text_column: the texts.
      label_column: texts, whole numbers or truth values, given back as texts; classes that are
        stored as numbers come back as their names. None where no labels are wanted.

    Raises:
      ConfigError: if `datasets` is not installed, nothing can be loaded, or a column is missing or
        holds something else.
    """
    changed = sources.stamp(_local_files(dataset))
    return _read_splits(dataset, subset, text_column, label_column, changed)


@functools.lru_cache(maxsize=2)
def _read_splits(
    dataset: str, subset: str, text_column: str, label_column: str | None, changed: sources.Stamp
) -> dict[str, Table]:
    tables = {}
    for split, part in _parts(dataset, subset, changed).items():
        where = f"its {split} split"
        tables[split] = {text_column: _texts(part, dataset, where, text_column)}
        if label_column is not None:
            tables[split][label_column] = _labels(part, dataset, where, label_column)
    return tables


def read_images(
    dataset: str, subset: str, image_column: str, label_column: str, changed: sources.Stamp
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [N, height, width, channels] of one size, grey ones with one channel and others
    with three, and labels as `read_splits` gives them, by split.

    Raises:
      ConfigError: as `read_splits` does, or if the images have several sizes.
    """
    found = {}
    for split, part in _parts(dataset, subset, changed).items():
        where = f"its {split} split"
        labels = np.array(_labels(part, dataset, where, label_column))
        found[split] = _images(part, dataset, where, image_column), labels
    shapes = {images.shape[1:] for images, _ in found.values()}
    if len(shapes) > 1:
        raise _sizes(dataset, f"column {image_column!r}", shapes)
    return found


def _parts(dataset: str, subset: str, changed: sources.Stamp) -> dict[str, Any]:
    """The splits that there are, by our names; none is empty, and one is for training."""
    found = _loaded(dataset, subset, changed)
    parts = {}
    for split, names in _SPLITS.items():
        part = next((found[name] for name in names if name in found), None)
        if part is not None:
            if not len(part):
                raise ConfigError("dataset", dataset, f"its {split} split is empty")
            parts[split] = part
    if "train" not in parts:
        raise ConfigError("dataset", dataset, f"has no training split, only {', '.join(found)}")
    return parts


def _local_files(dataset: str) -> tuple[pathlib.Path, ...]:
    place = sources.expanded(dataset, "dataset")
    if not place.is_dir():
        return ()
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(place).parts)
    return tuple(sorted(p for p in place.rglob("*") if p.is_file() and not hidden(p)))


@functools.lru_cache(maxsize=2)
def _loaded(dataset: str, subset: str, changed: sources.Stamp) -> dict[str, Any]:
    """What the library gives, by the names that its splits have."""
    try:
        import datasets
    except ImportError:
        advice = "needs the package 'datasets': pip install -e '.[text]'"
        raise ConfigError("dataset", dataset, advice) from None
    try:
        with _silence(datasets):
            found = _load(datasets, dataset, subset)
    except Exception as error:  # hub, network, file formats: each has exceptions of its own
        lines = str(error).strip().splitlines() or [""]
        what = f"cannot be loaded: {type(error).__name__}: {lines[0]}"
        raise ConfigError("dataset", dataset, what) from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


@contextlib.contextmanager
def _silence(datasets: Any) -> Iterator[None]:
    """Without bars of progress and, where there is no network, a warning for each attempt: they
    would stand in the midst of the study's display, or before the one line of a refusal."""
    bars, level = datasets.is_progress_bar_enabled(), logging.root.manager.disable
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()


def _load(datasets: Any, dataset: str, subset: str) -> Any:
    place = sources.expanded(dataset, "dataset")
    if any((place / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(str(place))
    return datasets.load_dataset(str(place) if place.is_dir() else dataset, subset or None)


def _texts(part: Any, dataset: str, where: str, name: str) -> list[str]:
    if _kind(part, dataset, where, name) not in _TEXTS:
        what = f"column {name!r} of {where} holds {_described(part.features[name])}, not texts"
        raise ConfigError("dataset", dataset, what)
    return _filled(part, dataset, where, name)


def _images(part: Any, dataset: str, where: str, name: str) -> np.ndarray:
    _kind(part, dataset, where, name)
    if type(part.features[name]).__name__ != "Image":
        what = f"column {name!r} of {where} holds {_described(part.features[name])}, not images"
        raise ConfigError("dataset", dataset, what)
    try:
        images = _filled(part, dataset, where, name)
    except OSError as error:  # how Pillow refuses a file
        what = f"column {name!r} of {where} cannot be read: {error}"
        raise ConfigError("dataset", dataset, what) from None
    grey = all(image.mode in ("1", "L") for image in images)
    pixels = [np.asarray(image.convert("L" if grey else "RGB")) for image in images]
    if len(shapes := {image.shape for image in pixels}) > 1:
        raise _sizes(dataset, f"column {name!r} of {where}", shapes)
    return np.stack(pixels).reshape(len(pixels), *pixels[0].shape[:2], -1)


def _sizes(dataset: str, where: str, shapes: set[tuple[int, ...]]) -> ConfigError:
    some = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes)[:2])
    return ConfigError("dataset", dataset, f"{where} holds images of several sizes, such as {some}")


def _labels(part: Any, dataset: str, where: str, name: str) -> list[str]:
    kind, names = _kind(part, dataset, where, name), getattr(part.features[name], "names", None)
    if names is None and kind not in _TEXTS and not kind.startswith(_WHOLE):
        what = f"column {name!r} of {where} holds {_described(part.features[name])}"
        raise ConfigError("dataset", dataset, f"{what}; labels are texts or whole numbers")
    values = _filled(part, dataset, where, name)
    if names is not None:  # some test sets are published with -1 for every label
        values = [names[value] if value >= 0 else value for value in values]
    labels = [str(value).strip() for value in values]
    for row, label in enumerate(labels):
        if is_no_label(label):
            what = f"column {name!r} of {where}: no label in row {row}, but {label!r}"
            raise ConfigError("dataset", dataset, what)
    return labels


def _kind(part: Any, dataset: str, where: str, name: str) -> str:
    """The type of a column's values; "" where they are not plain ones."""
    if name not in part.column_names:
        known = ", ".join(map(repr, part.column_names))
        raise ConfigError("dataset", dataset, f"{where} has no column {name!r}; columns: {known}")
    feature = part.features[name]
    return feature.dtype if type(feature).__name__ == "Value" else ""


def _described(feature: Any) -> str:
    if type(feature).__name__ == "Value":
        return feature.dtype
    text = " ".join(str(feature).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _filled(part: Any, dataset: str, where: str, name: str) -> list[Any]:
    values = list(part[name])
    if None in values:
        what = f"column {name!r} of {where} is empty in row {values.index(None)}"
        raise ConfigError("dataset", dataset, what)
    return values
