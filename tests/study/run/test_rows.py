"""Many writers, one table: what processes append to files of their own is what one process would
have written, whatever a crash cut off or two files say twice."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.config import ConfigError
from qkv_jax.study.record import KEY, RUN_COLUMNS
from qkv_jax.study.run.rows import append_runs, in_order, read_parts, read_runs
from qkv_jax.study.run.workdir import Workdir
from tests.support.studies.synthetic_study import GRID, make_family, make_study

# Appends the rows of one runs.csv that are of one task, wave by wave, each arm to its own file.
WRITER = """
import pathlib, sys
from qkv_jax.study.run.rows import append_runs, read_runs

source, folder, task = sys.argv[1:]
runs = read_runs([pathlib.Path(source)])
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, len(runs), 4):
    for (name, arm), rows in runs[start : start + 4].groupby(["task", "arm"], sort=False):
        if name == task:
            append_runs(pathlib.Path(folder, "parts", name, f"{arm}.csv"), rows.to_dict("records"))
"""


LOWER, HIGHER, LOWEST = 1e-4, 0.03, 3e-5  # beyond the grid
BEST = {"separate": LOWER, "K=V": GRID[-1]}  # of the other arms: inside of the grid


def as_one_process(record):
    """Made-up rows in the order in which one process writes them: the grid is extended on both
    sides, since two arms are best at its ends, then below again."""
    rows = []
    for name, task in record.tasks.items():
        better = 1 if task.higher_is_better else -1
        for round_, rates in (("tune", GRID), ("extend1", (LOWER, HIGHER)), ("extend2", (LOWEST,)),
                              ("evaluate", None)):  # fmt: skip
            for arm in task.arms:
                best = BEST.get(arm, GRID[1])
                seeds = record.tune_seeds if rates else record.eval_seeds
                for rate, seed in itertools.product(rates or (best,), seeds):
                    value = 0.5 - better * 0.01 * abs(np.log2(rate / best)) + 1e-4 * seed
                    run = (name, arm, rate, seed, round_, "done", "accuracy", value,
                           np.nan if rates else value, 10, np.nan, 1.5)  # fmt: skip
                    rows.append(dict(zip(RUN_COLUMNS, run, strict=True)))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def record_and_runs():
    record, *_ = make_study(tasks=("recall", "text"), seeds=6)
    return record, as_one_process(record)


@pytest.fixture(scope="module")
def single(record_and_runs, tmp_path_factory):
    """The folder of a study that one process has written."""
    folder = tmp_path_factory.mktemp("single")
    append_runs(folder / "runs.csv", record_and_runs[1].to_dict("records"))
    return folder


def split(runs, folder):
    """Each arm of each task to its own file, the arms in an order of no meaning."""
    for (task, arm), rows in runs.sort_values(list(KEY), kind="stable").groupby(["task", "arm"]):
        append_runs(folder / "parts" / task / f"{arm}.csv", rows.to_dict("records"))


def test_many_writers_at_once_write_what_one_does(record_and_runs, single, tmp_path):
    record, runs = record_and_runs
    command = [sys.executable, "-c", WRITER, str(single / "runs.csv"), str(tmp_path)]
    writers = [
        subprocess.Popen([*command, task], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for task in record.tasks
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # all have started: now they append at once
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        seen = read_parts(tmp_path)  # a reader while they write sees whole rows alone
        assert len(seen.merge(runs[list(KEY)], on=list(KEY))) == len(seen)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    merged = in_order(record, read_parts(tmp_path))
    append_runs(tmp_path / "merged.csv", merged.to_dict("records"))
    assert (tmp_path / "merged.csv").read_bytes() == (single / "runs.csv").read_bytes()
    assert merged.equals(Workdir(single).runs())


def test_order_of_one_process_does_not_change(record_and_runs, single):
    assert in_order(record_and_runs[0], read_runs([single / "runs.csv"])).equals(
        Workdir(single).runs()
    )


@given(st.randoms(use_true_random=False))
def test_order_does_not_depend_on_the_order_of_rows(random):
    record, runs, *_ = make_family({"options.length": [16, 4]}, arms=("K=V",), seeds=3)
    # The last seed of every arm was added when all was done.
    record = dataclasses.replace(record, looks=(2, 3))
    late = runs["seed"] == record.eval_seeds[2]
    expected = in_order(record, pd.concat([runs[~late], runs[late]]))
    assert [*expected["seed"][-6:]] == [record.eval_seeds[2]] * 6
    shuffled = runs.iloc[random.sample(range(len(runs)), len(runs))]
    assert in_order(record, shuffled).equals(expected)


def test_cut_row_is_left_out_and_mended_by_its_writer(record_and_runs, tmp_path):
    record, runs = record_and_runs
    split(runs, tmp_path)
    file = tmp_path / "parts" / "text" / "K=V.csv"
    whole = file.read_text()
    last = whole[whole[:-1].rfind("\n") + 1 :]
    for cut in (1, len(last) // 2, len(last) - 1):
        file.write_text(whole[:-cut])
        assert len(read_parts(tmp_path)) == len(runs) - 1
    row = read_runs([file])
    append_runs(file, [])
    assert file.read_text() == whole[: -len(last)] and len(read_runs([file])) == len(row)
    for start in ("", "task,ar"):  # killed before its first row
        file.write_text(start)
        assert len(read_parts(tmp_path)) == len(runs) - len(row) - 1


def test_first_of_two_rows_about_a_run_counts(record_and_runs, tmp_path):
    record, runs = record_and_runs
    split(runs, tmp_path)
    some = runs[runs["round"] == "evaluate"].iloc[[0, 40, -1]]
    append_runs(tmp_path / "runs.csv", some.assign(test=-1.0).to_dict("records"))
    merged = in_order(record, read_parts(tmp_path))
    expected = runs["test"].where(~np.isin(np.arange(len(runs)), some.index), -1.0)
    assert merged["test"].equals(expected)


def test_no_files_are_no_rows(record_and_runs, tmp_path):
    empty = read_parts(tmp_path)
    assert (*empty.columns,) == RUN_COLUMNS and not len(empty)
    assert not len(in_order(record_and_runs[0], empty))


def test_damage_is_named(record_and_runs, tmp_path):
    split(record_and_runs[1], tmp_path)
    file = tmp_path / "parts" / "text" / "K=V.csv"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    for damage in ("text,K=V,0.1", lines[2].strip()[:-4].rpartition(",")[0], lines[2].strip() * 2):
        file.write_text("".join([*lines[:2], f"{damage}\n", *lines[2:]]))
        with pytest.raises(ConfigError, match=rf"K=V\.csv: line 3: .*{damage[:12]}.*damaged"):
            read_parts(tmp_path)
    file.write_text("task,arm\n")
    with pytest.raises(ConfigError, match=r"K=V\.csv: columns.*must be task,arm,learning_rate"):
        read_parts(tmp_path)
