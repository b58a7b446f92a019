"""Small data sets of images, as the library saves them."""

import pathlib
import shutil
from typing import Any

import datasets
import numpy as np
from PIL import Image


def image_set(
    count: int, mode: str = "RGB", side: int = 32, seed: int = 0
) -> tuple[datasets.Dataset, np.ndarray, np.ndarray]:
    """Random images of a mode of Pillow, lossless, and labels that are classes by name.

    Returns:
      The set, its pixels [N, side, side, channels] and its labels [N].
    """
    rng = np.random.default_rng(seed)
    shape = (count, side, side) if mode == "L" else (count, side, side, 3)
    pixels = rng.integers(0, 256, shape, np.uint8)
    labels = rng.permutation(np.arange(count) % 3)
    features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "ape", "dog"])}
    columns = {"img": list(map(Image.fromarray, pixels)), "kind": labels}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return made, pixels.reshape(count, side, side, -1), labels


def saved(place: pathlib.Path, **parts: datasets.Dataset) -> dict[str, Any]:
    """The options of the task `images` for these splits, which replace what was there."""
    shutil.rmtree(place, ignore_errors=True)
    datasets.DatasetDict(parts).save_to_disk(str(place))
    columns = {"image_column": "img", "label_column": "kind", "patch": 8}
    return {"dataset": str(place), "validation_examples": 6, **columns}
