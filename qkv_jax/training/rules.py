"""Sharding rules as data: how each parameter is cut over a mesh, by a pattern on its path.

A rule is a pair (pattern, spec). The pattern is a regular expression that must match the whole path
of a parameter, such as `layer_0/attention/key/kernel`; the spec names, for every dimension, the
axis of the mesh over which it is cut, several axes, or None. The word `whole` in place of a spec
keeps a copy on every device, whatever the rank. The first rule that matches counts, and a parameter
that no rule matches is refused: nothing is replicated because somebody forgot it (after
`sharding.py` of big_vision).

A projection that several roles share is one leaf of the tree, so one rule cuts it once.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from qkv_jax.config import ConfigError

AXES = ("data", "fsdp", "tensor")
WHOLE = "whole"

# Projections [D, heads, H]: of one head for all, and of the tie's sources with what schemes add to
# them; and [heads, r, H], which leads back from low ranks.
_ONE_HEAD = r".*/(cross_)?attention/(latent|rotary)"
_HEADS = r".*/(cross_)?attention/(query|key|value)(_rotary|_low)?"
_RAISED = r".*/(cross_)?attention/(query|key|value)_raised"
_SMALL = (
    (r".*/(bias|scale|log_scale)", WHOLE),
    (r".*_adapter/.*|.*/(relative|positions_2d|value_residual)/.*", WHOLE),
    (r"stem/class_token/embedding", WHOLE),
)
_STEMS = (
    (r"stem/(tokens/)?field_\d+/embedding", (None, "tensor")),
    (r"(encoder/|decoder/)?positions/embedding", (None, "tensor")),
    (r"stem/patch/kernel", (None, "tensor")),
)

# What `rules` of a mesh may say by name. `megatron` cuts heads and the hidden layer of the MLP over
# `tensor` (Shoeybi et al. 2019) and the model's width over `fsdp`. `inner` cuts by `fsdp` what
# `megatron` cuts by `tensor` as well, and leaves the width whole; `replicated` is plain data
# parallelism. docs/compile_only.md compares them.
RULE_SETS = {
    "megatron": (
        *_SMALL,
        (rf"{_ONE_HEAD}/kernel", ("fsdp", None, None)),
        (rf"{_HEADS}/kernel", ("fsdp", "tensor", None)),
        (rf"{_RAISED}/kernel", ("tensor", None, None)),
        (r".*/(cross_)?attention/out/kernel", ("tensor", None, "fsdp")),
        (r".*/mlp/(up|gate)/kernel", ("fsdp", "tensor")),
        (r".*/mlp/down/kernel", ("tensor", "fsdp")),
        *_STEMS,
        (r"(decoder/)?readout/kernel", ("fsdp", "tensor")),
    ),
    "inner": (
        *_SMALL,
        (rf"{_ONE_HEAD}/kernel", ("fsdp", None, None)),
        (rf"{_HEADS}/kernel", (None, "tensor", "fsdp")),
        (rf"{_RAISED}/kernel", ("tensor", None, "fsdp")),
        (r".*/(cross_)?attention/out/kernel", ("tensor", "fsdp", None)),
        (r".*/mlp/(up|gate)/kernel", (None, ("tensor", "fsdp"))),
        (r".*/mlp/down/kernel", (("tensor", "fsdp"), None)),
        *_STEMS,
        (r"(decoder/)?readout/kernel", ("fsdp", "tensor")),
    ),
    "replicated": ((r".*", WHOLE),),
}
DEFAULT_RULES = "megatron"

Axis = str | tuple[str, ...] | None
Spec = tuple[Axis, ...] | str
Rules = tuple[tuple[str, Spec], ...]


def parse_rules(given: Any) -> Rules:
    """Rules from the name of a set or from a list of [pattern, spec].

    Raises:
      ConfigError: for a name, pattern, spec or axis that cannot be, saying which.
    """
    if isinstance(given, str):
        if given not in RULE_SETS:
            allowed = f"allowed: {', '.join(RULE_SETS)}, or a list of [pattern, spec]"
            raise ConfigError("rules", given, allowed)
        return RULE_SETS[given]
    if not isinstance(given, Sequence) or not given:
        raise ConfigError("rules", given, "must be a list of [pattern, spec], or a set's name")
    return tuple(_parse_rule(rule, f"rules[{place}]") for place, rule in enumerate(given))


def partition(rules: Rules, params: Any, sizes: Mapping[str, int]) -> Any:
    """The tree of PartitionSpecs of a tree of parameters (arrays or shapes).

    Args:
      sizes: the number of devices along each axis of the mesh.

    Raises:
      ConfigError: naming every parameter that no rule covers, or the first whose spec does not fit.
    """
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    uncovered = []

    def specify(path, leaf) -> PartitionSpec:
        name = "/".join(entry.key for entry in path)
        for place, (pattern, spec) in enumerate(compiled):
            if pattern.fullmatch(name):
                return _fitted(spec, name, leaf.shape, sizes, f"rules[{place}]")
        uncovered.append(name)
        return PartitionSpec()

    specs = jax.tree_util.tree_map_with_path(specify, params)
    if uncovered:
        few = ", ".join(uncovered[:3]) + (", …" if len(uncovered) > 3 else "")
        allowed = f"no rule covers {few}; add one ([pattern, {WHOLE!r}] keeps it whole everywhere)"
        raise ConfigError("rules", f"{len(rules)} rules", allowed)
    return specs


def _parse_rule(rule: Any, field: str) -> tuple[str, Spec]:
    if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
        raise ConfigError(field, rule, "must be a pair [pattern, spec]")
    pattern, spec = rule
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(field, pattern, f"is no regular expression: {error}") from None
    if spec == WHOLE:
        return pattern, WHOLE
    if isinstance(spec, str) or not isinstance(spec, Sequence):
        allowed = f"must be a list of axes or none, one per dimension, or {WHOLE!r}"
        raise ConfigError(field, spec, allowed)
    axes = tuple(axis if axis is None or isinstance(axis, str) else tuple(axis) for axis in spec)
    named = [name for axis in axes for name in _names(axis)]
    for name in named:
        if name not in AXES:
            raise ConfigError(field, name, f"no such axis; allowed: {', '.join(AXES)}")
        if named.count(name) > 1:
            raise ConfigError(field, name, "an axis can cut one dimension only")
    return pattern, axes


def _fitted(spec: Spec, name: str, shape: tuple, sizes: Mapping[str, int], field: str):
    if spec == WHOLE:
        return PartitionSpec()
    if len(spec) != len(shape):
        allowed = f"needs {len(shape)} entries for {name} {list(shape)}"
        raise ConfigError(field, list(spec), allowed)
    for size, axis in zip(shape, spec, strict=True):
        parts = 1
        for part in _names(axis):
            parts *= sizes[part]
        if size % parts:
            cut = " x ".join(f"{part} = {sizes[part]}" for part in _names(axis))
            raise ConfigError(field, list(spec), f"{cut} does not divide {name} {list(shape)}")
    return PartitionSpec(*spec)


def _names(axis: Axis) -> tuple[str, ...]:
    if axis is None:
        return ()
    return (axis,) if isinstance(axis, str) else axis
