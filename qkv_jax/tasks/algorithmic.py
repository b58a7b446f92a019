"""Generated tasks: sequences drawn inside jit from a key, as many as training asks for.

Train, validation and test are disjoint by construction: the last of an example's free symbols is
set so that their sum, modulo their number, is 0 in validation, 1 in test and anything else in
training. Any subset of the symbols that leaves one out is uniform in all three, so a split cannot
be recognised from a part of a sequence.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_choice, require_positive
from qkv_jax.tasks.base import Batch, Data, Outcome, Task, keys_schedule, register
from qkv_jax.transformer import TokenStem

Split = Literal["train", "validation", "test"]
_EVAL_KEYS = {"validation": 1, "test": 2}  # of all seeds and arms


def split_symbols(
    key: PRNGKeyArray, shape: tuple[int, int], symbols: int, split: Split
) -> Int[Array, "B T"]:
    """Uniform symbols whose sum modulo `symbols` belongs to the split; `symbols` is at least 3."""
    draw, residue = jax.random.split(key)
    values = jax.random.randint(draw, shape, 0, symbols)
    wanted = {
        "train": lambda: jax.random.randint(residue, shape[:1], 2, symbols),
        "validation": lambda: jnp.zeros(shape[:1], jnp.int32),
        "test": lambda: jnp.ones(shape[:1], jnp.int32),
    }[split]()
    return values.at[:, -1].set((wanted - values[:, :-1].sum(-1)) % symbols)


@dataclasses.dataclass(frozen=True)
class Generated(Task):
    """The part that generated tasks share: subclasses write `generate`."""

    length: int = 32
    validation_examples: int = 512
    test_examples: int = 2048
    outcome_kind: Literal["mean", "solve"] = "solve"
    threshold: float = 0.99
    margin: float = 0.01

    def __post_init__(self):
        require_positive(self, "validation_examples", "test_examples", "threshold")
        require_choice(self, "outcome_kind", ("mean", "solve"))
        if self.length < 2:
            raise ConfigError("length", self.length, "must be at least 2")
        self.outcome  # noqa: B018  (its own checks)

    @property
    def outcome(self) -> Outcome:
        chance = 1 / self.classes
        kind, threshold = self.outcome_kind, self.threshold
        return Outcome(kind, "accuracy", "accuracy", self.margin, chance, threshold)

    @property
    def max_length(self) -> int:
        return self.length

    def generate(self, key: PRNGKeyArray, size: int, split: Split) -> Batch:
        """`size` examples of a split."""
        raise NotImplementedError

    def load(self) -> Data:
        sizes = {"validation": self.validation_examples, "test": self.test_examples}
        return {s: self.generate(jax.random.key(_EVAL_KEYS[s]), n, s) for s, n in sizes.items()}

    def schedule(self, data, key, first, steps, batch_size):
        # All batches at once: drawn one by one in the loop, they cost a third of a small step.
        draw = lambda key: self.generate(key, batch_size, "train")
        return jax.vmap(draw)(keys_schedule(key, first, steps))

    def batch(self, data, entry):
        return entry


@register("reverse")
@dataclasses.dataclass(frozen=True)
class Reverse(Generated):
    """Answer with the sequence back to front: attention by place alone."""

    title = "Reverse"
    description = "Write a sequence of random symbols back to front."

    symbols: int = 10

    def __post_init__(self):
        super().__post_init__()
        _require_symbols(self, "symbols")

    @property
    def classes(self) -> int:
        return self.symbols

    def stem(self, width):
        return TokenStem((self.symbols,), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length), jnp.int32)}

    def generate(self, key, size, split):
        inputs = split_symbols(key, (size, self.length), self.symbols, split)
        return {"inputs": inputs, "targets": inputs[:, ::-1]}


@register("relation")
@dataclasses.dataclass(frozen=True)
class Relation(Generated):
    """Directed relation: each token carries its own name, the name of another token, and a label;
    answer with the label of the token that it names.

    A symmetric score cannot tell the token I name from the token that names me, unless names are
    learned by heart: with `names` far above the head width they hardly can be.
    """

    title = "Directed relation"
    description = (
        "Each token has a name, names another token and carries a label; answer with the label of "
        "the token it names."
    )

    names: int = 64
    labels: int = 8

    def __post_init__(self):
        super().__post_init__()
        _require_symbols(self, "labels")
        if self.names < self.length:
            raise ConfigError("names", self.names, f"must be at least length = {self.length}")

    @property
    def classes(self) -> int:
        return self.labels

    def stem(self, width):
        return TokenStem((self.names, self.names, self.labels), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length, 3), jnp.int32)}

    def generate(self, key, size, split):
        own, other, label = jax.random.split(key, 3)
        # The places of the `length` largest of uniform numbers: distinct names in random order.
        draws = jax.random.uniform(own, (size, self.names))
        names = jax.lax.top_k(draws, self.length)[1]
        steps = jax.random.randint(other, (size, self.length), 1, self.length)
        named = (jnp.arange(self.length) + steps) % self.length  # anyone but oneself
        labels = split_symbols(label, (size, self.length), self.labels, split)
        pick = lambda values: jnp.take_along_axis(values, named, axis=1)
        return {"inputs": jnp.stack([names, pick(names), labels], -1), "targets": pick(labels)}


def _require_symbols(task: Task, name: str) -> None:
    if getattr(task, name) < 3:
        raise ConfigError(name, getattr(task, name), "must be at least 3, to tell splits apart")
