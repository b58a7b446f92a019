"""Multi-query associative recall (MQAR): Arora et al. 2023, "Zoology", arXiv 2312.04927."""

import collections
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError, require_positive
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import Reference, register
from qkv_jax.tasks.generated.base import (
    Generated,
    distinct,
    require_symbols,
    split_symbols,
    take,
)

Form = Literal["interleaved", "joint"]


@register("recall")
@dataclasses.dataclass(frozen=True)
class Recall(Generated):
    """Pairs of key and value, then queries, each of them one of the keys: answer with its value.

    `interleaved`, as published: key, value, key, value, ... and then the queries, keys and values
    from one vocabulary. To answer, a value must first learn which key stands before it, and a query
    then find that key: two layers. `joint`: key and value are two fields of one token, queries
    leave the value empty: one layer is enough.

    The keys of an example are distinct and so are its queries. What differs from the published
    task: values are drawn with replacement, there is no noise between the queries, and answers
    are given at the queries rather than as next tokens, since an encoder reads them.
    """

    title = "Associative recall"

    form: Form = "interleaved"
    pairs: int = 8
    keys: int = 64
    values: int = 64
    queries: int = 8

    def __post_init__(self):
        require_symbols(self, "values")
        super().__post_init__()
        require_positive(self, "pairs", "queries")
        if self.keys < self.pairs:
            raise ConfigError("keys", self.keys, f"must be at least pairs = {self.pairs}")
        if self.queries > self.pairs:
            raise ConfigError("queries", self.queries, f"must be at most pairs = {self.pairs}")

    @property
    def description(self) -> str:
        how = {
            "interleaved": "Key, value, key, value and so on, then queries",
            "joint": "Tokens of a key and a value, then queries",
        }[self.form]
        return f"{how}; answer each query with the value of its key."

    @property
    def classes(self) -> int:
        return self.values

    @property
    def stored(self) -> int:
        """The number of tokens before the queries."""
        return self.pairs * (2 if self.form == "interleaved" else 1)

    @property
    def max_length(self) -> int:
        return self.stored + self.queries

    def stem(self, width):
        if self.form == "interleaved":
            return TokenStem((self.keys + self.values,), width)
        return TokenStem((self.keys, self.values + 1), width)  # and the empty value

    def example(self):
        fields = () if self.form == "interleaved" else (2,)
        inputs = jnp.zeros((1, self.max_length, *fields), jnp.int32)
        return {"inputs": inputs, "read": jnp.zeros((1, self.queries), jnp.int32)}

    def generate(self, key, size, split):
        own, value, query = jax.random.split(key, 3)
        keys = distinct(own, size, self.keys, self.pairs)
        values = split_symbols(value, (size, self.pairs), self.values, split)
        asked = distinct(query, size, self.pairs, self.queries)
        queries = take(keys, asked)
        if self.form == "interleaved":
            stored = jnp.stack([keys, self.keys + values], -1).reshape(size, -1)
        else:
            stored = jnp.stack([keys, values], -1)
            queries = jnp.stack([queries, jnp.full_like(queries, self.values)], -1)
        places = jnp.arange(self.stored, self.max_length)
        return {
            "inputs": jnp.concatenate([stored, queries], axis=1),
            "targets": take(values, asked),
            "read": jnp.broadcast_to(places, (size, self.queries)),
        }

    def references(self, data):
        """What a model gets that sees the values but cannot tell which belongs to which key."""
        test = jax.tree.map(np.asarray, data.test)
        stored = test["inputs"][:, : self.stored]
        shown = stored[:, 1::2] - self.keys if self.form == "interleaved" else stored[:, :, 1]
        likeliest = [collections.Counter(row).most_common(1)[0][0] for row in shown.tolist()]
        right = test["targets"] == np.asarray(likeliest)[:, None]
        return (Reference("most frequent value shown", float(right.mean())),)
