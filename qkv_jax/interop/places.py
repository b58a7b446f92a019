"""The place of every leaf in the tensors of a Hugging Face folder, and how config.json is read.

Linear layers are stored there as [out, in], those of GPT-2 as [in, out]; heads lie side by side in
one axis. Every leaf says what shape its tensor must have, so that nothing is guessed.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem

Shape = tuple[int, ...]
ACTIVATIONS = {
    "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "gelu_accurate": "gelu", "gelu_python": "gelu_exact", "relu": "relu",
}  # fmt: skip


class Layout(NamedTuple):
    """From a tensor of the files to a leaf of ours: `stored` gives the shape that the tensor must
    have for a leaf's, `convert` makes the leaf of that shape."""

    stored: Callable[[Shape], Shape]
    convert: Callable[[np.ndarray, Shape], np.ndarray]


SAME = Layout(lambda ours: ours, lambda array, ours: array)
LINEAR = Layout(lambda ours: ours[::-1], lambda array, ours: array.T)
TO_HEADS = Layout(lambda o: (o[1] * o[2], o[0]), lambda array, ours: array.T.reshape(ours))
FROM_HEADS = Layout(lambda o: (o[2], o[0] * o[1]), lambda array, ours: array.T.reshape(ours))
HEADS_BIAS = Layout(lambda o: (o[0] * o[1],), lambda array, ours: array.reshape(ours))
BATCHED = Layout(lambda ours: (1, *ours), lambda array, ours: array[0])


class Place(NamedTuple):
    """Where a leaf's numbers are; without a tensor they are zeros."""

    tensor: str | None
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Plan:
    """One model: our encoder, the tensor of every leaf, and how its inputs are made.

    Attributes:
      encoder: `apply` gives the last hidden state [B, T, D]; of a decoder, logits [B, T, V].
      places: by our path, `layer_0/attention/query/kernel`.
      prefix: what names of tensors may begin with.
      unneeded: patterns of tensors that the encoder can do without.
      skipped: rows of tensors that no token reads, in words.
      pad: the number of the padding token; None for decoders, which never see any.
      pad_counts: whether the padding token takes no place, as in RoBERTa.
      channels: of the images of a ViT.
    """

    encoder: Encoder
    places: Mapping[str, Place]
    prefix: str
    unneeded: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    pad: int | None = 0
    pad_counts: bool = False
    channels: int = 0

    def is_unneeded(self, tensor: str) -> bool:
        return any(fnmatch.fnmatchcase(tensor, pattern) for pattern in self.unneeded)


def leaf_shapes(encoder: Encoder, channels: int = 0) -> dict[str, Shape]:
    """The shape of every leaf by its path; `channels` are those of images."""
    stem = encoder.stem
    if isinstance(stem, PatchStem):
        example = jnp.zeros((1, stem.patch, stem.patch, channels))
    else:
        fields = len(stem.vocabulary) if isinstance(stem, TokenStem) else 1
        example = jnp.zeros((1, 1, fields)[: 2 + (fields > 1)], jnp.int32)
    tree = jax.eval_shape(encoder.init, jax.random.key(0), example)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def norm(ours: str, theirs: str) -> dict[str, Place]:
    weight, bias = Place(f"{theirs}.weight", SAME), Place(f"{theirs}.bias", SAME)
    return {f"{ours}/scale": weight, f"{ours}/bias": bias}


def activation(values: Mapping[str, Any], field: str, absent: str) -> str:
    """Our name of the MLP's activation."""
    given = values.get(field, absent)
    if not isinstance(given, str) or given not in ACTIVATIONS:
        raise refusal(field, given, f"understood: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[given]


def their_activation(ours: str) -> str | None:
    """The other way: the first name that config.json has for it, if any."""
    return next((theirs for theirs, known in ACTIVATIONS.items() if known == ours), None)


def positive(values: Mapping[str, Any], field: str, absent: float) -> float:
    """A finite number above 0; `absent` stands in where there is none."""
    given = values.get(field, absent)
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not (number and math.isfinite(given) and given > 0):
        raise refusal(field, given, "must be a finite number above 0")
    return float(given)


def truth(values: Mapping[str, Any], field: str, absent: bool) -> bool:
    """True or false; `absent` stands in where there is none."""
    given = values.get(field, absent)
    if not isinstance(given, bool):
        raise refusal(field, given, "must be true or false")
    return given


def whole(values, field: str, absent: int | None = None, least: int = 1) -> int:
    """A whole number of config.json; `absent` stands in where there is none, or null."""
    value = values.get(field)
    value = absent if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise refusal(field, value, f"must be a whole number of at least {least}")
    return value


def refusal(field: str, given: Any, allowed: str) -> ConfigError:
    return ConfigError(f"config.json {field}", given, allowed)
