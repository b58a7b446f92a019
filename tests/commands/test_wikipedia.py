"""`experiments.prepare wikipedia`: the articles of a dump as plain words, and a task on them."""

import bz2
import json

import pytest

from qkv_jax.tasks.text.causal import CausalBytes
from qkv_jax.tasks.text.wikipedia import plain
from tests.support import commands

PAGE = """
<page><title>{title}</title><ns>{space}</ns>{more}
<revision><text>{text}</text></revision></page>"""
DUMP = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{pages}</mediawiki>'
PAGES = (
    ("Albedo", 0, "", "'''Albedo''' is 0.3 of &lt;b&gt;light&lt;/b&gt;."),
    ("Talk:Albedo", 1, "", "I disagree."),
    ("Whiteness", 0, '<redirect title="Albedo" />', "#REDIRECT [[Albedo]]"),
    ("Picture", 0, "", "[[File:a.png|thumb|A [[dog]]]]"),  # no words: no article
    ("Zoë", 0, "", "Zoë lives."),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with commands.server(tmp_path_factory.mktemp("wikipedia")) as run:
        yield lambda *flags: run("experiments.prepare", "wikipedia", *flags)


def dump(*pages):
    fields = ("title", "space", "more", "text")
    made = (PAGE.format(**dict(zip(fields, page, strict=True))) for page in pages)
    return DUMP.format(pages="".join(made)).encode()


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        ("Plain, ''old'' TEXT;\n* lists", "plain old text lists"),
        ("[[Cat]]s, [[Felis|a cat]], [[:Category:Cats]]", "cats a cat category cats"),
        ("a [[File:x.png|thumb|of [[dogs]]]] b [[Category:Cats]] [[fr:Chat]] [[zh-yue:C]]", "a b"),
        ("a {{cite|{{inner}}}} b {| table\n{| nested |}\n| cell {{x}} |} c", "a b c"),
        ("a<ref name=x/> b<ref>[http://x y]</ref> c<!-- no --> <br/>d", "a b c d"),
        ("a <ref name='x' /> lost words <ref>note</ref> b", "a lost words b"),
        ("a {| \n| {{cell|}} text\n|} b", "a b"),
        ("<math>x < 3</math>see [https://x.org/a the site] or http://y.org/?q=1 now",
         "see the site or now"),
        ("1867&nbsp;m² of Éire", "one eight six seven m two of eire"),
        ("{{never closed, but words", "never closed but words"),
    ],
)  # fmt: skip
def test_what_is_left_of_an_article(wikitext, words):
    assert plain(wikitext) == words


@pytest.mark.parametrize("pack", [bytes, bz2.compress])
def test_articles_become_rows_of_a_data_set(pack, run, tmp_path):
    file, out = tmp_path / "dump", tmp_path / "new" / "wikipedia"
    file.write_bytes(pack(dump(*PAGES)))
    flags = f"--dump={file}", f"--out={out}"
    assert run(*flags) == [0, f"{out}/train.jsonl: 2 articles of 38 letters\n", ""]
    assert [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()] == [
        {"title": "Albedo", "text": "albedo is zero three of light"},
        {"title": "Zoë", "text": "zoe lives"},
    ]
    assert run(*flags)[0] == 0  # the same once more is no other
    file.write_bytes(dump(*PAGES[:1]))
    code, _, err = run(*flags)
    assert code == 2 and "--out: " in err and "is there already, and something else" in err


def test_a_task_on_articles_has_each_as_a_document(run, tmp_path):
    file, out = tmp_path / "dump", tmp_path / "wikipedia"
    pages = [("Page", 0, "", "word " * (10 + place)) for place in range(40)]
    file.write_bytes(dump(*pages))
    assert run(f"--dump={file}", f"--out={out}")[0] == 0
    task = CausalBytes(dataset=str(out), length=32, validation_examples=4, test_examples=4)
    lengths = {name: len(texts) for name, texts in task.texts().items()}
    assert lengths == {"train": 36, "validation": 2, "test": 2}
    assert task.texts()["train"][0].tobytes().decode() == ("word " * 10).strip()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is no whole XML file: no element found: line 1, column 0"),
        (dump(*PAGES)[:-9], "is no whole XML file: "),
        (bz2.compress(dump(*PAGES) * 9)[:-20], "cannot be read: "),
        (b"BZh9" + b"x" * 99, "cannot be read: Invalid data stream"),
        (b"<html></html>", "is no MediaWiki export, but <html>"),
        (dump(*PAGES[1:4]), "holds no articles"),
    ],
)
def test_what_is_no_dump_is_refused(content, said, run, tmp_path):
    file = tmp_path / "dump"
    if content is not None:
        file.write_bytes(content)
    code, out, err = run(f"--dump={file}", f"--out={tmp_path / 'no'}")
    assert (code, out) == (2, "") and not (tmp_path / "no").exists()
    assert err.startswith(f"error: --dump: given '{file}'; {said}") and err.count("\n") == 1


def test_a_dump_must_be_named(run):
    assert run() == [2, "", "error: --dump: given None; name a dump of Wikipedia\n"]
