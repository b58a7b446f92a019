"""THE train step, and the three programs of a run made of it: init, train, evaluate."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, settle, shown
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.seq2seq import Model
from qkv_jax.tasks import Batch, Task
from qkv_jax.training.state import (
    OptimizerLayout,
    TrainConfig,
    TrainState,
    make_optimizer,
    model_inputs,
    purpose_key,
    rate_schedule,
)

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A model, a task and how the one is trained on the other: pure functions of a run's state.

    They run as they are under jit, vmap, pmap and on a mesh. Two arms with equal fields are the
    same program.
    """

    model_config: ModelConfig
    task: Task
    train_config: TrainConfig
    moments: OptimizerLayout = "joined"

    def __post_init__(self):
        settle(self)

    def check_platform(self, platform: str | None = None) -> None:
        """Refuses a model that a platform (`cpu`, `gpu`, `tpu`; by default the one of this process)
        cannot compute, before anything is traced or written.

        Raises:
          ConfigError: naming the field of the model.
        """
        try:
            self.model_config.check_platform(platform or jax.default_backend())
        except ConfigError as error:
            raise error.under("model") from None

    @functools.cached_property
    def model(self) -> Model:
        return self.task.encoder(self.model_config)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.train_config, self.model_config.frozen_leaves, self.moments)

    def init(
        self, seed: Array | int, learning_rate: Array | float, salt: Array | int = 0
    ) -> TrainState:
        """The state before the first step."""
        _require_scalar("learning_rate", learning_rate, "real")
        return self.start(self.init_params(seed, salt), seed, learning_rate)

    def start(
        self, params: Any, seed: Array | int, learning_rate: Array | float
    ) -> TrainState:
        """The state before the first step from such parameters."""
        return TrainState(
            params=params,
            opt_state=self.optimizer.init(params),
            step=jnp.int32(0),
            seed=jnp.asarray(seed, jnp.uint32),
            learning_rate=jnp.asarray(learning_rate, jnp.float32),
            diverged=jnp.bool_(False),
        )

    def init_params(self, seed: Array | int, salt: Array | int = 0) -> Any:
        """Initial parameters: each depends on (seed, salt, its path) only, since Linen folds the
        path into the key; so what two ties have in common starts equal to the bit.

        Any salt but 0 gives another draw of the same seed: the placebo's only difference.
        """
        _require_scalar("seed", seed, "int")
        _require_scalar("salt", salt, "int")
        key = purpose_key(seed, "init")
        key = jnp.where(salt == 0, key, jax.random.fold_in(key, salt))
        return self.model.init(key, **self.task.example())["params"]

    def train_step(
        self, state: TrainState, batch: Batch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update. With `axis_name`, gradients are averaged over that axis of devices."""
        arguments.instance("state", state, TrainState)
        key = jax.random.fold_in(purpose_key(state.seed, "dropout"), state.step)
        if axis_name is not None:  # other rows, other units to drop
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        loss, gradients = self.gradients(state.params, batch, key)
        if axis_name is not None:
            loss, gradients = jax.lax.pmean((loss, gradients), axis_name)
        with jax.numpy_dtype_promotion("standard"):  # Optax calculates with numbers of steps
            updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
            rate = state.learning_rate * rate_schedule(self.train_config)(state.step)
        return state.replace(
            params=jax.tree.map(lambda p, u: p - rate * u, state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            diverged=state.diverged | ~jnp.isfinite(loss),
        ), {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    def gradients(self, params: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Any]:
        """Mean loss of a batch and its gradients, microbatch by microbatch if `accumulate` asks."""
        _require_batch(batch)

        def mean_loss(params, batch, key):
            apply = functools.partial(self.model.apply, train=True, rngs={"dropout": key})
            return self.task.loss(apply({"params": params}, **model_inputs(batch)), batch).mean()

        parts = self.train_config.accumulate
        if parts == 1:
            return jax.value_and_grad(mean_loss)(params, batch, key)

        def add(sums, part):
            found = jax.value_and_grad(mean_loss)(params, *part)
            return jax.tree.map(jnp.add, sums, found), None

        # Every `parts`-th row: a device that holds neighbouring rows has its share of each part.
        cut = lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)
        microbatches = jax.tree.map(cut, batch), jax.random.split(key, parts)
        zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
        sums, _ = jax.lax.scan(add, zeros, microbatches)
        return jax.tree.map(lambda total: total / parts, sums)

    def schedule(self, seed: Array, step: Array, train: Any) -> Any:
        """The entries of the next `report_every` batches: a tree with that leading axis. `train` is
        that of the task's data.

        A program of its own: it depends on seed and step only, so all arms of a task share it, and
        random draws take longer to compile than a small model.
        """
        _require_scalar("seed", seed, "int")
        _require_scalar("step", step, "int")
        key, config = purpose_key(seed, "data"), self.train_config
        return self.task.schedule(train, key, step, config.report_every, config.batch_size)

    def train(
        self,
        state: TrainState,
        schedule: Any,
        train: Any,
        *,
        axis_name: str | None = None,
        place: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> tuple[TrainState, Metrics]:
        """The steps of a schedule as one scan; metrics are their means, and whether it diverged.

        `place` says what becomes of a batch on several devices: their share, or its layout.
        """

        def step(state, entry):
            batch = place(self.task.batch(train, entry))
            return self.train_step(state, batch, axis_name=axis_name)

        state, metrics = jax.lax.scan(step, state, schedule)
        return state, jax.tree.map(jnp.mean, metrics) | {"diverged": state.diverged}

    def evaluate(self, params: Any, batch: Batch) -> Float[Array, " B"]:
        """The outcome's metric of every example of a batch."""
        _require_batch(batch)
        logits = self.model.apply({"params": params}, **model_inputs(batch))
        return self.task.score(logits, batch)


def _require_scalar(name: str, value: Any, kind: Literal["int", "real"]) -> None:
    """Refuses what is no number of the kind, as Python's or as an array without axes; and whole
    numbers of Python's that no seed or step can be."""
    if hasattr(value, "dtype"):
        require_array(name, value, "", kind, {})
    elif kind == "int":
        arguments.whole(name, value, most=2**32 - 1)
    else:
        arguments.number(name, value)


def _require_batch(batch: Any) -> None:
    """Refuses what is no mapping with inputs and targets."""
    if not isinstance(batch, Mapping) or not {"inputs", "targets"} <= {*batch}:
        given = list(batch) if isinstance(batch, Mapping) else shown(batch)
        raise ConfigError("batch", given, "must be a mapping with inputs and targets")
