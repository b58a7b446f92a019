"""The side of plain Flax: the encoder as its documentation would write it, one jitted step, called
in a Python loop.

Same sizes, positions, epsilon, optimiser and schedule as ours, and parameters that map from ours
one to one; its first losses are checked to be ours.
"""

import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from qkv_jax.training.state import decay_mask, rate_schedule
from qkv_jax.training.step import Trainer

from . import ours
from .sides import Side


class Layer(nn.Module):
    """A pre-norm block."""

    heads: int
    epsilon: float

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.heads, use_bias=False, name="attention"
        )
        x = x + attention(nn.LayerNorm(self.epsilon, name="attention_norm")(x))
        hidden = nn.Dense(4 * width, name="up")(nn.LayerNorm(self.epsilon, name="mlp_norm")(x))
        return x + nn.Dense(width, name="down")(nn.gelu(hidden))


class PlainEncoder(nn.Module):
    """Tokens to logits."""

    symbols: int
    width: int
    layers: int
    heads: int
    epsilon: float

    @nn.compact
    def __call__(self, tokens):
        shape = (tokens.shape[1], self.width)
        x = nn.Embed(self.symbols, self.width, name="embed")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)
        for layer in range(self.layers):
            x = Layer(self.heads, self.epsilon, name=f"layer_{layer}")(x)
        x = nn.LayerNorm(self.epsilon, name="norm")(x)
        return nn.Dense(self.symbols, name="readout")(x)


def encoder(trainer: Trainer) -> PlainEncoder:
    """The plain encoder of a trainer's sizes."""
    model = trainer.model_config
    return PlainEncoder(
        trainer.task.classes, model.width, model.layers, model.heads, model.norm_epsilon
    )


def mapped(params: Any) -> Any:
    """Our parameters, under the names of the plain encoder."""
    params = dict(params)
    plain = {
        "embed": params.pop("stem")["field_0"],
        "positions": params.pop("positions")["embedding"],
    }
    for name, tree in params.items():
        plain[name] = {k: v for k, v in tree.items() if k != "mlp"} | tree.get("mlp", {})
    return plain


def side(trainer: Trainer) -> tuple[Side, list[float]]:
    """A block of steps, and the losses of the first ones."""
    config, model = trainer.train_config, encoder(trainer)
    rate = rate_schedule(config)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lambda step: config.learning_rate * rate(step),
            config.beta1,
            config.beta2,
            weight_decay=config.weight_decay,
            mask=lambda params: decay_mask(params, ()),
        ),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch):
        def mean_loss(params):
            logits = model.apply({"params": params}, batch["inputs"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
            return losses.mean()

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.device_put(mapped(trainer.init_params(0)))
    opt_state = optimizer.init(params)
    drawn = jax.device_get(ours.batches_of(trainer, config.report_every))
    # It gets its batches for free.
    batches = [
        jax.device_put({name: array[place] for name, array in drawn.items()})
        for place in range(config.report_every)
    ]
    found: list[float] = []
    trained = jax.tree.map(jnp.copy, (params, opt_state))
    for batch in batches[: ours.CHECKED]:
        *trained, loss = step(*trained, batch)
        found.append(float(loss))

    def block() -> float:
        nonlocal params, opt_state
        start = time.perf_counter()
        for batch in batches:
            params, opt_state, loss = step(params, opt_state, batch)
        jax.block_until_ready((params, loss))
        return time.perf_counter() - start

    return block, found
