"""Induction heads: say what came after the last token when it stood here before."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import Breakdown, register
from qkv_jax.tasks.generated.base import FixedLength, require_symbols, split_symbols, take

Trigger = Literal["drawn", "special"]


@register("induction")
@dataclasses.dataclass(frozen=True)
class Induction(FixedLength):
    """Random symbols in which a trigger stands once; the sequence ends with the trigger, and asked
    for is the symbol that followed it: `[A] [B] ... [A] -> [B]` (Olsson et al. 2022).

    The form is that of Fu et al. 2023 (H3, arXiv 2212.14052): one question, at the end of 30 tokens
    of a vocabulary of 20. There the trigger is a token of its own, the same in all examples, which
    a model may learn by heart: `special`. `drawn` makes it another symbol in each example, to be
    told from the last token; that takes far longer to learn (two layers of width 64 and one head:
    400 steps of 64 examples solve the one, after 1500 the other was right in 15 %).
    """

    title = "Induction"
    description = "Say which symbol followed the last one when it stood in the sequence before."
    is_causal = True

    trigger: Trigger = "special"
    length: int = 30
    symbols: int = 20
    test_examples: int = 4096  # one answer per example: fewer leave too large a paired error

    def __post_init__(self):
        require_symbols(self, "symbols")
        super().__post_init__()
        if self.length < 3:
            raise ConfigError("length", self.length, "must be at least 3")
        if self.trigger == "drawn" and self.symbols < 4:
            line = "must be at least 4, to tell splits apart by the other three"
            raise ConfigError("symbols", self.symbols, line)

    @property
    def classes(self) -> int:
        return self.symbols

    def stem(self, width):
        return TokenStem((self.symbols + (self.trigger == "special"),), width)

    def example(self):
        read = jnp.zeros((1, 1), jnp.int32)
        return {"inputs": jnp.zeros((1, self.length), jnp.int32), "read": read}

    def generate(self, key, size, split):
        which, symbol, where = jax.random.split(key, 3)
        shape = (size, self.length - 2)
        if self.trigger == "special":
            others = split_symbols(symbol, shape, self.symbols, split)
            triggers = jnp.full((size, 1), self.symbols)
        else:  # the others carry the checksum, counted from the trigger on
            triggers = jax.random.randint(which, (size, 1), 0, self.symbols)
            counted = split_symbols(symbol, shape, self.symbols - 1, split)
            others = (triggers + 1 + counted) % self.symbols
        first = jax.random.randint(where, (size, 1), 0, self.length - 2)
        here = jnp.arange(self.length - 1)[None]
        moved = take(others, jnp.clip(jnp.where(here > first, here - 1, here), 0, self.length - 3))
        inputs = jnp.where(here == first, triggers, moved)
        return {
            "inputs": jnp.concatenate([inputs, triggers], axis=1),
            "targets": take(others, first),
            "read": jnp.full((size, 1), self.length - 1),
        }

    def breakdown(self, test):
        inputs = np.asarray(test["inputs"])
        first = (inputs == inputs[:, -1:]).argmax(axis=1)
        return Breakdown("distance", (self.length - 1 - first).tolist())
