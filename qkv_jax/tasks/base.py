"""What a task is: data, batches, a loss, and the outcome by which arms are compared.

A task is a frozen dataclass whose fields are its config; a new task is one file that subclasses
`Task` and is registered by name (`@register("name")`). Training batches depend on (seed, step) only
and are made inside jit; validation and test batches are the same for all arms and seeds.
"""

import abc
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from qkv_jax.config import ConfigError, registers, require_positive
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.seq2seq import Model, Seq2Seq
from qkv_jax.tasks import fingerprint
from qkv_jax.tasks.sources import Stamp, stamp
from qkv_jax.tasks.streaming import BatchStream

# A batch is a dict of arrays: `inputs` and `targets`; optionally `valid` [B, T], true at real
# tokens, `documents` [B, T], which tells texts apart that are packed into one row, and `read`
# [B, R], the places whose outputs are wanted (all, if absent); for an encoder-decoder `source`
# [B, S] and `source_valid`, `inputs` being what its decoder reads.
Batch = dict[str, Array]
HeldOut = Literal["validation", "test"]
EVAL_BLOCK = 256  # examples per call of evaluate, so that long sequences fit


class Data(NamedTuple):
    """A task's three splits, as a tree of NumPy or JAX arrays.

    Attributes:
      validation, test: batches of the whole split.
      train: whatever the task's `stream`, `schedule` and `batch` read; None where training
        examples are generated, or all of them streamed from the host.
    """

    validation: dict[str, Any]
    test: dict[str, Any]
    train: Any = None

    @property
    def held_out(self) -> dict[HeldOut, dict[str, Any]]:
        """The splits that nothing is trained on, by name."""
        return {"validation": self.validation, "test": self.test}


def eval_blocks(split: dict[str, Any], size: int = EVAL_BLOCK) -> list[dict[str, Any]]:
    """A held-out split cut into blocks of `size` examples; the last one holds what is left."""
    starts = range(0, split["targets"].shape[0], size)
    return [jax.tree.map(lambda a, s=s: a[s : s + size], split) for s in starts]


def equal_blocks(split: dict[str, Any], size: int = EVAL_BLOCK) -> list[tuple[dict[str, Any], int]]:
    """The same as NumPy arrays, each block with its number of examples: the last one is filled up
    with its last example, so that all have one shape and evaluation one trace."""
    blocks = []
    for block in eval_blocks(jax.tree.map(np.asarray, split), size):
        count = len(block["targets"])
        rows = np.minimum(np.arange(size), count - 1)
        blocks.append((jax.tree.map(lambda a, rows=rows: a[rows], block), count))
    return blocks


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How arms are compared on a task, declared before any run.

    Attributes:
      kind: `mean` compares means of the metric; `solve` the share of seeds reaching the threshold.
      metric: `loss` (nats) or `accuracy` (share of right answers).
      unit: as printed.
      margin: differences below it do not matter, in the metric's unit.
      failure_value: what a diverged or failed run counts as; mostly chance.
      threshold: the value that counts as solved; None where there is no such thing.
      chance: what a uniform guess scores; None where nobody has worked it out.
    """

    kind: Literal["mean", "solve"]
    metric: Literal["loss", "accuracy"]
    unit: str
    margin: float
    failure_value: float
    threshold: float | None = None
    chance: float | None = None

    @classmethod
    def mean_accuracy(cls, margin: float, classes: int) -> "Outcome":
        """Means of the share of right answers, of so many classes; who fails has guessed."""
        chance = 1 / classes
        return cls("mean", "accuracy", "accuracy", margin, failure_value=chance, chance=chance)

    def __post_init__(self):
        require_positive(self, "margin")
        if self.kind == "solve" and self.threshold is None:
            raise ConfigError("threshold", None, "a task whose outcome is 'solve' needs one")

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "loss"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a score can be."""
        return 0.0, math.inf if self.metric == "loss" else 1.0

    def solved(self, value: float) -> bool:
        """Whether a value reaches the threshold."""
        if self.threshold is None:
            return False
        return bool(value >= self.threshold if self.higher_is_better else value <= self.threshold)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What something else scores on a task's test data, printed beside the arms: a classical
    method, chance, a published number. `value` is in the outcome's metric."""

    name: str
    value: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """A whole number that tells test examples apart, such as the distance of what is asked for;
    reports show the metric as a function of it. `groups` has one item per example."""

    name: str
    groups: Sequence[int]


class Task(abc.ABC):
    """Subclasses are frozen dataclasses; `title` and `description` are printed in reports."""

    title: ClassVar[str]
    description: ClassVar[str]
    readout: ClassVar[str] = "token"
    is_causal: ClassVar[bool] = False  # whether no token may see those after it
    is_seq2seq: ClassVar[bool] = False  # whether a source is read into a target: an encoder-decoder

    @property
    @abc.abstractmethod
    def outcome(self) -> Outcome:
        """How arms are compared on this task."""

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """The number of possible answers; `log(classes)` is the loss of a uniform guess."""

    @property
    @abc.abstractmethod
    def max_length(self) -> int:
        """The longest sequence the stem makes, class token included."""

    @abc.abstractmethod
    def stem(self, width: int) -> nn.Module:
        """A module from `inputs` to tokens [B, T, D]."""

    @abc.abstractmethod
    def example(self) -> Batch:
        """What the model sees of one example, all zeros: for shapes, without loading data."""

    @abc.abstractmethod
    def load(self) -> Data:
        """Reads or makes the data once; NumPy or JAX arrays.

        Raises:
          ConfigError: naming the file or field that is at fault.
        """

    @abc.abstractmethod
    def schedule(
        self, train: Any, key: PRNGKeyArray, first: Int[Array, ""], steps: int, batch_size: int
    ) -> Any:
        """What tells the batches of steps `first` .. `first + steps - 1` apart: a tree of arrays
        whose leading axis is `steps`; cheap, computed once for many steps. Pure, inside jit.

        Args:
          train: of the data, as for `batch` and `stream`.
        """

    @abc.abstractmethod
    def batch(self, train: Any, entry: Any) -> Batch:
        """The training batch of one entry of the schedule. Pure, inside jit."""

    def stream(self, train: Any, seed: int, batch_size: int) -> BatchStream | None:
        """Training data that `load` left on the host, for one seed; None if `train` holds all.

        An entry of the schedule is then a dict that holds a batch of the stream as well.
        """
        return None

    def loss(self, logits: Float[Array, "B *T C"], batch: Batch) -> Float[Array, " B"]:
        """Cross-entropy of each example in nats, averaged over its answers."""
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return nats.reshape(nats.shape[0], -1).mean(-1)

    def score(self, logits: Float[Array, "B *T C"], batch: Batch) -> Float[Array, " B"]:
        """The outcome's metric of each example, averaged over its answers."""
        if self.outcome.metric == "loss":
            return self.loss(logits, batch)
        right = (logits.argmax(-1) == batch["targets"]).astype(jnp.float32)
        return right.reshape(right.shape[0], -1).mean(-1)

    def references(self, data: Data) -> tuple[Reference, ...]:
        """Numbers of other methods on the same splits, worked out from the loaded data."""
        return ()

    def also(self, value: float, data: Data) -> dict[str, float]:
        """A value of the outcome in other units, by name, such as bits per byte."""
        return {}

    def breakdown(self, test: Batch) -> Breakdown | None:
        """By what the test examples are told apart in reports, if by anything."""
        return None

    def sources(self) -> tuple[pathlib.Path, ...]:
        """The files that the data are read from, package data as well; none where they are made."""
        return ()

    def stamp(self) -> Stamp:
        """What changes when a file is changed. Tasks are compared by their fields, so a cache by
        task of what comes from its data needs this in its key."""
        return stamp(self.sources())

    def fingerprint(self, data: Data) -> dict[str, Any]:
        """What the loaded data are, as plain values: the same on every machine.

        Returns:
          `files`: size and hash of each of `sources()`; `splits`: rows and hash of what `load`
          gave of each; and, where labels have names, `classes`, in order.

        Raises:
          ConfigError: naming a file that cannot be read.
        """
        files = {fingerprint.name_of(path): fingerprint.of_file(path) for path in self.sources()}
        there = {name: split for name, split in data._asdict().items() if split is not None}
        splits = {name: fingerprint.of_split(split) for name, split in there.items()}
        return {"files": files, "splits": splits}

    def notes(self, data: Data) -> tuple[str, ...]:
        """Sentences on the data that whoever reads results should know: plans and reports print
        them. Such as which share of the test examples is in training as well."""
        return ()

    def encoder(self, config: ModelConfig) -> Model:
        """The model that fits this task."""
        stem = self.stem(config.width)
        if self.is_seq2seq:
            return Seq2Seq(config, stem, self.classes, self.max_length)
        return Encoder(config, stem, self.classes, self.max_length, self.readout, self.is_causal)


REGISTRY: dict[str, type[Task]] = {}


def register(name: str):
    """Class decorator: makes a task known to configs by name."""
    return registers(REGISTRY, name)


def keys_schedule(key: PRNGKeyArray, first: Int[Array, ""], steps: int) -> Key[Array, " steps"]:
    """One key per step: the schedule of tasks whose batches are generated."""
    return jax.vmap(lambda step: jax.random.fold_in(key, step))(first + jnp.arange(steps))


def epoch_schedule(
    key: PRNGKeyArray, first: Int[Array, ""], steps: int, batch_size: int, examples: int
) -> Int[Array, "steps batch"]:
    """Indices of a fresh permutation every epoch, what does not fill a batch left out.

    Raises:
      ConfigError: if there are fewer examples than a batch holds.
    """
    per_epoch = examples // batch_size
    if per_epoch == 0:
        raise ConfigError("batch_size", batch_size, f"must be at most the {examples} examples")
    places = first + jnp.arange(steps)
    epochs = first // per_epoch + jnp.arange(steps // per_epoch + 2)  # all that can be touched
    draw = lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    orders = jax.vmap(draw)(epochs)[:, : per_epoch * batch_size]
    orders = orders.reshape(len(epochs), per_epoch, batch_size)
    return orders[places // per_epoch - epochs[0], places % per_epoch]
