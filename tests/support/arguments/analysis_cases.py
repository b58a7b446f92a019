"""The functions of the analysis: right calls, and values that are wrong."""

import jax
import numpy as np

from qkv_jax.analysis import attention_maps, circuits, geometry, layers, nulls
from tests.support.arguments.layer_cases import SMALL, TOKENS, X, small_encoder
from tests.support.arguments.values import (
    NO_ARRAY,
    NO_COUNT,
    NO_FLAG,
    NO_NUMBER,
    RNG,
    B,
    Case,
    N,
    T,
    drawn,
    traced,
)

CLOUD, OTHER = drawn(6, 3), drawn(6, 2)
NO_MATRIX = [*NO_ARRAY, CLOUD[0], CLOUD[None], CLOUD[:0], CLOUD[:, :0], CLOUD > 0,
             CLOUD.astype(complex), np.full((6, 3), "x")]  # fmt: skip
ROWS = [*NO_MATRIX, drawn(5, 3)]  # of two clouds of the same tokens
ALIKE = [*ROWS, OTHER]  # of two clouds of the same width as well


def geometry_cases():
    for function in (geometry.unbiased_hsic, geometry.linear_cka, geometry.mean_cosines,
                     geometry.rms_ratio):  # fmt: skip
        yield Case(function, {"x": CLOUD, "y": OTHER}, {"x": ROWS, "y": ROWS})
    for function in (geometry.cosines, geometry.principal_angles, geometry.subspace_overlap):
        yield Case(function, {"a": CLOUD, "b": OTHER}, {"a": ROWS, "b": ROWS})
    yield Case(geometry.mean_cosine, {"x": CLOUD, "y": CLOUD}, {"x": ALIKE, "y": ALIKE})
    for function in (geometry.cosine, geometry.aligned_cosine):
        yield Case(function, {"a": CLOUD, "b": CLOUD}, {"a": ALIKE, "b": ALIKE})
    for function in (geometry.cloud, geometry.effective_rank):
        yield Case(function, {"x": CLOUD}, {"x": NO_MATRIX})
    clouds = geometry.cloud(CLOUD), geometry.cloud(OTHER)
    no_cloud = [None, CLOUD, geometry.cloud(CLOUD[:5])]
    pair = dict(zip("xy", clouds, strict=True))
    yield Case(geometry.cka, pair, {"x": no_cloud, "y": no_cloud})
    yield Case(geometry.spectrum_rank, {"singular_values": np.arange(3.0)},
               {"singular_values": [*NO_ARRAY, CLOUD, np.array([1.0, -1.0]),
                                    np.ones(0)]})  # fmt: skip
    yield Case(geometry.leading_directions, {"x": CLOUD, "count": 2},
               {"x": NO_MATRIX, "count": [*NO_COUNT, 4]})  # fmt: skip


def circuit_cases():
    pair = dict.fromkeys(("left", "right"), CLOUD)
    for function in (circuits.singular_values, circuits.eigenvalues, circuits.effective_rank):
        yield Case(function, pair, dict.fromkeys(pair, ALIKE))
    pair = dict.fromkeys(("query_kernel", "key_kernel"), CLOUD)
    for function in (circuits.antisymmetric_share, circuits.matching_score):
        yield Case(function, pair, dict.fromkeys(pair, ALIKE))
    yield Case(
        circuits.directionality_score,
        {**pair, "deviations": 2.0},
        {**dict.fromkeys(pair, ALIKE), "deviations": [*NO_NUMBER, float("inf"), None]},
    )
    yield Case(
        circuits.copying_score,
        {"value_kernel": CLOUD, "out_kernel": CLOUD.T},
        {"value_kernel": ALIKE, "out_kernel": [*NO_MATRIX, CLOUD, OTHER.T]},
    )


def map_cases():
    weights, valid = RNG.dirichlet(np.ones(T), (B, N, T)), np.ones((B, T), bool)
    wrong = [*NO_ARRAY, weights[0], -weights, weights > 0, weights.astype(complex)]
    for function in (attention_maps.entropy, attention_maps.distance):
        yield Case(function, {"weights": weights}, {"weights": wrong})
    yield Case(attention_maps.diagonal, {"weights": weights},
               {"weights": [*wrong, weights[..., 1:]]})  # fmt: skip
    no_valid = [*NO_ARRAY, np.ones((B, T)), valid[0], valid[:, None, None]]
    yield Case(attention_maps.uniform, {"valid": valid, "is_causal": True},
               {"valid": no_valid, "is_causal": NO_FLAG})  # fmt: skip
    rows = drawn(B, N, T)
    yield Case(
        attention_maps.real_queries,
        {"rows": rows, "valid": valid},
        {"rows": [*NO_ARRAY, rows[0], rows > 0],
         "valid": [*no_valid, np.ones((B, T + 1), bool), np.ones((1, T), bool)]},
    )  # fmt: skip


def layer_cases():
    module, variables = small_encoder()
    no_variables = [None, 3, {}, variables["params"], {"params": {}}, {"params": None}]
    here = {"encoder": module, "variables": variables}
    wrong = {"encoder": [None, SMALL, module.stem], "variables": no_variables}
    yield Case(layers.layer_weights, here, wrong)
    yield Case(layers.require_variables, here, wrong)
    yield Case(layers.require_circuits, {"config": SMALL}, {"config": [None, 3, "mla", module]})
    yield Case(layers.left_out, {"config": SMALL}, {"config": [None, 3, "mla", module]})
    yield Case(
        traced(layers.probe),
        {**here, "inputs": TOKENS, "valid": None, "read": None},
        {**wrong, "inputs": [*NO_ARRAY, TOKENS / 2, TOKENS[0]], "valid": ["x", np.ones((B, T))],
         "read": ["x", TOKENS / 7]},
        of=layers.probe,
    )  # fmt: skip
    (found,) = layers.layer_weights(module, variables)
    yield Case(layers.heads, {"layer": found, "x": X},
               {"layer": [None, tuple(found)],
                "x": [*NO_ARRAY, X[0], X[..., :3], X > 0]})  # fmt: skip


def null_cases():
    rng = np.random.default_rng(0)
    no_rng = [None, 0, np.random, jax.random.key(0)]
    yield Case(nulls.band, {"values": np.arange(9.0)},
               {"values": [*NO_ARRAY, CLOUD, np.ones(0), np.ones(3, bool)]})  # fmt: skip
    yield Case(nulls.rotation, {"rng": rng, "size": 3}, {"rng": no_rng, "size": NO_COUNT})
