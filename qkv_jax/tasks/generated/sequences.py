"""Sequence to sequence, place by place: copy, reverse, sort, swap and sub.

The five synthetic tasks of Kayyam et al. 2026 (arXiv 2606.04032, table 1; the first four of them
after Borji 2023, arXiv 2305.19129): an encoder reads digits and answers with one digit per place.
Copy and sub need no attention, reverse and swap need attention by place, sort by content.
"""

import abc
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from qkv_jax.config import ConfigError
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import register
from qkv_jax.tasks.generated.base import FixedLength, require_symbols, split_symbols


@dataclasses.dataclass(frozen=True)
class SymbolSequences(FixedLength):
    """Random symbols, digits by default, and a symbol to write at every place."""

    symbols: int = 10

    def __post_init__(self):
        require_symbols(self, "symbols")
        super().__post_init__()

    @property
    def classes(self) -> int:
        return self.symbols

    def stem(self, width):
        return TokenStem((self.symbols,), width)

    def example(self):
        return {"inputs": jnp.zeros((1, self.length), jnp.int32)}

    def generate(self, key, size, split):
        inputs = split_symbols(key, (size, self.length), self.symbols, split)
        return {"inputs": inputs, "targets": self.answer(inputs)}

    @abc.abstractmethod
    def answer(self, inputs: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """What is to be written."""


@register("copy")
@dataclasses.dataclass(frozen=True)
class Copy(SymbolSequences):
    """Answer with the sequence as it is."""

    title = "Copy"
    description = "Write a sequence of random symbols again."

    def answer(self, inputs):
        return inputs


@register("reverse")
@dataclasses.dataclass(frozen=True)
class Reverse(SymbolSequences):
    """Answer with the sequence back to front: attention by place alone."""

    title = "Reverse"
    description = "Write a sequence of random symbols back to front."

    def answer(self, inputs):
        return inputs[:, ::-1]


@register("sort")
@dataclasses.dataclass(frozen=True)
class Sort(SymbolSequences):
    """Answer with the symbols in ascending order: attention to all of them."""

    title = "Sort"
    description = "Write a sequence of random symbols in ascending order."

    def answer(self, inputs):
        return jnp.sort(inputs, axis=1)


@register("swap")
@dataclasses.dataclass(frozen=True)
class Swap(SymbolSequences):
    """Answer with the second half followed by the first: attention by place alone.

    Who attends to whom is mutual, as in reverse: no direction is asked for.
    """

    title = "Swap"
    description = "Write the second half of a sequence of random symbols, then the first."

    def __post_init__(self):
        super().__post_init__()
        if self.length % 2:
            raise ConfigError("length", self.length, "must be even, to have two halves")

    def answer(self, inputs):
        return jnp.roll(inputs, self.length // 2, axis=1)


@register("sub")
@dataclasses.dataclass(frozen=True)
class Sub(SymbolSequences):
    """Answer with the largest symbol minus each one, 9 - x for digits: no attention needed."""

    title = "Sub"
    description = "Subtract every symbol of a random sequence from the largest symbol there is."

    def answer(self, inputs):
        return self.symbols - 1 - inputs
