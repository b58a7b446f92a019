"""Texts to the inputs of a pretrained encoder, by the tokenizer.json of its folder.

Needs the package `tokenizers` (extra `text`), which only those who read a tokenizer import.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.interop.tensors import refusal
from qkv_jax.interop.tokenizer_config import Options, read_options

TokenLists = list[list[int]]


class Encoded(NamedTuple):
    """Inputs of an encoder, padded at the right: tokens, with the token type as a second field
    where the model has one, and where they are real."""

    inputs: Int[Array, "B T"] | Int[Array, "B T F"]
    valid: Bool[Array, "B T"]


class TextTokenizer:
    """The tokenizer of one model; made by `read_tokenizer`.

    Attributes:
      max_length: the longest sequence that the model takes, special tokens included.
      options: what tokenizer_config.json says.
      unknown: the number of the token that stands for what has none; None if there is no such.
    """

    def __init__(
        self, tokenizer: Any, pad: int | None, fields: int, max_length: int, pad_counts: bool,
        options: Options, unknown: int | None,
    ):  # fmt: skip
        self._tokenizer, self._pad, self._fields = tokenizer, pad, fields
        self._pad_counts, self.max_length = pad_counts, max_length
        self.options, self.unknown = options, unknown

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
        limit = self.max_length
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length is not None:
            limit = arguments.whole("max_length", max_length)
        if not special < limit <= self.max_length:
            allowed = f"must be from {special + 1} to the {self.max_length} that the model takes"
            raise ConfigError("max_length", limit, allowed)
        arguments.truth("truncate", truncate)
        texts = listed(texts)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if truncate:
            self._tokenizer.enable_truncation(limit, direction=self.options.truncation_side)
        try:
            found = self._tokenizer.encode_batch(texts)
        except Exception as error:  # the package raises bare Exceptions
            allowed = f"tokenizer.json cannot read them: {error}"
            raise ConfigError("texts", texts, allowed) from None
        for i, (text, encoding) in enumerate(zip(texts, found, strict=True)):
            self._check(f"text {i}", text, encoding, limit)
        return [encoding.ids for encoding in found]

    @property
    def begin(self) -> list[int]:
        """The special tokens that stand before a text."""
        found = self._tokenizer.encode("a")
        first = found.special_tokens_mask.index(0) if 0 in found.special_tokens_mask else 0
        return found.ids[:first]

    @property
    def end(self) -> list[int]:
        """Those that stand behind it."""
        found = self._tokenizer.encode("a")
        mask = found.special_tokens_mask[::-1]
        return found.ids[len(mask) - mask.index(0) :] if 0 in mask else []

    def pad(self, tokens: TokenLists, length: int | None = None) -> Encoded:
        """Lists of tokens as one array, filled up to `length` (the longest by default).

        Raises:
          ConfigError: for no lists, other items than tokens, or a length below the longest.
        """
        if not isinstance(tokens, list | tuple) or not len(tokens):
            raise ConfigError("tokens", tokens, "must be lists of tokens")
        known = self._tokenizer.get_vocab_size()
        for row in tokens:
            for token in row if isinstance(row, list | tuple) else (row,):
                arguments.whole("tokens", token, 0, known - 1)
        lengths = np.array([len(row) for row in tokens])
        longest = int(lengths.max())
        length = longest if length is None else arguments.whole("length", length, longest)
        ids = np.full((len(tokens), length), self._pad or 0, np.int32)
        for row, some in zip(ids, tokens, strict=True):
            row[: len(some)] = some
        valid = np.arange(length)[None, :] < lengths[:, None]
        # One text is all of token type 0.
        inputs = ids if self._fields == 1 else np.stack([ids, np.zeros_like(ids)], -1)
        return Encoded(jnp.asarray(inputs), jnp.asarray(valid))

    def lowered(self) -> "TextTokenizer":
        """The same tokenizer with texts made lower case first."""
        import tokenizers
        from tokenizers import normalizers

        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        own = [] if copy.normalizer is None else [copy.normalizer]
        copy.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        sizes = (self._pad, self._fields, self.max_length, self._pad_counts)
        return TextTokenizer(copy, *sizes, self.options, self.unknown)

    def unknown_share(self, tokens: TokenLists) -> float:
        """How much of some texts the tokenizer does not know: unknown tokens, of those that are not
        special."""
        known = self._tokenizer.get_added_tokens_decoder()
        special = {i for i, token in known.items() if token.special} - {self.unknown}
        counted = [token for row in tokens for token in row if token not in special]
        return sum(token == self.unknown for token in counted) / max(1, len(counted))

    def words(self, tokens: Sequence[int] | Int[np.ndarray, " T"]) -> list[str]:
        """What each token stands for.

        Raises:
          ConfigError: for what is no number of a token.
        """
        most = self._tokenizer.get_vocab_size() - 1
        if isinstance(tokens, str | bytes) or not hasattr(tokens, "__iter__"):
            raise ConfigError("tokens", tokens, "must be a list of tokens")
        for token in tokens:
            arguments.whole("tokens", token, 0, most)
        return [self._tokenizer.id_to_token(int(token)) for token in tokens]

    def text(self, tokens: Sequence[int] | Int[np.ndarray, " T"]) -> str:
        """The text that tokens spell; for part of a sign a replacement character.

        Raises:
          ConfigError: as `words`.
        """
        self.words(tokens)
        return self._tokenizer.decode([*map(int, tokens)], skip_special_tokens=False)

    def _check(self, field: str, text: str, encoding: Any, limit: int) -> None:
        given = f"{text[:40]}…" if len(text) > 40 else text
        if self._fields > 1 and any(encoding.type_ids):
            raise ConfigError(field, given, "is given token types, which are not understood")
        if len(encoding.ids) > limit:
            raise ConfigError(field, given, f"is {len(encoding.ids)} tokens; at most {limit}")
        if all(encoding.special_tokens_mask):
            raise ConfigError(field, text, "is empty: no token beside the special ones")
        if self._pad_counts and self._pad in encoding.ids:
            pad = self._tokenizer.id_to_token(self._pad)
            raise ConfigError(field, given, f"must not hold the padding token {pad!r}")


def read_tokenizer(
    folder: pathlib.Path,
    vocabulary: int,
    pad: int | None,
    fields: int,
    max_length: int,
    pad_counts: bool,
) -> TextTokenizer | None:
    """The tokenizer of a folder, or None where it has no tokenizer.json.

    Args:
      vocabulary: rows of the model's table of tokens.
      pad: the number of the padding token; None where any token may fill up, as in decoders.
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
        advice = "needs the package 'tokenizers': pip install -e '.[text]'"
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
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    if model.get("dropout"):
        allowed = "draws tokens at random; understood: null"
        raise ConfigError("tokenizer.json dropout", model["dropout"], allowed)
    if pad is not None:
        _check_pad(path, tokenizer, pad, (parts["padding"] or {}).get("pad_token"))
    options = read_options(folder, tokenizer, parts)
    word = model.get("unk_token")
    unknown = model.get("unk_id") if word is None else tokenizer.token_to_id(word)
    return TextTokenizer(tokenizer, pad, fields, max_length, pad_counts, options, unknown)


def _check_pad(path: pathlib.Path, tokenizer: Any, pad: int, declared: str | None) -> None:
    known, token = tokenizer.get_added_tokens_decoder(), tokenizer.id_to_token(pad)
    if not (pad in known and known[pad].special or token in ("[PAD]", "<pad>", declared)):
        what = f"does not match: token {pad} is {token!r}, for the model the padding"
        raise refusal(path, what)


def listed(texts: Any) -> list[str]:
    """Some texts as a list.

    Raises:
      ConfigError: naming the one that is not a text.
    """
    is_list = hasattr(texts, "__len__") and hasattr(texts, "__iter__")
    if not is_list or isinstance(texts, str | bytes | Mapping) or not len(texts):
        raise ConfigError("texts", texts, "must be a list of at least one text")
    for i, text in enumerate(texts):
        arguments.text(f"text {i}", text)
    return [str(text) for text in texts]
