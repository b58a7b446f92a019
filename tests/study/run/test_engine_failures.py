"""What can go wrong in a run of a study, and how its rates are tuned."""

import jax
import numpy as np
import pytest

from qkv_jax.study.results import load_study
from qkv_jax.training.population import Population
from tests.support.studies import engine_runs
from tests.support.studies.engine_runs import ARMS, tables, with_study
from tests.support.studies.tiny_study import TINY as VALUES
from tests.support.studies.tiny_study import run

compiled = engine_runs.compiled
scripted = engine_runs.scripted


# --- what can go wrong in a run


def test_diverged_runs_are_counted_with_the_failure_value(tmp_path):
    """With an absurd rate every run does; the rows say so, and no verdict comes of it."""
    run(tmp_path / "study", with_study(learning_rates=(1e30,)))
    study = load_study(tmp_path / "study")
    assert set(study.runs["status"]) == {"diverged"} and set(study.runs["validation"]) == {0.1}
    tuned = study.runs["round"] == "tune"
    assert study.runs["test"][tuned].isna().all() and set(study.runs["test"][~tuned]) == {0.1}
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
    rows = study.runs.query("arm == 'copies' and round == 'evaluate'")
    assert rows["test"].tolist() == [0.5, 0.1, 0.5, 0.1, 0.5]
    summary = study.summary.set_index("arm")
    assert summary["n"].tolist() == [5, 5, 5]
    assert summary["n_diverged"].tolist() == [0, 2, 0]
    assert np.isclose(summary.loc["copies", "mean"], 0.34)


def test_steps_to_solve_are_those_of_the_first_report_that_solves(scripted, tmp_path):
    """By the task's threshold, here 0.99; without reaching it there is no number."""
    scripted(lambda tie, rate, seed: 0.995 if seed == 2 else 0.5)
    run(tmp_path / "study")
    rows = load_study(tmp_path / "study").runs.query("round == 'evaluate'")
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
    assert set(failed["arm"]) == {"copies"} and set(failed["validation"]) == {0.1}
    assert set(failed["test"][failed["round"] == "evaluate"]) == {0.1}
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
    tune = study.runs[study.runs["seed"].isin(study.record.tune_seeds)]
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
