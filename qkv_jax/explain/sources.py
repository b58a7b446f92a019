"""The three kinds of model that are walked, each with a text or an example of its own tokens."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from qkv_jax import arguments
from qkv_jax.analysis.layers import Layer, layer_weights
from qkv_jax.config import ConfigError
from qkv_jax.explain import examples
from qkv_jax.explain.walk import Trace, walk_through
from qkv_jax.interop.pretrained import load_pretrained
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks.base import Task
from qkv_jax.tie import Tie


class Walks(NamedTuple):
    """Walks of one example.

    Attributes:
      about: a sentence or two on what is walked.
      start: the layer before training, for a run that has kept it.
    """

    about: str
    walks: list[Trace]
    start: Layer | None = None


def random_walks(
    text: str, ties: Sequence[Tie], *, width: int, heads: int, positions: str, seed: int
) -> Walks:
    """Words through a layer at its random start, under one tie after the other.

    Raises:
      ConfigError: for sizes that cannot be, and for no words or too many.
    """
    example = examples.words_of(text)
    if not isinstance(ties, list | tuple) or not ties:
        raise ConfigError("tie", ties, "must be a list of ties")
    for tie in ties:
        arguments.instance("tie", tie, Tie)
    arguments.whole("seed", seed, most=2**32 - 1)
    sizes = {"width": width, "heads": heads, "positions": positions}
    walks = []
    for tie in ties:
        config = ModelConfig(tie=str(tie), layers=1, mlp_width=width, **sizes)
        model = examples.random_layer(config, seed)
        walks.append(walk_through(*model, example.inputs, example.tokens, name=_name(tie)))
    about = (
        f"“{text}” through one layer of attention that nobody has trained: seed {seed}, width "
        f"{width}, {_plural(heads, 'head')} of {width // heads}, positions {positions}. "
        f"Tie (which of X, Q, K and V are made one): {'; '.join(map(_name, ties))}."
    )
    if positions == "relative":
        about += " The relative bias, zero in a new layer, is drawn at random."
    return Walks(about, walks)


def run_walks(
    folder: pathlib.Path,
    steps: Sequence[int],
    *,
    layer: int,
    text: str | None,
    example: int | None,
) -> Walks:
    """A text, or a validation example, through a layer of a run at some steps of its training.

    Args:
      steps: by default the last that has a checkpoint.
      text: for tasks of text; by default "the cat sat".
      example: which validation example, in place of a text; the first where the task has no texts.

    Raises:
      ConfigError: for a folder that is no run or is damaged, and for what it does not have.
    """
    from qkv_jax.training import checkpoint  # with Orbax, which takes a second

    folder = arguments.path("run", folder)
    if not isinstance(steps, list | tuple):
        raise ConfigError("steps", steps, "must be a list of steps")
    known = checkpoint.run_steps(folder)
    for step in steps:
        if arguments.whole("steps", step) not in known:
            raise ConfigError("steps", step, f"checkpoints there: {', '.join(map(str, known))}")
    steps, task = steps or known[-1:], checkpoint.encoder_trainer(folder).task
    chosen, what = _example_of(task, text, example)
    models = {s: checkpoint.load_run(folder, s) for s in {*steps, 0} & {*known}}
    config = models[steps[0]][0].config
    _check_layer(layer, config.layers)
    walks = [
        walk_through(*models[step], *chosen[:2], name=f"step {step}", layer=layer,
                     valid=chosen.valid, documents=chosen.documents)
        for step in steps
    ]  # fmt: skip
    about = (
        f"{what} through layer {layer} (of 0 to {config.layers - 1}) of the model in {folder}: "
        f"{task.title}, tie {walks[0].tie}, positions {config.positions}, "
        f"step {', '.join(map(str, steps))}."
    )
    return Walks(about, walks, layer_weights(*models[0])[layer] if 0 in models else None)


def pretrained_walk(folder: str, *, layer: int, text: str) -> Walks:
    """A text through a layer of a pretrained model, in the tokens of its own tokenizer.

    Raises:
      ConfigError: for a folder that is not understood, and for what the model does not read.
    """
    model = load_pretrained(folder)
    config = model.encoder.config
    _check_layer(layer, config.layers)
    example = examples.pretrained_example(model, text)
    walk = walk_through(
        model.encoder, model.variables, *example[:2], layer=layer,
        name=model.kind,
    )  # fmt: skip
    about = (
        f"“{text}” through layer {layer} (of 0 to {config.layers - 1}) of the model in {folder}: "
        f"{walk.name}, tie {walk.tie}, width {config.width}, {_plural(config.heads, 'head')}."
    )
    return Walks(about, [walk])


def _example_of(task: Task, text: str | None, number: int | None) -> tuple[examples.Example, str]:
    """An example, and what to call it."""
    if examples.is_text(task) and number is None:
        text = examples.TEXT if text is None else text
        return examples.text_example(task, text), f"“{text}”"
    if text is not None and not examples.is_text(task):
        allowed = f"the run's task, {task.title}, is not of text; name an example"
        raise ConfigError("text", text, allowed)
    number = 0 if number is None else number
    return examples.task_example(task, number), f"Validation example {number}"


def _check_layer(layer: int, layers: int) -> None:
    if arguments.whole("layer", layer) >= layers:
        raise ConfigError("layer", layer, f"the model has layers 0 to {layers - 1}")


def _name(tie: Tie) -> str:
    return "copies" if tie == Tie.all()[-1] else str(tie)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"
