"""Texts to the inputs of a pretrained encoder, by the tokenizer.json of its folder.

Needs the package `tokenizers` (extra `text`), which only those who read a tokenizer import.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from qkv_jax.config import ConfigError
from qkv_jax.interop.tensors import refusal

TokenLists = list[list[int]]


class Encoded(NamedTuple):
    """Inputs of an encoder, padded at the right: tokens, with the token type as a second field
    where the model has one, and where they are real."""

    inputs: Int[Array, "B T"] | Int[Array, "B T F"]
    padding: Bool[Array, "B T"]


class TextTokenizer:
    """The tokenizer of one model; made by `read_tokenizer`.

    Attributes:
      max_length: the longest sequence that the model takes, special tokens included.
    """

    def __init__(self, tokenizer: Any, pad: int, fields: int, max_length: int, pad_counts: bool):
        self._tokenizer, self._pad, self._fields = tokenizer, pad, fields
        self._pad_counts, self.max_length = pad_counts, max_length

    def encode(
        self, texts: Sequence[str], max_length: int | None = None, truncate: bool = False
    ) -> Encoded:
        """Texts as inputs, padded to the longest; `truncate` cuts long ones instead of refusing.

        Raises:
          ConfigError: as `tokens`.
        """
        return self.pad(self.tokens(texts, max_length, truncate))

    def tokens(
        self, texts: Sequence[str], max_length: int | None = None, truncate: bool = False
    ) -> TokenLists:
        """The tokens of each text, special ones included.

        Args:
          max_length: the most tokens of a text; what the model takes by default.
          truncate: cut longer texts to that.

        Raises:
          ConfigError: naming the text that is empty, too long, or not a text, and for no texts.
        """
        limit = self.max_length if max_length is None else max_length
        special = self._tokenizer.num_special_tokens_to_add(False)
        if not special < limit <= self.max_length:
            allowed = f"must be from {special + 1} to the {self.max_length} that the model takes"
            raise ConfigError("max_length", limit, allowed)
        if isinstance(texts, str) or not len(texts):
            raise ConfigError("texts", texts, "must be a list of at least one text")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError(f"text {i}", text, "must be a text")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if truncate:
            self._tokenizer.enable_truncation(limit)
        found = self._tokenizer.encode_batch(list(texts))
        for i, (text, encoding) in enumerate(zip(texts, found, strict=True)):
            self._check(f"text {i}", text, encoding, limit)
        return [encoding.ids for encoding in found]

    def pad(self, tokens: TokenLists, length: int | None = None) -> Encoded:
        """Lists of tokens as one array, filled up to `length` (the longest by default)."""
        lengths = np.array([len(row) for row in tokens])
        length = int(lengths.max()) if length is None else length
        ids = np.full((len(tokens), length), self._pad, np.int32)
        for row, some in zip(ids, tokens, strict=True):
            row[: len(some)] = some
        padding = np.arange(length)[None, :] < lengths[:, None]
        # One text is all of token type 0.
        inputs = ids if self._fields == 1 else np.stack([ids, np.zeros_like(ids)], -1)
        return Encoded(jnp.asarray(inputs), jnp.asarray(padding))

    def words(self, tokens: Sequence[int] | Int[np.ndarray, " T"]) -> list[str]:
        """What each token stands for."""
        return [self._tokenizer.id_to_token(int(token)) for token in tokens]

    def _check(self, field: str, text: str, encoding: Any, limit: int) -> None:
        if len(encoding.ids) > limit:
            given = f"{text[:40]}…" if len(text) > 40 else text
            raise ConfigError(field, given, f"is {len(encoding.ids)} tokens; at most {limit}")
        if all(encoding.special_tokens_mask):
            raise ConfigError(field, text, "is empty: no token beside the special ones")
        if self._pad_counts and self._pad in encoding.ids:
            pad = self._tokenizer.id_to_token(self._pad)
            raise ConfigError(field, text, f"must not hold the padding token {pad!r}")


def read_tokenizer(
    folder: pathlib.Path, vocabulary: int, pad: int, fields: int, max_length: int, pad_counts: bool
) -> TextTokenizer | None:
    """The tokenizer of a folder, or None where it has no tokenizer.json.

    Args:
      vocabulary: rows of the model's table of tokens.
      pad: the number of the padding token.
      fields: of a token: 2 with token types, else 1.
      max_length, pad_counts: as in `TextTokenizer` and `layouts.Plan`.

    Raises:
      ConfigError: `pretrained`, for a tokenizer.json that is damaged or does not match the model,
        and where `tokenizers` is not installed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        import tokenizers
    except ImportError:
        advice = "needs the package 'tokenizers': pip install 'qkv_jax[text]'"
        raise refusal(path, advice) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions
        line = (str(error).splitlines() or ["?"])[0]
        raise refusal(path, f"is no readable tokenizer: {line}") from None
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    highest = max(numbers.values(), default=-1)
    if highest >= vocabulary:
        what = f"does not match: it has a token {highest}, the model's table {vocabulary} rows"
        raise refusal(path, what)
    known = tokenizer.get_added_tokens_decoder()
    if not (pad in known and known[pad].special):
        token = tokenizer.id_to_token(pad)
        what = f"does not match: token {pad} is {token!r}, for the model the padding"
        raise refusal(path, what)
    return TextTokenizer(tokenizer, pad, fields, max_length, pad_counts)
