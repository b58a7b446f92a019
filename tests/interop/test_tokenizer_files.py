"""tokenizer.json and tokenizer_config.json: followed, or refused by name."""

import json

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop import tokenizer_config
from qkv_jax.interop.pretrained import load_pretrained
from tests.support.folders import pretrained_folders as folders
from tests.support.folders.pretrained_parts import refused


def tokenizer_of(folder, **changes):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    for name, change in changes.items():
        values[name] = change(values[name]) if callable(change) else change
    path.write_text(json.dumps(values))
    return folder


def without_pad(tokens):
    return [token for token in tokens if token["content"] != "[PAD]"]


def renamed_pad(model):
    vocabulary = {"nothing" if word == "[PAD]" else word: i for word, i in model["vocab"].items()}
    return model | {"vocab": vocabulary}


def first_at(types):
    def change(processor):
        first = {"SpecialToken": {"id": "[CLS]", "type_id": types}}
        return processor | {"single": [first, *processor["single"][1:]]}

    return change


def test_the_parts_of_tokenizer_json_are_followed(tmp_path):
    folder = folders.write(tmp_path, folders.BERT)
    rows = lambda **changes: load_pretrained(tokenizer_of(folder, **changes)).tokenizer.tokens
    assert rows()(["THE cat"]) == [[1, 3, 5, 2]]
    assert rows(normalizer={"type": "Lowercase"})(["THE cat"]) == [[1, 4, 5, 2]]
    assert rows(pre_tokenizer={"type": "Whitespace"})(["the-cat"]) == [[1, 4, 3, 5, 2]]
    assert rows(post_processor=None)(["the cat"]) == [[4, 5]]
    long = "the cat sat on"
    assert rows()([long], max_length=3, truncate=True) == [[4, 5, 6]]
    left = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    assert rows(truncation=left)([long], max_length=3, truncate=True) == [[5, 6, 7]]


def test_a_padding_token_that_was_never_declared_is_taken_by_its_name(tmp_path):
    folder = folders.write(tmp_path, folders.BERT)
    undeclared = {"added_tokens": without_pad, "padding": None}
    loaded = load_pretrained(tokenizer_of(folder, **undeclared))
    assert loaded.tokenizer.tokens(["the cat"]) == [[1, 4, 5, 2]]
    assert refused(tokenizer_of(folder, model=renamed_pad)).endswith(
        "tokenizer.json'; does not match: token 0 is 'nothing', for the model the padding"
    )


def test_padding_at_the_left_is_refused(tmp_path):
    """Tokens would stand at other places of BERT's table."""
    folder = folders.write(tmp_path, folders.BERT)
    message = refused(tokenizer_of(folder, padding=lambda p: p | {"direction": "Left"}))
    assert message == "tokenizer.json padding: given 'Left'; understood: 'Right'"


def test_token_types_within_one_text_are_refused(tmp_path):
    loaded = load_pretrained(tokenizer_of(
        folders.write(tmp_path, folders.BERT), post_processor=first_at(1)
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="text 0: given 'the cat'; is given token types, which"):
        loaded.encode(["the cat"])


def test_what_the_tokenizer_cannot_read_is_one_line(tmp_path):
    no_unknown = lambda model: model | {"unk_token": "[none]"}
    loaded = load_pretrained(tokenizer_of(folders.write(tmp_path, folders.BERT), model=no_unknown))
    with pytest.raises(ConfigError, match="texts: given .*; tokenizer.json cannot read them: "):
        loaded.encode(["zebra"])


def test_tokens_drawn_at_random_are_refused(tmp_path):
    model = {"type": "BPE", "dropout": 0.1, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": False, "vocab": {"[PAD]": 0, "a": 4}, "merges": []}  # fmt: skip
    folder = folders.write(tmp_path, folders.BERT)
    message = refused(tokenizer_of(folder, model=model, post_processor=None, added_tokens=[]))
    assert message == "tokenizer.json dropout: given 0.1; draws tokens at random; understood: null"


LOWER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
         "strip_accents": None, "lowercase": True}  # fmt: skip
ADDED = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": False,
         "single_word": False, "special": True}  # fmt: skip
AGREE = {
    "do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True,
    "cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "added_tokens_decoder": {"0": ADDED},
    "model_max_length": 1000000000000000019884624838656, "truncation_side": "right",
    "add_prefix_space": True, "add_bos_token": True, "add_eos_token": True,
}  # fmt: skip
ODDS = [
    ({"do_lower_case": False}, "do_lower_case: given False; is at odds with tokenizer.json: "
                               "BertNormalizer has lowercase True"),
    ({"strip_accents": False}, "strip_accents: given False; is at odds with"),
    ({"tokenize_chinese_chars": False}, "tokenize_chinese_chars: given False; is at odds with"),
    ({"cls_token": "<s>"}, "cls_token: given '<s>'; is at odds with tokenizer.json: a text begins "
                           "with '[CLS]'"),
    ({"sep_token": "[PAD]"}, "sep_token: given '[PAD]'; is at odds with tokenizer.json: a text "
                             "ends with '[SEP]'"),
    ({"add_bos_token": "?"}, "add_bos_token: given '?'; must be true or false"),
    ({"add_eos_token": False}, "add_eos_token: given False; is at odds with tokenizer.json: a text "
                               "ends with '[SEP]'"),
    ({"added_tokens_decoder": {"19": ADDED}}, "added_tokens_decoder: given {'19': "),
    ({"added_tokens_decoder": {"0": ADDED | {"lstrip": True}}}, "added_tokens_decoder: given"),
    ({"added_tokens_decoder": {"0": {}}}, "added_tokens_decoder: given"),
    ({"added_tokens_decoder": {"0": 1}}, "added_tokens_decoder: given 1; is at odds with"),
    ({"added_tokens_decoder": [1]}, "added_tokens_decoder: given [1]; must be an object"),
    ({"truncation_side": "middle"}, "truncation_side: given 'middle'; understood: right, left"),
    ({"model_max_length": 0}, "model_max_length: given 0; must be a whole number"),
    ({"model_max_length": "512"}, "model_max_length: given '512'; must be a whole number"),
    *[({field: "?"}, f"{field}: given '?'; understood: ") for field in tokenizer_config._FIXED],
]  # fmt: skip


def test_tokenizer_config_agrees_with_tokenizer_json_or_is_refused(tmp_path):
    folder = tokenizer_of(folders.write(tmp_path, folders.BERT), normalizer=LOWER)
    path = folder / "tokenizer_config.json"
    harmless = dict.fromkeys(tokenizer_config._HARMLESS, "?")
    path.write_text(json.dumps(AGREE | harmless | tokenizer_config._FIXED))
    assert load_pretrained(folder).tokenizer.tokens(["THE cat"]) == [[1, 4, 5, 2]]
    assert set(AGREE) == tokenizer_config._READ
    for change, message in ODDS:
        path.write_text(json.dumps(AGREE | change))
        assert refused(folder).startswith(f"tokenizer_config.json {message}")


def test_the_space_before_a_text_is_that_of_tokenizer_json(tmp_path):
    own = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), True)
    parts = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"} | own]}
    folder = tokenizer_of(folders.write(tmp_path, folders.BERT), pre_tokenizer=parts)
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": false}')
    assert refused(folder).startswith("tokenizer_config.json add_prefix_space: given False; is at ")
