"""Beam search: the likeliest continuation that a bounded search finds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.model.generate import Generator

_PENALTY = 10  # whatever is longer than a few tokens decides alone by then


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
    up to and with the one of `generator.stop` that ends the text (Wu et al. 2016, eq. 14). A text
    that ends while it is among the `beams` likeliest of its length is kept, and `beams` others go
    on. A beam of one without a penalty is greedy. The generator's sampling is not used.

    Raises:
      ConfigError: as `Generator`, for beams below 1, and for a penalty beyond 10.
    """
    beams = arguments.whole("beams", beams, 1)
    length_penalty = float(arguments.number("length_penalty", length_penalty))
    if abs(length_penalty) > _PENALTY:
        allowed = f"must be from -{_PENALTY} to {_PENALTY}"
        raise ConfigError("length_penalty", length_penalty, allowed)
    given = generator.checked(prompts, lengths, context)
    found = _search(generator, beams, length_penalty, variables, *given)
    return tuple(np.asarray(each) for each in found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(generator: Generator, beams: int, penalty: float, variables, prompts, lengths, context):
    batch, new, classes = len(prompts), generator.new, generator.model.classes
    cache, logits = generator.read(variables, prompts, lengths, context)
    cache = jax.tree.map(lambda leaf: leaf.repeat(beams, axis=0), cache)
    logits = logits.repeat(beams, axis=0)

    def score(totals, length):
        return totals / ((5 + length) / 6) ** penalty

    def best(totals, texts, count):
        """The likeliest of totals [B, beams, classes], the row of each, and its token and text."""
        totals, found = jax.lax.top_k(totals.reshape(batch, -1), beams)
        parent, token = found // classes, (found % classes).astype(jnp.int32)
        texts = jnp.take_along_axis(texts, parent[..., None], axis=1)
        # To the end, for a text that ends here; one that goes on is written over.
        texts = jnp.where(jnp.arange(new)[None, None] < count, texts, token[..., None])
        return totals, jnp.arange(batch)[:, None] * beams + parent, token, texts

    def merged(one, other):
        """The best of two sets of scores and texts; the first keeps what is as good."""
        scores, texts = (jnp.concatenate(both, axis=1) for both in zip(one, other, strict=True))
        scores, found = jax.lax.top_k(scores, beams)
        return scores, jnp.take_along_axis(texts, found[..., None], axis=1)

    def chosen(logits, live, ended, count):
        """The rows and tokens that live texts go on by, these, and those that have ended."""
        nats = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, classes)
        totals, texts = live[0][..., None] + nats, live[1]
        if generator.stop:
            likely, _, token, longer = best(totals, texts, count)
            scores = jnp.where(generator.ends(token), score(likely, count + 1), -jnp.inf)
            ended = merged(ended, (scores, longer))
            totals = jnp.where(generator.ends(jnp.arange(classes))[None, None], -jnp.inf, totals)
        totals, rows, token, texts = best(totals, texts, count)
        return rows.reshape(-1), token.reshape(-1, 1), (totals, texts), ended

    def more(carry):
        """Whether a live text may still be better than the worst that has ended: its total can but
        fall, and a penalty above 0 favours the longest, another one the shortest."""
        count, _, _, _, live, ended = carry
        hoped = score(live[0][:, 0], new if penalty > 0 else 1)
        return (count < new) & (hoped > ended[0][:, -1]).any()

    def step(carry):
        count, cache, rows, token, live, ended = carry
        if beams > 1:  # all beams of a row read the same context
            sources = jax.tree.map(lambda leaf: leaf[rows], cache.sources)
            cache = cache.replace(sources=sources, lengths=cache.lengths[rows])
        logits, cache = generator.model.apply(variables, token, cache=cache)
        return count + 1, cache, *chosen(logits[:, 0], live, ended, count)

    # The first step sees one beam: the others are copies of it.
    totals = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), (batch, 1))
    texts = jnp.zeros((batch, beams, new), jnp.int32)
    ended = jnp.full((batch, beams), -jnp.inf), texts
    first = (1, cache, *chosen(logits, (totals, texts), ended, 0))
    *_, (totals, texts), ended = jax.lax.while_loop(more, step, first)
    # Where the loop has ended early, what still lives is no better than all that has ended.
    scores, texts = merged(ended, (score(totals, new), texts))
    return texts, scores
