"""Retrieval at a distance: by place in one direction, by place in both, and by content.

The claim behind it is that distinct projections matter most for long-range relationships; so an
example has one distance, test sets hold every distance equally often, and reports show accuracy by
distance.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from qkv_jax.config import ConfigError, require_positive
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import Breakdown, register
from qkv_jax.tasks.generated.base import (
    FixedLength,
    distinct,
    require_symbols,
    split_symbols,
    take,
)

By = Literal["place", "place_either", "content"]
_DESCRIPTIONS = {
    "place": "Given a distance d, answer with the symbol d places to the left.",
    "place_either": (
        "Given a distance d, answer with the symbol that stands d places to the left and d places "
        "to the right."
    ),
    "content": "Answer with the symbol of the one other token that carries the same key.",
}
_TITLES = {
    "place": "Retrieval by place",
    "place_either": "Retrieval by place, either side",
    "content": "Retrieval by content",
}


@register("retrieval")
@dataclasses.dataclass(frozen=True)
class Retrieval(FixedLength):
    """Answer, at `queries` places of a sequence, with what stands `d` places away, d being drawn
    from 1 .. `max_distance` for each example.

    `place`: tokens carry a symbol and d; wanted is the symbol d places to the left.
    `place_either`, the control without direction: the same, but the wanted symbol stands d places
    to the right as well, so a score that treats the two sides alike can solve it. (A symmetric
    function of two different symbols would do too, but is another thing to learn: in 1200 steps at
    length 16 their sum modulo 10 stayed at chance, while `place` was solved.)
    `content`: tokens carry a symbol and a key, and are not told d; the key of an asked token is
    found a second time d places to the left or right, and the symbol there is wanted. All other
    keys are distinct. `keys` far above the head width cannot be told apart by heart.
    """

    by: By = "place"
    max_distance: int = 12
    queries: int = 8
    symbols: int = 10
    keys: int = 64  # of `content`

    def __post_init__(self):
        require_symbols(self, "symbols")
        super().__post_init__()
        require_positive(self, "max_distance", "queries")
        sides = 2 if self.by == "place_either" else 1
        if sides * self.max_distance >= self.length:
            limit = "length" if sides == 1 else "half of length"
            line = f"must be below {limit} = {self.length / sides:g}"
            raise ConfigError("max_distance", self.max_distance, line)
        fewest = min(self._askable(d).sum() for d in range(1, self.max_distance + 1))
        if self.queries > fewest:
            line = f"must be at most {fewest}, the places that can be asked at some distance"
            raise ConfigError("queries", self.queries, line)
        if self.by == "content" and self.keys < self.length:
            raise ConfigError("keys", self.keys, f"must be at least length = {self.length}")

    @property
    def title(self) -> str:
        return _TITLES[self.by]

    @property
    def description(self) -> str:
        return _DESCRIPTIONS[self.by]

    @property
    def classes(self) -> int:
        return self.symbols

    def stem(self, width):
        other = self.keys if self.by == "content" else self.max_distance
        return TokenStem((self.symbols, other), width)

    def example(self):
        inputs = jnp.zeros((1, self.length, 2), jnp.int32)
        return {"inputs": inputs, "read": jnp.zeros((1, self.queries), jnp.int32)}

    def generate(self, key, size, split):
        far, symbol, where, side, name = jax.random.split(key, 5)
        if split == "train":
            distances = jax.random.randint(far, (size, 1), 1, self.max_distance + 1)
        else:
            distances = jnp.arange(size)[:, None] % self.max_distance + 1
        symbols = split_symbols(symbol, (size, self.length), self.symbols, split)
        draws = jax.random.uniform(where, (size, self.length))
        rows = jnp.arange(size)[:, None]
        asked = jax.lax.top_k(jnp.where(self._askable(distances), draws, -1.0), self.queries)[1]
        other = jnp.broadcast_to(distances - 1, symbols.shape)
        if self.by == "place":
            targets = take(symbols, asked - distances)
        elif self.by == "place_either":
            symbols = self._move_checksum(symbols, distances)
            targets = take(symbols, asked - distances)
            symbols = symbols.at[rows, asked + distances].set(targets)
        else:
            names, twins = distinct(name, size, self.keys, self.length), asked + distances
            other = names.at[rows, twins].set(take(names, asked))
            mirrored = jax.random.bernoulli(side, shape=asked.shape)
            asked, twins = jnp.where(mirrored, twins, asked), jnp.where(mirrored, asked, twins)
            targets = take(symbols, twins)
        return {"inputs": jnp.stack([symbols, other], -1), "targets": targets, "read": asked}

    def breakdown(self, test):
        inputs, asked = np.asarray(test["inputs"]), np.asarray(test["read"])[:, :1]
        if self.by != "content":
            return Breakdown("distance", (inputs[:, 0, 1] + 1).tolist())
        same = inputs[:, :, 1] == np.take_along_axis(inputs[:, :, 1], asked, axis=1)
        apart = np.abs(np.arange(self.length) - asked)
        return Breakdown("distance", (same * apart).max(axis=1).tolist())

    def _move_checksum(
        self, symbols: Int[Array, "B T"], distances: Int[Array, "B 1"]
    ) -> Int[Array, "B T"]:
        """Sets the first symbol so that the even stretches of 2 d places alone have the checksum.

        The copies of `place_either` lie in the odd ones: splits stay disjoint by construction.
        """
        places = jnp.arange(self.length)[None]
        counts = (places // (2 * distances) % 2 == 0) & (places > 0)
        first = symbols.sum(1) - jnp.where(counts, symbols, 0).sum(1)
        return symbols.at[:, 0].set(first % self.symbols)

    def _askable(self, distance: Any) -> Any:
        """Which places may be asked at a distance, or at distances [B, 1].

        Under `content` the left ones of pairs, under `place_either` the middle ones of triples,
        such that no outer place belongs to two of them.
        """
        places = np.arange(self.length)[None]
        left, right = places >= distance, places + distance < self.length
        if self.by == "place":
            return left
        if self.by == "content":
            return right & (places // distance % 2 == 0)
        return left & right & ((places - distance) // (2 * distance) % 2 == 0)
