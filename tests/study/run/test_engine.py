"""A study from end to end, tiny: what it writes, what it says meanwhile, and what is planned."""

import dataclasses
import io
import re
from contextlib import suppress

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
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.training.state import model_inputs
from tests.support.studies import engine_runs
from tests.support.studies.engine_runs import ARMS, with_study
from tests.support.studies.tiny_study import TINY as VALUES
from tests.support.studies.tiny_study import run

compiled = engine_runs.compiled
finished = engine_runs.finished
scripted = engine_runs.scripted


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
    tune = study.runs[study.runs["seed"].isin(study.record.tune_seeds)]
    evaluated = study.runs[study.runs["round"] == "evaluate"]
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
    assert study.runs["validation"].notna().all()
    assert tune["test"].isna().all() and evaluated["test"].notna().all()
    assert not list(finished.rglob("*.part"))


def test_every_run_has_its_curve_and_evaluations_their_events(finished):
    """Validation at every report; the last entry is the one in the table."""
    study = load_study(finished)
    for row in study.runs.itertuples():
        curve = study.curve("reverse", row.arm, row.learning_rate, row.seed)
        assert curve["step"].tolist() == [4, 8]
        assert np.isclose(curve["value"].iloc[-1], row.validation)
        name = f"lr{row.learning_rate:g}_seed{row.seed}"
        folder = finished / "events" / "reverse" / row.arm / name
        assert folder.exists() == (row.round == "evaluate")
        if folder.exists():
            assert len(list(folder.iterdir())) == 1
    assert len(list((finished / "curves").rglob("*.csv"))) == len(study.runs)


def test_a_curve_is_that_of_the_chosen_rate_or_refused(finished, unchecked, monkeypatch):
    """Never None: what there is not is named, with what there is."""
    study = load_study(finished)
    rows = study.runs[(study.runs["arm"] == "copies") & (study.runs["round"] == "evaluate")]
    rate = rows["learning_rate"].iloc[0]
    for seed in (0, 1):
        named = study.curve("reverse", "copies", rate, seed)
        pd.testing.assert_frame_equal(study.curve("reverse", "copies", seed=seed), named)
    other = next(tried for tried in (1e-3, 1e-2, 1e-1) if tried != rate)
    (tuned,) = study.record.tune_seeds
    pd.testing.assert_frame_equal(
        study.curve("reverse", "copies", other), study.curve("reverse", "copies", other, tuned)
    )
    assert not study.curve("reverse", "copies").equals(
        study.curve("reverse", "copies", rate, tuned)
    )
    for run_of, message, there in [
        (("revers", "copies"), "task: given 'revers'; this study has: ", "reverse"),
        (("reverse", "copy"), "arm: given 'copy'; this study has: ", "copies"),
        (("reverse", "copies", 0.5), "learning_rate: given 0.5; runs.csv", f"{rate:g}"),
        (("reverse", "copies", rate, 99), "seed: given 99; runs.csv", f"{tuned}, 0, 1, 2, 3, 4"),
        (("reverse", "copies", other, 0), "seed: given 0; runs.csv", f"{tuned}"),
        (("reverse", "copies", "high"), "learning_rate: given 'high'", "a finite"),
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
    for row in study.runs[study.runs["round"] == "evaluate"].itertuples():
        if row.seed > 1:
            continue
        encoder, variables = study.model("reverse", row.arm, row.seed)
        scores = plan.task.score(encoder.apply(variables, **model_inputs(test)), test)
        assert np.isclose(scores.mean(), row.test, atol=1e-6)
        np.testing.assert_allclose(study.examples("reverse", row.arm, [row.seed])[0], scores)
    assert study.examples("reverse", "copies", range(5)).shape == (5, 64)
    assert study.examples("reverse", "copies", range(6)) is None


def test_what_a_study_has_not_is_refused(finished, tmp_path):
    """By name, with what there is."""
    study = load_study(finished)
    for arguments, message in [
        (("revers", "copies"), "task: given 'revers'; this study has: reverse"),
        (("reverse", "copy"), "arm: given 'copy'; this study has: separate, copies, placebo"),
        (("reverse", "copies", 5), "seed: given 5; no such checkpoint: .*; runs that"),
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
    evaluated = load_study(finished).runs.query("round == 'evaluate'")
    scores = evaluated.pivot(index="seed", columns="arm", values="test")
    assert (scores["placebo"] != scores["separate"]).any()


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
        dict(zip(RUN_COLUMNS, ("t", arm, rate, i, "evaluate", "done", "loss", value, rate, 8,
                               float("nan"), 0.5), strict=True))
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
        for name in ("learning_rate", "validation", "test"):
            assert back[name] == row[name]
        assert back["arm"] == row["arm"] and np.isnan(back["steps_to_solve"])
    workdir.append_runs([row | {"seed": 99} for row in rows[:1]])
    assert len(workdir.runs()) == kept + len(rows[:1])


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
        first, *lines = out.getvalue().splitlines()
        begins = r"On \d+ CPU cores?: study '.+', \d arms on 1 task, \d+ runs\b.*\."
        assert re.fullmatch(begins, first)
        printed.append([line.partition("] reverse: ")[2] for line in lines])
    tuned, judged = ([x for x in printed[0] if x.startswith("tuning ") == t] for t in (True, False))
    assert tuned[:3] == [f"tuning {arm}" for arm in shown_arms]
    assert [line.partition(": mean ")[0] for line in judged] == shown_arms[:2]
    assert [line.partition(": mean ")[0] for line in printed[1]] == shown_arms[2:]


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
