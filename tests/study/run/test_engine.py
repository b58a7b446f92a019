"""A study from end to end, tiny: what it writes, and that no interruption changes its tables."""

import dataclasses
import errno
import functools
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.summary import COLUMNS
from qkv_jax.study.record import RUN_COLUMNS
from qkv_jax.study.report.progress import Display
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.training.population import Population, RunResult
from qkv_jax.training.state import model_inputs
from tests.support.small_models import shared_programs
from tests.support.studies.tiny_study import TINY as VALUES
from tests.support.studies.tiny_study import run

ROOT = pathlib.Path(__file__).parents[3]

ARMS = ("separate", "copies", "placebo")


def tables(folder):
    """The tables as text, timing columns apart."""
    study = load_study(folder)
    runs = study.runs.drop(columns="seconds")
    timing = ["step_time_ratio", "step_time_noise"]
    return runs.to_csv(), study.summary.drop(columns=timing).to_csv()


def with_study(**changes):
    return VALUES | {"study": VALUES["study"] | changes}


def contents(folder):
    """Every file of a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    """Every file of a folder; of TensorBoard's, which carry the time in their names, the number."""
    return sorted(
        path.relative_to(folder).parent if "events" in path.parts else path.relative_to(folder)
        for path in contents(folder)
    )


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The studies of this file share their compiled programs: {(program, packing): population}."""
    with shared_programs() as known:
        yield known


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    run(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to go on with."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


class Scripted(Population):
    """Stands for a population: final values by `rule(arm's tie, rate, seed)`; None diverges."""

    def __init__(self, rule, trainer, data, packing):
        self.rule, self.trainer = rule, trainer

    def train(self, wave, *, test, on_report, saves):
        tie, steps = str(self.trainer.model_config.ties[0]), np.array([4, 8])
        finished = []
        for one in wave:
            value = self.rule(tie, one.learning_rate, one.seed)
            curve = np.full(2, np.nan if value is None else value)
            params = {"kernel": np.zeros(1, np.float32)} if test else None
            finished.append(
                RunResult(
                    one, steps, curve, curve, value is None, curve if test else None, params, 0.1
                )
            )
        return finished


@pytest.fixture
def scripted(monkeypatch):
    """`scripted(rule)`: studies of this test train by rule."""
    return lambda rule: monkeypatch.setattr(
        engine_module, "Population", functools.partial(Scripted, rule)
    )


# --- what is written


def test_a_study_writes_what_it_promises(finished):
    """All files of the folder, columns in their order, one row per run, the same budget and the
    same seeds for every arm."""
    study = load_study(finished)
    assert study.record.complete and study.record.looks == (5,)
    names = {path.name for path in finished.iterdir()}
    assert names == {"study.json", "runs.csv", "summary.csv", "costs.json", "curves", "examples",
                     "checkpoints", "events"}  # fmt: skip
    assert (finished / "runs.csv").read_text().startswith(",".join(RUN_COLUMNS) + "\n")
    assert (finished / "summary.csv").read_text().startswith(",".join(COLUMNS) + "\n")
    assert set(study.runs["status"]) == {"done"} and set(study.runs["metric"]) == {"accuracy"}
    assert (study.runs["seconds"] > 0).all() and (study.runs["steps"] == 8).all()
    tune = study.runs[study.runs["phase"] == "tune"]
    evaluated = study.runs[study.runs["phase"] == "eval"]
    assert len(tune) + len(evaluated) == len(study.runs)
    budgets = {(arm, tuple(zip(part.learning_rate, part.seed, strict=True)))
               for arm, part in tune.groupby("arm")}  # fmt: skip
    assert len(budgets) == 3 and len({budget for _, budget in budgets}) == 1
    seeds = evaluated.groupby("arm")["seed"].apply(tuple)
    assert dict(seeds) == dict.fromkeys(ARMS, (0, 1, 2, 3, 4))
    assert not set(tune["seed"]) & set(evaluated["seed"])
    assert (evaluated.groupby("arm")["learning_rate"].nunique() == 1).all()
    assert tuple(study.summary["arm"]) == ARMS
    assert (study.summary["params"] > 0).all() and (study.summary["step_time_ratio"] > 0).all()
    assert not list(finished.rglob("*.part"))


def test_every_run_has_its_curve_and_evaluations_their_events(finished):
    """Validation at every report; for tuning runs the last entry is the value in the table."""
    study = load_study(finished)
    for row in study.runs.itertuples():
        curve = study.curve("reverse", row.arm, row.phase, row.learning_rate, row.seed)
        assert curve["step"].tolist() == [4, 8]
        assert row.phase == "eval" or np.isclose(curve["value"].iloc[-1], row.value)
        if row.phase == "eval":
            folder = finished / "events" / "reverse" / row.arm / f"seed{row.seed}"
            assert len(list(folder.iterdir())) == 1
    assert len(list((finished / "curves").rglob("*.csv"))) == len(study.runs)


def test_a_curve_is_that_of_the_chosen_rate_or_refused(finished, unchecked, monkeypatch):
    """Never None: what there is not is named, with what there is."""
    study = load_study(finished)
    rows = study.runs[(study.runs["arm"] == "copies") & (study.runs["phase"] == "eval")]
    rate = rows["learning_rate"].iloc[0]
    for seed in (0, 1):
        named = study.curve("reverse", "copies", "eval", rate, seed)
        pd.testing.assert_frame_equal(study.curve("reverse", "copies", seed=seed), named)
    pd.testing.assert_frame_equal(
        study.curve("reverse", "copies", "tune"),
        study.curve("reverse", "copies", "tune", rate, study.record.tune_seeds[0]),
    )
    for run_of, message, there in [
        (("revers", "copies"), "task: given 'revers'; this study has: ", "reverse"),
        (("reverse", "copy"), "arm: given 'copy'; this study has: ", "copies"),
        (("reverse", "copies", "evaluate"), "phase: given 'evaluate'; must be ", "tune, eval"),
        (("reverse", "copies", "eval", 0.5), "learning_rate: given 0.5; runs.csv", f"{rate:g}"),
        (("reverse", "copies", "eval", rate, 99), "seed: given 99; runs.csv", "0, 1, 2, 3, 4"),
        (("reverse", "copies", "eval", "high"), "learning_rate: given 'high'", "a finite"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}.*{there}"):
            study.curve(*run_of)
    monkeypatch.setattr(study.workdir, "curve", lambda *task_and_arm, **run: None)
    with pytest.raises(ConfigError, match="^seed: given 0; that run done: it has no curve$"):
        study.curve("reverse", "copies")


def test_the_kept_model_scores_what_the_table_says(finished):
    """The tables, the per-example scores and the parameters belong to the same run."""
    study = load_study(finished)
    plan = Study(VALUES).tasks[0]
    test = plan.task.load().test
    for row in study.runs[study.runs["phase"] == "eval"].itertuples():
        if row.seed > 1:
            continue
        encoder, variables = study.model("reverse", row.arm, row.seed)
        scores = plan.task.score(encoder.apply(variables, **model_inputs(test)), test)
        assert np.isclose(scores.mean(), row.value, atol=1e-6)
        np.testing.assert_allclose(study.examples("reverse", row.arm, [row.seed])[0], scores)
    assert study.examples("reverse", "copies", range(5)).shape == (5, 64)
    assert study.examples("reverse", "copies", range(6)) is None


def test_what_a_study_has_not_is_refused(finished, tmp_path):
    """By name, with what there is."""
    study = load_study(finished)
    for arguments, message in [
        (("revers", "copies"), "task: given 'revers'; this study has: reverse"),
        (("reverse", "copy"), "arm: given 'copy'; this study has: separate, copies, placebo"),
        (("reverse", "copies", 5), "no such checkpoint; evaluation runs keep theirs"),
    ]:
        with pytest.raises(ConfigError, match=message):
            study.model(*arguments)
    with pytest.raises(ConfigError, match="workdir: given .*; no study there"):
        load_study(tmp_path)


def test_the_placebo_is_the_baseline_from_another_draw(finished, compiled):
    """The same program, compiled once for both, on the same seeds; only the salt differs."""
    arms = {arm.name: arm for arm in Study(VALUES).tasks[0].arms}
    placebo = arms["placebo"]
    assert dataclasses.replace(
        placebo, name="separate", role="baseline", salt=0, note=""
    ) == dataclasses.replace(arms["separate"])
    assert {arm.salt for arm in arms.values()} == {0, placebo.salt} and placebo.salt
    programs = [trainer for trainer, _ in compiled]
    assert programs.count(placebo.trainer) == 1
    runs = load_study(finished).runs.query("phase == 'eval'").pivot(index="seed", columns="arm")
    assert (runs["value"]["placebo"] != runs["value"]["separate"]).any()


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(finite, finite, st.sampled_from(["NA", "None", 'a,"b"', "K=V"]))),
    cut=st.integers(0, 60),
)
def test_rows_come_back_to_the_bit_and_cut_ones_not_at_all(tmp_path, values, cut):
    """Any float and any name survive runs.csv; of a file cut anywhere the whole rows are read, and
    what is appended next is whole as well."""
    workdir = Workdir(tmp_path)
    (tmp_path / "runs.csv").unlink(missing_ok=True)
    rows = [
        dict(zip(RUN_COLUMNS, ("t", arm, "eval", rate, i, "done", "loss", value, 8, float("nan"),
                               0.5), strict=True))
        for i, (rate, value, arm) in enumerate(values)
    ]  # fmt: skip
    workdir.append_runs(rows)
    file = tmp_path / "runs.csv"
    text = file.read_text()
    file.write_text(text[: max(len(text) - cut, 0)])
    kept = max(file.read_text().count("\n") - 1, 0)
    workdir.append_runs([]) if kept else None
    read = workdir.runs()
    assert read["seed"].tolist() == list(range(kept))
    for row, (_, back) in zip(rows, read.iterrows(), strict=False):
        assert (back["learning_rate"], back["value"]) == (row["learning_rate"], row["value"])
        assert back["arm"] == row["arm"] and np.isnan(back["steps_to_solve"])
    workdir.append_runs([row | {"seed": 99} for row in rows[:1]])
    assert len(workdir.runs()) == kept + len(rows[:1])


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
    left = round(share * (moments - 1))

    def interrupt(event):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    folder = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run(folder, listener=interrupt)
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
    [("study.json", 4), ("tune_lr0.1", 2), ("seed3.npy", 1), ("summary.csv", 1)],
)
def test_a_full_disk_stops_a_study_that_goes_on_when_there_is_room(
    finished, tmp_path, monkeypatch, name, time
):
    """Half a file reaches the disk, then no more: the error names a file, what was finished is
    whole, and the resumed study has equal tables."""
    write_bytes, left = pathlib.Path.write_bytes, time

    def full(path, content):
        nonlocal left
        left -= path.name.startswith(name)
        if left > 0:
            return write_bytes(path, content)
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as refusal:
            run(folder)
    assert pathlib.Path(refusal.value.filename).name.startswith(name)
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
    keys = ["arm", "phase", "learning_rate", "seed"]
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
    assert set(added["phase"]) == {"eval"} and set(added["seed"]) == {5, 6}
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


# --- what can go wrong in a run


def test_diverged_runs_are_counted_with_the_failure_value(tmp_path):
    """With an absurd rate every run does; the rows say so, and no verdict comes of it."""
    run(tmp_path / "study", with_study(learning_rates=(1e30,)))
    study = load_study(tmp_path / "study")
    assert set(study.runs["status"]) == {"diverged"} and set(study.runs["value"]) == {0.1}
    assert study.summary["n_diverged"].tolist() == [5, 5, 5]
    assert not set(study.summary["verdict"]) & {"better", "worse", "equivalent"}


def test_a_rate_that_diverges_is_not_chosen(scripted, tmp_path):
    """It counts as chance, so that a rate that learns anything is better."""
    scripted(lambda tie, rate, seed: None if rate > 0.05 else 0.2)
    run(tmp_path / "study")
    assert (load_study(tmp_path / "study").summary["learning_rate"] < 0.05).all()


def test_diverged_evaluations_are_counted(scripted, tmp_path):
    """Each is a row with the failure value, in the mean and in n_diverged, never dropped."""
    scripted(lambda tie, rate, seed: None if tie == "Q=K=V=X" and seed in (1, 3) else 0.5)
    run(tmp_path / "study")
    study = load_study(tmp_path / "study")
    rows = study.runs.query("arm == 'copies' and phase == 'eval'")
    assert rows["value"].tolist() == [0.5, 0.1, 0.5, 0.1, 0.5]
    summary = study.summary.set_index("arm")
    assert summary["n"].tolist() == [5, 5, 5]
    assert summary["n_diverged"].tolist() == [0, 2, 0]
    assert np.isclose(summary.loc["copies", "mean"], 0.34)


def test_steps_to_solve_are_those_of_the_first_report_that_solves(scripted, tmp_path):
    """By the task's threshold, here 0.99; without reaching it there is no number."""
    scripted(lambda tie, rate, seed: 0.995 if seed == 2 else 0.5)
    run(tmp_path / "study")
    rows = load_study(tmp_path / "study").runs.query("phase == 'eval'")
    assert set(rows[rows["seed"] == 2]["steps_to_solve"]) == {4}
    assert rows[rows["seed"] != 2]["steps_to_solve"].isna().all()


def test_a_program_that_fails_is_recorded_and_the_study_goes_on(tmp_path, monkeypatch):
    """Out of memory in one arm: its rows are `failed`, with the failure value and the message in a
    file; the other arms are evaluated."""
    train = Population.train

    def fail(self, wave, **options):
        if str(self.trainer.model_config.ties[0]) == "Q=K=V=X":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return train(self, wave, **options)

    monkeypatch.setattr(Population, "train", fail)
    folder = tmp_path / "study"
    run(folder)
    study = load_study(folder)
    failed = study.runs[study.runs["status"] == "failed"]
    assert set(failed["arm"]) == {"copies"} and set(failed["value"]) == {0.1}
    assert len(failed) == (study.runs["arm"] == "copies").sum()
    summary = study.summary.set_index("arm")
    assert summary["n_failed"].tolist() == [0, 5, 0]
    assert "out of memory" in next((folder / "failures").rglob("*.txt")).read_text()
    before = tables(folder)
    run(folder)  # read back from the file
    assert tables(folder) == before


def test_mistakes_of_our_own_are_not_taken_for_failures(tmp_path, monkeypatch):
    """Only what the accelerator's runtime says counts as a failed run."""
    monkeypatch.setattr(Population, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "study")
    assert not (tmp_path / "study" / "runs.csv").exists()


# --- tuning


def test_the_grid_is_extended_for_all_arms(scripted, tmp_path):
    """One arm is best at the upper end: every arm gets the next rates, on the same seeds, until the
    best is inside; then it is evaluated there and bears no mark of an edge."""
    peak = {"separate": 1e-2, "Q=K=V=X": 1.0}
    scripted(lambda tie, rate, seed: 0.9 - 0.1 * abs(np.log10(rate / peak[tie])))
    run(tmp_path / "study")
    study = load_study(tmp_path / "study")
    tune = study.runs[study.runs["phase"] == "tune"]
    tried = {arm: sorted(part["learning_rate"]) for arm, part in tune.groupby("arm")}
    assert tried == dict.fromkeys(ARMS, [1e-3, 1e-2, 1e-1, 1.0, 10.0])
    chosen = study.summary.set_index("arm")
    assert chosen["learning_rate"].tolist() == [1e-2, 1.0, 1e-2]
    assert (chosen["edge"] == "").all()


def test_an_interrupted_extension_takes_the_same_course(scripted, tmp_path):
    """Stopped while the grid is being extended, at every wave of it: equal tables."""
    peak = {"separate": 1e-2, "Q=K=V=X": 1.0}
    scripted(lambda tie, rate, seed: 0.9 - 0.1 * abs(np.log10(rate / peak[tie])))
    run(tmp_path / "whole")
    for wave in range(6, 13):
        left = wave

        def interrupt(event):
            nonlocal left
            left -= event.wave_finished
            if not left:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(wave), listener=interrupt)
        run(tmp_path / str(wave))
        assert tables(tmp_path / str(wave)) == tables(tmp_path / "whole")


def test_a_best_rate_beyond_all_extensions_is_an_edge(scripted, tmp_path):
    """Two rates more on the side at most; then the table says that the arm is at the edge."""
    scripted(lambda tie, rate, seed: 0.1 + 0.1 * np.log10(rate / 1e-4))
    run(tmp_path / "study")
    study = load_study(tmp_path / "study")
    assert study.runs["learning_rate"].max() == 10.0
    assert set(study.summary["edge"]) == {"high"} and set(study.summary["learning_rate"]) == {10.0}


def test_every_task_is_tuned_and_evaluated_on_its_own(scripted, tmp_path):
    """Two tasks with grids of their own; an arm of one only is not run on the other."""
    second = {**VALUES["tasks"]["reverse"], "arms": ("separate",), "learning_rates": (1e-4,)}
    scripted(lambda tie, rate, seed: 0.5)
    values = VALUES | {"tasks": {**VALUES["tasks"], "again": second}}
    run(tmp_path / "study", values)
    study = load_study(tmp_path / "study")
    again = study.runs[study.runs["task"] == "again"]
    assert set(again["arm"]) == {"separate", "placebo"} and set(again["learning_rate"]) == {1e-4}
    assert study.summary["task"].tolist() == ["reverse"] * 3 + ["again"] * 2


# --- progress


def test_without_a_terminal_every_arm_is_named_when_tuned_and_with_its_result(tmp_path):
    """A line each, whatever signs a name holds; a resumed study does not say again what is done."""
    arms = {"separate": {}, "copies [raw]": {"model": {"tie": "copies"}}}
    study = Study(VALUES | {"arms": arms})
    shown_arms = [*arms, "placebo"]
    printed = []
    for stop_after in ("copies [raw]", None):
        out = io.StringIO()
        workdir = Workdir(tmp_path / "study")

        def on_progress(event, stop_after=stop_after):
            shown.on_progress(event)  # noqa: B023
            if event.arm_finished and event.arm == stop_after:
                raise KeyboardInterrupt

        with Display(study, Console(file=out)) as shown, suppress(KeyboardInterrupt):
            work = Engine(study, workdir, workdir.open(study.describe()), on_progress)
            shown.follow(work)
            work.run()
        printed.append([line.partition("] reverse: ")[2] for line in out.getvalue().splitlines()])
    tuned, judged = ([x for x in printed[0] if x.startswith("tuning ") == t] for t in (True, False))
    assert tuned[:3] == [f"tuning {arm}" for arm in shown_arms]
    assert [line.partition(": mean ")[0] for line in judged] == shown_arms[:2]
    assert [line.partition(": mean ")[0] for line in printed[1]] == shown_arms


def test_the_listener_hears_of_all_waves(scripted, tmp_path):
    """Waves done never exceed the total, which grows with the grid and is reached at the end."""
    reported = []
    scripted(lambda tie, rate, seed: 0.1 + 0.1 * np.log10(rate / 1e-4))
    run(tmp_path / "study", listener=reported.append)
    assert all(event.waves_done <= event.waves_total for event in reported)
    assert reported[-1].waves_done == reported[-1].waves_total
    assert reported[-1].waves_total > reported[0].waves_total
    assert [event.arm for event in reported if event.arm_finished] == list(ARMS)


# --- plans


def test_matching_adds_arms_of_equal_size():
    """The MLP of a smaller arm is widened, and the note prints what is left of the difference."""
    plan = Study(with_study(match="params")).tasks[0]
    by_name = {arm.name: arm for arm in plan.arms}
    matched = by_name["copies (params matched)"]
    assert matched.role == "matched" and "of the baseline" in matched.note
    assert matched.trainer.model_config.mlp_width > 4 * 8


def test_the_data_of_all_tasks_are_checked_before_a_study_starts(tmp_path):
    """A text that is missing is refused with its task, whatever task comes first."""
    options = {"files": (str(tmp_path / "lost"),)}
    tasks = {**VALUES["tasks"], "text": {"kind": "masked_bytes", "options": options}}
    study = Study(VALUES | {"tasks": tasks})
    assert isinstance(study.tasks[1].task, MaskedBytes)
    with pytest.raises(ConfigError, match=r"tasks\.text\.options\.files: given .*cannot be read"):
        study.check_data()
