"""What changes during training, what configures it, and the optimiser.

Learning rate, seed and step are arrays of the state, so that one compiled program serves a whole
grid of runs.
"""

import dataclasses
import zlib
from typing import Any, Literal, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, UInt32

from qkv_jax.config import (
    ConfigError,
    require_32_bits,
    require_positive,
    require_range,
    settle,
)

Purpose = Literal["init", "data", "dropout"]
# How the optimiser holds its moments: one vector of all parameters, or a tree like theirs.
OptimizerLayout = Literal["joined", "by_leaf"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """AdamW with warm-up, decay and clipping (Loshchilov & Hutter 2019).

    Raises:
      ConfigError: where the fields cannot be.
    """

    steps: int = 1000  # updates of the parameters
    report_every: int = 100  # steps fused into one program between two validations
    batch_size: int = 32  # examples per step
    accumulate: int = 1  # microbatches per step: their gradients are averaged before the update
    learning_rate: float = 3e-3  # the peak; a study tunes it
    warmup: float = 0.1  # share of the steps
    decay: Literal["linear", "cosine", "wsd", "constant"] = "linear"  # all but constant: to zero
    cooldown: float = 0.2  # share of the steps of the decay, if wsd: warm-up, stable, decay
    weight_decay: float = 0.01  # a step, times the learning rate
    clip_norm: float = 1.0  # of the gradient of all parameters together, at most
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.98  # decay of the mean of their squares

    def __post_init__(self):
        settle(self)
        require_positive(self, "steps", "report_every", "batch_size", "learning_rate", "clip_norm")
        require_positive(self, "accumulate")
        require_32_bits(self)
        require_range(self, "warmup", 0.0, 1.0)
        for name in ("beta1", "beta2"):
            require_range(self, name, 0.0, 1.0)
        require_range(self, "weight_decay", 0.0, float("inf"))
        if self.warmup_steps >= self.steps:
            allowed = f"must leave one of the {self.steps} steps to come after it"
            raise ConfigError("warmup", self.warmup, allowed)
        require_range(self, "cooldown", 0.0, 1.0)
        least = 1 if self.decay == "wsd" else 0
        if not least <= self.cooldown_steps <= self.steps - self.warmup_steps:
            allowed = "of the steps, must be one step at least and leave the warm-up its own"
            raise ConfigError("cooldown", self.cooldown, allowed)
        if self.steps % self.report_every:
            allowed = f"must be a multiple of report_every = {self.report_every}"
            raise ConfigError("steps", self.steps, allowed)
        if self.batch_size % self.accumulate:
            allowed = f"must divide batch_size = {self.batch_size}"
            raise ConfigError("accumulate", self.accumulate, allowed)

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup * self.steps)

    @property
    def cooldown_steps(self) -> int:
        """Of the decay, if that is wsd; else 0."""
        return round(self.cooldown * self.steps) if self.decay == "wsd" else 0


# Not checked at run time: JAX and Orbax make states of stacked arrays, of specs and of nothing.
@no_type_check
@flax.struct.dataclass
class TrainState:
    """One run. Everything is an array, so that states stack, shard and save as they are."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]
    seed: UInt32[Array, ""]
    learning_rate: Float[Array, ""]
    diverged: Bool[Array, ""]  # whether any training loss so far was not finite


def purpose_key(seed: Integer[Array, ""] | int, purpose: Purpose) -> PRNGKeyArray:
    """The key of a seed for one purpose, so that no two uses of randomness share a stream."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


MODEL_INPUTS = ("inputs", "valid", "documents", "read", "source", "source_valid")


def model_inputs(batch: dict) -> dict:
    """The part of a batch that the model sees.

    Raises:
      ConfigError: if a mask has the name of former versions, which would go unseen.
    """
    if "padding" in batch:
        raise ConfigError("batch", "padding", "the mask of real tokens is called valid")
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def make_optimizer(
    config: TrainConfig, frozen: tuple[str, ...], moments: OptimizerLayout = "joined"
) -> optax.GradientTransformation:
    """AdamW of learning rate 1: `train_step` multiplies by the state's rate and the schedule.

    With `joined` moments, clipping and Adam see all parameters as one vector: a small model's
    thirty leaves would cost a fifth more time a step, and as much again to compile. On a mesh one
    vector would gather every parameter onto every device: moments `by_leaf` are cut as they are.
    """
    adam = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2),
    )
    decay = optax.add_decayed_weights(config.weight_decay, lambda tree: decay_mask(tree, frozen))
    return optax.chain(optax.flatten(adam) if moments == "joined" else adam, decay)


def decay_mask(params: Any, frozen: tuple[str, ...]) -> Any:
    """Which leaves decay: kernels, unless frozen; no embeddings, scales, biases or norms."""

    def decays(path, _leaf) -> bool:
        names = [entry.key for entry in path]
        of_attention = len(names) > 2 and names[-3] in ("attention", "cross_attention")
        is_frozen = of_attention and names[-2] in frozen
        return names[-1] == "kernel" and not is_frozen

    return jax.tree_util.tree_map_with_path(decays, params)


def rate_schedule(config: TrainConfig) -> optax.Schedule:
    """The factor on the learning rate: 0 to 1 over the warm-up, then down to 0.

    wsd stays at 1 first and then falls as 1 - sqrt(share of the cooldown), which ended lower than a
    straight line did (Haegele et al. 2024, arXiv:2405.18392).
    """
    warmup, cooldown = config.warmup_steps, config.cooldown_steps
    rest = config.steps - warmup
    decays = {
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "wsd": lambda step: 1 - jnp.sqrt(jnp.clip((step - rest + cooldown) / cooldown, 0.0, 1.0)),
        "constant": optax.constant_schedule(1.0),
    }
    # One step ahead, so that neither the first nor the last step is wasted on a rate of zero.
    rise = optax.linear_schedule(1 / (warmup + 1), 1.0, warmup)
    return optax.join_schedules([rise, decays[config.decay]], [warmup])
