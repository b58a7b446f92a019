"""A study that races, in its folder: stopped, as jobs, with seeds or a budget added, and reported.

Populations are made up, so that nothing is compiled; `test_an_interrupted_race...` trains.
"""

import dataclasses
import io
import itertools
import json
from unittest import mock

import numpy as np
import pytest
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.runtime.stopping import Interrupted
from qkv_jax.study.plan import Study
from qkv_jax.study.report.estimate import Workload, print_plan
from qkv_jax.study.report.page import write_outcomes
from qkv_jax.study.report.progress import Display
from qkv_jax.study.results import load_study
from qkv_jax.study.run.engine import Engine, Progress
from qkv_jax.study.run.outcomes import write_tables
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training.speed import USUAL
from tests.support.small_models import shared_programs
from tests.support.studies import engine_runs, scheduler
from tests.support.studies.engine_runs import interrupting, names, tables
from tests.support.studies.report_pages import Page
from tests.support.studies.scheduler import Scheduler, drive
from tests.support.studies.tiny_study import SIZES, TINY, run

scripted = engine_runs.scripted
measured = scheduler.measured

OPTIONS = SIZES | {"outcome_kind": "mean"}
RACE = TINY | {
    "tasks": {"reverse": {"kind": "reverse", "options": OPTIONS}},
    "study": {"learning_rates": (1e-3, 1e-2, 1e-1), "protocol": "race", "max_seeds": 8},
}


def with_study(**changes):
    return RACE | {"study": RACE["study"] | changes}


def close(tie, rate, seed):
    """Copies are a little worse; the best rate lies within the grid; some spread."""
    rng = np.random.default_rng([seed, round(1e4 * rate), len(tie)])
    off = 0.05 * abs(np.log10(rate) + 2)
    return 0.8 - off - 0.01 * (tie != "separate") + 0.01 * rng.standard_normal()


def hard(tie, rate, seed):
    """Copies come out half the margin worse or less; it takes seeds to see it."""
    return close(tie, rate, seed) + 0.015 * (tie != "separate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A race that nobody disturbed, really trained, and the programs that it compiled."""
    with shared_programs():
        folder = tmp_path_factory.mktemp("trained") / "study"
        run(folder, RACE)
        yield folder


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.8, 0.97])
def test_an_interrupted_race_ends_with_equal_tables(trained, tmp_path, share):
    reported = []
    run(tmp_path / "counted", RACE, reported.append)
    assert {event.round for event in reported} > {"pilot", "look4"}
    folder = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run(folder, RACE, interrupting(round(share * len(reported))))
    run(folder, RACE)
    assert tables(folder) == tables(trained) and names(folder) == names(trained)


def test_jobs_that_train_race_as_one_process_does(trained, tmp_path):
    stop = lambda part, tries: "stop" if tries < 2 else None
    jobs = Scheduler(tmp_path / "jobs", RACE, stop)
    drive(jobs)
    assert scheduler.contents(jobs.folder) == scheduler.contents(trained)


@pytest.mark.parametrize("seed", range(3))
def test_no_mishap_of_jobs_changes_a_race(scripted, measured, tmp_path, seed):
    scripted(close)
    rng = np.random.default_rng(seed)
    fates = {(place, tries): str(rng.choice(["fail", "vanish", "lost"]))
             for place, tries in itertools.product(range(0, 40, 3), (1, 2))}  # fmt: skip
    number = itertools.count()
    jobs = Scheduler(
        tmp_path / "jobs", RACE, lambda part, tries: fates.get((next(number), tries)), seed
    )
    drive(jobs, retries=4)
    run(tmp_path / "alone", RACE)
    assert scheduler.contents(jobs.folder) == scheduler.contents(tmp_path / "alone")


def test_every_run_has_both_scores_and_keeps_what_it_made(scripted, tmp_path):
    scripted(close)
    run(tmp_path / "study", RACE)
    study = load_study(tmp_path / "study")
    runs = study.runs
    assert runs[["validation", "test"]].notna().all().all() and "placebo" not in {*runs["arm"]}
    assert (runs.groupby(["arm", "learning_rate"])["seed"].min() == 0).all()
    for kind in ("curves", "examples", "checkpoints"):
        assert len(list((tmp_path / "study" / kind).rglob("*.*"))) == len(runs)
    best = study.summary.set_index("arm")["learning_rate"]["copies"]
    assert best == 0.01 and len(study.curve("reverse", "copies")) == 2
    assert study.examples("reverse", "copies", [0, 1]).shape[0] == 2
    assert study.examples("reverse", "copies", [0, 99]) is None
    assert study.workdir.params("reverse", "copies", best, 1)
    for read in (study.curve, study.model):
        with pytest.raises(ConfigError, match="second half of separate's seeds"):
            read("reverse", "placebo")


def test_seeds_and_budgets_are_added_to_a_race_that_has_ended(scripted, tmp_path):
    scripted(hard)
    folder, at_once = tmp_path / "study", tmp_path / "at_once"
    run(folder, with_study(max_runs=20))
    first = load_study(folder)
    assert str(first.summary["verdict"].iloc[1]) == "undecided (budget)"
    assert first.record.complete and len(first.runs) <= 20
    opened = Workdir(folder).open(Study(with_study(max_runs=None)).describe())
    assert not opened.complete
    run(folder, with_study(max_runs=None))
    before = len(load_study(folder).runs)
    run(folder, with_study(max_seeds=16))
    assert load_study(folder).record.looks == (8, 16) and len(load_study(folder).runs) > before
    run(at_once, with_study(max_seeds=16))
    more, once = load_study(folder), load_study(at_once)
    assert set(zip(more.runs["arm"], more.runs["seed"], more.runs["test"], strict=True)) == set(
        zip(once.runs["arm"], once.runs["seed"], once.runs["test"], strict=True)
    )
    assert more.summary["verdict"].to_list() == once.summary["verdict"].to_list()
    with pytest.raises(ConfigError, match="seeds can only be added") as caught:
        run(folder, with_study(max_seeds=6))
    assert caught.value.field == "study.max_seeds"


def test_tables_are_of_the_margin_that_is_in_force(scripted, tmp_path):
    scripted(lambda tie, rate, seed: close(tie, rate, seed) + 0.18)
    run(tmp_path / "study", RACE)
    found = load_study(tmp_path / "study")
    assert (found.summary["margin"] < found.record.tasks["reverse"].outcome.margin).all()


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"eval_seeds": 6}, "eval_seeds", "is of the protocol 'fixed'"),
        ({"tune_seeds": 2}, "tune_seeds", "this study's is 'race'"),
        ({"protocol": "fixed"}, "max_seeds", "is of the protocol 'race'"),
        ({"protocol": "sprint"}, "protocol", "race"),
        ({"max_seeds": 3}, "max_seeds", "from 4, the first look"),
        ({"max_runs": 10}, "study.max_runs", "may take 20 runs to its first look"),
        ({"max_minutes": 0}, "max_minutes", "above 0"),
    ],
)
def test_numbers_that_the_protocol_does_not_have_are_refused(given, field, words):
    with pytest.raises(ConfigError) as caught:
        Study(with_study(**given))
    assert field in caught.value.field and words in str(caught.value)


def test_a_race_that_has_begun_is_not_gone_on_with_as_another_protocol(scripted, tmp_path):
    scripted(close)
    run(tmp_path / "study", RACE)
    fixed = {"learning_rates": (1e-3, 1e-2, 1e-1), "protocol": "fixed"}
    with pytest.raises(ConfigError, match="another study"):
        run(tmp_path / "study", RACE | {"study": fixed})


def test_the_report_says_what_was_spent_and_what_verdicts_rest_on(scripted, tmp_path):
    scripted(close)
    run(tmp_path / "study", RACE)
    outcome, path = write_outcomes(Workdir(tmp_path / "study"))
    text = Page(path.read_text(encoding="utf-8")).text
    rows, runs = outcome.summary.set_index("arm"), outcome.runs
    row = rows.loc["copies"]
    for words in (
        "Race. Every run tunes and compares",
        "4 seeds 8 %, 6 seeds 15 %, 8 seeds 17 %",
        f"Reverse: {len(runs)} runs of 8 steps, 12 in the pilot",
        f"correlation by seed {row['correlation']:.2g}",
        "What the verdicts rest on",
        f"{row['n_collapsed']:.0f} of {row['n_live']:.0f} (≤ {100 * row['collapsed_high']:.0f} %)",
        "Estimates of arms that stopped early lean away from zero",
        "the second half of separate's seeds against the first",
    ):
        assert words in text, words
    assert "tuning seeds" not in text


def test_the_plan_and_the_display_of_a_race(scripted, tmp_path):
    scripted(close)
    study, told = Study(RACE), Console(file=io.StringIO(), width=80)
    study.check_data()
    print_plan(study, USUAL, told)
    plan = told.file.getvalue()
    assert "pilot" in plan and " 12 " in plan and " 36 " in plan  # three times as many, about
    shown = Console(file=io.StringIO(), width=80)
    workdir, work = Workdir(tmp_path / "study"), Workload(study)
    shares = []
    with Display(study, shown) as display:

        def listen(event):
            work.count(event)
            shares.append(work.share)
            display.on_progress(event)

        engine = Engine(study, workdir, workdir.open(study.describe()), listen)
        display.follow(engine)
        engine.run()
    assert shares == sorted(shares) and shares[-1] <= 1
    lines = shown.file.getvalue().splitlines()
    assert any("reverse: copies: mean 0." in line and "open" in line for line in lines)
    write_tables(workdir)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["protocol"] == "race"


def test_the_share_that_is_shown_waits_where_work_is_added():
    """As when a grid is extended beyond what was thought likely; it never goes back."""
    study = Study(RACE)
    work, arm = Workload(study), study.tasks[0].arms[0].name
    event = Progress(task="reverse", arm=arm, steps=8, waves_total=6, waves_done=0)
    shares, shown = [], []
    for done, total in ((0, 6), (1, 6), (5, 6), (5, 600), (6, 600)):
        work.count(dataclasses.replace(event, waves_done=done, waves_total=total))
        shares.append(work.share)
        shown.append(work.shown)
    assert shares[3] < shares[2]  # what is left to do has grown
    assert shown == sorted(shown) and shown[2] == shown[3] == shares[2]


def test_on_a_terminal_finished_tasks_stay_and_a_stopped_study_says_how_to_look_at_it(
    scripted, tmp_path, monkeypatch
):
    """Beside the live part, which is not looked at here."""
    scripted(close)
    study = Study(RACE | {"tasks": {"one": RACE["tasks"]["reverse"], "two": {"kind": "copy"}}})
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    workdir = Workdir(tmp_path / "a study")
    with pytest.raises(Interrupted), Display(study, console) as display:
        monkeypatch.setattr(display, "live", mock.Mock())

        def listen(event):
            display.on_progress(event)
            if event.task == "two" and event.wave_finished:
                raise Interrupted("asked to")

        engine = Engine(study, workdir, workdir.open(study.describe()), listen)
        display.follow(engine)
        engine.run()
    text = console.file.getvalue()
    assert text.startswith("On ") and text.count("baseline") == 2  # the finished, then this task's
    saved = f"{len(engine.runs)} runs are saved; a report so far: qkv report "
    assert text.splitlines()[-1].endswith(f"{saved}--workdir='{tmp_path / 'a study'}'")
