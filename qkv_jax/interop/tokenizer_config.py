"""What tokenizer_config.json says beside tokenizer.json, which is the one that is followed.

The libraries that read both let tokenizer_config.json win, each version over other parts of the
tokenizer; so a folder whose two files disagree is refused.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.interop.fields import check_fields, words
from qkv_jax.interop.tensors import read_json

_NAME = "tokenizer_config.json"
# By field: the parts of tokenizer.json that it overrides, and what they call it.
_OVERRIDES = {
    "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
    "add_prefix_space": ("ByteLevel", "add_prefix_space"),
}
_ENDS = {"cls_token": 0, "sep_token": -1}  # where each stands in what is read
# Whether a token that another field names stands at the beginning or the end.
_ADDED = {"add_bos_token": ("bos_token", 0), "add_eos_token": ("eos_token", -1)}
_READ = {
    "model_max_length", "truncation_side", "added_tokens_decoder", *_OVERRIDES, *_ENDS, *_ADDED
}  # fmt: skip
_FIXED = {
    "padding_side": "right",
    "do_basic_tokenize": True,
    "split_special_tokens": False,
    "auto_map": {},  # code of the folder's own
}
# Names, special tokens by other names, what decoding and calls with arguments of their own read.
_HARMLESS = words("""
    tokenizer_class processor_class name_or_path special_tokens_map_file tokenizer_file
    full_tokenizer_file vocab_file merges_file backend is_local use_fast from_slow legacy
    unk_token pad_token mask_token bos_token eos_token additional_special_tokens
    extra_special_tokens model_specific_special_tokens model_input_names
    clean_up_tokenization_spaces errors trim_offsets wordpieces_prefix chat_template max_length
    max_len stride truncation_strategy truncation padding pad_to_multiple_of pad_token_type_id
    return_tensors local_files_only trust_remote_code
""")


class Options(NamedTuple):
    """What is followed.

    Attributes:
      max_length: tokens that the library takes of a text; None where it does not say.
      truncation_side: which end of long texts it cuts off.
    """

    max_length: int | None = None
    truncation_side: str = "right"


def read_options(folder: pathlib.Path, tokenizer: Any, parts: Mapping[str, Any]) -> Options:
    """The options of a folder's tokenizer.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      parts: what its tokenizer.json holds.

    Raises:
      ConfigError: for a field that is at odds with tokenizer.json, or not known.
    """
    truncation, padding = parts["truncation"] or {}, parts["padding"] or {}
    if padding.get("direction", "Right") != "Right":
        raise ConfigError("tokenizer.json padding", padding["direction"], "understood: 'Right'")
    side = truncation.get("direction", "Right").lower()
    path = folder / _NAME
    if not path.is_file():
        return Options(truncation_side=side)
    values = read_json(path)
    check_fields(_NAME, values, _READ, _HARMLESS, _FIXED)
    for field, (kind, ours) in _OVERRIDES.items():
        for part in _of_kind([parts["normalizer"], parts["pre_tokenizer"]], kind):
            if field in values and values[field] != part[ours]:
                raise _odds(field, values[field], f"{kind} has {ours} {part[ours]!r}")
    _check_added(values.get("added_tokens_decoder"), parts["added_tokens"])
    _check_ends(values, tokenizer)
    side = _named(values, "truncation_side", ("right", "left")) or side
    return Options(_length(values), side)


def _check_added(declared: Any, added: list[Mapping[str, Any]]) -> None:
    """Tokens that tokenizer_config.json adds are those that tokenizer.json has."""
    if not isinstance(declared, dict | None):
        raise ConfigError(f"{_NAME} added_tokens_decoder", declared, "must be an object")
    known = {str(token["id"]): token for token in added}
    for number, token in (declared or {}).items():
        if not isinstance(token, dict):
            raise _odds("added_tokens_decoder", token, "it must be one object per token")
        given = {name: token[name] for name in known.get(number, {}) if name in token}
        if not given or any(known[number][name] != value for name, value in given.items()):
            what = f"token {number} is {known.get(number)}"
            raise _odds("added_tokens_decoder", {number: token}, what)


def _check_ends(values: Mapping[str, Any], tokenizer: Any) -> None:
    """A text begins with the one token and ends with the other."""
    tokens = tokenizer.encode("", add_special_tokens=True)
    real = [t for t, on in zip(tokens.tokens, tokens.attention_mask, strict=True) if on]
    for field, place in _ENDS.items():
        token = values.get(field)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (not real or real[place] != token):
            where = "ends" if place else "begins"
            found = repr(real[place]) if real else "no special token"
            raise _odds(field, token, f"a text {where} with {found}")
    for field, (name, place) in _ADDED.items():
        given, token = values.get(field), values.get(name)
        arguments.truth(f"{_NAME} {field}", True if given is None else given)
        token = token.get("content") if isinstance(token, dict) else token
        if given is False and real and token in (None, real[place]):
            where = "ends" if place else "begins"
            raise _odds(field, given, f"a text {where} with {real[place]!r}")
        if given and not real:
            raise _odds(field, given, "a text has no special token")


def _length(values: Mapping[str, Any]) -> int | None:
    """model_max_length; a huge number, which may be written as a float, stands for none."""
    given = values.get("model_max_length")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 1:
        raise ConfigError(f"{_NAME} model_max_length", given, "must be a whole number above 0")
    return None if given > 1e9 else int(given)


def _named(values: Mapping[str, Any], field: str, allowed: tuple[str, ...]) -> str | None:
    given = values.get(field)
    if given is not None and given not in allowed:
        raise ConfigError(f"{_NAME} {field}", given, f"understood: {', '.join(allowed)}")
    return given


def _of_kind(tree: Any, kind: str) -> list[Mapping[str, Any]]:
    """The parts of that type in a tree of sequences."""
    if isinstance(tree, list):
        return [part for branch in tree for part in _of_kind(branch, kind)]
    if not isinstance(tree, dict):
        return []
    inner = [branch for branch in tree.values() if isinstance(branch, list)]
    return [tree] * (tree.get("type") == kind) + _of_kind(inner, kind)


def _odds(field: str, given: Any, what: str) -> ConfigError:
    return ConfigError(f"{_NAME} {field}", given, f"is at odds with tokenizer.json: {what}")
