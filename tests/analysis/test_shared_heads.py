"""Circuits of heads that share keys and values are those of a model in which nothing is shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis import circuits
from qkv_jax.analysis.layers import layer_weights, probe
from qkv_jax.config import build
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem

WIDTH, HEADS = 12, 6
TOKENS = jnp.arange(14).reshape(2, 7) % 5


def model(tie, groups, positions="none", **changes):
    options = {"layers": 2, "width": WIDTH, "heads": HEADS, "head_dim": 4, "kv_heads": groups}
    config = build(ModelConfig, options | {"tie": tie, "positions": positions} | changes)
    return Encoder(config, TokenStem((5,), WIDTH), 5, 7, is_causal=True)


def drawn(encoder):
    """Parameters, biases among them, that all do something."""
    variables = encoder.init(jax.random.key(0), TOKENS)
    noise = lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape))
    return jax.tree.map(noise, variables)


def expanded(variables, groups):
    """The same with a copy of each shared head for every query head that reads it: head n reads
    head n // (N / K)."""

    def spread(path, leaf):
        role, name = path[-2].key, path[-1].key
        if role in ("key", "value") and name in ("kernel", "bias"):
            axis = leaf.ndim - 2
            which = [n // (HEADS // groups) for n in range(HEADS)]
            return jnp.stack([jnp.take(leaf, g, axis) for g in which], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(spread, variables)


@pytest.mark.parametrize("tie", ["separate", "K=V"])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"use_bias": True, "positions": "rotary"}], ids=str)
def test_circuits_are_those_of_the_dense_expansion(tie, groups, options):
    """The model without sharing computes the same, and each of its heads has the circuits
    W_Q,n W_K,g(n)' and W_V,g(n) W_O,n, written out as D x D."""
    shared, dense = model(tie, groups, **options), model(tie, HEADS, **options)
    variables = drawn(shared)
    wide = expanded(variables, groups)
    np.testing.assert_allclose(
        shared.apply(variables, TOKENS), dense.apply(wide, TOKENS), atol=1e-5
    )
    for number, (one, other) in enumerate(
        zip(layer_weights(shared, variables), layer_weights(dense, wide), strict=True)
    ):
        kept = wide["params"][f"layer_{number}"]["attention"]
        value = kept["key" if tie == "K=V" else "value"]["kernel"]
        for n in range(HEADS):
            query, key = (np.float64(kept[role]["kernel"][:, n]) for role in ("query", "key"))
            qk = query @ key.T
            ov = np.float64(value[:, n]) @ np.float64(kept["out"]["kernel"][n])
            for layer in (one, other):
                factors = (layer.query[:, n], layer.key[:, n])
                np.testing.assert_allclose(factors[0] @ factors[1].T, qk, atol=1e-5)
                np.testing.assert_allclose(
                    circuits.singular_values(*factors),
                    np.linalg.svd(qk, compute_uv=False)[:4], atol=1e-5,
                )  # fmt: skip
                symmetric = np.linalg.norm((qk + qk.T) / 2) / np.linalg.norm(qk)
                found = circuits.antisymmetric_share(*factors)
                assert found == pytest.approx(1 - symmetric**2, abs=1e-6)
                np.testing.assert_allclose(layer.value[:, n] @ layer.out[n], ov, atol=1e-5)
                own = np.linalg.eigvals(ov)
                copying = own.real.sum() / np.abs(own).sum()
                found = circuits.copying_score(layer.value[:, n], layer.out[n])
                assert found == pytest.approx(copying, abs=1e-4)


def test_scores_and_outputs_are_those_of_the_circuits():
    """Of a model that shares heads: scores x (W_Q W_K') x' / sqrt(H), and what is added to the
    stream, the sum over heads of a x (W_V W_O)."""
    encoder = model("separate", 2)
    variables = drawn(encoder)
    seen = probe(encoder, variables, TOKENS)
    for layer, flow in zip(layer_weights(encoder, variables), seen, strict=True):
        qk = np.einsum("dnh,enh->nde", layer.query, layer.key)
        scores = np.einsum("btd,nde,bse->bnts", flow.x, qk, flow.x) / 2
        scores = np.where(np.tri(7, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights, flow.weights, atol=1e-5)
        ov = np.einsum("dnh,nhe->nde", layer.value, layer.out)
        heads = np.einsum("bnts,bsnh,nhd->btd", flow.weights, flow.value, layer.out)
        moved = np.einsum("bnts,bsd,nde->bte", flow.weights, flow.x, ov)
        np.testing.assert_allclose(moved, heads, atol=1e-4)
