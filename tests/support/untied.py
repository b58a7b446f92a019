"""Helpers of the proofs about ties: a tied layer written as a separate one, and parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.tie import Tie

TIES = [str(tie) for tie in Tie.all()]
ROLES = {"Q": "query", "K": "key", "V": "value"}


def untie(params, tie, num_heads, head_dim):
    """The parameters of `separate` under which it computes what `tie` does with `params`.

    A role that shares a source gets a copy of it; a role that is X gets the identity matrix.
    """
    tie, width = Tie.parse(tie), num_heads * head_dim
    identity = {"kernel": jnp.eye(width).reshape(width, num_heads, head_dim)}
    sources = {**params, "X": identity}
    rest = {name: leaf for name, leaf in params.items() if name not in ROLES.values()}
    return rest | {ROLES[role]: sources[tie.source(role)] for role in ROLES}


def sum_over_roles(gradients, tie):
    """The gradients of an untied layer, added up over the roles that share a source in `tie`."""
    tie = Tie.parse(tie)
    total = {name: leaf for name, leaf in gradients.items() if name not in ROLES.values()}
    for source in tie.sources:
        shares = [gradients[name] for role, name in ROLES.items() if tie.source(role) == source]
        total[source] = jax.tree.map(lambda *leaves: sum(leaves), *shares)
    return total


def decoded(module, params, cache, x, cuts):
    """What a layer gives for x in chunks, each after the cache of those before."""
    outputs = []
    for chunk in jnp.split(x, cuts, axis=1):
        out, cache = module.apply({"params": params}, chunk, cache=cache)
        outputs.append(out)
    return jnp.concatenate(outputs, 1)


def leaves(tree):
    """{"query/kernel": array, ...}"""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in paths}


def describe(tree):
    """Shape, dtype and standard deviation of every leaf: what a golden file holds."""
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "std": float(f"{leaf.std():.4g}"),
        }
        for path, leaf in sorted(leaves(tree).items())
    }


def assert_described(actual, expected):
    """Equal trees; standard deviations to the digits that are stored."""
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert actual[path]["shape"] == leaf["shape"], path
        assert actual[path]["dtype"] == leaf["dtype"], path
        assert np.isclose(actual[path]["std"], leaf["std"], rtol=2e-3), path


def assert_close(actual, expected, tolerance=2e-5):
    """Equal trees of arrays up to float32 rounding, with the scale of each leaf as the measure."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        scale = max(float(np.abs(b).max(initial=0)), 1e-3)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def draw(seed, *shape):
    """Normal numbers, by NumPy: JAX would compile a program for every shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
