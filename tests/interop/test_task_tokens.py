"""tokenizer.json of our tasks: the symbols of the task, and back to the text."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.interop.task_tokens import MASK, tokenizer_json
from qkv_jax.tasks import make_task

TEXT = "To be, or not to be:\tthat is\r\n  the question — naïve 1234.\n\n" * 60
KINDS = {
    "causal_bytes": {}, "masked_bytes": {}, "causal_characters": {},
    "causal_tokens": {"vocabulary": 290}, "masked_tokens": {"vocabulary": 290},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(task, tokenizer) by kind."""
    file = tmp_path_factory.mktemp("tokens") / "text.txt"
    file.write_text(TEXT, newline="")
    found = {}
    for kind, options in KINDS.items():
        task = make_task(kind, {"files": (str(file),), "length": 16} | options)
        found[kind] = task, tokenizers.Tokenizer.from_str(tokenizer_json(task))
    return found


def expected(task, text):
    if hasattr(task, "encode"):
        return task.encode(text).tolist()
    tokenizer = task.encoded()[1] if hasattr(task, "encoded") else None
    return (tokenizer.encode(text.encode()) if tokenizer else np.frombuffer(
        text.encode(), np.uint8)).tolist()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_text_are_the_tasks_symbols_and_spell_it(made, kind):
    task, tokenizer = made[kind]
    for text in (TEXT[:200], "be to", " the\nthat", "\r\n\r", "\tor"):
        if kind == "causal_characters" and set(text) - set(TEXT):
            continue
        ids = tokenizer.encode(text).ids
        assert ids == expected(task, text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.get_vocab_size() == task.classes + 1


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
@pytest.mark.parametrize("kind", ["causal_bytes", "causal_tokens"])
def test_any_text_has_the_same_pairs(made, kind, text):
    task, tokenizer = made[kind]
    if "<|mark|>" not in text:
        assert tokenizer.encode(text).ids == expected(task, text)


def test_the_number_above_all_symbols_masks_or_is_an_unknown_character(made):
    for kind, (task, tokenizer) in made.items():
        if kind.startswith("masked"):
            assert tokenizer.encode(f"a{MASK}b").ids[1] == task.classes
    task, tokenizer = made["causal_characters"]
    assert tokenizer.encode("Z").ids == [task.classes]


def test_documents_begin_with_the_mark(made, monkeypatch):
    """As rows of a data set do."""
    task = dataclasses.replace(made["causal_bytes"][0])
    object.__setattr__(task, "dataset", "some/rows")
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(task))
    assert tokenizer.encode("ab").ids == [256, 97, 98] == task.encode("ab").tolist()


def test_tasks_without_texts_have_none():
    assert tokenizer_json(make_task("relation", {})) is None
