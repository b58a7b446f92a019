"""Text data: tokens that lose nothing and learn from training texts alone, tables read as they
were written, archives of reviews, and refusals of one line."""

import builtins
import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.prepare import member
from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.files import check_utf8
from qkv_jax.tasks.text.tables import Labelled, read_table
from qkv_jax.tasks.text.tokenizers import ByteTokenizer, train_byte_pairs
from tests.support.folders import text_tables
from tests.support.folders.text_tables import refusal, reviews, write_table

table = text_tables.table


WORDS = b"the cat sat on the mat and the dog sat on the cat "


# --- tokens


def spell(tokenizer, token):
    return tokenizer.decode(np.array([token]))


@pytest.fixture(scope="module")
def byte_pairs():
    return train_byte_pairs((WORDS * 3,), 270)


@settings(max_examples=50)
@given(text=st.one_of(st.binary(max_size=60), st.text(max_size=30).map(str.encode)))
def test_byte_pairs_lose_nothing(byte_pairs, text):
    """Any bytes come back, whatever encoding they are in, and all tokens are in the vocabulary."""
    tokens = byte_pairs.encode(text)
    assert byte_pairs.decode(tokens) == text
    assert len(tokens) == 0 or tokens.max() < byte_pairs.size == 270
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_byte_pairs_join_what_is_frequent_and_are_trained_alike_every_time(byte_pairs):
    """The commonest words of the text are one token each; the 256 bytes come first; training twice
    gives the same merges; a larger vocabulary begins with the smaller one."""
    assert [spell(byte_pairs, token) for token in byte_pairs.encode(b" the cat")] == [
        b" the", b" cat",
    ]  # fmt: skip
    assert all(spell(byte_pairs, byte) == bytes([byte]) for byte in range(256))
    train_byte_pairs.cache_clear()
    again = train_byte_pairs((WORDS * 3,), 270)
    larger = train_byte_pairs((WORDS * 3,), 273)
    for token in range(256, 270):
        piece = spell(byte_pairs, token)
        assert piece == spell(again, token) == spell(larger, token)


def test_masked_tokens_are_learned_from_training_texts_alone(tmp_path):
    """With another validation or test part the training tokens stay the same, with another training
    part they change; the unit says that losses are by token; held-out tokens spell the text."""
    base = np.random.default_rng(0).choice(list(b"abcd "), 4000).astype(np.uint8)
    parts = {}
    for name, place in (("same", None), ("end", 3900), ("start", 100)):
        text = base.copy()
        if place:
            text[place : place + 90] = list(b"xy z" * 22 + b"xy")
        (tmp_path / name).write_bytes(text.tobytes())
        task = make_task(
            "masked_tokens", {"files": (str(tmp_path / name),), "vocabulary": 300, "length": 16}
        )
        parts[name] = (task, task.load(), task.texts())
    task, data, texts = parts["same"]
    assert (task.outcome.unit, task.classes) == ("nats/token", 300)
    assert np.isclose(task.outcome.failure_value, np.log(300))
    np.testing.assert_array_equal(data.train, parts["end"][1].train)
    assert not np.array_equal(data.train[:300], parts["start"][1].train[:300])
    decode = train_byte_pairs((base[:3600].tobytes(),), 300).decode
    assert decode(texts["test"][0]) == base[3800:].tobytes()
    batch = data.test
    rows = np.arange(len(batch["inputs"]))[:, None]
    windows = np.asarray(batch["inputs"].at[rows, batch["read"]].set(batch["targets"]))
    assert (np.asarray(batch["inputs"]) == 300).sum() == batch["read"].size
    assert decode(windows[0]) in base[3800:].tobytes()


def test_masked_bytes_name_their_unit():
    assert make_task("masked_bytes", {}).outcome.unit == "nats/byte"


# --- texts


def test_wrong_utf8_is_refused_with_its_place(tmp_path):
    """Only where UTF-8 is asked for: bytes may be anything."""
    path = tmp_path / "text"
    good = "déjà vu — 日本語 ".encode() * 30
    path.write_bytes(good + b"\xff" + good)
    options = {"files": (str(path),), "length": 8}
    make_task("masked_bytes", options).texts()
    line = refusal("masked_bytes", {**options, "encoding": "utf-8"})
    assert line == f"files: given {str(path)!r}; is not UTF-8 at byte {len(good)}"
    path.write_bytes(good)
    make_task("masked_bytes", {**options, "encoding": "utf-8"}).texts()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1000])
def test_characters_are_whole_however_a_text_is_cut(chunk, monkeypatch):
    """Checked in chunks that fall inside characters; the place is that in the whole text."""
    monkeypatch.setattr("qkv_jax.tasks.text.files._CHUNK", chunk)
    as_array = lambda text: np.frombuffer(text, np.uint8)
    good = "aé日𝄞z".encode()
    check_utf8(as_array(good), "t")
    for broken, place in ((good + b"\xc3", 11), (good[:3] + b"\xff" + good[3:], 3),
                          (good[:5] + b"z", 3), (b"\xff", 0)):  # fmt: skip
        with pytest.raises(ConfigError, match=f"given 't'; is not UTF-8 at byte {place}$"):
            check_utf8(as_array(broken), "t")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("masked_bytes", {"encoding": "utf8"},
         "encoding: given 'utf8'; did you mean 'utf-8'? allowed: bytes"),
        ("masked_bytes", {"files": ("a",), "dataset": "b"},
         "dataset: given 'b'; name files or a data set, not both"),
        ("masked_tokens", {"vocabulary": 256},
         "vocabulary: given 256; must be above the 256 bytes"),
        ("text_classification", {}, "files: given (); name files or a data set, one of the two"),
        ("text_classification", {"files": ("a", "b", "c", "d")}, "name one, two or three"),
        ("text_classification", {"files": ("a.csv",), "validation": 0.5, "test": 0.5},
         "test: given 0.5; must be at least 0.0 and below 0.5"),
        ("text_classification", {"files": ("a.txt",)}, "given 'a.txt'; must end in .csv or .tsv"),
        ("text_classification", {"files": ("a.csv",)}, "cannot be read: No such file or directory"),
        ("text_classification", {"files": ("a.csv",), "tokenizer": "words"},
         "tokenizer: given 'words'; allowed: bytes, bpe"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(kind, options, message):
    assert message in refusal(kind, options)


def test_too_few_pairs_for_the_vocabulary_are_refused(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"ab" * 500)
    line = refusal("masked_tokens", {"files": (str(path),), "length": 8})
    assert line.startswith("vocabulary: given 1024; the training split has pairs for 2")


@pytest.mark.parametrize(
    ("module", "kind", "options", "message"),
    [
        ("tokenizers", "masked_tokens", {},
         "tokenizer: given 'bpe'; needs the package 'tokenizers': pip install -e '.[text]'"),
        ("datasets", "masked_bytes", {"dataset": "imdb"},
         "dataset: given 'imdb'; needs the package 'datasets': pip install -e '.[text]'"),
    ],
)  # fmt: skip
def test_missing_packages_are_named(module, kind, options, message, monkeypatch):
    """One line that says what to install, where an import would have ended in a traceback."""
    train_byte_pairs.cache_clear()
    real = builtins.__import__

    def no_such(name, *arguments, **more):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", no_such)
    assert refusal(kind, options) == message


# --- tables


def test_tables_are_read_as_written(tmp_path):
    """Quoted cells of CSV hold commas and line ends; in TSV quotation marks are themselves; columns
    may be anywhere, a byte-order mark and blank lines are passed over."""
    comma, tab = tmp_path / "t.csv", tmp_path / "t.tsv"
    comma.write_bytes('\ufefflabel,id,text\r\na,1,"x, ""y""\nz"\r\n\r\n b ,2,été\r\n'.encode())
    assert read_table(comma, "text", "label") == Labelled(['x, "y"\nz', "été"], ["a", "b"])
    tab.write_text('text\tlabel\n"half a quote\ta\n\tb\n')
    assert read_table(tab, "text", "label") == Labelled(['"half a quote', ""], ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"text,label\n", "has a header and no rows"),
        (b"body,label\nx,a\n", "has no column 'text'; columns: 'body', 'label'"),
        (b"text,class\nx,a\n", "has no column 'label'; columns: 'text', 'class'"),
        (b"text,label,text\nx,a,y\n", "has 2 columns 'text'"),
        (b"text,label\nx,a\ny\n", "line 3: 1 columns, not 2"),
        (b"text,label\nx,a\ny,  \n", "line 3: no label"),
        (b'text,label\nx,a\n"y,b\n', "line 3: unexpected end of data"),
        (b"text,label\nx,a\n\xe9t\xe9,b\n", "is not UTF-8 at byte 15 (line 3)"),
        (b"text,label\nx,a\ny,a\nz,a\n", "has one label only"),
    ],
)
def test_tables_that_cannot_be_are_refused(content, message, tmp_path):
    """By file and line."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    line = refusal("text_classification", {"files": (str(path),)})
    assert line == f"files: given {str(path)!r}; {message}"


def test_a_label_that_was_never_trained_on_is_refused(tmp_path):
    """Of test, of validation, or, where the config lists the labels, of any split."""
    rows = reviews(12)
    train, other = (write_table(tmp_path / f"{n}.csv", rows) for n in ("train", "other"))
    strange = write_table(tmp_path / "strange.csv", [*rows, ("hm", "neutral")])
    for files, message in [
        ((train, strange), "'neutral' is in the test split only"),
        ((train, strange, other), "'neutral' is in the validation split only"),
    ]:
        line = refusal("text_classification", {"files": files})
        assert line == f"files: given {', '.join(files)!r}; the label {message}"
    listed = {"files": (strange,), "labels": ("negative", "positive")}
    assert refusal("text_classification", listed).endswith("'neutral' is not in `labels`")
    listed = {"files": (train, strange), "labels": ("negative", "neutral", "positive")}
    assert refusal("text_classification", listed).endswith("'neutral' is in the test split only")


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("idx", {"folder": "nowhere"}, "folder: given 'nowhere'; no such folder"),
        ("text_classification", {"files": ("none.csv",)},
         "files: given 'none.csv'; cannot be read: No such file or directory"),
        ("text_classification", {"files": ("two.csv", "three.csv")},
         "files: given 'two.csv, three.csv'; the label 'c' is in the test split only"),
    ],
)  # fmt: skip
def test_a_study_refuses_bad_data_before_it_starts(kind, options, line, tmp_path, monkeypatch):
    """Under the name of the task, whether making the task or reading its data finds it."""
    monkeypatch.chdir(tmp_path)
    rows = [(str(i), "ab"[i % 2]) for i in range(8)]
    write_table(tmp_path / "two.csv", rows)
    write_table(tmp_path / "three.csv", [*rows, ("z", "c")])
    tasks = {"mine": {"kind": kind, "options": options}}
    with pytest.raises(ConfigError) as caught:
        Study({"name": "s", "tasks": tasks, "arms": {"separate": {}}}).check_data()
    assert str(caught.value) == f"tasks.mine.options.{line}"


# --- preparation


def sdist(path, content, inner="additional_resources/hutto_ICWSM_2014.tar.gz"):
    """A source distribution that holds an archive that holds the ratings."""

    def archive(name, data):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            files.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    snippets = archive("hutto/movieReviewSnippets_GroundTruth.txt", content)
    path.write_bytes(archive(f"vader-1/{inner}", snippets))
    return path


def test_reviews_are_labelled_by_the_sign_of_their_rating(tmp_path):
    """Through the command itself: zeros are dropped, what is damaged is said in one line."""
    out = tmp_path / "new" / "reviews.tsv"

    def prepared(*flags):
        command = [sys.executable, "-m", "experiments.prepare", *flags]
        return subprocess.run(command, capture_output=True, text=True)

    content = "1\t2.5\tIt 'sings' ,\r\n2\t0.0\tmeh\r\n3\t-0.1\tété\r\n".encode()
    good = sdist(tmp_path / "good.tar.gz", content)
    done = prepared("reviews", f"--sdist={good}", f"--out={out}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 snippets, 1 positive and 1 negative" in done.stdout
    assert read_table(out, "text", "label") == Labelled(
        ["It 'sings' ,", "été"], ["positive", "negative"]
    )
    bad = sdist(tmp_path / "bad.tar.gz", b"1\t2.5\tgood\r\n2\tbad\r\n")
    done = prepared("reviews", f"--sdist={bad}", f"--out={tmp_path / 'no.tsv'}")
    message = "line 2 of movieReviewSnippets_GroundTruth.txt is no id, rating and text"
    assert (done.returncode, done.stderr) == (2, f"error: --sdist: given {str(bad)!r}; {message}\n")
    assert not (tmp_path / "no.tsv").exists()


def test_archives_that_hold_something_else_are_refused(tmp_path):
    """Another file in it, no archive, one cut short."""
    other = sdist(tmp_path / "other.tar.gz", b"", inner="notes.txt").read_bytes()
    good = sdist(tmp_path / "good.tar.gz", b"1\t1\tx\n").read_bytes()
    ending = "additional_resources/hutto_ICWSM_2014.tar.gz"
    for content, message in ((other, f"holds no {ending}"), (b"text", "no whole .tar.gz archive"),
                          (good[:60], "no whole .tar.gz archive")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            member(content, ending, "sdist")
