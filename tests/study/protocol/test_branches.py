"""Verdicts at a share of the steps, on copies of runs that branch off to cool down."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.branches import branch_table
from qkv_jax.study.protocol.evaluated import standings
from qkv_jax.study.protocol.hostile import run_study
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report.page import write_outcomes
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks import make_task
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec, branch_step
from qkv_jax.training.state import TrainConfig, rate_schedule
from qkv_jax.training.step import Trainer
from qkv_jax.training.wave_checkpoints import WaveSaves
from tests.support.studies.raced_study import race_record, steep
from tests.support.studies.tiny_study import SIZES, TINY, run

WSD = TrainConfig(steps=20, report_every=2, batch_size=4, decay="wsd", cooldown=0.2)
WAVE = [RunSpec(1e-2, seed=0), RunSpec(1e-1, seed=1)]


def population(config):
    task = make_task("reverse", SIZES)
    trainer = Trainer(ModelConfig(layers=1, width=8, heads=2), task, config)
    return Population(trainer, DeviceData(task.load(), jax.local_devices()[:1]), packing=2)


# --- the schedule


def test_wsd_stays_at_its_peak_and_falls_with_the_root():
    factors = [float(rate_schedule(WSD)(step)) for step in range(20)]
    assert factors[0] == pytest.approx(1 / 3) and factors[2:16] == [1.0] * 14
    np.testing.assert_allclose(factors[16:], 1 - np.sqrt([0.0, 0.25, 0.5, 0.75]), rtol=1e-6)


@pytest.mark.parametrize("cooldown", [0.0, 0.01, 0.95])
def test_a_cooldown_without_steps_or_over_the_warm_up_is_refused(cooldown):
    with pytest.raises(ConfigError, match="leave the warm-up its own") as caught:
        dataclasses.replace(WSD, cooldown=cooldown)
    assert caught.value.field == "cooldown"
    assert dataclasses.replace(WSD, decay="linear", cooldown=cooldown).cooldown_steps == 0


# --- training


def test_a_branch_is_the_run_that_leaves_out_the_middle():
    """By hand: up to the fork as ever, then the last steps of all. The run it left goes on to the
    same bits, and one that diverges there scores nothing."""
    people = population(WSD)
    fork = branch_step(WSD, 0.5)
    assert fork == 6
    plain, branched = people.train(WAVE, test=True), people.train(WAVE, test=True, branch=0.5)
    assert [done.branch for done in plain] == [None, None]
    for one, other in zip(plain, branched, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    state = people.start(WAVE)
    for _ in range(fork // WSD.report_every):
        state, _ = people.advance(state)
    state = state.replace(step=jax.device_put(np.full((1, 2), 16, np.int32), state.step.sharding))
    for _ in range(2):
        state, _ = people.advance(state)
    for place, split in enumerate(("validation", "test")):
        scores = people._scores(state.params, split)
        means = np.mean(np.concatenate([np.asarray(s)[0, :, :n] for s, n in scores], -1), -1)
        np.testing.assert_allclose([done.branch[place] for done in branched], means, rtol=1e-6)
    lost = people.train([RunSpec(1e30, seed=0), WAVE[1]], test=True, branch=0.5)
    assert np.isnan(lost[0].branch).all() and lost[1].branch == branched[1].branch


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_wave_stopped_before_at_or_after_its_fork_has_the_same_branch(tmp_path, step):
    people = population(WSD)
    whole = people.train(WAVE, test=True, branch=0.5)
    signal = StopSignal()
    stop = lambda done: signal.stop("enough") if done == step else None
    with WaveSaves(tmp_path / "wave", WAVE, signal) as saves, pytest.raises(Interrupted):
        people.train(WAVE, test=True, branch=0.5, on_report=stop, saves=saves)
    with WaveSaves(tmp_path / "wave", WAVE, StopSignal()) as saves:
        found = people.train(WAVE, test=True, branch=0.5, saves=saves)
    assert [done.branch for done in found] == [done.branch for done in whole]


@pytest.mark.parametrize(
    ("train", "share", "words"),
    [
        ({"decay": "cosine"}, 0.5, "needs train.decay 'wsd'.*this is 'cosine'"),
        ({}, 0.2, "less a cooldown of 4, must be past the warm-up of 2"),
        ({}, 0.55, "multiples of report_every = 2"),
        ({}, 1.0, "of 20 steps"),
        ({"cooldown": 0.25}, 0.5, "cooldown of 5"),
    ],
)
def test_branches_that_cannot_be_are_refused_by_the_study(train, share, words):
    train = dataclasses.asdict(WSD) | train
    train.pop("learning_rate")
    task = TINY["tasks"]["reverse"] | {"train": train, "branch": share}
    with pytest.raises(ConfigError, match=words) as caught:
        Study(TINY | {"tasks": {"reverse": task}})
    assert caught.value.field == "tasks.reverse.branch"


# --- verdicts


def copies_of(record, losses, shorter, **options):
    """runs.csv of a race on some losses, and the table of copies that have others."""
    record = record.with_task("task", branch=0.5)
    record = dataclasses.replace(record, complete=True)
    runs, _ = run_study(record, losses)
    grid = record.tasks["task"].learning_rates

    def scores(task, arm, rate, seed):
        place = 2 + [f"{r:g}" for r in grid].index(f"{rate:g}") if rate in grid else None
        if place is None:
            return None
        found = shorter[:, record.tasks["task"].arms.index(arm), place, seed]
        return {"validation": float(found[0]), "test": float(found[1])}

    return record, runs, branch_table(record, runs, scores).set_index("arm")


def test_copies_that_score_as_their_runs_have_the_same_verdicts():
    record = race_record(2, margin=1.0, seeds=8)
    losses = steep((0.0, 0.0, 9.0), noise=0.5)
    record, runs, table = copies_of(record, losses, losses)
    whole = summarise(record, runs).set_index("arm")
    assert table["verdict"].map(str).to_dict() == whole["verdict"].map(str).to_dict()
    for column in ("mean", "delta", "delta_low", "delta_high", "n"):
        np.testing.assert_array_equal(table[column], whole[column])


def test_what_copies_would_have_needed_is_not_made_up():
    """At the end one arm is far worse at once; its copies are much like those of the baseline, for
    which four seeds are too few. The other's verdict stands all the same."""
    record = race_record(2, margin=0.3, seeds=32)
    losses, shorter = (steep((0.0, gap, 9.0), noise=0.5) for gap in (9.0, 0.25))
    record, runs, table = copies_of(record, losses, shorter)
    assert set(summarise(record, runs)["verdict"].map(str)) >= {"worse"}
    assert str(table.loc["arm1", "verdict"]) == "undecided (budget)"
    assert str(table.loc["arm2", "verdict"]) == "worse"
    assert abs(table.loc["arm1", "delta"]) < 1.5


def test_estimates_are_of_all_copies_that_there_are():
    """The race on the copies is over at the first look; of the baseline there are eight all the
    same, and a mean of the first four would be of other luck than that at full length."""
    record = race_record(2, margin=0.3, seeds=32)
    losses, shorter = (steep((0.0, *gaps), noise=0.5) for gaps in ((9.0, 0.35), (9.0, 9.0)))
    record, runs, table = copies_of(record, losses, shorter)
    whole = summarise(record, runs).set_index("arm")
    assert table.loc["separate", "n"] == whole.loc["separate", "n"] > table.loc["arm1", "n"]
    own = shorter[1, 0, 3, : whole.loc["separate", "n"]]
    assert table.loc["separate", "mean"] == pytest.approx(own.mean())


def test_a_best_rate_beyond_what_was_run_is_no_reason_to_wait():
    record = race_record(2, margin=0.3, seeds=8)
    losses = steep((0.0, 9.0, 9.0), noise=0.1)
    shorter = losses.copy()
    shorter[:, 1, 2] = losses[:, 1, 3] - 1  # the first of the grid, where nobody went beyond
    record, runs, table = copies_of(record, losses, shorter)
    assert str(table.loc["arm1", "verdict"]) == "undecided (edge)"
    assert str(table.loc["arm2", "verdict"]) == "worse"
    open_ = standings(record, runs.assign(test=0.0, validation=runs["learning_rate"]))
    assert open_["task"].race.wanted  # an open race would ask for more


def test_copies_of_runs_that_failed_count_as_failed():
    record = race_record(2, margin=1.0, seeds=8)
    losses = steep((0.0, 0.0, 9.0), noise=0.5)
    shorter = losses.copy()
    shorter[:, 2, 2:5, 0] = np.nan
    _, _, table = copies_of(record, losses, shorter)
    n, failure = int(table.loc["arm2", "n"]), record.tasks["task"].outcome.failure_value
    expected = np.mean([failure, *losses[1, 2, 3, 1:n]])
    assert n >= 4 and table.loc["arm2", "mean"] == pytest.approx(expected)


# --- a study


def test_with_fixed_seeds_copies_choose_rates_of_their_own(tmp_path):
    """Runs of tuning have copies too; an arm whose copies chose a rate that was not evaluated is
    open, and shown."""
    train = {"steps": 20, "report_every": 2, "batch_size": 4, "decay": "wsd"}
    task = TINY["tasks"]["reverse"] | {"train": train, "branch": 0.5}
    study = TINY["study"] | {"eval_seeds": 2, "tune_seeds": 2, "learning_rates": (1e-2, 1e-1)}
    folder = tmp_path / "study"
    run(folder, TINY | {"tasks": {"reverse": task}, "study": study})
    write_outcomes(Workdir(folder))
    found = load_study(folder)
    tuned = found.runs[found.runs["test"].isna()]
    keys = tuned[["task", "arm", "learning_rate", "seed"]].itertuples(index=False, name=None)
    copies = [Workdir(folder).branch(*key) for key in keys]
    means = tuned.assign(copy=[copy["validation"] for copy in copies])
    best = means.groupby(["arm", "learning_rate"])["copy"].mean().groupby("arm").idxmax()
    table = found.branches.set_index("arm")
    for arm, (_, rate) in best.items():
        assert table.loc[arm, "learning_rate"] == rate
    page = (folder / "report.md").read_text()
    section = page[page.index("% of the steps") :].split("##")[0]
    assert all(f"| {arm} " in section or f"*{arm}*" in section for arm in table.index)


def test_a_study_keeps_and_shows_its_copies(tmp_path):
    train = {"steps": 20, "report_every": 2, "batch_size": 4, "decay": "wsd"}
    task = TINY["tasks"]["reverse"] | {"train": train, "branch": 0.5}
    study = TINY["study"] | {"eval_seeds": 2, "learning_rates": (1e-2,)}
    run(tmp_path / "study", TINY | {"tasks": {"reverse": task}, "study": study})
    write_outcomes(Workdir(tmp_path / "study"))
    found = load_study(tmp_path / "study")
    assert found.branches["steps"].to_list() == [10, 10, 10]
    tested = found.runs[found.runs["test"].notna()]
    for arm, rows in tested.groupby("arm"):
        folder = tmp_path / "study/branches/reverse" / arm
        files = [folder / f"lr0.01_seed{seed}.json" for seed in rows["seed"]]
        scores = [json.loads(file.read_text())["test"] for file in files]
        mean = found.branches.set_index("arm").loc[arm, "mean"]
        assert len(files) == len(rows) and mean == pytest.approx(np.mean(scores))
    assert found.branches["n"].to_list() == [2, 2, 2]
    page = (tmp_path / "study/report.md").read_text()
    assert "## At 50 % of the steps" in page and "zero at 10 of 20 steps" in page
