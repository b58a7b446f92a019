"""Text data: tokens that lose nothing and learn from training texts alone, tables and data sets
read as they were written, splits that are what they say, and refusals of one line."""

import builtins
import io
import logging
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.prepare import member
from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.classification import bag_of_words
from qkv_jax.tasks.text.files import check_utf8
from qkv_jax.tasks.text.tables import Labelled, read_table
from qkv_jax.tasks.text.tokenizers import ByteTokenizer, train_byte_pairs
from qkv_jax.training.state import model_inputs

WORDS = b"the cat sat on the mat and the dog sat on the cat "
GOOD = ("good", "fine", "great", "lovely")
BAD = ("bad", "poor", "awful", "boring")


def refusal(kind, options):
    """The one line that making a task and reading its data end with."""
    with pytest.raises(ConfigError) as caught:
        make_task(kind, options).load()
    line = str(caught.value).removeprefix("task.options.")
    assert "\n" not in line
    return line


def reviews(count, seed=0):
    """Texts whose words give the label away, two negative ones for each positive."""
    rng = np.random.default_rng(seed)
    labels = ["positive" if i % 3 == 0 else "negative" for i in range(count)]
    choose = lambda label: rng.choice(GOOD if label == "positive" else BAD, 3)
    return [(f"film {i} " + " ".join(choose(label)), label) for i, label in enumerate(labels)]


def write_table(path, rows, separator=","):
    path.write_text("\n".join(separator.join(row) for row in [("text", "label"), *rows]))
    return str(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "reviews.csv", reviews(60))


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


# --- classification


def test_one_file_is_split_by_shares_and_classes(table):
    """60 texts into 42, 6 and 12, a third of each positive, none twice; the seed decides."""
    task = make_task("text_classification", {"files": (table,)})
    splits = task.splits()
    sizes = {name: len(part.labels) for name, part in splits.items()}
    assert sizes == {"train": 42, "validation": 6, "test": 12}
    assert task.outcome.failure_value == 1 / task.classes == 0.5
    for part in splits.values():
        assert part.labels.count("positive") * 3 == len(part.labels)
    assert len({text for part in splits.values() for text in part.texts}) == 60
    pairs = dict(reviews(60))
    assert all(pairs[t] == label for p in splits.values() for t, label in zip(*p, strict=True))
    other = make_task("text_classification", {"files": (table,), "split_seed": 1}).splits()
    assert set(other["test"].texts) != set(splits["test"].texts)


def test_published_splits_are_kept(tmp_path):
    """Of three files all, of two the test set; validation then comes out of training."""
    files = [write_table(tmp_path / f"{i}.csv", reviews(30, seed=i)) for i in range(3)]
    texts = [read_table(tmp_path / f"{i}.csv", "text", "label").texts for i in range(3)]
    three = make_task("text_classification", {"files": tuple(files)}).splits()
    assert [three[name].texts for name in ("train", "validation", "test")] == texts
    two = make_task("text_classification", {"files": (files[0], files[2])}).splits()
    assert two["test"].texts == texts[2]
    assert sorted(two["train"].texts + two["validation"].texts) == sorted(texts[0])
    assert len(two["validation"].texts) == 3


def test_tokens_are_cut_padded_and_marked(table):
    """A class token and 9 bytes: longer texts lose their end, padding is no byte and not seen."""
    task = make_task("text_classification", {"files": (table,), "length": 9})
    data, splits = task.load(), task.splits()
    for name, split in data.held_out.items():
        batch = jax.tree.map(np.asarray, split)
        assert batch["valid"].shape == (len(batch["targets"]), task.max_length)
        for i, text in enumerate(splits[name].texts):
            kept = text.encode()[:9]
            expected = list(kept) + [256] * (9 - len(kept))
            assert batch["inputs"][i].tolist() == expected
            assert batch["valid"][i].tolist() == [True] + [t < 256 for t in expected]
            assert task.classes_in_order[batch["targets"][i]] == splits[name].labels[i]


def test_batches_are_the_rows_of_the_schedule(table):
    """Tokens, valid and targets of the training texts that are named; 21 at a time are asked for
    two steps ahead, and every text comes once in them."""
    task = make_task("text_classification", {"files": (table,), "length": 40})
    train = jax.tree.map(jnp.asarray, task.load().train)
    draw = jax.jit(lambda train: task.schedule(train, jax.random.key(0), jnp.int32(0), 2, 21))
    rows = np.asarray(draw(train)["rows"])
    assert sorted(rows.ravel()) == list(range(42))
    batch = jax.tree.map(np.asarray, task.batch(train, {"rows": rows[1]}))
    texts = task.splits()["train"]
    for place, row in enumerate(rows[1]):
        tokens = batch["inputs"][place][batch["valid"][place, 1:]]
        assert tokens.astype(np.uint8).tobytes().decode() == texts.texts[row]
        assert task.classes_in_order[batch["targets"][place]] == texts.labels[row]


def test_byte_pairs_of_texts_are_learned_from_training_texts_alone(tmp_path):
    """Pairs that are frequent in test texts only are no token; tokens spell the texts they cut."""
    rows, strange = reviews(40), [("qzqz " * 60, label) for _, label in reviews(9)]
    files = [write_table(tmp_path / f"{i}.csv", part) for i, part in enumerate((rows, strange))]
    options = {"files": tuple(files), "tokenizer": "bpe", "vocabulary": 280, "length": 24}
    task = make_task("text_classification", options)
    data, train = task.load(), task.splits()["train"]
    tokenizer = train_byte_pairs(tuple(text.encode() for text in train.texts), 280)
    for row, text in zip(data.train["tokens"], train.texts, strict=True):
        tokens = row[row < 280]
        assert text.encode().startswith(tokenizer.decode(tokens)) and tokens.max() >= 256
    assert np.asarray(data.test["inputs"]).max() < 256  # no pair of them was seen in training


def test_padding_does_not_reach_the_logits(table):
    """Whatever stands in padded places, the answer is the same; in a real place it is not."""
    task = make_task("text_classification", {"files": (table,), "length": 64})
    encoder = task.encoder(ModelConfig(layers=1, width=8, heads=2))
    batch = jax.tree.map(lambda a: jnp.asarray(a[:4]), task.load().test)
    logits, seen = jax.jit(encoder.apply), model_inputs(batch)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), **seen)
    draw = np.random.default_rng(0).normal
    variables = jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(np.float32), shapes)
    junk = jnp.where(batch["valid"][:, 1:], batch["inputs"], 7)
    assert not np.array_equal(junk, batch["inputs"])
    plain = logits(variables, **seen)
    assert plain.shape == (4, 2)
    np.testing.assert_array_equal(plain, logits(variables, **seen | {"inputs": junk}))
    changed = seen | {"inputs": batch["inputs"].at[:, 0].set(90)}
    assert not np.allclose(plain, logits(variables, **changed))


def test_references_are_scored_on_the_same_test_set(table):
    """The majority class has its share there; words that give the label away are found by the bag
    of words, and labels that mean nothing are not."""
    task = make_task("text_classification", {"files": (table,)})
    majority, bag = task.references(None)
    assert (majority.name, bag.name) == ("most frequent class", "TF-IDF + logistic regression")
    assert np.isclose(majority.value, 8 / 12) and "negative" in majority.note
    assert bag.value == 1.0 and "C = " in bag.note
    splits = {name: part._replace(labels=part.labels[::-1]) for name, part in task.splits().items()}
    assert bag_of_words(splits)[1] < 1.0


def test_the_bag_of_words_is_chosen_on_validation(monkeypatch):
    """Scores of either split that peak at another C: the one of validation decides."""
    from sklearn.linear_model import LogisticRegression

    texts = Labelled(["good film", "bad film"] * 3, ["a", "b"] * 3)
    splits = {"train": texts, "validation": texts, "test": Labelled(*(x[:2] for x in texts))}
    scores = {6: {3.0: 0.9}, 2: {3.0: 0.4, 30.0: 0.8}}  # by the size of the split, and C
    monkeypatch.setattr(
        LogisticRegression, "score", lambda self, x, _: scores[x.shape[0]].get(self.C, 0.1)
    )
    assert bag_of_words(splits) == (3.0, 0.4)


def test_texts_without_words_have_no_bag_of_words(tmp_path):
    """The only reference is then the larger class; the study goes on."""
    rows = [("!" * (1 + i % 5), "ab"[i % 2]) for i in range(30)]
    file = write_table(tmp_path / "marks.csv", rows)
    (only,) = make_task("text_classification", {"files": (file,)}).references(None)
    assert only.name == "most frequent class"


@pytest.mark.parametrize("labels", [("negative",), ("negative", "positive", "positive")])
def test_labels_are_two_at_least_and_each_once(labels, table):
    line = refusal("text_classification", {"files": (table,), "labels": labels})
    assert line == f"labels: given {labels!r}; must be two at least, each once"


# --- Hugging Face


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A data set saved by the library itself, with classes as numbers, and its rows."""
    import datasets

    rows = reviews(40)
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    place = tmp_path_factory.mktemp("saved")
    split = {"train": whole.select(range(30)), "test": whole.select(range(30, 40))}
    datasets.DatasetDict(split).save_to_disk(str(place / "splits"))
    whole.save_to_disk(str(place / "whole"))
    files = place / "files"
    files.mkdir()
    split["train"].to_parquet(str(files / "train-0.parquet"))
    split["test"].to_parquet(str(files / "test-0.parquet"))
    return place, rows


def test_data_sets_are_classified_with_their_own_splits(saved):
    """Labels by name; the test set is the published one; a data set without splits is split."""
    place, rows = saved
    task = make_task("text_classification", {"dataset": str(place / "splits")})
    splits = task.splits()
    assert task.classes_in_order == ("negative", "positive")
    assert list(zip(*splits["test"], strict=True)) == rows[30:]
    together = [
        pair for name in ("train", "validation") for pair in zip(*splits[name], strict=True)
    ]
    assert sorted(together) == sorted(rows[:30]) and len(splits["validation"].texts) == 3
    whole = make_task("text_classification", {"dataset": str(place / "whole")}).splits()
    assert {name: len(part.texts) for name, part in whole.items()} == {
        "train": 28, "validation": 4, "test": 8,
    }  # fmt: skip


def test_data_sets_are_texts_too(saved, tmp_path, monkeypatch):
    """Rows joined by line ends; a folder of parquet files, read without a network; what there is no
    split for comes off the end of the training split."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    place, rows = saved
    task = make_task("masked_bytes", {"dataset": str(place / "files"), "length": 8})
    texts = {name: b"".join(t.tobytes() for t in some) for name, some in task.texts().items()}
    assert texts["test"] == "\n".join(text for text, _ in rows[30:]).encode()
    assert texts["train"] + texts["validation"] == "\n".join(t for t, _ in rows[:30]).encode()
    assert len(texts["validation"]) == int(0.05 * len(texts["train"] + texts["validation"]))


def test_data_sets_that_cannot_be_are_refused(saved, tmp_path, monkeypatch):
    """No such name without a network, an empty folder, no such column; in one line each."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place, _ = saved
    for name in ("nobody/nothing", str(tmp_path)):
        line = refusal("masked_bytes", {"dataset": name})
        assert line.startswith(f"dataset: given {name!r}; cannot be loaded: ")
    line = refusal("masked_bytes", {"dataset": str(place / "splits"), "text_column": "body"})
    message = "its train split has no column 'body'; columns: 'text', 'label'"
    assert line == f"dataset: given {str(place / 'splits')!r}; {message}"


def test_loading_says_nothing_but_the_refusal(tmp_path, monkeypatch, capfd, caplog):
    """No bar of progress over a folder of tables; no warning for each attempt at the network."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "train.csv", reviews(30))
    make_task("text_classification", {"dataset": str(tmp_path / "data")}).load()

    def unreachable(*_):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    line = refusal("masked_bytes", {"dataset": "nobody/nothing"})
    assert line.endswith("cannot be loaded: ConnectionError: no network")
    assert capfd.readouterr() == ("", "") and not caplog.messages
    logging.getLogger("huggingface_hub").warning("heard again")
    assert caplog.messages == ["heard again"]


@pytest.mark.parametrize("column", ["text", "label"])
def test_empty_rows_of_a_data_set_are_refused(column, tmp_path):
    """They would become the word, or the class, "None"."""
    import datasets

    columns = {"text": ["a", "b", "c"], "label": ["x", "y", "x"]}
    columns[column][1] = None
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path))
    line = refusal("text_classification", {"dataset": str(tmp_path)})
    message = f"column {column!r} of its train split is empty in row 1"
    assert line == f"dataset: given {str(tmp_path)!r}; {message}"


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
