"""Data that are not what they seem: repeated texts, classes, empty splits, columns."""

import gzip
import os

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task, overlap
from qkv_jax.tasks.splits import held_out_split
from qkv_jax.tasks.text.tables import read_table
from tests.support.folders.data_writers import labelled_rows, save, write_table, written
from tests.support.folders.idx_folders import idx_bytes
from tests.support.folders.text_tables import refusal

# --- texts that repeat themselves


def texts_of(task):
    return {name: set(part.texts) for name, part in task.splits().items()}


@pytest.mark.parametrize("form", ["file", "dataset"])
def test_equal_texts_stay_in_one_split(form, tmp_path):
    """20 texts five times each, white space aside: none is in two splits, and every row is in
    one."""
    rows = [(f"text {i % 20}{' ' * (i // 50)}", "ab"[i % 2]) for i in range(100)]
    texts, labels = zip(*rows, strict=True)
    options = (
        {"files": (write_table(tmp_path / "t.csv", rows),)}
        if form == "file"
        else {"dataset": save(tmp_path / "set", {"text": texts, "label": labels})}
    )
    task = make_task("text_classification", options)
    found = {name: {t.strip() for t in some} for name, some in texts_of(task).items()}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 20
    assert {n: len(part.texts) for n, part in task.splits().items()} == {
        "train": 70, "validation": 10, "test": 20,
    }  # fmt: skip
    assert task.notes(task.load()) == ()


def test_a_text_under_two_labels_stays_in_one_split_too(tmp_path):
    """Its rarer label decides where it goes, so that training lacks none."""
    rows = [(f"t{i % 30}", "b" if i == 31 else "a") for i in range(60)]
    rows += [(f"u{i}", "b") for i in range(5)]
    task = make_task("text_classification", {"files": (write_table(tmp_path / "t.csv", rows),)})
    splits = task.splits()
    assert sum(len(part.texts) for part in splits.values()) == 65
    found = texts_of(task)
    assert sum(map(len, found.values())) == 35 and set(splits["train"].labels) == {"a", "b"}


def test_splits_of_different_texts_are_drawn_as_they_ever_were(tmp_path):
    """By row number: keeping equal texts together changes nothing where there are none."""
    rows = labelled_rows(0)
    task = make_task("text_classification", {"files": (write_table(tmp_path / "t.csv", rows),)})
    labels = np.array([label for _, label in rows])
    places = held_out_split(labels, {"validation": 4, "test": 8}, 0)
    for name, part in task.splits().items():
        assert part.texts == [rows[i][0] for i in places[name]]


def test_the_share_of_test_texts_in_training_is_said(tmp_path):
    """3 of 10 rows of a given test file, one of them by its words only; validation is drawn."""
    rows = labelled_rows(0)
    test = [("new", "yes"), ("newer", "nay")] + [(f"n{i}", "yes") for i in range(5)]
    files = (
        write_table(tmp_path / "a.csv", rows),
        write_table(tmp_path / "b.csv", [*test, *[(t.replace(" ", "  "), n) for t, n in rows]]),
    )
    task = make_task("text_classification", {"files": files, "validation": 0.5})
    train = texts_of(task)["train"]
    (line,) = task.notes(task.load())
    share = f"{100 * len(train) / 47:.3g} %"
    expected = f"{len(train)} of 47 test texts ({share}) are in the training split as well."
    assert line == expected


def test_the_share_of_test_images_in_training_is_said(tmp_path):
    """Also where training images are streamed; 2 of 8 are copied over, so at most 2 are there."""
    options = written("idx", "folder", tmp_path)
    assert make_task("idx", options).notes(make_task("idx", options).load()) == ()
    images = np.frombuffer((tmp_path / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    other = np.random.default_rng(9).integers(0, 256, (8, 4, 4), np.uint8)
    trained = make_task("idx", options).splits()["train"][1][:2]
    other[:2] = images.reshape(-1, 4, 4)[trained]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(other))
    for limit in (2**30, 1):
        task = make_task("idx", options | {"device_limit_bytes": limit})
        message = ("2 of 8 test images (25 %) are in the training split as well.",)
        assert task.notes(task.load()) == message


def test_the_share_of_test_windows_in_training_is_said(tmp_path):
    """A text of 25 times the same 400 bytes but for its last 250: 2 of 5 % of it are its own."""
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, 400, np.uint8)
    text = np.concatenate([np.tile(part, 25)[:-250], rng.integers(0, 256, 250, np.uint8)])
    (tmp_path / "t").write_bytes(text.tobytes())
    options = {"files": (str(tmp_path / "t"),), "length": 50, "masked": 0.1,
               "validation_examples": 10, "test_examples": 10}  # fmt: skip
    for limit in (2**30, 1):
        task = make_task("masked_bytes", options | {"device_limit_bytes": limit})
        assert task.notes(task.load()) == (
            "10 of 10 validation windows (100 %) are in the training split as well.",
            "5 of 10 test windows (50 %) are in the training split as well.",
        )
    more = make_task("masked_bytes", options | {"test_examples": 99})
    assert more.notes(more.load())[-1] == "The test split has room for 10 of 99 windows."


@pytest.mark.parametrize("block", [1, 7, 2**22])
def test_windows_are_found_wherever_they_stand(block, monkeypatch):
    """Against a search of each, in blocks of any size."""
    monkeypatch.setattr(overlap, "_BLOCK", block)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 3, 60).astype(np.uint16)
    windows = rng.integers(0, 3, (200, 4))
    spelled = text.astype(np.uint8).tobytes()
    expected = [row.astype(np.uint8).tobytes() in spelled for row in windows]
    assert 0 < sum(expected) < 200
    assert overlap.occurring(windows, text).tolist() == expected
    assert not overlap.occurring(windows, text[:3]).any()


# --- classes


def test_labels_of_images_are_numbered_as_they_occur(tmp_path):
    """0 and 255 are two classes, and chance is one half; what they were called is kept."""
    options = written("idx", "folder", tmp_path)
    for stem, count in (("train", 40), ("t10k", 8)):
        labels = (np.arange(count) % 2 * 255).astype(np.uint8)
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    task = make_task("idx", options)
    data = task.load()
    assert (task.classes, task.outcome.failure_value, task.labels) == (2, 0.5, (0, 255))
    assert set(data.train["targets"].tolist()) == {0, 1}
    assert data.test["targets"].tolist() == [0, 1] * 4
    assert task.fingerprint(data)["classes"] == [0, 255]


def test_images_of_one_class_are_refused(tmp_path):
    """Every run would be right every time."""
    options = written("idx", "folder", tmp_path)
    labels = gzip.compress(idx_bytes(np.full(40, 7, np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    message = "has one label only, 7, in the training set"
    assert refusal("idx", options) == f"folder: given {str(tmp_path)!r}; {message}"


def test_labels_that_no_text_has_are_refused(tmp_path):
    """They would lower chance without being there."""
    options = written("text_classification", "files", tmp_path) | {"labels": ("yes", "nay", "no")}
    line = refusal("text_classification", options)
    assert line == "labels: given ('yes', 'nay', 'no'); no text has the label 'no'"


# --- splits that would be empty


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("b", "y"), ("c", "x")],
         "the test split would be empty: 3 examples of 2 classes, of each of which one is kept for "
         "training; is 'label' the column of the labels?"),
        ([(f"text {i}", f"{i}") for i in range(30)],
         "the validation split would be empty: 30 examples of 30 classes, of each of which one is "
         "kept for training; is 'label' the column of the labels?"),
        ([(f"text {i}", f"{i % 20}") for i in range(30)],
         "has 20 labels in 30 rows; is 'label' the column of the labels?"),
        ([("text", "xy"[i % 2]) for i in range(8)],
         "nothing is left to train on: there are 1 examples (1 different texts in 8 rows)"),
        ([(f"t{i % 3}", "xy"[i % 3 % 2]) for i in range(30)],
         "the test split would be empty: 3 examples of 2 classes, of each of which one is kept for "
         "training (3 different texts in 30 rows)"),
        ([(" ", "xy"[i % 2]) for i in range(8)], "all texts of the column 'text' are empty"),
    ],
)  # fmt: skip
def test_tables_that_leave_a_split_empty_are_refused_with_the_numbers(rows, message, tmp_path):
    """Before a step is taken, in place of a traceback after all of them."""
    path = write_table(tmp_path / "t.csv", rows)
    line = refusal("text_classification", {"files": (path,)})
    assert line == f"files: given {path!r}; {message}"


def test_images_that_leave_a_split_empty_are_refused_with_the_numbers(tmp_path):
    options = written("idx", "folder", tmp_path)
    labels = gzip.compress(idx_bytes(np.arange(40, dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    assert refusal("idx", options) == (
        "validation_examples: given 8; the validation split would be empty: 40 examples of 40 "
        "classes, of each of which one is kept for training"
    )


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_share_of_nothing_is_refused_where_a_split_is_drawn(name, tmp_path):
    """But not where it is given."""
    options = written("text_classification", "files", tmp_path) | {name: 0.0}
    line = refusal("text_classification", options)
    assert line == f"{name}: given 0.0; must be above 0; the {name} split is drawn here"
    other = write_table(tmp_path / "other.csv", labelled_rows(1))
    third = write_table(tmp_path / "third.csv", labelled_rows(2))
    three = options | {"files": (*options["files"], other, third)}
    assert len(make_task("text_classification", three).splits()[name].texts) == 40


# --- columns


LISTS = [["a", "b", str(i)] for i in range(40)]
TEXTS = [f"text {i}" for i in range(40)]
BITS = [i % 2 for i in range(40)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": LISTS, "label": BITS},
         "column 'text' of its train split holds List(Value('string')), not texts"),
        ({"text": [{"a": i} for i in range(40)], "label": BITS},
         "column 'text' of its train split holds {'a': Value('int64')}, not texts"),
        ({"text": BITS, "label": BITS}, "column 'text' of its train split holds int64, not texts"),
        ({"text": [None] * 40, "label": BITS},
         "column 'text' of its train split holds null, not texts"),
        ({"text": TEXTS, "label": LISTS},
         "column 'label' of its train split holds List(Value('string')); labels are texts or whole "
         "numbers"),
        ({"text": TEXTS, "label": [float(i % 2) if i else float("nan") for i in range(40)]},
         "column 'label' of its train split holds float64; labels are texts or whole numbers"),
        ({"text": TEXTS, "label": ["NaN" if i == 7 else "ab"[i % 2] for i in range(40)]},
         "column 'label' of its train split: no label in row 7, but 'NaN'"),
        ({"text": TEXTS, "label": [" " if i == 7 else "ab"[i % 2] for i in range(40)]},
         "column 'label' of its train split: no label in row 7, but ''"),
    ],
)  # fmt: skip
def test_columns_of_something_else_are_refused_with_the_type(columns, message, tmp_path):
    """They would be trained on as Python prints them."""
    place = save(tmp_path / "set", columns)
    options = {"dataset": place, "length": 16}
    assert refusal("text_classification", options) == f"dataset: given {place!r}; {message}"
    if "'text'" in message:
        for kind in ("masked_bytes", "masked_tokens"):
            assert refusal(kind, options) == f"dataset: given {place!r}; {message}"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(BITS, ("0", "1")), ([bool(i) for i in BITS], ("False", "True")),
     (["None" if i else " NA " for i in BITS], ("NA", "None"))],
)  # fmt: skip
def test_whole_numbers_truth_values_and_odd_words_are_labels(labels, classes, tmp_path):
    place = save(tmp_path / "set", {"text": TEXTS, "label": labels})
    assert make_task("text_classification", {"dataset": place}).classes_in_order == classes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\n".encode("utf-16-le"), "holds a NUL character (is the file UTF-16?) in "
                                               "line 1; save it as UTF-8"),
        ("text,label\na,x\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("\ufeff\ufefftext,label\na,x\n".encode(),
         r"has no column 'text'; columns: '\ufefftext', 'label'"),
        ("text\xa0,label \na,x\n".encode(),
         r"has no column 'text'; columns: 'text\xa0', 'label '"),
        (b"text,label\na,x\nb,nan\n", "line 3: no label, but 'nan'"),
    ],
)  # fmt: skip
def test_columns_that_look_right_and_are_not_are_told(content, message, tmp_path):
    """What a name really is, and which encoding a table is in."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_table(path, "text", "label")
    assert str(caught.value) == f"files: given {str(path)!r}; {message}"


def test_texts_cannot_be_their_own_labels(tmp_path):
    options = written("text_classification", "files", tmp_path) | {"label_column": "text"}
    line = refusal("text_classification", options)
    assert line == "label_column: given 'text'; is the column of the texts"


def test_a_text_in_utf_16_is_no_utf_8(tmp_path):
    """Though every byte of it would do: the zeros between the letters tell."""
    (tmp_path / "t").write_bytes("a text ".encode("utf-16-le") * 40)
    options = {"files": (str(tmp_path / "t"),), "length": 8, "encoding": "utf-8"}
    assert refusal("masked_bytes", options).endswith("t'; is UTF-16 or binary: byte 1 is 0")


def test_a_pipe_is_no_table(tmp_path):
    """It could be read once at most, and would wait for ever."""
    os.mkfifo(tmp_path / "t.csv")
    line = refusal("text_classification", {"files": (str(tmp_path / "t.csv"),)})
    assert line.endswith("is a pipe or a device, no file")


def test_more_byte_pairs_than_bytes_are_refused_before_room_is_made(tmp_path):
    """The library ends the process where it cannot have the memory."""
    options = written("masked_tokens", "files", tmp_path) | {"vocabulary": 2**31 - 1}
    line = refusal("masked_tokens", options)
    assert line == "vocabulary: given 2147483647; the training split has 1800 bytes only"
