"""Relations between tokens: who names whom, asked for in either direction and without one."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import register
from qkv_jax.tasks.generated.base import (
    FixedLength,
    distinct,
    require_symbols,
    split_symbols,
    take,
)

Ask = Literal["named", "namer", "either"]
_TITLES = {
    "named": "Directed relation",
    "namer": "Directed relation, inverse",
    "either": "Undirected relation",
}
_QUESTIONS = {
    "named": "answer with the label of the token it names.",
    "namer": "answer with the label of the token that names it.",
    "either": "naming is mutual; answer with the label of its partner.",
}


@register("relation")
@dataclasses.dataclass(frozen=True)
class Relation(FixedLength):
    """Each token carries its own name, the name of another token, and a label; answer with the
    label of the token that it names (`ask="named"`), that names it (`namer`), or, where naming is
    mutual, of its partner (`either`, the undirected control).

    A symmetric score cannot tell the token I name from the token that names me, unless names are
    learned by heart: with `names` far above the head width they hardly can be. Between partners
    there is nothing to tell.

    Under `named` a token may be named by many or none. Under `namer` naming is one cycle through
    all tokens: exactly one names me, and it is never the one I name. Under `either` tokens are
    partners in pairs drawn at random.
    """

    names: int = 64
    labels: int = 8
    ask: Ask = "named"

    def __post_init__(self):
        require_symbols(self, "labels")
        super().__post_init__()
        if self.names < self.length:
            raise ConfigError("names", self.names, f"must be at least length = {self.length}")
        if self.ask == "namer" and self.length < 3:
            raise ConfigError("length", self.length, "must be at least 3 for ask = 'namer'")
        if self.ask == "either" and self.length % 2:
            raise ConfigError("length", self.length, "must be even for ask = 'either'")

    @property
    def title(self) -> str:
        return _TITLES[self.ask]

    @property
    def description(self) -> str:
        return (
            "Each token has a name, names another token and carries a label; "
            + _QUESTIONS[self.ask]
        )

    @property
    def classes(self) -> int:
        return self.labels

    def stem(self, width):
        return TokenStem((self.names, self.names, self.labels), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length, 3), jnp.int32)}

    def generate(self, key, size, split):
        own, other, label = jax.random.split(key, 3)
        names = distinct(own, size, self.names, self.length)
        named, asked = self.relate(other, size)
        labels = split_symbols(label, (size, self.length), self.labels, split)
        inputs = jnp.stack([names, take(names, named), labels], -1)
        return {"inputs": inputs, "targets": take(labels, asked)}

    def relate(self, key: PRNGKeyArray, size: int) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
        """For every place, the place that it names and the place whose label is asked for."""
        if self.ask == "named":
            steps = jax.random.randint(key, (size, self.length), 1, self.length)
            named = (jnp.arange(self.length)[None] + steps) % self.length  # anyone but oneself
            return named, named
        order = distinct(key, size, self.length, self.length)
        if self.ask == "namer":
            return _send(order, jnp.roll(order, -1, axis=1)), _send(order, jnp.roll(order, 1, 1))
        pairs = order.reshape(size, -1, 2)
        partner = _send(order, pairs[:, :, ::-1].reshape(order.shape))
        return partner, partner


def _send(places: Int[Array, "B T"], to: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The map that takes each of an example's places to the one beside it in `to`."""
    rows = jnp.arange(places.shape[0])[:, None]
    return jnp.zeros_like(places).at[rows, places].set(to)
