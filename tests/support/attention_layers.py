"""Small attention layers for tests, their inputs, and what is looked at of them."""

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.model.attention import MultiHeadAttention
from tests.support.untied import draw

WIDTH, HEADS, HEAD_DIM, LENGTH = 8, 2, 4, 5
X, CONTEXT = draw(1, 2, LENGTH, WIDTH), draw(2, 2, LENGTH + 2, WIDTH)
# A mask under which every query sees something, and no two see the same.
MASK = jnp.asarray(np.random.default_rng(0).random((2, 1, LENGTH, LENGTH)) < 0.6)
MASK |= jnp.eye(LENGTH, dtype=bool)[None, None]
GROUPED = ("separate", "K=V", "Q=X", "Q=X,K=V")  # ties that allow fewer key/value heads


def layer(tie="separate", **options):
    return MultiHeadAttention(HEADS, tie, **options)


def init(module, *inputs, seed=0):
    return module.init(jax.random.key(seed), *(inputs or (X,))).get("params", {})


def drawn(module, *inputs):
    """Parameters none of which is 0 or 1."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *(inputs or (X,))).get("params", {})
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(0.4 * rng.normal(size=leaf.shape)), shapes)


def objective(module, **options):
    """A loss in which every output counts differently, so that no gradient cancels."""

    def loss(params, *inputs):
        out = module.apply({"params": params}, *inputs, **options)
        phases = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        return (jnp.sin(out + phases) * out).sum()

    return loss


def probes(module, params, x=X, **options):
    _, sown = module.apply({"params": params}, x, mutable="intermediates", **options)
    return {name: value[0] for name, value in sown["intermediates"]["probes"].items()}
