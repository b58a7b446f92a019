"""Multi-query associative recall for a causal model, as its authors' code draws it: Arora et al.
2023, "Zoology", arXiv 2312.04927. `recall` is the same question for an encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_positive, settle
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import overlap
from qkv_jax.tasks.base import Data, Reference, epoch_schedule, register
from qkv_jax.tasks.generated.base import FixedLength


@register("mqar")
@dataclasses.dataclass(frozen=True)
class Mqar(FixedLength):
    """Key, value, key, value, ...; then each key once more, at whose place its value is asked for.

    Keys are drawn from the lower half of the vocabulary without 0 and values from the upper half,
    both without repetition within an example. Behind the pairs the places are taken in twos: the
    first of a two may hold a query, the n-th of them with a weight of n^(alpha - 1), so that most
    queries come soon. All other places are noise, any token of the vocabulary, keys and values
    among them; without noise they hold the token 0.

    The defaults are those of the authors' code; the paper's figure 2 was drawn without noise, and
    with it `length` x `pairs` went from 64 x 4 to 512 x 64. What differs: validation examples are
    others than those of test. Splits are drawn from keys of their own and not disjoint by
    construction; where examples of a small vocabulary coincide, reports say so.
    """

    title = "Multi-query recall, causal"
    description = (
        "Key, value, key, value and so on, then the keys again among noise: answer each with its "
        "value."
    )
    is_causal = True

    length: int = 64
    pairs: int = 4
    vocabulary: int = 8192
    alpha: float = 0.01  # of the power law of gaps; 1 spreads the queries evenly
    noise: bool = True
    train_examples: int = 100_000  # drawn once and gone through in epochs; 0: fresh ones for ever
    test_examples: int = 3000

    def __post_init__(self):
        settle(self)
        require_positive(self, "length", "pairs", "alpha")
        if self.alpha > 1:
            raise ConfigError("alpha", self.alpha, "must be at most 1: queries spread evenly")
        if self.length % 2:
            raise ConfigError("length", self.length, "must be even: queries stand at even places")
        if 4 * self.pairs > self.length:
            line = f"must be at most length / 4 = {self.length // 4}"
            raise ConfigError("pairs", self.pairs, line)
        if self.vocabulary <= self.length:
            raise ConfigError(
                "vocabulary", self.vocabulary, f"must be above length = {self.length}"
            )
        if self.train_examples < 0:
            raise ConfigError("train_examples", self.train_examples, "must be 0 or above")
        super().__post_init__()

    @property
    def classes(self) -> int:
        return self.vocabulary

    def stem(self, width):
        return TokenStem((self.vocabulary,), width)

    def example(self):
        read = jnp.zeros((1, self.pairs), jnp.int32)
        return {"inputs": jnp.zeros((1, self.length), jnp.int32), "read": read}

    def generate(self, key, size, split):
        own, value, gap, noise = jax.random.split(key, 4)
        half, stored = self.vocabulary // 2, 2 * self.pairs
        keys = 1 + distinct_of_many(own, size, half - 1, self.pairs)
        values = half + distinct_of_many(value, size, self.vocabulary - half, self.pairs)
        slots = (self.length - stored) // 2
        weights = (self.alpha - 1) * jnp.log(jnp.arange(1, slots + 1))
        # The largest of weights with Gumbel noise are a draw one by one (Yellott 1977).
        draws = jax.random.gumbel(gap, (size, slots)) + weights[None]
        asked = stored + 2 * jax.lax.top_k(draws, self.pairs)[1]
        shape = (size, self.length)
        inputs = jnp.zeros(shape, jnp.int32)
        if self.noise:
            inputs = jax.random.randint(noise, shape, 0, self.vocabulary)
        inputs = inputs.at[:, :stored].set(jnp.stack([keys, values], -1).reshape(size, stored))
        inputs = inputs.at[jnp.arange(size)[:, None], asked].set(keys)
        return {"inputs": inputs, "targets": values, "read": asked}

    def load(self):
        train = self.fixed("train", self.train_examples) if self.train_examples else None
        return super().load()._replace(train=train)

    def schedule(self, train, key, first, steps, batch_size):
        if train is None:
            return super().schedule(train, key, first, steps, batch_size)
        return {"rows": epoch_schedule(key, first, steps, batch_size, self.train_examples)}

    def batch(self, train, entry):
        if train is None:
            return entry
        return {name: values[entry["rows"]] for name, values in train.items()}

    def references(self, data):
        """What a model gets that sees the values but cannot tell which belongs to which key."""
        return (Reference("one of the values shown", 1 / self.pairs),)

    def notes(self, data: Data) -> tuple[str, ...]:
        if data.train is None:
            return ()
        rows = lambda split: [row.tobytes() for row in np.asarray(split["inputs"])]
        train, sentences = rows(data.train), ()
        for name, split in data.held_out.items():
            found = overlap.count(train, rows(split))
            sentences += overlap.sentence(name, "examples", found, len(split["targets"]))
        return sentences


def distinct_of_many(
    key: PRNGKeyArray, size: int, population: int, count: int
) -> Int[jax.Array, "B T"]:
    """`count` different numbers below `population` for each of `size` examples, in random order.

    The first places of a shuffle (Fisher & Yates), of which only what was moved is remembered: for
    populations of which `distinct` would have to draw a number for each.
    """
    spread = population - jnp.arange(count)
    swaps = jnp.arange(count)[None] + jax.random.randint(key, (size, count), 0, spread[None])

    def step(i, drawn):
        # What lies at a place: what the last swap with it brought there, else its own number.
        def lies_at(place):
            last = jnp.where(
                (swaps == place) & (jnp.arange(count) < i)[None], jnp.arange(count), -1
            )
            last = last.max(1, keepdims=True)
            brought = jnp.take_along_axis(moved, jnp.maximum(last, 0), axis=1)
            return jnp.where(last < 0, place, brought)

        drawn, moved = drawn
        taken = lies_at(jax.lax.dynamic_slice_in_dim(swaps, i, 1, axis=1))
        own = lies_at(jnp.full((size, 1), i))
        update = lambda values, new: jax.lax.dynamic_update_slice_in_dim(values, new, i, axis=1)
        return update(drawn, taken), update(moved, own)

    zeros = jnp.zeros((size, count), jnp.int32)
    return jax.lax.fori_loop(0, count, step, (zeros, zeros))[0]
