"""The texts that a pretrained model is surveyed on: a file's lines, or sentences of Shakespeare."""

import itertools
import pathlib
import re

import numpy as np

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.tasks.text.files import shakespeare_files
from qkv_jax.tasks.text.plain_text import read_text, split_lines

_WORDS = (6, 30)  # of a sentence that is taken
# Stage directions, and the name of the speaker, which has a line or the start of one to itself.
_ASIDE = re.compile(r"\[[^\]]*\]|^[A-Z][A-Za-z ]{0,20}\.\s*$|^[A-Z][A-Z ]+\.?\s", re.MULTILINE)


def read_texts(path: pathlib.Path, most: int) -> dict[str, str]:
    """The first `most` lines of a file that are not blank: {"line 3": text}.

    Raises:
      ConfigError: if it cannot be read, is not UTF-8, or holds nothing.
    """
    arguments.whole("most", most, 1)
    text = read_text(arguments.path("texts", path), "texts")
    lines = enumerate(split_lines(text), 1)
    texts = {f"line {i}": line.strip() for i, line in lines if line.strip()}
    if not texts:
        raise ConfigError("texts", str(path), "is empty; write one text per line")
    return dict(itertools.islice(texts.items(), most))


def shakespeare_sentences(most: int, seed: int) -> dict[str, str]:
    """Sentences of 6 to 30 words out of all works, drawn at random: {"sentence 1": text}.

    Raises:
      ConfigError: if the package `shakespeare` is not installed.
    """
    arguments.whole("most", most, 1)
    arguments.whole("seed", seed)
    try:
        files = shakespeare_files()
    except ConfigError as error:
        raise ConfigError("texts", None, error.allowed) from None
    found: list[str] = []
    for path in files:
        text = _ASIDE.sub("\n\n", path.read_text(encoding="latin-1"))
        for part in re.split(r"\n\s*\n", text):
            sentences = re.split(r"(?<=[.!?])\s+", " ".join(part.split()))
            found += [s for s in sentences if _is_sentence(s)]
    found = list(dict.fromkeys(found))
    chosen = np.random.default_rng(seed).choice(len(found), min(most, len(found)), replace=False)
    return {f"sentence {i}": found[place] for i, place in enumerate(np.sort(chosen), 1)}


def _is_sentence(text: str) -> bool:
    words = len(text.split())
    return _WORDS[0] <= words <= _WORDS[1] and text[0].isupper() and text[-1] in ".!?"
