"""What an arm costs: parameters, FLOPs, cache; and arms widened until they cost the same.

Parameters are counted on the model's own tree. FLOPs are those of the matrix products of one
forward pass (two per multiply-add), read off the traced program, so that whatever a scheme or a
task adds is counted without a formula of its own; the rest is small change.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from qkv_jax.config import ConfigError
from qkv_jax.model.blocks import Block, attention_of
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.seq2seq import Seq2Seq
from qkv_jax.tasks import Task
from qkv_jax.tasks.sources import Stamp
from qkv_jax.tie import Tie
from qkv_jax.training.state import model_inputs
from qkv_jax.training.step import Trainer

Match = Literal["none", "params", "flops"]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one arm; a token is one position of the sequence that the encoder sees.

    Of an encoder-decoder it is one of the target: its FLOPs include those for the source, its cache
    bytes leave out what is kept of the source, which does not grow with the target.
    """

    params: int
    attention_params: int
    flops_per_token: float
    kv_cache_bytes_per_token: int


def measure(trainer: Trainer) -> Costs:
    """The costs of a trainer's model on its task's sequences."""
    model, tree = trainer.model_config, _shapes(trainer, trainer.task.stamp())
    parts = ("attention", "cross_attention")  # copies may have none
    attention = sum(_count(layer.get(p, {})) for layer in _layers(trainer) for p in parts)
    return Costs(
        params=_count(tree),
        attention_params=attention,
        flops_per_token=flops_per_token(trainer),
        kv_cache_bytes_per_token=_cached_numbers(model) * jnp.dtype(model.dtype).itemsize,
    )


def flops_per_token(trainer: Trainer) -> float:
    """Forward FLOPs per token of the whole model."""
    task = trainer.task
    return _layer_flops(trainer) + _outer_flops(task, trainer.model_config.width, task.stamp())


def step_flops(trainer: Trainer) -> float:
    """FLOPs of the matrix products of one training step: the forward pass, and twice as many
    backwards, since each product has a gradient for either factor."""
    tokens = trainer.task.max_length * trainer.train_config.batch_size
    return 3 * tokens * flops_per_token(trainer)


def non_embedding_params(trainer: Trainer) -> int:
    """Parameters of the layers: what matching goes by."""
    return sum(map(_count, _layers(trainer)))


def match(
    trainer: Trainer, baseline: Trainer, what: Literal["params", "flops"]
) -> tuple[Trainer, float]:
    """The trainer with its model's MLP alone widened to cost what the baseline does.

    Returns:
      the widened trainer (the same one, if it is no cheaper) and the relative difference left,
      which one unit of MLP width bounds.

    Raises:
      ConfigError: for blocks without an MLP.
    """
    if trainer.model_config.mlp == "none":
        raise ConfigError("match", what, "widens the MLP, and model.mlp is 'none'")
    cost = {"params": non_embedding_params, "flops": _layer_flops}[what]
    width = trainer.model_config.hidden
    widen = lambda units: dataclasses.replace(
        trainer, model_config=dataclasses.replace(trainer.model_config, mlp_width=units)
    )
    target, here = cost(baseline), cost(trainer)
    a_unit = cost(widen(width + 1)) - here
    extra = round((target - here) / a_unit)
    widened = widen(width + extra) if extra > 0 else trainer
    return widened, cost(widened) / target - 1


def matrix_flops(program: Jaxpr) -> int:
    """FLOPs of the matrix products of a traced program, those in loops and calls included.

    A loop of unknown length counts once, and of two branches both count.
    """
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            shared = int(np.prod([left[axis] for axis in contracted]))
            total += 2 * shared * int(np.prod(equation.outvars[0].aval.shape))
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            total += repeats * sum(matrix_flops(inner) for inner in _programs_in(value))
    return total


def _programs_in(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _programs_in(item)


def _cached_numbers(model: ModelConfig) -> int:
    """Numbers per token that decoding would keep, all layers together."""
    schemes = (attention_of(model, tie).make_scheme(model.width) for tie in model.ties)
    return sum(math.prod(shape) for s in schemes for shape in s.cache_shapes().values())


def _layer_flops(trainer: Trainer) -> float:
    """Forward FLOPs per token of the layers alone."""
    # Kernels would hide their products from the count.
    model = dataclasses.replace(trainer.model_config, implementation="einsum")
    task, changed = trainer.task, trainer.task.stamp()
    if isinstance(trainer.model, Seq2Seq):
        return _whole_flops(task, model, changed) - _outer_flops(task, model.width, changed)
    return sum(_block_flops(model, tie, trainer.task.max_length) for tie in model.ties)


@functools.lru_cache(maxsize=4096)
def _block_flops(model: ModelConfig, tie: Tie, length: int) -> float:
    """FLOPs per token of one layer on sequences of a length."""
    block = Block(model, tie)
    x = jax.ShapeDtypeStruct((1, length, model.width), model.dtype)
    init = lambda x: block.init(jax.random.key(0), x, None, train=False)
    run = lambda variables, x: block.apply(variables, x, None, train=False)
    return matrix_flops(jax.make_jaxpr(run)(jax.eval_shape(init, x), x).jaxpr) / length


@functools.lru_cache(maxsize=1024)
def _outer_flops(task: Task, width: int, changed: Stamp) -> float:
    """FLOPs per token of what surrounds the layers: stem and readout. Files may say how many
    classes there are, so the stamp of them is part of the key."""
    model = ModelConfig(layers=1, width=width, heads=1, implementation="einsum")
    total = _whole_flops(task, model, changed)
    if isinstance(task.encoder(model), Seq2Seq):
        # A second layer of each half costs what the first does.
        two_layers = _whole_flops(task, dataclasses.replace(model, layers=2), changed)
        return total - (two_layers - total)
    return total - _block_flops(model, model.ties[0], task.max_length)


@functools.lru_cache(maxsize=1024)
def _whole_flops(task: Task, model: ModelConfig, changed: Stamp) -> float:
    """FLOPs per token of a whole model."""
    module, example = task.encoder(model), model_inputs(task.example())
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), **example))
    run = lambda variables: module.apply(variables, **example)
    return matrix_flops(jax.make_jaxpr(run)(variables).jaxpr) / task.max_length


def _layers(trainer: Trainer) -> list[Any]:
    """The parameters of every layer, of both halves of an encoder-decoder."""
    tree = _shapes(trainer, trainer.task.stamp())
    halves = [tree]
    if isinstance(trainer.model, Seq2Seq):
        halves = [tree["encoder"], tree["decoder"]]
    names = [f"layer_{layer}" for layer in range(trainer.model_config.layers)]
    return [half[name] for half in halves for name in names]


@functools.lru_cache(maxsize=1024)
def _shapes(trainer: Trainer, changed: Stamp) -> Any:
    return jax.eval_shape(lambda: trainer.init_params(0))


def _count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
