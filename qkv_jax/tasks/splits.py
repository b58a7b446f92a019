"""Held-out splits: which examples, the same for ever, as many of every class as its share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qkv_jax.config import ConfigError


def require_seed(task: Any, name: str) -> None:
    """Refuses what no generator of random numbers takes as a seed.

    Raises:
      ConfigError: if the field is below 0.
    """
    if getattr(task, name) < 0:
        raise ConfigError(name, getattr(task, name), "must be 0 or above")


def stratified_split(labels: np.ndarray, per_class: dict[str, int]) -> dict[str, np.ndarray]:
    """Indices of each split: the same number of every class, the same images for ever."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[np.ndarray]] = {name: [] for name in per_class}
    for label in np.unique(labels):
        shuffled = rng.permutation(np.flatnonzero(labels == label))
        start = 0
        for name, count in per_class.items():
            splits[name].append(shuffled[start : start + count])
            start += count
    # Mixed, so that any first part of a split holds every class.
    return {name: rng.permutation(np.concatenate(parts)) for name, parts in splits.items()}


def held_out_split(
    labels: np.ndarray, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Indices of the splits in `sizes`, of the sizes stated there, and of `train`: what is left.

    Each class has its share of every split, to the nearest whole example. A class always keeps one
    example in training; where many have no other, splits are smaller than stated, but never empty.

    Raises:
      ConfigError: `NAME_examples`, if the sizes leave nothing to train on, or a split has nothing.
    """
    if sum(sizes.values()) >= len(labels):
        name, size = max(sizes.items(), key=lambda item: item[1])
        allowed = f"nothing is left to train on: there are {len(labels)} examples"
        raise ConfigError(f"{name}_examples", size, allowed)
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    left = {c: rng.permutation(np.flatnonzero(labels == c)) for c in classes}
    splits = {}
    for name, size in sizes.items():
        shares = _apportion(size, counts, [len(left[c]) - 1 for c in classes])
        if not shares.sum():
            what = f"{len(labels)} examples of {len(classes)} classes, of each of which one is kept"
            allowed = f"the {name} split would be empty: {what} for training"
            raise ConfigError(f"{name}_examples", size, allowed)
        splits[name] = np.concatenate([left[c][:n] for c, n in zip(classes, shares, strict=True)])
        left = {c: left[c][n:] for c, n in zip(classes, shares, strict=True)}
    splits["train"] = np.concatenate([left[c] for c in classes])
    # Mixed, so that any first part of a split holds every class.
    return {name: rng.permutation(indices) for name, indices in splits.items()}


def _apportion(size: int, counts: np.ndarray, available: list[int]) -> np.ndarray:
    """`size` as whole numbers in proportion to `counts`, by largest remainders, none above what
    is available."""
    exact = size * counts / counts.sum()
    shares = np.minimum(np.floor(exact).astype(int), available)
    for place in np.argsort(shares - exact, kind="stable"):
        shares[place] += shares.sum() < size and shares[place] < available[place]
    return shares
