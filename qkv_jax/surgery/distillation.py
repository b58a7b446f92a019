"""A tied model taught to give back the hidden states of a pretrained original (Hinton et al. 2015);
a decoder, to foretell the next token of some texts.

Weights that were trained to their end bear smaller steps than a layer that was changed needs to
recover, and which is the case depends on the model: MiniLM under K=V goes from a cosine of 0.969 to
0.971 in 100 steps at 1e-4, and to 0.941 at 3e-4, while a small model needs 1e-3. So where no
learning rate is given, each of a few is tried on four fifths of the training texts, and the model
that is nearest to the original on the others is kept; those that it is measured on play no part.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from qkv_jax.config import ConfigError
from qkv_jax.model.encoder import Encoder
from qkv_jax.survey.activations import InputBatch

RATES = (1e-3, 1e-4)
_FIFTH = 5
Rows = Sequence[Bool[np.ndarray, " B"]]  # of each batch


@functools.partial(jax.jit, static_argnums=0)
def distance(encoder: Encoder, params, inputs, valid, target, seen) -> tuple[Array, Array]:
    """The mean square distance to the target where tokens are seen, and how many they are."""
    now = encoder.apply(params, inputs, valid)
    mean = jnp.mean(jnp.square(now - target), where=seen[:, :, None])
    return mean, seen.sum()


@functools.partial(jax.jit, static_argnums=0)
def surprise(encoder: Encoder, params, inputs, valid, target, seen) -> tuple[Array, Array]:
    """The cross-entropy of the next token in nats, a mean over the tokens that are seen and have
    one before them, and how many they are."""
    nats, counts = token_losses(encoder, params, inputs, valid, target, seen)
    count = counts.sum()
    return nats.sum() / jnp.maximum(count, 1).astype(nats.dtype), count


@functools.partial(jax.jit, static_argnums=0)
def token_losses(encoder: Encoder, params, inputs, valid, target, seen) -> tuple[Array, Array]:
    """The same of each text, [B]: the sum over its tokens, and how many they are."""
    logits = encoder.apply(params, inputs, valid)[:, :-1]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, target[:, 1:])
    return jnp.sum(nats, axis=1, where=seen[:, 1:]), seen[:, 1:].sum(1)


class Distillation:
    """The original's hidden states on some texts, as what is to be learned."""

    loss = staticmethod(distance)

    def __init__(self, encoder: Encoder, variables: dict[str, Any], batches: Sequence[InputBatch]):
        self._inputs = batches
        self._wanted = [apply(encoder, variables, batch.inputs, batch.valid) for batch in batches]

    def train(
        self,
        encoder: Encoder,
        params: dict[str, Any],
        steps: int,
        rate: float,
        rows: Rows | None = None,
    ) -> dict[str, Any]:
        """The parameters after some steps on these rows of the texts (all by default), at a rate
        that decays."""
        state = _optimizer(rate, steps).init(params)
        order = np.random.default_rng(0)
        rows = self._meant(rows)
        batches = list(self._batches(rows))
        sizes = np.array([some.sum() for some in rows if some.any()])
        for _ in range(steps):  # each text as often as any other
            batch = batches[order.choice(len(batches), p=sizes / sizes.sum())]
            params, state = _step(self.loss, encoder, steps, rate, params, state, *batch)
        return params

    def train_at_best_rate(
        self, encoder: Encoder, params: dict[str, Any], steps: int
    ) -> tuple[dict[str, Any], float]:
        """The parameters that have learned most, by a fifth of the texts, after training on the
        others at each of `RATES`; and their rate.

        Raises:
          ConfigError: naming `learning_rate`, for a single text.
        """
        before = np.cumsum([0] + [batch.count for batch in self._inputs])
        if before[-1] < 2:
            raise ConfigError("learning_rate", None, "must be given where there is a single text")
        held_out = [(start + np.arange(len(batch.inputs))) % _FIFTH == 1
                    for start, batch in zip(before, self._inputs, strict=False)]  # fmt: skip
        others = [~rows for rows in held_out]
        found = {rate: self.train(encoder, params, steps, rate, others) for rate in RATES}
        # A rate at which training diverged is the last to be taken.
        far = {rate: np.nan_to_num(self.mean(encoder, trained, held_out), nan=np.inf)
               for rate, trained in found.items()}  # fmt: skip
        best = min(far, key=far.get)
        return found[best], best

    def mean(self, encoder: Encoder, params: dict[str, Any], rows: Rows | None = None) -> float:
        """The mean loss over the tokens of those rows, by default all."""
        batches = self._batches(self._meant(rows))
        found = np.array([self.loss(encoder, params, *batch) for batch in batches])
        return float(np.average(found[:, 0], weights=found[:, 1]))

    def _meant(self, rows: Rows | None) -> Rows:
        """Those rows, all by default, but for what fills up a batch."""
        meant = [np.arange(len(batch.inputs)) < batch.count for batch in self._inputs]
        return meant if rows is None else [a & b for a, b in zip(rows, meant, strict=True)]

    def _batches(self, rows: Rows):
        for batch, wanted, some in zip(self._inputs, self._wanted, rows, strict=True):
            if some.any():
                seen = batch.valid & jnp.asarray(some)[:, None]
                yield batch.inputs, batch.valid, wanted, seen


class NextToken(Distillation):
    """Some texts themselves as what is to be learned: each token by those before it."""

    loss = staticmethod(surprise)

    def __init__(self, batches: Sequence[InputBatch]):
        self._inputs, self._wanted = batches, [batch.inputs for batch in batches]


@functools.partial(jax.jit, static_argnums=0)
def apply(encoder: Encoder, variables: dict[str, Any], inputs, valid) -> Array:
    """The last hidden states [B, T, D]."""
    return encoder.apply(variables, inputs, valid)


def _optimizer(rate, steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(rate, steps))


# The rate is traced, so that all rates share a program.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(of: Callable, encoder: Encoder, steps: int, rate, params, state, *batch):
    loss = lambda params: of(encoder, params, *batch)[0]
    with jax.numpy_dtype_promotion("standard"):  # Optax calculates with numbers of steps
        updates, state = _optimizer(rate, steps).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state
