"""What decoding keeps of the tokens so far: each source of keys and values once.

A cache is of a fixed size, is passed in and returned, and may be donated. Slot j holds the latest
token whose place is j, modulo the number of slots: with as many slots as tokens that is token j,
and under a sliding window older tokens give way to newer ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, shown


class Slots(NamedTuple):
    """Where the tokens are.

    Attributes:
      places: of the token in each slot.
      filled: whether there is one.
      own: the slot of each new token.
    """

    places: Int[Array | np.ndarray, "#B S"]
    filled: Bool[Array, "B S"]
    own: Int[Array, "B T"]


@struct.dataclass
class Cache:
    """The sources of keys and values of the tokens so far.

    Attributes:
      sources: arrays [B, heads, S, width] by name; for a whole model a dict of them by layer. Heads
        come first since a head's tokens are read together: otherwise XLA on CPUs copies them all,
        which takes eight times as long as reading them.
      lengths: the number of tokens of each row.
      context: of a whole model with cross-attention, what that reads (`blocks.Context`), its
        sources by layer; of one size however many tokens come.
      layout: what of a layer's fields says how to read them: sources of two layers may have the
        same names and sizes and be different things.
    """

    sources: Any
    lengths: Any  # [B]; trees of other leaves are of this class as well
    context: Any = None
    layout: str = struct.field(pytree_node=False, default="")

    @classmethod
    def empty(cls, shapes: Any, batch: int, slots: int, dtype: Any, layout: str) -> "Cache":
        """`shapes` are those of `Scheme.cache_shapes`: heads and width by source."""
        made = lambda shape: jnp.zeros((batch, shape[0], slots, shape[1]), dtype)
        sources = jax.tree.map(made, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        return cls(sources, jnp.zeros(batch, jnp.int32), layout=layout)

    @property
    def slots(self) -> int:
        return jax.tree.leaves(self.sources)[0].shape[2]

    @property
    def overflown(self) -> Bool[Array, " B"]:
        """Rows of more tokens than there are slots, of which the first are lost. Inside jit nothing
        else tells: where such tokens are still seen the outputs of the row are NaN from then on."""
        return self.lengths > self.slots

    @property
    def nbytes(self) -> int:
        """What the sources take."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.sources))

    @property
    def context_nbytes(self) -> int:
        """What the context takes, which does not grow with the text."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.context))

    def add(
        self,
        new: dict[str, Array],
        valid: Bool[Array, "B T"] | None = None,
        window: int | None = None,
    ) -> tuple["Cache", Slots]:
        """The cache of a layer with new tokens [B, T, heads, width] added.

        Args:
          valid: true at tokens; what is not one stands behind them and is not kept.
          window: of attention: how far back a token sees.

        Raises:
          ConfigError: naming `cache`, if it is of other sources, or has too few slots as far as
            that is known: inside jit lengths are not.
        """
        if {*new} != {*self.sources}:
            allowed = f"the tokens need {', '.join(new)}; make one with init_cache"
            raise ConfigError("cache", ", ".join(self.sources), allowed)
        for name, array in new.items():
            old = self.sources[name]
            rows, _, heads, width = array.shape
            if (old.shape[:2], old.shape[3]) != ((rows, heads), width):
                allowed = f"the tokens need {name} {shown(array)}; make one with init_cache"
                raise ConfigError("cache", shown(old), allowed)
        count = next(iter(new.values())).shape[1]
        self._check_room(count, valid, window)
        offsets = jnp.arange(count)[None]
        own = (self.lengths[:, None] + offsets) % self.slots
        written = own if valid is None else jnp.where(valid, own, self.slots)
        if own.size == 1:  # which XLA on CPUs would write into copies of the cache; two it does not
            written = jnp.concatenate([written, jnp.full_like(written, self.slots)], axis=1)
            new = {name: array.repeat(2, axis=1) for name, array in new.items()}
        rows = jnp.arange(len(self.lengths))[:, None]
        put = lambda old, new: old.at[rows, :, written].set(new.astype(old.dtype), mode="drop")
        sources = {name: put(self.sources[name], array) for name, array in new.items()}
        lengths = self.lengths + (count if valid is None else valid.sum(1, dtype=jnp.int32))
        here, last = np.arange(self.slots)[None], lengths[:, None] - 1
        if self.turns(count, window):
            places = last - (last - here) % self.slots
            filled = places >= 0
        else:
            places, filled = here, here <= last
        return self.replace(sources=sources, lengths=lengths), Slots(places, filled, own)

    def turns(self, count: int, window: int | None) -> bool:
        """Whether older tokens may give way when so many come: what they see is kept all the
        same."""
        return window is not None and self.slots >= window + count - 1

    def _check_room(self, count: int, valid: Any, window: int | None) -> None:
        if self.turns(count, window) or isinstance(self.lengths, jax.core.Tracer):
            return
        new = count if valid is None else valid.sum(1)
        if isinstance(new, jax.core.Tracer):
            return
        end = int((np.asarray(self.lengths) + np.asarray(new)).max())
        if end > self.slots:
            allowed = f"has no room for {end} tokens"
            if window is not None:
                allowed += f"; {window + count - 1} are enough for a window of {window}"
            raise ConfigError("cache", f"{self.slots} slots", allowed)


def gaps(valid: Bool[Array, "B T"]) -> Bool[Array, " B"]:
    """Rows in which a token stands behind what is none."""
    return (valid[:, 1:] & ~valid[:, :-1]).any(1)


def check_cache(sizes: dict[str, int], cache: Any, context: Any, valid: Any) -> None:
    """Refuses a cache, or `valid`, that does not go with the tokens and the context of a call.

    Args: sizes: B and T of the tokens.
    """
    if valid is not None:
        if cache is None:
            raise ValueError("valid: is for a cache; without one use a mask")
        require_array("valid", valid, "B T", "bool", sizes)
        if not isinstance(valid, jax.core.Tracer) and gaps(valid).any():
            allowed = "what is no token must stand behind the tokens of its row"
            raise ConfigError("valid", shown(valid), allowed)
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise ConfigError("cache", shown(cache), "make one with init_cache")
    if context is not None:
        raise ValueError("cache: is for self-attention; a context needs none")
    if cache.lengths.shape[0] != sizes["B"]:
        allowed = f"the tokens have {sizes['B']} rows; make one with init_cache"
        raise ConfigError("cache", f"{cache.lengths.shape[0]} rows", allowed)
