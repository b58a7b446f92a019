"""What a survey looks at: a model with real inputs, its untrained twin, and its past if any."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax import arguments
from qkv_jax.analysis.layers import Layer, layer_weights
from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import Pretrained, load_pretrained
from qkv_jax.interop.pretrained import batches as text_batches
from qkv_jax.model.encoder import Encoder
from qkv_jax.survey.activations import InputBatch, batch_size
from qkv_jax.tasks.base import Task
from qkv_jax.tasks.text.packing import first_alone

# Of the tokens of some texts, as shares: beyond the first unknown tokens are warned of, beyond the
# second nothing is measured.
_MUCH_UNKNOWN, _MOST_UNKNOWN = 0.05, 0.5


class Subject(NamedTuple):
    """A model to be surveyed.

    Attributes:
      name: which model, in a few words.
      inputs: on what, in a few words.
      batches: the inputs in batches.
      untrained: variables to compare with, and `untrained_is`, in words; None where the model is
        itself untrained, or none was asked for.
      past: the layers by step, of a run with several checkpoints.
      note: how far the inputs suit the model, in a sentence; empty where they are its own.
    """

    name: str
    inputs: str
    encoder: Encoder
    variables: dict[str, Any]
    batches: list[InputBatch]
    untrained: dict[str, Any] | None
    untrained_is: str
    past: dict[int, tuple[Layer, ...]]
    note: str = ""


def of_run(folder: pathlib.Path, step: int | None, most: int) -> Subject:
    """A run of `experiments.train` at a step, the last by default.

    Raises:
      ConfigError: if the folder holds no such checkpoint, or one that cannot be read.
    """
    from qkv_jax.training import checkpoint  # with Orbax, which takes a second

    folder = arguments.path("run", folder)
    arguments.whole("most", most, 1)
    step = None if step is None else arguments.whole("step", step)
    known = checkpoint.run_steps(folder)
    step = known[-1] if step is None else step
    if step not in known:
        raise ConfigError("step", step, f"checkpoints there: {', '.join(map(str, known))}")
    task = checkpoint.encoder_trainer(folder).task
    models = {s: checkpoint.load_run(folder, s) for s in known if s <= step}
    encoder, variables = models[step]
    past = {s: layer_weights(*model) for s, model in models.items()} if len(models) > 1 else {}
    start = models[known[0]][1] if step > known[0] else None
    name = f"{folder} at step {step}: {about(encoder)}, {task.title.lower()}"
    batches, inputs = task_batches(encoder, task, most)
    untrained_is = f"the same run at step {known[0]}"
    return Subject(name, inputs, encoder, variables, batches, start, untrained_is, past)


def of_pretrained(
    folder: pathlib.Path, texts: Mapping[str, str], seed: int | None, allow_unknown: bool = False
) -> Subject:
    """A Hugging Face folder on some texts, each named by where it stands.

    Args:
      seed: of the untrained model that it is compared with; None for none.
      allow_unknown: also texts of which more than half is unknown to the tokenizer.

    Raises:
      ConfigError: if the folder or a text is refused.
    """
    if seed is not None:
        arguments.whole("seed", seed, most=2**32 - 1)
    arguments.truth("allow_unknown", allow_unknown)
    if not isinstance(texts, Mapping) or not texts:
        raise ConfigError("texts", texts, "must be texts by their names")
    model = load_pretrained(folder)
    batches, unknown = _of_texts(model, texts)
    if unknown > _MOST_UNKNOWN and not allow_unknown:
        what = f"{_unknown(unknown)}; allow_unknown measures them all the same"
        raise ConfigError("texts", f"{len(texts)} texts", what)
    encoder = model.encoder
    fresh, untrained_is = None, ""
    if seed is not None:
        fresh = jax.jit(encoder.init)(jax.random.key(seed), batches[0].inputs[:1])
        untrained_is = f"the same architecture with fresh weights of seed {seed}, embeddings too"
    name = f"{folder} ({model.kind}): {about(encoder)}"
    note = f"{_unknown(unknown)}."
    if unknown > _MUCH_UNKNOWN:
        note = f"Warning: {note} Does the tokenizer suit these texts?"
    return Subject(
        name,
        f"{len(texts)} texts",
        encoder,
        model.variables,
        batches,
        fresh,
        untrained_is,
        {},
        note,
    )


def about(encoder: Encoder) -> str:
    """The sizes of an encoder and its tie."""
    config = arguments.instance("encoder", encoder, Encoder).config
    ties = list(dict.fromkeys(map(str, config.ties)))
    layers = f"{config.layers} layer{'s' * (config.layers > 1)}"
    heads = f"{config.heads} head{'s' * (config.heads > 1)} of {config.head_width}"
    return f"{layers}, width {config.width}, {heads}, tie {' | '.join(ties)}"


def task_batches(encoder: Encoder, task: Task, most: int) -> tuple[list[InputBatch], str]:
    """Validation examples of a task, evenly spaced, and what they are in words.

    Raises:
      ConfigError: if the task's data cannot be read.
    """
    arguments.instance("encoder", encoder, Encoder)
    arguments.instance("task", task, Task)
    arguments.whole("most", most, 1)
    try:
        data = task.load().validation
    except ConfigError as error:
        raise error.under("task.options") from None
    total = len(data["inputs"])
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))
    size = batch_size(encoder, encoder.max_length)
    batches = []
    for start in range(0, len(chosen), size):
        rows = chosen[start : start + size]
        # All batches have one size, so that one program runs them.
        filled = np.pad(rows, (0, min(size, len(chosen)) - len(rows)), mode="edge")
        some = first_alone({
            name: jnp.asarray(np.asarray(data[name])[filled])
            for name in ("inputs", "valid", "read", "documents")
            if name in data
        })  # fmt: skip
        batches.append(InputBatch(count=len(rows), **some))
    of_each = ", the first document of each" if "documents" in data else ""
    return batches, f"{len(chosen)} validation examples{of_each}"


def _unknown(share: float) -> str:
    return f"{100 * share:.1f} % of the tokens are unknown to the model's tokenizer"


def _of_texts(model: Pretrained, texts: Mapping[str, str]) -> tuple[list[InputBatch], float]:
    """The texts in batches, and the share of unknown tokens."""
    names = list(texts)
    try:
        tokens = model.reader.tokens(list(texts.values()))
        size = batch_size(model.encoder, max(map(len, tokens)))
        found = list(text_batches(model, list(texts.values()), size=size))
    except ConfigError as error:
        if error.field.startswith("text "):
            place = names[int(error.field.split()[1])]
            raise ConfigError("texts", error.given, f"{place} {error.allowed}") from None
        raise
    batches = [InputBatch(batch.inputs, len(batch.rows), batch.valid) for batch in found]
    return batches, model.reader.unknown_share(tokens)
