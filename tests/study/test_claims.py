"""Claims and their ledger: rules, effects, errors, and a study of claims from end to end."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.claims import Claim, Evidence, read_claims
from qkv_jax.study.measures import MEASURES, measure
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import ledger as ledger_module
from qkv_jax.study.protocol.ledger import write_ledger
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report.ledger import console_ledger, ledger_context
from qkv_jax.study.report.page import write_outcomes
from qkv_jax.study.results import load_study
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks import make_task
from qkv_jax.tasks.base import Outcome
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.studies.tiny_study import TINY

SEEDS = 6
TASK = TaskRecord(
    title="", description="", outcome=Outcome("mean", "accuracy", "accuracy", 0.1, 0.0), steps=100,
    learning_rates=(0.1, 0.2, 0.3), arms=("separate", "tied", "placebo"), family="",
    family_title="",
)  # fmt: skip


def made_up(scores, rates=None, status=None):
    """(record, runs) with {(task, arm): scores of the seeds}; every rate chosen beyond doubt."""
    tasks = dict.fromkeys(task for task, _ in scores)
    arms = {task: tuple(arm for t, arm in scores if t == task) for task in tasks}
    record = StudyRecord(
        name="", alpha=0.05, looks=(SEEDS,), baseline="separate", placebo="placebo",
        protocol="fixed", tune_seeds=(100, 101), eval_seeds=tuple(range(SEEDS)), wave={},
        arms={}, claims={},
        tasks={task: dataclasses.replace(TASK, arms=arms[task]) for task in tasks}, config={},
    )  # fmt: skip
    rows = []
    for (task, arm), values in scores.items():
        best = (rates or {}).get((task, arm), 0.2)
        row = {"task": task, "arm": arm, "status": "done", "steps_to_solve": np.nan}
        for rate in TASK.learning_rates:
            value = 0.9 if rate == best else -9.0
            rows += [row | {"learning_rate": rate, "seed": seed, "validation": value,
                            "test": np.nan} for seed in record.tune_seeds]  # fmt: skip
        for seed, value in enumerate(values):
            failed = (status or {}).get((task, arm, seed), "done")
            rows.append(row | {"learning_rate": best, "seed": seed, "validation": value,
                               "test": value, "status": failed})  # fmt: skip
    return record, pd.DataFrame(rows)


def ledger(claims, scores, examples=lambda *_: None, groups=None, measured=None, **more):
    record, runs = made_up(scores, **more)
    claims = {key: Claim(**claim) for key, claim in claims.items()}
    measured = measured or (lambda task, arm, name: np.zeros((SEEDS, 2)))
    return write_ledger(record, claims, runs, examples, groups or {}, measured)


def noise(size, sd=0.01):
    return sd * np.random.default_rng(size).normal(size=SEEDS)


def worse(task="a", arm="tied", **more):
    return {"task": task, "arm": arm, "expect": "worse", **more}


SCORES = {
    ("a", "separate"): 0.9 + noise(1), ("a", "tied"): 0.5 + noise(2),
    ("b", "separate"): 0.9 + noise(3), ("b", "tied"): 0.9 + noise(4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("evidence", "enough", "verdict"),
    [
        ({"one": worse()}, 1.0, "supported"),
        ({"one": worse("b")}, 1.0, "refuted"),  # shown to lie within the margin
        ({"one": worse() | {"expect": "better"}}, 1.0, "refuted"),
        ({"one": worse("b") | {"expect": "equivalent"}}, 1.0, "supported"),
        ({"one": worse(), "two": worse("b")}, 1.0, "depends"),
        ({"one": worse(), "two": worse("open")}, 1.0, "undecided"),
        ({"one": worse(), "two": worse("open")}, 0.5, "supported"),
        ({"one": worse("open")}, 1.0, "undecided"),
    ],
)
def test_the_rules_of_verdicts(evidence, enough, verdict):
    wide = {("open", "separate"): 0.9 + noise(5, 0.2), ("open", "tied"): 0.9 + noise(6, 0.2)}
    _, found = ledger({"1": {"text": "so.", "evidence": evidence, "enough": enough}}, SCORES | wide)
    assert found[0].verdict == verdict


@pytest.mark.parametrize("level, verdict", [(0.8, "supported"), (0.95, "undecided")])
def test_a_claim_whose_control_fails_is_undecided(level, verdict):
    solves = {"task": "a", "arm": "separate", "level": level, "expect": "above", "control": True}
    evidence = {"tied does worse": worse(), "separate solves it": solves}
    table, found = ledger({"1": {"text": "so.", "evidence": evidence}}, SCORES)
    assert found[0].verdict == verdict
    assert ("separate solves it" in found[0].why) == (verdict == "undecided")
    assert np.isnan(table["p_value"][1])  # read off, not tested


def test_one_seed_below_the_level_leaves_the_control_open():
    low = SCORES["a", "separate"].copy()
    low[3] = 0.7
    solves = {"task": "a", "arm": "separate", "level": 0.8, "expect": "above", "control": True}
    claims = {"1": {"text": "so.", "evidence": {"tied": worse(), "solves": solves}}}
    table, found = ledger(claims, SCORES | {("a", "separate"): low})
    assert (table["outcome"][1], found[0].verdict) == ("open", "undecided")


def test_effects_are_what_they_are_called():
    """Costs, costs less those on another task, and costs far less those near, by hand."""
    rng = np.random.default_rng(0)
    examples = {key: rng.uniform(size=(SEEDS, 40)) for key in SCORES}
    groups = np.arange(40) % 4
    scores = {key: value.mean(1) for key, value in examples.items()}
    evidence = {
        "plain": worse(),
        "minus": worse(minus_task="b"),
        "far": worse(near=1, far=3),
    }
    table, _ = ledger(
        {"1": {"text": "so.", "evidence": evidence}}, scores,
        lambda task, arm, rate, seeds: examples[task, arm], {"a": groups.tolist()},
    )  # fmt: skip
    cost = lambda task, where=slice(None): np.mean(
        examples[task, "separate"][:, where] - examples[task, "tied"][:, where]
    )
    expected = [
        cost("a"), cost("a") - cost("b"), cost("a", groups == 3) - cost("a", groups <= 1),
    ]  # fmt: skip
    np.testing.assert_allclose(table["effect"], expected, atol=1e-12)


def test_all_evidence_but_controls_is_one_family():
    """The same test is adjusted for all others, whichever claim they are part of; half of alpha is
    for differences, half for equivalence."""
    alone, _ = ledger({"1": {"text": "so.", "evidence": {"one": worse()}}}, SCORES)
    others = {f"{i}": {"text": "so.", "evidence": {"one": worse("b")}} for i in range(2, 12)}
    together, _ = ledger({"1": {"text": "so.", "evidence": {"one": worse()}}, **others}, SCORES)
    assert together["p_value"][0] == alone["p_value"][0]
    np.testing.assert_allclose(alone["p_adjusted"][0], 2 * alone["p_value"][0])
    np.testing.assert_allclose(together["p_adjusted"][0], 11 * alone["p_adjusted"][0])
    controls = {key: {"text": "so.", "evidence": {
        "one": worse("b"), "control": worse("b", control=True)}} for key in others}  # fmt: skip
    more, _ = ledger({"1": {"text": "so.", "evidence": {"one": worse()}}, **controls}, SCORES)
    assert more["p_adjusted"][0] == together["p_adjusted"][0]
    tested = more[more["control"]]
    np.testing.assert_allclose(tested["p_adjusted"], np.minimum(2 * tested["p_value"], 1))


def test_failed_runs_rule_out_within_the_margin():
    claims = {"1": {"text": "so.", "evidence": {"one": worse("b")}}}
    table, _ = ledger(claims, SCORES, status={("b", "tied", 2): "diverged"})
    assert table["outcome"][0] == "open" and "runs failed" in str(table["note"][0])


def test_what_no_test_can_tell_apart_is_open_with_its_reason():
    """The same program by its configs, or arms that all failed; an arm that fails alone does
    worse."""
    claims = {"1": Claim(text="so.", evidence={"one": worse("b")})}
    record, runs = made_up({**SCORES, ("b", "tied"): SCORES["b", "separate"]})

    def found(record, runs):
        nothing = lambda *_: None
        table, _ = write_ledger(record, claims, runs, nothing, {}, nothing)
        return table.loc[0, ["outcome", "finding", "note"]].map(str).tolist()

    assert found(record, runs) == ["open", "undecided (same scores)", ""]
    twins = record.with_task("b", same_program={"tied": "separate"})
    assert found(twins, runs) == ["open", "undecided (same program)", ""]
    gone = (runs["task"] == "b") & runs["arm"].isin(("tied", "separate"))
    tuning = runs["seed"].isin(record.tune_seeds)
    lowest = runs.assign(  # the rate of an arm for which none works
        learning_rate=runs["learning_rate"].where(~gone | tuning, 0.1)
    )
    lost = lowest.assign(status=runs["status"].where(~gone, "failed"))
    outcome, why, note = found(record, lost)
    assert (outcome, why) == ("open", "undecided (all failed)")
    assert "tied failed at every rate tried (12 of 12)" in note
    works = runs["arm"] == "separate"
    assert found(record, pd.concat([runs[works], lost[~works]]))[:2] == ["for", "positive"]


def test_doubt_about_learning_rates_leaves_evidence_open(monkeypatch):
    """Also where both sides chose the same, as they do here."""
    claims = {"1": {"text": "so.", "evidence": {"one": worse()}}}
    assert ledger(claims, SCORES)[0]["outcome"][0] == "for"
    monkeypatch.setattr(ledger_module.inference, "tuning_regret", lambda *_: 1.0)
    table, _ = ledger(claims, SCORES)
    assert (table["outcome"][0], str(table["finding"][0])) == ("open", "undecided (tuning)")
    assert "would be 'positive'" in str(table["note"][0])


def test_the_family_error_of_a_ledger_without_effects():
    """Of 400 ledgers of 12 tests with no effect, at most about 5 % say anything of an effect."""
    rng, wrong = np.random.default_rng(0), 0
    names = [f"t{i}" for i in range(12)]
    claims = {"1": {"text": "so.", "evidence": {name: worse(name) for name in names}}}
    for _ in range(400):
        scores = {(n, arm): rng.normal(0.5, 0.3, SEEDS)
                  for n in names for arm in ("separate", "tied")}  # fmt: skip
        table, _ = ledger(claims, scores)
        wrong += table["finding"].isin(["positive", "negative"]).any()
    assert wrong <= 0.05 * 400 + 2 * np.sqrt(0.05 * 0.95 * 400)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"expect": "above"}, "expect: given 'above'; allowed: worse, better, equivalent"),
        ({"margin": 0.0}, "margin: given 0.0; must be a finite number above 0"),
        ({"near": 2}, "near: given 2; near and far are given together"),
        ({"near": 3, "far": 2}, "near: given 3; must be below far = 2"),
        ({"measure": "beauty", "expect": "above"}, "measure: given 'beauty'; allowed: nearest"),
        ({"measure": "antisymmetry", "expect": "above"}, "margin: given None; evidence from a"),
        ({"level": 0.5, "expect": "above"}, "control: given False; a level is read off"),
        ({"null": 1.0}, "null: given 1.0; is the null of a measure, which is not given"),
        ({"against": "x", "measure": "antisymmetry", "expect": "above", "margin": 1.0},
         "against: given 'x'; has no meaning beside measure"),
        ({"task": "z"}, "claims.1.evidence.one.task: given 'z'; this study has: reverse; relation"),
        ({"arm": "separate"}, "arm: given 'separate'; is compared with itself; name another"),
        ({"arm": "Q=V"}, "claims.1.evidence.one.arm: given 'Q=V'; reverse has: separate, K=V"),
        ({"near": 1, "far": 2}, "near: given 1; reverse does not tell its test"),
        ({"task": "relation"}, "task: given 'relation'; its outcome must be 'mean', not 'solve'"),
    ],
)  # fmt: skip
def test_claims_that_cannot_be_tested_are_refused(entry, message):
    task = lambda kind, what: make_task(kind, {"outcome_kind": what}, "")
    arms = ["separate", "K=V", "placebo"]
    kinds = {"reverse": "mean", "relation": "solve"}
    tasks = {name: (task(name, outcome), arms) for name, outcome in kinds.items()}
    values = {"task": "reverse", "arm": "K=V", "expect": "worse"} | entry
    with pytest.raises(ConfigError) as refused:
        read_claims({"1": {"text": "so.", "evidence": {"one": values}}}, tasks, "separate")
    assert message in str(refused.value)


@pytest.mark.parametrize("enough", [0.0, 1.5])
def test_a_share_is_a_share(enough):
    with pytest.raises(ConfigError, match="enough: given .*; is a share"):
        Claim("so.", {"one": worse()}, enough)


def test_two_thirds_of_three_are_two():
    assert Claim("so.", {n: worse() for n in "abc"}, 2 / 3).needed == 2
    assert isinstance(Claim("so.", {"one": worse()}).evidence["one"], Evidence)


def measured(trained=None, **model):
    """All measures of a model, `trained` being parameters; of the untrained one by default."""
    task = make_task("reverse", {"length": 6, "test_examples": 64, "validation_examples": 32}, "")
    config = ModelConfig(width=16, heads=2, positions="learned", **model)
    trainer = Trainer(config, task, TrainConfig())
    params = trainer.init_params(3) if trained is None else trained(trainer.init_params(3))
    return measure(trainer, 3, 0, params, task.load().test, MEASURES)


def test_measures_where_the_answer_is_known():
    at_start = measured()
    assert all(trained == untrained for trained, untrained in at_start.values())
    assert at_start["least movement"] == (0.0, 0.0)
    assert 0 < at_start["nearest copy"][0] < 1 and 0.2 < at_start["antisymmetry"][0] < 0.8
    copies = measured(tie="copies")
    np.testing.assert_allclose(copies["nearest copy"], 1.0, atol=1e-6)
    np.testing.assert_allclose(measured(tie="V=X")["nearest copy"], 1.0, atol=1e-6)
    shared = measured(tie="K=V")
    np.testing.assert_allclose(shared["key-value similarity"], 1.0, atol=1e-6)
    np.testing.assert_allclose(shared["key-value overlap"], 1.0, atol=1e-6)
    np.testing.assert_allclose(measured(tie="Q=K")["antisymmetry"], 0.0, atol=1e-6)
    doubled = measured(lambda params: jax.tree.map(lambda a: 2 * a, params))
    np.testing.assert_allclose(doubled["least movement"], (1.0, 0.0), atol=1e-6)


VALUES = TINY | {
    "tasks": {
        "place": {
            "kind": "retrieval",
            "options": {"length": 8, "max_distance": 3, "queries": 2, "outcome_kind": "mean",
                        "validation_examples": 32, "test_examples": 66},
        },
    },
    "study": {"protocol": "fixed", "learning_rates": (1e-2,), "tune_seeds": 1, "eval_seeds": 5},
    "claims": {
        "1": {
            "text": "They are no copies.",
            "evidence": {
                "copies do worse: far": {"task": "place", "arm": "copies", "expect": "worse",
                                         "near": 1, "far": 3},
                "weights move": {"task": "place", "arm": "separate", "measure": "least movement",
                                 "expect": "above", "margin": 1e-6, "null": 0.0},
            },
        },
    },
}  # fmt: skip


@pytest.mark.slow
def test_a_study_of_claims_from_end_to_end(tmp_path):
    def once(folder):
        study, workdir = Study(VALUES), Workdir(folder)
        record = dataclasses.replace(workdir.open(study.describe()), command="ablate")
        work = Engine(study, workdir, record, lambda event: None)
        work.run()
        return work, write_outcomes(workdir)[1]

    work, report = once(tmp_path / "a")
    names = "claims.csv", "claims.json", "measures.csv"
    files = [(tmp_path / "a" / name).read_bytes() for name in names]
    table = load_study(tmp_path / "a").claims
    assert table["outcome"].tolist()[1] == "for" and len(table) == 2
    moved = table.iloc[1]
    assert moved["note"] == f"{moved['effect']:.2f} on place, 0.00 before training"
    found = json.loads((tmp_path / "a" / "claims.json").read_text())
    assert [claim["claim"] for claim in found] == ["1"]
    page, text = report.read_text(), report.with_suffix(".md").read_text()
    for shown in (page, text):
        assert "They are no copies." in shown and found[0]["verdict"] in shown
    context = ledger_context(tmp_path / "a")
    drawn = console_ledger(context, 78)
    assert drawn.columns[0].width + drawn.columns[1].width + 4 <= 78
    once(tmp_path / "a")  # a finished study, opened again
    assert files == [(tmp_path / "a" / name).read_bytes() for name in names]
    assert load_study(tmp_path / "a").record.claims["1"].text == "They are no copies."
