"""A study that is stopped, killed or given more seeds ends with the tables of an unbroken one."""

import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir
from tests.support.studies import engine_runs
from tests.support.studies.engine_runs import contents, interrupting, names, tables, with_study
from tests.support.studies.tiny_study import TINY as VALUES
from tests.support.studies.tiny_study import run

compiled = engine_runs.compiled
finished = engine_runs.finished
copy = engine_runs.copy

ROOT = pathlib.Path(__file__).parents[3]


# --- interruptions


@pytest.fixture(scope="module")
def moments(tmp_path_factory, compiled):
    """How many events an undisturbed study reports."""
    reported = []
    run(tmp_path_factory.mktemp("moments") / "study", listener=reported.append)
    assert {event.doing for event in reported} == {"tuning", "evaluating"}
    return len(reported)


@pytest.mark.parametrize("share", [0.0, 0.12, 0.25, 0.37, 0.5, 0.62, 0.75, 0.87, 0.99])
def test_an_interrupted_study_ends_with_equal_tables(finished, tmp_path, moments, share):
    """Ctrl-C at nine moments, before, within and after waves; resumed by the same call. All that is
    kept of the runs is equal as well."""
    folder = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run(folder, listener=interrupting(round(share * (moments - 1))))
    study = json.loads((folder / "study.json").read_text())
    assert not study["complete"] and not (folder / "summary.csv").exists()
    before = load_study(folder).runs
    run(folder)
    assert tables(folder) == tables(finished)
    # What had been finished was not run again: its seconds are those of the first time.
    after = load_study(folder).runs[: len(before)]
    pd.testing.assert_frame_equal(after, before, check_dtype=len(before) > 0)
    assert names(folder) == names(finished)
    for name in ("curves", "examples", "checkpoints"):
        for path, content in contents(finished / name).items():
            assert (folder / path.relative_to(finished)).read_bytes() == content


def test_a_finished_study_is_not_run_again(copy):
    """The same command a second time trains nothing and writes the same tables."""
    before, reported = tables(copy), []
    run(copy, listener=reported.append)
    assert tables(copy) == before
    assert not any(event.step or event.wave_finished for event in reported)


@pytest.mark.parametrize(
    ("name", "time"),
    [("study.json", 4), ("lr0.1_seed1000000", 2), ("seed3.npy", 1), ("summary.csv", 1)],
)
def test_a_full_disk_stops_a_study_that_goes_on_when_there_is_room(
    finished, tmp_path, monkeypatch, name, time
):
    """Half a file reaches the disk, then no more: the error names a file, what was finished is
    whole, and the resumed study has equal tables."""
    write_bytes, left = pathlib.Path.write_bytes, time

    def full(path, content):
        nonlocal left
        left -= name in path.name
        if left > 0:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as refusal:
            run(folder)
    assert name in pathlib.Path(refusal.value.filename).name
    assert json.loads((folder / "study.json").read_text())["name"] == "tiny"
    run(folder)
    assert tables(folder) == tables(finished)


def test_rows_that_the_disk_took_by_half_are_run_again(finished, tmp_path, monkeypatch):
    """The same of runs.csv itself, which is appended to and not replaced."""
    append, left = Workdir.append_runs, 4

    def full(self, rows):
        nonlocal left
        left -= 1
        append(self, rows)
        if not left:
            text = (self.path / "runs.csv").read_text()
            (self.path / "runs.csv").write_text(text[:-25])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "append_runs", full)
        with pytest.raises(OSError, match="No space left"):
            run(folder)
    assert not (folder / "runs.csv").read_text().endswith("\n")
    run(folder)
    assert tables(folder) == tables(finished)


# The tiny study, with a rest after every wave: else, on a busy machine, it is over before the blow.
SLOW_CONFIG = """import time
from qkv_jax.config_files import tree
from qkv_jax.study.run.workdir import Workdir

append = Workdir.append_runs


def append_and_rest(self, rows):
    append(self, rows)
    time.sleep(0.3)


if append.__name__ == "append_runs":  # the file is read twice
    Workdir.append_runs = append_and_rest


def get_config():
    return tree({})
"""


@pytest.mark.slow
def test_a_killed_study_ends_with_equal_tables(finished, tmp_path):
    """The real command: kill -9 at two random moments, Ctrl-C at a third, which says in one line
    that the same command goes on; finished here, by the same program in another process."""
    config = tmp_path / "tiny.py"
    config.write_text(SLOW_CONFIG.format(VALUES))
    folder, runs = tmp_path / "study", tmp_path / "study" / "runs.csv"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    command = [sys.executable, "-m", "experiments.ablate", f"--config={config}"]
    dice = random.Random(0)
    # A shell that starts the tests in its background leaves SIGINT ignored, for children as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for rows, blow in ((1, signal.SIGKILL), (4, signal.SIGKILL), (8, signal.SIGINT)):
        process = subprocess.Popen(
            [*command, f"--workdir={folder}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not (runs.exists() and runs.read_text().count("\n") > rows):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.05))
        process.send_signal(blow)
        message = process.communicate()[1]
        assert not json.loads((folder / "study.json").read_text())["complete"]
    signal.signal(signal.SIGINT, before)
    assert process.returncode == 75
    assert message == "interrupted by SIGINT; the same command goes on from here\n"
    run(folder)
    assert tables(folder) == tables(finished)


def test_a_row_cut_off_by_a_crash_is_run_again(finished, copy):
    """At any byte of it: the row is dropped, its run repeated, and the tables are equal."""
    text = (copy / "runs.csv").read_text()
    for cut in (1, 30):
        (copy / "runs.csv").write_text(text[:-cut])
        (copy / "summary.csv").unlink()
        run(copy)
        assert tables(copy) == tables(finished)


def test_a_wave_half_written_is_run_whole_but_counted_once(finished, copy):
    """One of two runs of a wave is missing: both are trained, one row is added."""
    lines = (copy / "runs.csv").read_text().splitlines(keepends=True)
    del lines[2]
    (copy / "runs.csv").write_text("".join(lines))
    run(copy)
    keys = ["arm", "learning_rate", "seed"]
    drop = lambda folder: load_study(folder).runs.drop(columns="seconds").sort_values(keys)
    pd.testing.assert_frame_equal(
        drop(copy).reset_index(drop=True), drop(finished).reset_index(drop=True)
    )
    assert tables(copy)[1] == tables(finished)[1]


# --- more seeds, other studies


def test_seeds_can_be_added_to_a_finished_study_but_not_taken(copy):
    """What was run stays; the second analysis tests at a quarter of alpha; an interruption on
    the way changes nothing."""
    before = load_study(copy).runs
    other = copy.with_name("other")
    shutil.copytree(copy, other)
    with pytest.raises(ConfigError, match=r"study\.eval_seeds: given 4; .*only be added"):
        run(copy, with_study(eval_seeds=4))
    run(copy, with_study(eval_seeds=7))
    after = load_study(copy)
    pd.testing.assert_frame_equal(after.runs[: len(before)], before)
    added = after.runs[len(before) :]
    assert set(added["round"]) == {"evaluate2"} and set(added["seed"]) == {5, 6}
    assert after.record.looks == (5, 7) and after.record.complete
    assert set(after.summary["n"]) == {7} and set(after.summary["alpha_look"]) == {0.05 / 2}

    def interrupt(event):
        if event.wave_finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(other, with_study(eval_seeds=7), interrupt)
    with pytest.raises(ConfigError, match=r"study\.eval_seeds: given 9; finish the study"):
        run(other, with_study(eval_seeds=9))
    run(other, with_study(eval_seeds=7))
    assert tables(other) == tables(copy)


def test_another_study_or_other_files_are_never_written_over(finished, tmp_path, monkeypatch):
    """Nor is a study of a machine with other waves, even when more seeds are asked for."""
    before = contents(finished)
    other = VALUES | {"train": VALUES["train"] | {"steps": 12}}
    with pytest.raises(ConfigError, match=r"holds another study.*train\.steps is 8, not 12"):
        run(finished, other)
    with monkeypatch.context() as patch:
        patch.setattr(
            "qkv_jax.study.plan.wave_shape",
            lambda packing: {"devices": 8, "packing": 1, "size": 8},
        )
        with pytest.raises(ConfigError, match="was started with waves of .*same devices"):
            run(finished, with_study(eval_seeds=7))
    assert contents(finished) == before
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds other files"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
