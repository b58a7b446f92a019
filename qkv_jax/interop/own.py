"""The config.json of a model that no published architecture computes: `model_type` qkv_jax.

It holds the encoder itself: every field of its ModelConfig but those that say how the same is
computed, its stem and its sizes. Tensors bear the paths of our parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from qkv_jax.config import ConfigError, as_dict, build, nearest
from qkv_jax.interop.places import SAME, Place, Plan, leaf_shapes
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder, Readout
from qkv_jax.model.stems import PatchStem, TextStem, TokenStem

KIND = "qkv_jax"
# Of a config: what changes no output, or only in its last digits.
COMPUTED = {"dropout", "implementation", "remat", "scan_layers"}
_STEMS = {stem.__name__: stem for stem in (TokenStem, PatchStem, TextStem)}


@dataclasses.dataclass(frozen=True)
class _Stem:
    kind: str
    vocabulary: tuple[int, ...] = ()
    patch: int = 0
    channels: int = 0  # of images


@dataclasses.dataclass(frozen=True)
class _Own:
    model: ModelConfig
    stem: _Stem
    classes: int
    max_length: int
    readout: Readout
    is_causal: bool
    pad: int | None = None
    pad_counts: bool = False


def values(encoder: Encoder, like: Plan | None = None, channels: int = 0) -> dict[str, Any]:
    """The config.json of an encoder.

    Args:
      like: the plan of the model that it was made from, whose padding it keeps.
      channels: of its images.

    Raises:
      ConfigError: for a stem of somebody's own.
    """
    stem = encoder.stem
    if type(stem) not in _STEMS.values():
        raise ConfigError("stem", type(stem).__name__, f"allowed: {', '.join(_STEMS)}")
    vocabulary = getattr(stem, "vocabulary", ())
    vocabulary = (vocabulary,) if isinstance(vocabulary, int) else vocabulary
    patch = getattr(stem, "patch", 0)
    found = _Own(
        encoder.config, _Stem(type(stem).__name__, vocabulary, patch, channels),
        encoder.classes, encoder.max_length, encoder.readout, encoder.is_causal,
        *((like.pad, like.pad_counts) if like else ()),
    )  # fmt: skip
    written = as_dict(found)
    written["model"] = {k: v for k, v in written["model"].items() if k not in COMPUTED}
    return {"model_type": KIND, KIND: written}


def plan(values: Mapping[str, Any]) -> Plan:
    """The plan of such a config.json.

    Raises:
      ConfigError: naming the field that cannot be.
    """
    where, given = f"config.json {KIND}", values.get(KIND)
    if not isinstance(given, Mapping):
        raise ConfigError(where, given, "must be an object")
    found = build(_Own, given, where)
    try:
        encoder = Encoder(
            found.model, _stem(found.stem, found.model.width), found.classes, found.max_length,
            found.readout, found.is_causal,
        )  # fmt: skip
    except ConfigError as error:
        raise error.under(where) from None
    channels = found.stem.channels
    places = {path: Place(path, SAME) for path in leaf_shapes(encoder, channels)}
    pads = {"pad": found.pad, "pad_counts": found.pad_counts}
    return Plan(encoder, places, "", (), channels=channels, **pads)


def _stem(given: _Stem, width: int) -> TokenStem | PatchStem | TextStem:
    if given.kind not in _STEMS:
        raise ConfigError("stem.kind", given.kind, nearest(given.kind, _STEMS))
    if given.kind == "PatchStem":
        return PatchStem(given.patch, width)
    if given.kind == "TextStem" and len(given.vocabulary) != 1:
        raise ConfigError("stem.vocabulary", given.vocabulary, "must be one size")
    if given.kind == "TextStem":
        return TextStem(given.vocabulary[0], width)
    return TokenStem(given.vocabulary, width)
