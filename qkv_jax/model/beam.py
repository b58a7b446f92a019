"""Beam search: the likeliest continuation that a bounded search finds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qkv_jax import arguments
from qkv_jax.model.generate import Generator


def beam_search(
    generator: Generator,
    variables: Any,
    prompts: Any,
    beams: int,
    lengths: Any = None,
    length_penalty: float = 0.0,
    context: dict[str, Any] | None = None,
) -> tuple[Int[np.ndarray, "B beams new"], Float[np.ndarray, "B beams"]]:
    """The `beams` likeliest continuations of each prompt, best first, and their scores.

    A score is the sum of log-probabilities over ((5 + n) / 6)^penalty, n being the number of tokens
    up to and with `generator.stop` (Wu et al. 2016, eq. 14). The generator's sampling is not used.

    Raises:
      ConfigError: as `Generator`, and for beams below 1.
    """
    beams = arguments.whole("beams", beams, 1)
    length_penalty = float(arguments.number("length_penalty", length_penalty))
    given = generator.checked(prompts, lengths, context)
    found = _search(generator, beams, length_penalty, variables, *given)
    return tuple(np.asarray(each) for each in found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(generator: Generator, beams: int, penalty: float, variables, prompts, lengths, context):
    batch, new, stop = len(prompts), generator.new, generator.stop
    classes = generator.model.classes
    cache, logits = generator.read(variables, prompts, lengths, context)
    cache = jax.tree.map(lambda leaf: leaf.repeat(beams, axis=0), cache)
    logits = logits.repeat(beams, axis=0)
    # The first step sees one beam: the others are copies of it.
    totals = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), (batch, 1))
    state = {
        "tokens": jnp.zeros((batch, beams, new), jnp.int32), "totals": totals,
        "lengths": jnp.zeros((batch, beams), jnp.int32), "ended": jnp.zeros((batch, beams), bool),
    }  # fmt: skip

    def score(totals, lengths):
        return totals / ((5 + lengths) / 6) ** penalty

    def chosen(logits, state, count):
        """The beams with a token more, the row that each goes on from, and that token."""
        nats = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, classes)
        if stop is not None:  # a beam that has ended goes on in one way only, for nothing
            stay = jnp.where(jnp.arange(classes) == stop, 0.0, -jnp.inf)
            nats = jnp.where(state["ended"][..., None], stay, nats)
        totals = state["totals"][..., None] + nats
        longer = state["lengths"] + (~state["ended"]).astype(jnp.int32)
        ranked = score(totals, longer[..., None].astype(jnp.float32)).reshape(batch, -1)
        _, best = jax.lax.top_k(ranked, beams)
        parent, token = best // classes, (best % classes).astype(jnp.int32)
        pick = lambda leaf: jnp.take_along_axis(leaf, parent, axis=1)
        tokens = jnp.take_along_axis(state["tokens"], parent[..., None], axis=1)
        state = {
            "tokens": tokens.at[..., count].set(token),
            "totals": jnp.take_along_axis(totals.reshape(batch, -1), best, axis=1),
            "lengths": pick(longer), "ended": pick(state["ended"]),
        }  # fmt: skip
        if stop is not None:
            state["ended"] |= token == stop
        rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
        return state, rows, token.reshape(-1, 1)

    def step(carry, count):
        cache, state, rows, token = carry
        # All beams of a row read the same context.
        sources = jax.tree.map(lambda leaf: leaf[rows], cache.sources)
        cache = cache.replace(sources=sources, lengths=cache.lengths[rows])
        logits, cache = generator.model.apply(variables, token, cache=cache)
        return (cache, *chosen(logits[:, 0], state, count)), None

    first = (cache, *chosen(logits, state, 0))
    (_, state, *_), _ = jax.lax.scan(step, first, jnp.arange(1, new))
    return state["tokens"], score(state["totals"], state["lengths"].astype(jnp.float32))
