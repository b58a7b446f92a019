"""Translations of a trained model by beam search, and their BLEU as sacrebleu counts it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.model.beam import beam_search
from qkv_jax.model.generate import Generator
from qkv_jax.model.seq2seq import Seq2Seq
from qkv_jax.tasks.text.translation import Translation

BEAMS, PENALTY = 4, 0.6  # of Vaswani et al. 2017
_ROWS = 32  # sentences of one call


@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU of a whole set of sentences (Papineni et al. 2002), and how it was counted (Post 2018).

    Attributes:
      score: from 0 to 100.
      signature: that of sacrebleu: number of references, tokenizer, smoothing, version.
      sentences: how many were translated.
    """

    score: float
    signature: str
    sentences: int


def translate(
    model: Seq2Seq,
    variables: Any,
    task: Translation,
    texts: Sequence[str],
    beams: int = BEAMS,
    length_penalty: float = PENALTY,
) -> list[str]:
    """The likeliest translation of each text that a beam finds, of at most `task.length` tokens."""
    generator = Generator(model, task.length, stop=(task.end,))
    found: list[str] = []
    for start in range(0, len(texts), _ROWS):
        some = [task.encode(text) for text in texts[start : start + _ROWS]]
        # One shape for all calls, so that one program serves them.
        source = np.full((min(_ROWS, len(texts)), task.length), task.mark, np.int32)
        for row, tokens in zip(source, some, strict=False):
            row[: len(tokens)] = tokens
        source[len(some) :, 0] = task.end
        prompts = np.full((len(source), 1), task.mark, np.int32)
        context = {"source": source, "source_valid": source < task.mark}
        tokens, _ = beam_search(generator, variables, prompts, beams, None, length_penalty, context)
        found += [task.decode(row) for row in tokens[: len(some), 0]]
    return found


def bleu(
    model: Seq2Seq,
    variables: Any,
    task: Translation,
    examples: int | None = None,
    beams: int = BEAMS,
    length_penalty: float = PENALTY,
) -> Bleu:
    """BLEU on the first `examples` of the test split, all by default, whose references are whole:
    what is cut in training is asked for here.

    Raises:
      ConfigError: if `sacrebleu` is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        advice = "needs the package 'sacrebleu': pip install -e '.[text]'"
        raise ConfigError("bleu", "sacrebleu", advice) from None
    test = arguments.instance("task", task, Translation).splits()["test"]
    count = len(test.sources)
    if examples is not None:
        count = min(arguments.whole("examples", examples, 1), count)
    found = translate(model, variables, task, test.sources[:count], beams, length_penalty)
    metric = BLEU()
    score = metric.corpus_score(found, [list(test.targets[:count])]).score
    return Bleu(float(score), str(metric.get_signature()), count)
