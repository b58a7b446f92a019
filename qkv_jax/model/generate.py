"""What a causal model goes on to say: sampled or greedy, in one compiled program."""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from qkv_jax import arguments
from qkv_jax.arrays import require_array, require_below
from qkv_jax.config import ConfigError, require_positive, require_range, settle, shown
from qkv_jax.model.seq2seq import Model, Seq2Seq


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution.

    Attributes:
      temperature: what logits are divided by; at 0, or what float32 takes for 0, the likeliest
        token is taken.
      top_k: only so many of the likeliest tokens are kept (Fan et al. 2018).
      top_p: only the likeliest tokens that together reach this share (Holtzman et al. 2020).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        settle(self)
        require_range(self, "temperature", 0.0, float("inf"))
        require_positive(self, "top_k", "top_p")
        if self.top_p is not None and self.top_p > 1:
            raise ConfigError("top_p", self.top_p, "must be at most 1")

    def pick(self, key: PRNGKeyArray, logits: Float[Array, "B V"]) -> Int[Array, " B"]:
        """A token of each row."""
        if self.temperature < jnp.finfo(jnp.float32).tiny:
            return logits.argmax(-1).astype(jnp.int32)
        return jax.random.categorical(key, self.kept(logits)).astype(jnp.int32)

    def kept(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """The logits that are drawn from; minus infinity where nothing is."""
        # Of the likeliest token 0, so that nothing overflows however low the temperature.
        logits = (logits - logits.max(-1, keepdims=True)) / self.temperature
        if self.top_k is None and self.top_p is None:
            return logits
        order = jnp.argsort(logits, axis=-1, descending=True)
        falling = jnp.take_along_axis(logits, order, -1)
        last = jnp.full(len(logits), logits.shape[-1] - 1)
        if self.top_k is not None:
            last = jnp.minimum(last, self.top_k - 1)
        if self.top_p is not None:
            before = jnp.cumsum(jax.nn.softmax(falling), -1) - jax.nn.softmax(falling)
            last = jnp.minimum(last, (before < self.top_p).sum(-1) - 1)
        rows, ranks = jnp.arange(len(logits))[:, None], jnp.arange(logits.shape[-1])
        kept = jnp.zeros(logits.shape, bool).at[rows, order].set(ranks[None] <= last[:, None])
        return jnp.where(kept, logits, -jnp.inf)


GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A causal model that continues prompts.

    Attributes:
      model: see `Encoder`; or an encoder-decoder, whose source is given as the `context` of a
        call: its arguments `source` and `source_valid`.
      new: the number of tokens to add.
      sampling: how they are drawn.
      stop: tokens that end a row; the one that does is repeated behind it.
      chunk: prompts are read so many tokens at a time; all at once by default.
    """

    model: Model
    new: int
    sampling: Sampling = GREEDY
    stop: tuple[int, ...] = ()
    chunk: int | None = None

    def __post_init__(self):
        settle(self)
        if not self.model.is_causal or self.model.readout == "class":
            raise ValueError("model: must be causal and read out every token")
        require_positive(self, "new", "chunk")
        for token in self.stop:
            arguments.whole("stop", token, 0, self.model.classes - 1)

    def __call__(
        self,
        variables: Any,
        prompts: Any,
        seed: int = 0,
        lengths: Any = None,
        context: dict[str, Any] | None = None,
    ) -> Int[np.ndarray, "B new"]:
        """The tokens that follow each prompt, in one compiled program.

        Args:
          prompts: tokens [B, P].
          lengths: of each, [B]; what stands behind it is not read. By default all of P.

        Raises:
          ConfigError: for prompts that are empty, of other tokens, or too long for the model; for
            a seed that is not from 0 to 2**32 - 1.
        """
        given = self.checked(prompts, lengths, context)
        return np.asarray(_whole(self, variables, *given, _key(seed)))

    def stream(
        self,
        variables: Any,
        prompts: Any,
        seed: int = 0,
        lengths: Any = None,
        context: dict[str, Any] | None = None,
    ) -> Iterator[Int[np.ndarray, " B"]]:
        """The same, token by token as they come."""
        given = self.checked(prompts, lengths, context)
        state = _begun(self, variables, *given, _key(seed))
        for count in range(self.new):
            yield np.asarray(state[1])
            if count + 1 < self.new:
                state = _next(self, variables, *state)

    def checked(
        self, prompts: Any, lengths: Any, context: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Prompts, their lengths and the context, refused if the model cannot continue them."""
        require_array("prompts", prompts, "B T", "int", {})
        if not prompts.size:
            raise ConfigError("prompts", shown(prompts), "must have a token at least")
        vocabulary = getattr(self.model.stem, "vocabulary", (self.model.classes,))
        require_below("prompts", jnp.asarray(prompts), vocabulary[0])
        if lengths is None:
            lengths = np.full(len(prompts), prompts.shape[1])
        require_array("lengths", lengths, "B", "int", {"B": len(prompts)})
        if not (np.min(lengths) >= 1 and np.max(lengths) <= prompts.shape[1]):
            allowed = f"must be from 1 to {prompts.shape[1]}, the tokens of a row"
            raise ConfigError("lengths", shown(lengths), allowed)
        most = self.model.max_length
        if self.new > self.room(lengths):
            given, room = f"{np.max(lengths)} tokens and {self.new} to come", self.room(lengths)
            allowed = f"the model's learned positions end at {most}: {max(room, 0)} may come"
            raise ConfigError("prompts", given, allowed)
        context = self._checked_context(context or {}, len(prompts), vocabulary[0])
        return np.asarray(prompts, np.int32), np.asarray(lengths, np.int32), context

    def _checked_context(self, context: dict[str, Any], rows: int, symbols: int):
        needs = isinstance(self.model, Seq2Seq)
        if needs != ("source" in context) or not {*context} <= {"source", "source_valid"}:
            allowed = "must have a source" if needs else "is for encoder-decoders"
            raise ConfigError("context", [*context], allowed)
        if not needs:
            return {}
        source = context["source"]
        require_array("source", source, "B S", "int", {"B": rows})
        require_below("source", jnp.asarray(source), symbols)
        most, limited = self.model.max_length, self.model.config.positions == "learned"
        if limited and source.shape[1] > most:
            allowed = f"the model's learned positions end at {most}"
            raise ConfigError("source", f"{source.shape[1]} tokens", allowed)
        return {name: np.asarray(array) for name, array in context.items()}

    def room(self, lengths: Any) -> int:
        """How many tokens may follow the longest prompt; learned positions have an end."""
        limited = self.model.config.positions == "learned"
        return int(self.model.max_length - np.max(lengths) + 1) if limited else sys.maxsize

    def slots(self, most: int) -> int:
        """Those of the cache, for prompts of so many tokens."""
        window, chunk = self.model.config.window, min(self.chunk or most, most)
        return most + self.new if window is None else min(most + self.new, window + chunk - 1)

    def read(self, variables, prompts, lengths, context=None):
        """The cache with the prompts in it, and the logits of what follows each."""
        batch, most = prompts.shape
        chunk = min(self.chunk or most, most)
        source = {"variables": variables, **context} if context else {}
        cache = self.model.init_cache(batch, self.slots(most), **source)
        logits = jnp.zeros((batch, self.model.classes))
        for start in range(0, most, chunk):
            part = prompts[:, start : start + chunk]
            valid = start + jnp.arange(part.shape[1])[None] < lengths[:, None]
            ends = jnp.clip(lengths - 1 - start, 0, part.shape[1] - 1)
            found, cache = self.model.apply(variables, part, valid, ends[:, None], cache)
            here = (lengths > start) & (lengths <= start + part.shape[1])
            logits = jnp.where(here[:, None], found[:, 0], logits)
        return cache, logits

    def ends(self, tokens: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Which of the tokens end a row."""
        return jnp.isin(tokens, jnp.array(self.stop, jnp.int32))

    def begin(self, variables, prompts, lengths, context, key):
        """The cache with the prompts in it, the first token of each row, and the key for the next.
        """
        cache, logits = self.read(variables, prompts, lengths, context)
        key, own = jax.random.split(key)
        return cache, self.sampling.pick(own, logits), key

    def extend(self, variables, cache, token, key):
        """The same after one token more."""
        logits, cache = self.model.apply(variables, token[:, None], cache=cache)
        key, own = jax.random.split(key)
        more = self.sampling.pick(own, logits[:, 0])
        return cache, jnp.where(self.ends(token), token, more), key


def _key(seed: int) -> PRNGKeyArray:
    return jax.random.key(arguments.whole("seed", seed, 0, 2**32 - 1))


@functools.partial(jax.jit, static_argnums=0)
def _whole(generator: Generator, variables, prompts, lengths, context, key) -> Int[Array, "B new"]:
    state = generator.begin(variables, prompts, lengths, context, key)
    tokens = jnp.zeros((len(prompts), generator.new), jnp.int32).at[:, 0].set(state[1])

    def more(carry):
        count, _, state = carry
        return (count < generator.new) & ~generator.ends(state[1]).all()

    def one(carry):
        count, tokens, state = carry
        state = generator.extend(variables, *state)
        return count + 1, tokens.at[:, count].set(state[1]), state

    count, tokens, state = jax.lax.while_loop(more, one, (1, tokens, state))
    return jnp.where(jnp.arange(generator.new)[None] < count, tokens, state[1][:, None])


@functools.partial(jax.jit, static_argnums=0)
def _begun(generator: Generator, variables, prompts, lengths, context, key):
    return generator.begin(variables, prompts, lengths, context, key)


# The cache is the caller's no more: it is written in place.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _next(generator: Generator, variables, cache, token, key):
    return generator.extend(variables, cache, token, key)
