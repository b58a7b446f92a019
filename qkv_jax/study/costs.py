"""What an arm costs: parameters, FLOPs, cache; and arms widened until they cost the same.

Parameters are counted on the model's own tree; FLOPs are those of the matrix products of one
forward pass (two per multiply-add), the rest being small change, and are tested against the
compiler's own count.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from qkv_jax.training.step import Replica

_BYTES = 4  # float32


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one arm; a token is one position of the sequence that the encoder sees."""

    params: int
    attention_params: int
    flops_per_token: float
    kv_cache_bytes_per_token: int


def measure(replica: Replica) -> Costs:
    """The costs of a replica's model on its task's sequences."""
    model, tree = replica.model, _shapes(replica)
    layers = [tree[f"layer_{i}"] for i in range(model.layers)]
    attention = sum(_count(layer.get("attention", {})) for layer in layers)  # copies may have none
    kv_heads = model.kv_heads or model.heads
    head_dim = model.head_dim or model.width // model.heads
    cached = sum(len({tie.source("K"), tie.source("V")}) for tie in model.ties)
    return Costs(
        params=_count(tree),
        attention_params=attention,
        flops_per_token=_forward_flops(replica),
        kv_cache_bytes_per_token=cached * kv_heads * head_dim * _BYTES,
    )


def non_embedding_params(replica: Replica) -> int:
    """Parameters of the layers: what matching goes by."""
    tree = _shapes(replica)
    return sum(_count(tree[f"layer_{i}"]) for i in range(replica.model.layers))


def match(
    replica: Replica, baseline: Replica, what: Literal["params", "flops"]
) -> tuple[Replica, float]:
    """The replica with its MLP alone widened to cost what the baseline does.

    Returns:
      the widened replica (the same one, if it is no cheaper) and the relative difference left,
      which one unit of MLP width bounds.
    """
    cost = {"params": non_embedding_params, "flops": _layer_flops}[what]
    width = replica.model.mlp_width or 4 * replica.model.width
    widen = lambda units: dataclasses.replace(
        replica, model=dataclasses.replace(replica.model, mlp_width=units)
    )
    target, here = cost(baseline), cost(replica)
    a_unit = cost(widen(width + 1)) - here
    extra = round((target - here) / a_unit)
    widened = widen(width + extra) if extra > 0 else replica
    return widened, cost(widened) / target - 1


def _layer_flops(replica: Replica) -> int:
    """Forward FLOPs a token of the layers alone."""
    model, length = replica.model, replica.task.max_length
    head_dim = model.head_dim or model.width // model.heads
    kv_heads, joined = model.kv_heads or model.heads, model.heads * head_dim
    mlp = 2 * model.width * (model.mlp_width or 4 * model.width)
    total = 0
    for tie in model.ties:
        of_query = tie.source("Q")
        heads = sum(model.heads if source == of_query else kv_heads for source in tie.sources)
        projections = model.width * heads * head_dim
        output = joined * model.width if model.output_projection else 0
        total += 2 * (projections + 2 * length * joined + output + mlp)
    return total


def _forward_flops(replica: Replica) -> float:
    """With the stem and the readout, where they are matrix products, spread over the tokens."""
    tree, example = _shapes(replica), replica.task.example()
    length, width = replica.task.max_length, replica.model.width
    places = 1 if replica.task.readout == "class" else length
    places = example["read"].shape[1] if "read" in example else places
    flops = _layer_flops(replica) + 2 * width * replica.task.classes * places / length
    if "patch" in tree.get("stem", {}):
        flops += 2 * int(np.prod(tree["stem"]["patch"]["kernel"].shape)) * (length - 1) / length
    return flops


@functools.lru_cache(maxsize=1024)
def _shapes(replica: Replica) -> Any:
    return jax.eval_shape(lambda: replica.init_params(0))


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
