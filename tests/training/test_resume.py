"""Nothing is lost: runs that were stopped or killed end with the bits of those that were not,
whatever of their checkpoints is damaged; and which checkpoints stay."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import LOCK
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.training.loop import CheckpointPolicy, train_run
from qkv_jax.training.step import Trainer
from tests.support.studies import resumable_runs
from tests.support.studies.resumable_runs import (
    MODEL,
    OPTIONS,
    STEPS,
    TRAIN,
    assert_same_run,
    damage,
    stop_at,
    train,
)

trainer = resumable_runs.trainer
whole = resumable_runs.whole


pytestmark = pytest.mark.slow


# --- lone runs


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(trainer, whole, tmp_path, step):
    """At every report: curve, events, kept checkpoints, parameters, optimiser, result."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, step)
    assert not (folder / "result.json").exists() and not (folder / LOCK).exists()
    assert (folder / "curve.csv").read_text().count("\n") == 1 + step // 2
    train(trainer, folder)
    assert_same_run(trainer, folder, whole)


def test_a_run_may_be_stopped_time_and_again(trainer, whole, tmp_path):
    """Before its first step, and after every one of them, saving at each."""
    folder = tmp_path / "run"
    stop_signal = StopSignal()
    stop_signal.stop("enough")
    for _ in range(2):  # no step is taken between the two
        with pytest.raises(Interrupted):
            train(trainer, folder, stop_signal=stop_signal)
    for step in STEPS:
        stop_at(trainer, folder, step, save_minutes=0.0)
    train(trainer, folder, stop_signal=StopSignal(save_minutes=0.0))
    assert_same_run(trainer, folder, whole)


def test_what_was_written_after_the_checkpoint_is_written_over(trainer, whole, tmp_path):
    """Rows, half a row and events of steps that no checkpoint has: a crash leaves those."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    file = folder / "curve.csv"
    file.write_text(file.read_text() + "8,0.5,0.5,0.5\n10,0.5,")
    (old,) = folder.glob("events.out.tfevents.*")
    shutil.copy(old, folder / "events.out.tfevents.9999999999.elsewhere")
    (folder / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    train(trainer, folder)
    assert_same_run(trainer, folder, whole)


def test_a_finished_run_is_not_run_again(trainer, whole):
    """The same call gives the same result and touches nothing; another run is refused by name."""
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    reported = []
    result = train(trainer, whole, on_report=reported.append)
    assert result == json.loads((whole / "result.json").read_text()) and not reported
    with pytest.raises(ConfigError, match="seed: given 4; the run in .* has the seed 3"):
        train_run(trainer, 4, whole, config={"of": "the run"})
    with pytest.raises(ConfigError, match="holds another run .its of is 'the run', not 'mine'"):
        train_run(trainer, 3, whole, config={"of": "mine"})
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_another_run_does_not_go_on_with_this_one(trainer, tmp_path):
    """Another seed or config is refused of a run under way as well, which goes on unharmed."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 4)
    with pytest.raises(ConfigError, match="seed: given 4; the run in .* has the seed 3"):
        train_run(trainer, 4, folder, config={"of": "the run"})
    with pytest.raises(ConfigError, match="holds another run"):
        train_run(trainer, 3, folder, config={"of": "mine"})
    (folder / "config.json").write_text('{"of": ')
    with pytest.raises(ConfigError, match="config.json: given 'damaged JSON'"):
        train(trainer, folder)


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trainer, whole, tmp_path, how, capfd
):
    """One of its files, every second one in turn, the others in the other way: either it does not
    matter, or one line on stderr names the checkpoint and the run goes on from the one before;
    never does it end otherwise."""
    start = tmp_path / "start"
    stop_at(trainer, start, 8, save_minutes=0.0)
    names = [p.relative_to(start) for p in (start / "checkpoints" / "8").rglob("*") if p.is_file()]
    if isinstance(trainer.task, MaskedBytes):  # a few will do
        names = [name for name in names if name.name in ("manifest.ocdbt", "metadata")]
    else:
        names = sorted(names)[how == "gone" :: 2]
    passed_over = 0
    for number, name in enumerate(names):
        folder = pathlib.Path(shutil.copytree(start, tmp_path / str(number)))
        damage(folder / name, how)
        capfd.readouterr()
        reported = []
        train(trainer, folder, on_report=reported.append)
        message = capfd.readouterr().err
        if reported[0]["step"] == 8:
            passed_over += 1
            assert message.startswith(f"warning: checkpoint {folder}/checkpoints/8 is skipped")
            assert message.count("\n") == 1
        else:
            assert reported[0]["step"] == 10 and message == ""
        assert_same_run(trainer, folder, whole)
    assert passed_over


def test_a_checkpoint_of_another_shape_is_passed_over(trainer, whole, tmp_path, capfd):
    """The last one was saved by a wider model."""
    wide = dataclasses.replace(trainer, model_config=dataclasses.replace(MODEL, width=16))
    stop_at(wide, tmp_path / "wide", 8)
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    shutil.copytree(tmp_path / "wide" / "checkpoints" / "8", folder / "checkpoints" / "8")
    train(trainer, folder)
    assert "checkpoints/8 is skipped" in capfd.readouterr().err
    assert_same_run(trainer, folder, whole)


def test_a_folder_without_a_good_checkpoint_is_refused(trainer, tmp_path):
    """All damaged, or all gone: it is not started anew over what it holds."""
    folder = tmp_path / "run"
    stop_at(trainer, folder, 6)
    for step in (folder / "checkpoints").iterdir():
        shutil.rmtree(step / "arrays")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match="checkpoints: given .*none of the .* can be restored"):
        train(trainer, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ConfigError, match="workdir: given .*holds a run without its checkpoints"):
        train(trainer, folder)


def test_a_diverging_run_ends_the_same_after_a_stop(tmp_path):
    """It is stopped before the report that tells, and has its last state."""
    config = dataclasses.replace(TRAIN, learning_rate=1e30, report_every=1)
    mad = Trainer(MODEL, make_task("reverse", OPTIONS), config)
    train(mad, tmp_path / "whole")
    stop_at(mad, tmp_path / "run", 1)
    result = train(mad, tmp_path / "run")
    assert result["status"] == "diverged"
    assert_same_run(mad, tmp_path / "run", tmp_path / "whole")


# --- which checkpoints stay


def test_the_newest_and_the_best_stay_and_what_was_asked_for():
    """Of 0, 2, ..., 20 with the best validation at 6: 0, the last, the one asked for, two newest
    of the others, the best; without `every`, no more than was asked for; NaN is never best."""
    rank = {step: -abs(step - 6.0) for step in range(2, 22, 2)} | {4: -np.inf}
    policy = CheckpointPolicy((10,), every=2, last=2)
    assert policy.final(range(0, 22, 2), 20, rank.get) == {0, 6, 10, 16, 18, 20}
    assert CheckpointPolicy((10,)).final((0, 10, 20), 20, rank.get) == {0, 10, 20}
    assert CheckpointPolicy().final((0, 20), 20, lambda step: -np.inf) == {0, 20}
    assert policy.final((0,), 20, rank.get) == {0}


def test_a_run_keeps_the_best_of_its_checkpoints(whole):
    """`best_step` of result.json is the one whose validation the curve says is best."""
    result = json.loads((whole / "result.json").read_text())
    rows = [line.split(",") for line in (whole / "curve.csv").read_text().splitlines()[1:]]
    sign = 1 if result["metric"] == "accuracy" else -1
    value = {int(row[0]): sign * float(row[3]) for row in rows}
    assert value[result["best_step"]] == max(value.values())
    kept = {int(path.name) for path in (whole / "checkpoints").iterdir()}
    assert kept == {0, 4, 8, 10, 12, result["best_step"]}


def test_checkpoints_between_reports_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint_every: given 3; must be a multiple of"):
        train_run(
            Trainer(MODEL, make_task("reverse", OPTIONS), TRAIN), 0, tmp_path / "run", config={},
            policy=CheckpointPolicy(every=3),
        )  # fmt: skip
