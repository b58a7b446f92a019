"""Measures of trained models for the ledger of claims: one number per model.

Each is worked out on the trained model of an evaluation run and on the same model before training,
which is its null. Quantities that a change of basis within a head would alter are not used.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float

from qkv_jax.analysis import circuits, geometry, movement
from qkv_jax.analysis.layers import Layer, LayerProbe, heads, layer_weights, probe
from qkv_jax.tasks import Batch
from qkv_jax.tasks.text.packing import first_alone
from qkv_jax.training.state import model_inputs
from qkv_jax.training.step import Trainer

MEASURE_COLUMNS = ("task", "arm", "seed", "measure", "trained", "untrained")
_EXAMPLES = 64  # of the test set: thousands of tokens, for geometry of a few dozen dimensions


class Model(NamedTuple):
    """One model: its layers, what they were before training, and what flows through them on test
    examples, layer by layer: tokens [M, D] of X, and [M, N * H] of Q, K and V, before qk-norm and
    rotation."""

    layers: tuple[Layer, ...]
    start: tuple[Layer, ...]
    tokens: tuple[dict[str, Float[np.ndarray, "M _width"]], ...]


def nearest_copy(model: Model) -> float:
    """How nearly some role is X up to rotation and scale: the largest of the linear CKA of X with
    Q, K and V, each averaged over layers. 1 is a copy."""
    return max(
        float(np.mean([geometry.linear_cka(flow["X"], flow[role]) for flow in model.tokens]))
        for role in "QKV"
    )


def key_value_similarity(model: Model) -> float:
    """Linear CKA of keys and values, averaged over layers; 1 if they are one up to rotation."""
    return float(np.mean([geometry.linear_cka(flow["K"], flow["V"]) for flow in model.tokens]))


def key_value_overlap(model: Model) -> float:
    """Mean cos² of the principal angles between the subspaces of X that W_K and W_V of a head
    read, averaged over heads and layers; about H / D for two drawn at random."""
    return _over_heads(
        model, lambda layer, n: geometry.subspace_overlap(layer.key[:, n], layer.value[:, n])
    )


def antisymmetry(model: Model) -> float:
    """Share of the antisymmetric part in the squared norm of W_Q W_Kᵀ, averaged over heads and
    layers; 0 if symmetric, about 1/2 if the two are drawn at random."""
    return _over_heads(
        model, lambda layer, n: circuits.antisymmetric_share(layer.query[:, n], layer.key[:, n])
    )


def least_movement(model: Model) -> float:
    """The smallest of how far W_Q, W_K and W_V are from their start, relative to its norm, each
    averaged over layers."""
    return min(
        float(np.mean([
            movement.relative_movement(getattr(start, role), getattr(end, role))
            for start, end in zip(model.start, model.layers, strict=True)
        ]))
        for role in ("query", "key", "value")
    )  # fmt: skip


MEASURES: dict[str, Callable[[Model], float]] = {
    "nearest copy": nearest_copy,
    "least movement": least_movement,
    "antisymmetry": antisymmetry,
    "key-value similarity": key_value_similarity,
    "key-value overlap": key_value_overlap,
}


def measure(
    trainer: Trainer, seed: int, salt: int, params: dict, test: Batch, names: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """{measure: (trained, untrained)} of one run.

    Args:
      trainer, seed, salt: the run; its untrained model is drawn again.
      params: of the trained model.
      test: the test split of its task.
    """
    batch = jax.tree.map(lambda a: jnp.asarray(a[:_EXAMPLES]), first_alone(model_inputs(test)))
    untrained = jax.device_get(trainer.init_params(seed, salt))
    start = layer_weights(trainer.model, {"params": untrained})
    models = [_model(trainer, p, start, batch) for p in (params, untrained)]
    return {name: tuple(MEASURES[name](model) for model in models) for name in names}


def lookup(table: pd.DataFrame, seeds: Iterable[int]):
    """(task, arm, measure) -> [seeds, 2] trained and untrained, NaN where a run has none."""
    indexed = table.set_index(["task", "arm", "measure", "seed"])[["trained", "untrained"]]

    def find(task: str, arm: str, name: str) -> Float[np.ndarray, "S 2"]:
        keys = [(task, arm, name, seed) for seed in seeds]
        return indexed.reindex(keys).to_numpy(float)

    return find


def _model(trainer: Trainer, params: dict, start: tuple[Layer, ...], batch: Batch) -> Model:
    variables = {"params": params}
    layers = layer_weights(trainer.model, variables)
    probes = probe(trainer.model, variables, **batch)
    shown = batch.get("valid")
    flows = (_tokens(*pair, shown) for pair in zip(layers, probes, strict=True))
    return Model(layers, start, tuple(flows))


def _tokens(layer: Layer, flow: LayerProbe, shown) -> dict[str, np.ndarray]:
    """Tokens of X and of the roles, padding left out, heads side by side."""
    x = np.asarray(flow.x)
    valid = np.ones(x.shape[:2], bool) if shown is None else np.asarray(shown)
    roles = dict(zip("QKV", map(np.asarray, heads(layer, flow.x)), strict=True))
    return {"X": x[valid]} | {
        role: array[valid].reshape(int(valid.sum()), -1) for role, array in roles.items()
    }


def _over_heads(model: Model, of: Callable[[Layer, int], float]) -> float:
    found = [of(layer, n) for layer in model.layers for n in range(layer.query.shape[1])]
    return float(np.mean(found))
