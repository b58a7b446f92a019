"""What a model loses to a tie that is imposed on it, and what further training gives back.

A `EditedModel` is a model with a way to measure it and a way to train it on: a run of
`experiments.train` is measured by its task's test metric and trained on its task; a pretrained
model by how far its last hidden states and its sentence embeddings move from what they were, and
trained to give back the original's hidden states (distillation) on other texts; a pretrained
decoder by how well it foretells the next token, which it is trained on as well.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax import arguments
from qkv_jax.analysis.layers import Layer, layer_weights
from qkv_jax.config import ConfigError
from qkv_jax.model.encoder import Encoder
from qkv_jax.surgery.distillation import Distillation, NextToken, apply, token_losses
from qkv_jax.surgery.fit import InputMoments
from qkv_jax.surgery.impose import METHODS, check, impose, spread, tied
from qkv_jax.surgery.rotary import Turns
from qkv_jax.surgery.scores import Metric, Scores, value
from qkv_jax.survey.activations import InputBatch, gather
from qkv_jax.survey.subjects import of_pretrained, task_batches
from qkv_jax.tasks.base import eval_blocks
from qkv_jax.tasks.sources import Stamp
from qkv_jax.tie import Tie
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.step import Trainer

EXAMPLES = 256  # of a task, from which the moments of the layers' inputs are taken
_TOKENS = 20_000
Variables = dict[str, Any]


class EditedModel(NamedTuple):
    """A model before surgery.

    Attributes:
      name: which model, in a few words.
      metrics: what is measured, the first being the one that is drawn.
      score: (encoder, variables) -> the scores of each metric, example by example.
      train_on: (encoder, variables, steps) -> variables, and the learning rate that they had.
      layers, moments: the matrices of every layer, and the moments of its inputs.
      has_control: whether the original can be trained on as well. What is distilled from it has
        nothing to teach it: Adam would only blow up the rounding of a gradient of zero.
      note: how far the texts suit a pretrained model, in a sentence.
      length: of the longest sequences, which says how far tokens that see each other are apart; by
        default all that the encoder takes.
    """

    name: str
    encoder: Encoder
    variables: Variables
    metrics: tuple[Metric, ...]
    score: Callable[[Encoder, Variables], tuple[Scores, ...]]
    train_on: Callable[[Encoder, Variables, int], tuple[Variables, float]]
    layers: tuple[Layer, ...]
    moments: tuple[InputMoments, ...]
    has_control: bool
    note: str = ""
    length: int | None = None

    def edits(self, tie: Tie, method: str, numbers: Sequence[int]) -> dict[int, Layer]:
        """The layers of those numbers under the tie."""
        config = self.encoder.config
        if not isinstance(numbers, list | tuple | range):
            raise ConfigError("numbers", numbers, "must be a list of layers")
        for number in numbers:
            arguments.whole("numbers", number, 0, config.layers - 1)
        arguments.word("method", method, METHODS)
        check(self.encoder, arguments.instance("tie", tie, Tie), (method,))
        rotary = config.positions == "rotary"
        length = self.encoder.max_length if self.length is None else self.length
        sizes = (length, config.head_width, config.rotary_base, self.encoder.is_causal)
        turns = Turns.of(*sizes) if rotary else None
        whole = {"kv_heads": config.kv_heads, "turns": turns}
        return {n: impose(self.layers[n], tie, method, self.moments[n], **whole) for n in numbers}

    def measure(self, encoder: Encoder, variables: Variables) -> tuple[float, ...]:
        """The metrics of a model on the examples of this one."""
        return self._values(self.score(encoder, variables))

    def damage(self, edits: Mapping[int, Layer]) -> tuple[float, ...]:
        """The metrics of the model with these layers in place of its own."""
        return self._values(self.score_edited(edits))

    def score_edited(self, edits: Mapping[int, Layer]) -> tuple[Scores, ...]:
        """The same, example by example."""
        if not isinstance(edits, Mapping):
            raise ConfigError("edits", edits, "must be layers by their numbers")
        every = dict(enumerate(self.layers)) | dict(edits)
        return self.score(*spread(self.encoder, self.variables, every))

    def _values(self, scores: tuple[Scores, ...]) -> tuple[float, ...]:
        return tuple(map(value, self.metrics, scores))

    def recover(self, edits: Mapping[int, Layer], steps: int):
        """The model with the tie, trained on: (encoder, variables). Without edits, the control."""
        return self.recover_at_rate(edits, steps)[:2]

    def recover_at_rate(self, edits: Mapping[int, Layer], steps: int):
        """The same, with the learning rate it was trained at; None without steps."""
        encoder, variables = tied(self.encoder, self.variables, edits)
        if not arguments.whole("steps", steps):
            return encoder, variables, None
        return encoder, *self.train_on(encoder, variables, steps)


def model_of_run(folder: pathlib.Path, learning_rate: float, seed: int = 0) -> EditedModel:
    """The last model of a run of `experiments.train`.

    Raises:
      ConfigError: if the folder holds none.
    """
    from qkv_jax.training import checkpoint

    folder = arguments.path("run", folder)
    arguments.whole("seed", seed, most=2**32 - 1)
    _check_rate(learning_rate)
    step = checkpoint.run_steps(folder)[-1]
    encoder, variables = checkpoint.load_run(folder, step)
    trainer = checkpoint.encoder_trainer(folder)
    data, outcome = trainer.task.load(), trainer.task.outcome
    batches, _ = task_batches(encoder, trainer.task, EXAMPLES)

    def score(changed: Encoder, params: Variables) -> tuple[Scores, ...]:
        evaluate = _evaluate(_with(trainer, changed), trainer.task.stamp())
        blocks = eval_blocks(data.test)
        scores = [np.asarray(evaluate(params["params"], block)) for block in blocks]
        return (Scores.means(np.concatenate(scores)),)

    def train_on(changed: Encoder, params: Variables, steps: int) -> tuple[Variables, float]:
        # As many steps per program as divide `steps`: it is `steps` that the table says.
        most = min(steps, trainer.train_config.report_every)
        every = next(n for n in range(most, 0, -1) if steps % n == 0)
        config = dataclasses.replace(
            trainer.train_config, steps=steps, report_every=every, learning_rate=learning_rate
        )
        again = dataclasses.replace(_with(trainer, changed), train_config=config)
        program = LoneProgram(again, data)
        start = jax.tree.map(jnp.array, params["params"])  # a copy: the program uses it up
        opt_state = again.optimizer.init(start)
        state = program.start(seed).replace(params=start, opt_state=opt_state)
        stream = program.stream(seed)
        for _ in range(0, steps, every):
            state, _ = program.advance(state, stream)
        return {"params": state.params}, learning_rate

    return EditedModel(
        f"{folder} at step {step}, {trainer.task.title.lower()}", encoder, variables,
        (Metric(f"test {outcome.metric}", outcome.higher_is_better),), score, train_on,
        layer_weights(encoder, variables), _moments(encoder, variables, batches), has_control=True,
    )  # fmt: skip


def model_of_pretrained(
    folder: pathlib.Path, texts: Mapping[str, str], learning_rate: float | None,
    allow_unknown: bool = False,
) -> EditedModel:  # fmt: skip
    """A pretrained model of texts, encoder or decoder. Every other text is for measuring; the rest
    are for the moments and for training.

    Args:
      learning_rate: of further training; None chooses one, see `distillation`.
      allow_unknown: also texts of which more than half is unknown to the tokenizer.

    Raises:
      ConfigError: if the folder or a text is refused.
    """
    if learning_rate is not None:
        _check_rate(learning_rate)
    if not isinstance(texts, Mapping) or len(texts) < 2:
        raise ConfigError("texts", texts, "must be two texts at least, by names")
    names = list(texts)
    ours, others = ({n: texts[n] for n in names[start::2]} for start in (0, 1))
    subject, held_out = (
        of_pretrained(folder, some, None, allow_unknown) for some in (ours, others)
    )
    encoder, variables = subject.encoder, subject.variables
    if encoder.classes and not encoder.is_causal:
        what = "reads out classes, and is measured by hidden states here; edit its run, by --run"
        raise ConfigError("pretrained", str(folder), what)
    length = max(batch.inputs.shape[1] for batch in subject.batches)
    name = f"{subject.name}, {len(others)} held-out texts"
    if encoder.is_causal:
        metrics = (Metric("loss, nats per token", False),)
        _check_pairs(held_out.batches)
        _check_pairs(subject.batches)
        taught = NextToken(subject.batches)
        score = lambda changed, params: (_next_tokens(changed, params, held_out.batches),)
        return EditedModel(
            name, encoder, variables, metrics, score, _trained(taught, learning_rate),
            layer_weights(encoder, variables), _moments(encoder, variables, subject.batches),
            has_control=True, note=held_out.note, length=length,
        )  # fmt: skip
    targets = [_hidden(encoder, variables, batch) for batch in held_out.batches]

    def score(changed: Encoder, params: Variables) -> tuple[Scores, ...]:
        gone, size, cosines = [], [], []
        for batch, then in zip(held_out.batches, targets, strict=True):
            now, seen = _hidden(changed, params, batch), np.asarray(batch.valid)[: batch.count]
            here = seen[:, :, None]
            gone.append(np.sum(np.square(now - then), axis=(1, 2), where=here))
            size.append(np.sum(np.square(then), axis=(1, 2), where=here))
            pooled = [(a * here).sum(1) for a in (now, then)]
            lengths = np.prod([np.linalg.norm(a, axis=1) for a in pooled], axis=0)
            cosines.append(np.sum(pooled[0] * pooled[1], axis=1) / lengths)
        moved = (np.concatenate(part).astype(np.float64) for part in (gone, size))
        return Scores(*moved), Scores.means(np.concatenate(cosines))

    def train_on(changed: Encoder, params: Variables, steps: int) -> tuple[Variables, float]:
        taught = Distillation(encoder, variables, subject.batches)
        return _trained(taught, learning_rate)(changed, params, steps)

    return EditedModel(
        name, encoder, variables,
        (
            Metric("change of hidden states", False, perfect=0.0, root=True),
            Metric("cosine of embeddings", True, perfect=1.0),
        ), score, train_on, layer_weights(encoder, variables),
        _moments(encoder, variables, subject.batches),
        has_control=False, note=held_out.note, length=length,
    )  # fmt: skip


def _trained(taught: Distillation, learning_rate: float | None) -> Callable:
    """`EditedModel.train_on` at that rate, or at the best of a few."""

    def train_on(changed: Encoder, params: Variables, steps: int) -> tuple[Variables, float]:
        if learning_rate is None:
            return taught.train_at_best_rate(changed, params, steps)
        return taught.train(changed, params, steps, learning_rate), learning_rate

    return train_on


def _check_pairs(batches: Sequence[InputBatch]) -> None:
    if not any(np.asarray(batch.valid)[:, 1:].any() for batch in batches):
        allowed = "must be of two tokens at least, of which the second can be foretold"
        raise ConfigError("texts", f"{len(batches)} batches", allowed)


def _check_rate(rate: float) -> None:
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and 0 < rate < float("inf")):
        allowed = "must be a finite number above 0"
        raise ConfigError("learning_rate", rate, allowed)


def _with(trainer: Trainer, encoder: Encoder) -> Trainer:
    return dataclasses.replace(trainer, model_config=encoder.config)


@functools.lru_cache(maxsize=8)
def _evaluate(trainer: Trainer, changed: Stamp) -> Callable:
    return jax.jit(trainer.evaluate)


def _next_tokens(
    encoder: Encoder, variables: Variables, batches: Sequence[InputBatch]
) -> Scores:
    """The losses of each text's tokens that have one before them, and how many they are."""
    losses = lambda b: token_losses(encoder, variables, b.inputs, b.valid, b.inputs, b.valid)
    found = [np.stack(losses(batch))[:, : batch.count] for batch in batches]
    return Scores(*np.concatenate(found, axis=1).astype(np.float64))


def _hidden(encoder: Encoder, variables: Variables, batch: InputBatch) -> np.ndarray:
    return np.asarray(apply(encoder, variables, batch.inputs, batch.valid))[: batch.count]


def _moments(
    encoder: Encoder, variables: Variables, batches: Sequence[InputBatch]
) -> tuple[InputMoments, ...]:
    flows = gather(encoder, variables, batches, np.random.default_rng(0), _TOKENS)
    return tuple(InputMoments.of(flow.x) for flow in flows)
