"""From bytes to tokens: the bytes themselves, or byte pairs learned from the training split.

The byte-pair encoding (Sennrich et al. 2016) starts from the 256 bytes, so that it writes any text,
in any encoding, and loses nothing. It needs the package `tokenizers` (extra `text`).
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from qkv_jax.config import ConfigError

TokenizerName = Literal["bytes", "bpe"]
BYTES = 256
LATIN = tuple(map(chr, range(BYTES)))  # one sign per byte


@runtime_checkable
class Tokenizer(Protocol):
    """Bytes to numbers below `size` and back."""

    size: int

    def encode(self, text: bytes) -> np.ndarray:
        """The tokens [T] of a text."""

    def decode(self, tokens: np.ndarray) -> bytes:
        """The text of some tokens."""


class ByteTokenizer:
    """One token per byte."""

    size = BYTES

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: np.ndarray) -> bytes:
        return tokens.astype(np.uint8).tobytes()


class BytePairs:
    """A byte-pair encoding trained on some texts; made by `train_byte_pairs`."""

    def __init__(self, trained, size: int):
        self._trained, self.size = trained, size
        self._dtype = np.uint16 if size <= 2**16 else np.int32

    def to_json(self) -> str:
        """All of it as the library writes it, bytes as Latin-1 characters."""
        return self._trained.to_str()

    def encode(self, text: bytes) -> np.ndarray:
        ids = [encoding.ids for encoding in self._trained.encode_batch_fast(_lines(text))]
        return np.concatenate([np.array(some, self._dtype) for some in [[], *ids]])

    def decode(self, tokens: np.ndarray) -> bytes:
        pieces = [self._trained.id_to_token(int(token)) for token in tokens]
        return "".join(pieces).encode("latin-1")


def make_tokenizer(name: TokenizerName, vocabulary: int, texts: Iterable[bytes]) -> Tokenizer:
    """The tokenizer of a task; `texts` are those of its training split."""
    if name == "bytes":
        return ByteTokenizer()
    return train_byte_pairs(tuple(texts), vocabulary)


@functools.lru_cache(maxsize=1)
def train_byte_pairs(texts: tuple[bytes, ...], vocabulary: int) -> BytePairs:
    """A byte-pair encoding of exactly `vocabulary` tokens, the same for the same texts.

    Raises:
      ConfigError: if `tokenizers` is not installed, or the texts have too few different pairs.
    """
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        advice = "needs the package 'tokenizers': pip install -e '.[text]'"
        raise ConfigError("tokenizer", "bpe", advice) from None
    if vocabulary - BYTES > (size := sum(map(len, texts))):  # the library makes room beforehand
        raise ConfigError("vocabulary", vocabulary, f"the training split has {size} bytes only")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(word_pattern(LATIN)), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=[chr(byte) for byte in range(BYTES)],
        show_progress=False,
    )
    trained.train_from_iterator((line for text in texts for line in _lines(text)), trainer)
    if (size := trained.get_vocab_size()) != vocabulary:
        allowed = f"the training split has pairs for {size} only"
        raise ConfigError("vocabulary", vocabulary, allowed)
    return BytePairs(trained, vocabulary)


def word_pattern(signs: Sequence[str]) -> str:
    """GPT-2's cut into words (Radford et al. 2019) for texts in which each byte is written as one
    of 256 signs. Those from 128 on are parts of letters, whatever the encoding. What no alternative
    takes, a single tab before a word, stands alone. Only within a piece are pairs joined."""
    of = lambda some: "".join(re.escape(signs[byte]) for byte in some)
    space, blank, letters = of([32]), of([*range(9, 14), 32]), f"A-Za-z{of(range(128, BYTES))}"
    words = f"{space}?[{letters}]+|{space}?[0-9]+|{space}?[^{blank}{letters}0-9]+"
    return f"{words}|[{blank}]+(?![^{blank}])"


def check_vocabulary(name: TokenizerName, vocabulary: int) -> None:
    """Refuses a vocabulary that cannot hold the bytes.

    Raises:
      ConfigError: `vocabulary`.
    """
    if name == "bpe" and vocabulary <= BYTES:
        raise ConfigError("vocabulary", vocabulary, f"must be above the {BYTES} bytes")


def _lines(text: bytes) -> list[str]:
    """The lines of a text, one character per byte: whole texts at once would take long."""
    return [line.decode("latin-1") for line in text.splitlines(keepends=True)]
