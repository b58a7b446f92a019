"""Data sets of the Hugging Face hub or of a local folder, as columns of plain values.

Needs the package `datasets` (extra `text`), which only those who name a data set import.
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from qkv_jax.config import ConfigError

# What splits are called, by what they are here.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves

Table = dict[str, list[Any]]


def files(dataset: str, subset: str) -> tuple[pathlib.Path, ...]:
    """The files of a data set that is a local folder; of another the library's own copies.

    Raises:
      ConfigError: if `datasets` is not installed, or nothing can be loaded.
    """
    place = pathlib.Path(dataset)
    if place.is_dir():
        return tuple(sorted(path for path in place.rglob("*") if path.is_file()))
    found = _loaded(dataset, subset)
    copies = {
        pathlib.Path(copy["filename"]) for part in found.values() for copy in part.cache_files
    }
    return tuple(sorted(copies))


@functools.lru_cache(maxsize=2)
def read_splits(dataset: str, subset: str, columns: tuple[str, ...]) -> dict[str, Table]:
    """Some columns of the splits `train`, `validation` and `test`, as far as there are.

    Args:
      dataset: a local folder (of `save_to_disk`, or of parquet, csv or json files), or a name.
      subset: which of a data set's parts, such as `sst2` of `glue`; "" where there is one.
      columns: classes that are stored as numbers come back as their names.

    Raises:
      ConfigError: if `datasets` is not installed, nothing can be loaded, or a column is missing.
    """
    found = _loaded(dataset, subset)
    tables = {}
    for split, names in _SPLITS.items():
        part = next((found[name] for name in names if name in found), None)
        if part is not None:
            tables[split] = {name: _column(part, dataset, split, name) for name in columns}
    if "train" not in tables:
        raise ConfigError("dataset", dataset, f"has no training split, only {', '.join(found)}")
    for split, table in tables.items():
        if not table[columns[0]]:
            raise ConfigError("dataset", dataset, f"its {split} split is empty")
    return tables


def _loaded(dataset: str, subset: str) -> dict[str, Any]:
    """What the library gives, by the names that its splits have."""
    try:
        import datasets
    except ImportError:
        advice = "needs the package 'datasets': pip install 'qkv_jax[text]'"
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
    if any((pathlib.Path(dataset) / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(dataset)
    return datasets.load_dataset(dataset, subset or None)


def _column(part: Any, dataset: str, split: str, name: str) -> list[Any]:
    if name not in part.column_names:
        known = ", ".join(part.column_names)
        what = f"its {split} split has no column {name!r}; columns: {known}"
        raise ConfigError("dataset", dataset, what)
    values, feature = list(part[name]), part.features[name]
    if None in values:
        what = f"column {name!r} of its {split} split is empty in row {values.index(None)}"
        raise ConfigError("dataset", dataset, what)
    names = getattr(feature, "names", None)
    # Some test sets are published with -1 for every label.
    return [names[v] if v >= 0 else str(v) for v in values] if names else values
