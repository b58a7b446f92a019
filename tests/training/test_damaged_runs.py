"""Whatever an interrupted copy or a hand has done to a run's folder, `load_run` says so in one line
that names it, or gives the parameters that were saved."""

import json
import logging
import runpy
import shutil
import sys
import types

import absl.logging
import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime import quiet
from qkv_jax.training import checkpoint
from qkv_jax.training.checkpoint import Checkpoints, load_run, trainer_of

VALUES = {
    "task": {"kind": "reverse", "options": {"length": 4}},
    "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 10, "report_every": 10, "batch_size": 2},
}
LAST = 10
# What users see: annotations are not checked there.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with checkpoints at 0 and 10, and the parameters of both."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    trainer = trainer_of(VALUES)
    shapes = jax.eval_shape(lambda: trainer.init(0, 0.1))
    draw = np.random.default_rng(0).standard_normal
    state = jax.tree.map(lambda leaf: draw(leaf.shape).astype(leaf.dtype), shapes)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (0, LAST):
            checkpoints.save(state.replace(step=np.int32(step)))
    (folder / "config.json").write_text(json.dumps(VALUES))
    return folder, state.params


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "copy")


def refused(folder, step=None):
    """The line of the refusal, or the parameters."""
    try:
        return load_run(folder, step)[1]["params"]
    except ConfigError as error:
        assert error.field == "run" and error.given == str(folder)
        assert "\n" not in str(error) and len(str(error)) < 500
        return str(error)


DAMAGES = (
    lambda content: None,  # the file is missing
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: b"{}",
)


@pytest.mark.parametrize("first", [0, 2])
def test_every_file_of_a_checkpoint_damaged(run, tmp_path, first):
    """One file after the other, each in a folder of its own, in one of four ways; a damage that is
    not seen does none: what comes back is what was saved."""
    folder, params = run
    names = [path.relative_to(folder) for path in (folder / "checkpoints").rglob("*")
             if path.is_file() and path.relative_to(folder).parts[1] == str(LAST)]  # fmt: skip
    lines = {}
    for number, name in enumerate(names):
        copied = shutil.copytree(folder, tmp_path / str(number))
        content = DAMAGES[(first + number) % len(DAMAGES)]((copied / name).read_bytes())
        (copied / name).unlink()
        if content is not None:
            (copied / name).write_bytes(content)
        found = refused(copied)
        if isinstance(found, str):
            lines[name] = found
        else:
            jax.tree.map(np.testing.assert_array_equal, found, params)
    assert len(lines) >= 2  # of the arrays themselves and of what is written about them
    assert all("the checkpoint of step 10 cannot be read" in line for line in lines.values())


def test_a_step_of_which_nothing_was_copied(copy):
    (copy / "checkpoints" / "50").mkdir()
    assert "the checkpoint of step 50 cannot be read" in refused(copy)
    assert not isinstance(refused(copy, step=0), str)


def test_checkpoints_of_another_model(copy):
    values = VALUES | {"model": VALUES["model"] | {"width": 16}}
    (copy / "config.json").write_text(json.dumps(values))
    assert "the checkpoint of step 10 cannot be read" in refused(copy)


def test_no_checkpoint_at_all(copy):
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoints" in refused(copy)
    (copy / "checkpoints").write_text("")
    assert "holds no checkpoints" in refused(copy)
    (copy / "checkpoints").unlink()
    (copy / "checkpoints").mkdir()
    assert "holds no checkpoint" in refused(copy)


@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"task": ', b"\xff\xfe\x00", b"[]", b"null", b"3", b"{}", b"[" * 100_000,
        json.dumps(VALUES | {"task": 3}).encode(),
        json.dumps(VALUES | {"task": {"kind": ["reverse"]}}).encode(),
        json.dumps(VALUES | {"model": None}).encode(),
        json.dumps(VALUES | {"model": {"width": "8"}}).encode(),
        json.dumps(VALUES | {"train": {"step": 8}}).encode(),
        json.dumps(VALUES | {"mesh": 3}).encode(),
    ],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_config_files_that_are_none(copy, content):
    (copy / "config.json").write_bytes(content)
    assert "its config.json is damaged" in refused(copy)
    (copy / "config.json").unlink()
    assert "is no run of experiments.train: no config.json" in refused(copy)
    (copy / "config.json").mkdir()
    assert "its config.json cannot be read: Is a directory" in refused(copy)


@pytest.mark.parametrize("step", [-1, 1.0, "10", True, 2**70])
def test_steps_that_cannot_be(run, step):
    with pytest.raises(ConfigError, match="step: given .*"):
        load_run(run[0], step)


@pytest.mark.parametrize("folder", [None, 3, b"runs", ["runs"]])
def test_folders_that_are_none(folder):
    with pytest.raises(ConfigError, match="run: given .*; must be a path"):
        load_run(folder)


def test_loading_a_model_leaves_the_process_as_it_was(copy):
    """Its hook, its loggers and their filters."""
    loggers = [absl.logging.get_absl_logger(), logging.getLogger("asyncio")]
    hooks = lambda: (sys.unraisablehook, [(list(log.filters), log.disabled) for log in loggers])
    before = hooks()
    load_run(copy)
    assert hooks() == before


def test_while_checkpoints_are_open_orbax_is_not_heard(copy, monkeypatch):
    """Nor is it of two that are open, whichever is closed first; others are."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(quiet, "ORBAX", quiet._Quiet())
    make = lambda error: types.SimpleNamespace(exc_value=error, object=None)  # as Python does
    logger = absl.logging.get_absl_logger()
    monkeypatch.setattr(logger, "filters", [])
    record = logging.LogRecord("absl", 40, "/x/orbax/checkpoint/y.py", 1, "z", None, None)
    one, two = (Checkpoints(copy / "checkpoints") for _ in range(2))
    one.close()
    sys.unraisablehook(make(RuntimeError("Event loop is closed")))
    assert not unraisable and not logger.filter(record)
    sys.unraisablehook(make(ValueError("mine")))
    assert [str(seen.exc_value) for seen in unraisable] == ["mine"]
    two.close()
    assert sys.unraisablehook == unraisable.append
    assert logger.filter(record)


def test_importing_changes_nothing_of_the_process():
    logger = absl.logging.get_absl_logger()
    before = sys.unraisablehook, list(logger.filters)
    runpy.run_path(checkpoint.__file__)
    assert (sys.unraisablehook, logger.filters) == before
