"""What generated tasks share: examples drawn inside jit from a key, as many as training asks for.

Train, validation and test are disjoint by construction (not of `mqar`, see there): the last of an
example's free symbols is set so that their sum, modulo their number, is 0 in validation, 1 in test
and anything else in training. Any subset of the symbols that leaves one out is uniform in all
three, so a split cannot be recognised from a part of a sequence.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_positive, settle
from qkv_jax.tasks.base import Batch, Data, Outcome, Task, keys_schedule

Split = Literal["train", "validation", "test"]
_KEYS = {"validation": 1, "test": 2, "train": 3}  # of what all seeds and arms have in common


def split_residues(key: PRNGKeyArray, size: int, symbols: int, split: Split) -> Int[Array, " B"]:
    """The checksums modulo `symbols` (at least 3) of `size` examples of a split."""
    return {
        "train": lambda: jax.random.randint(key, (size,), 2, symbols),
        "validation": lambda: jnp.zeros((size,), jnp.int32),
        "test": lambda: jnp.ones((size,), jnp.int32),
    }[split]()


def split_symbols(
    key: PRNGKeyArray, shape: tuple[int, int], symbols: int, split: Split
) -> Int[Array, "B T"]:
    """Uniform symbols whose sum modulo `symbols` belongs to the split; `symbols` is at least 3."""
    draw, residue = jax.random.split(key)
    values = jax.random.randint(draw, shape, 0, symbols)
    wanted = split_residues(residue, shape[0], symbols, split)
    return values.at[:, -1].set((wanted - values[:, :-1].sum(-1)) % symbols)


def distinct(key: PRNGKeyArray, size: int, population: int, count: int) -> Int[Array, "B T"]:
    """`count` different numbers below `population` for each of `size` examples, in random order."""
    # The places of the largest of uniform numbers.
    return jax.lax.top_k(jax.random.uniform(key, (size, population)), count)[1]


def take(values: Int[Array, "B S"], places: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The values of each example at its own places."""
    return jnp.take_along_axis(values, places, axis=1)


def require_symbols(task: Task, name: str) -> None:
    """Refuses a number of symbols too small for three disjoint splits.

    Raises:
      ConfigError: if the field is below 3.
    """
    if getattr(task, name) < 3:
        raise ConfigError(name, getattr(task, name), "must be at least 3, to tell splits apart")


@dataclasses.dataclass(frozen=True)
class Generated(Task):
    """Subclasses write `generate`; it must be pure and run inside jit and vmap."""

    validation_examples: int = 512
    test_examples: int = 2048
    outcome_kind: Literal["mean", "solve"] = "solve"
    threshold: float = 0.99
    margin: float = 0.01

    def __post_init__(self):
        settle(self)
        require_positive(self, "validation_examples", "test_examples", "threshold")
        if self.threshold > 1:
            raise ConfigError("threshold", self.threshold, "is an accuracy, at most 1")
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        chance = 1 / self.classes
        kind, threshold = self.outcome_kind, self.threshold
        return Outcome(kind, "accuracy", "accuracy", self.margin, chance, threshold, chance=chance)

    def generate(self, key: PRNGKeyArray, size: int, split: Split) -> Batch:
        """`size` examples of a split."""
        raise NotImplementedError

    def load(self) -> Data:
        return Data(
            validation=self.fixed("validation", self.validation_examples),
            test=self.fixed("test", self.test_examples),
        )

    def fixed(self, split: Split, size: int) -> Batch:
        """Examples that all seeds and arms have in common."""
        return _draw(self, jax.random.key(_KEYS[split]), size, split)

    def schedule(self, train, key, first, steps, batch_size):
        # All batches at once: drawn one by one in the loop, they cost a third of a small step.
        draw = lambda key: self.generate(key, batch_size, "train")
        return jax.vmap(draw)(keys_schedule(key, first, steps))

    def batch(self, train, entry):
        return entry


# Equal tasks share the compiled program: they are frozen, hence hashable.
@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _draw(task: Generated, key: PRNGKeyArray, size: int, split: Split) -> Batch:
    return task.generate(key, size, split)


@dataclasses.dataclass(frozen=True)
class FixedLength(Generated):
    """Generated examples of `length` tokens each."""

    length: int = 32

    def __post_init__(self):
        if self.length < 2:
            raise ConfigError("length", self.length, "must be at least 2")
        super().__post_init__()

    @property
    def max_length(self) -> int:
        return self.length
