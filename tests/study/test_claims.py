"""Claims as configs state them, what they measure, and a study of claims from end to end."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.claims import Claim, Evidence, read_claims
from qkv_jax.study.measures import MEASURES, measure
from qkv_jax.study.plan import Study
from qkv_jax.study.report.ledger import console_ledger, ledger_context
from qkv_jax.study.report.page import write_outcomes
from qkv_jax.study.results import load_study
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks import make_task
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.studies.tiny_study import TINY

ENTRY = {"task": "a", "arm": "tied", "expect": "worse"}


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
         "claims.1.evidence.one.against: given 'x'; reverse has: separate, K=V"),
        ({"arm": "K=V", "against": "K=V", "measure": "antisymmetry", "expect": "above",
          "margin": 1.0}, "arm: given 'K=V'; is compared with itself"),
        ({"kind": "\n"}, "kind: given '\\n'; must be one line of signs that can be seen"),
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
        Claim("so.", {"one": ENTRY}, enough)


def test_two_thirds_of_three_are_two():
    assert [Claim("so.", {"one": ENTRY}, 2 / 3).needed(kinds) for kinds in (1, 2, 3, 7)] == [
        1, 2, 2, 5,
    ]  # fmt: skip
    assert isinstance(Claim("so.", {"one": ENTRY}).evidence["one"], Evidence)


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


def test_what_has_no_matrices_is_refused_before_it_is_trained():
    mla = {"scheme": "mla", "latent_dim": 4, "positions": "rotary", "rotary_dims": 2}
    values = VALUES | {"arms": VALUES["arms"] | {"latent": {"model": mla}}}
    evidence = {"task": "place", "arm": "latent", "measure": "antisymmetry", "expect": "below",
                "margin": 0.1, "null": 0.5}  # fmt: skip
    claims = {"1": {"text": "so.", "evidence": {"even": evidence}}}
    with pytest.raises(ConfigError, match="claims.1.evidence.even: latent.*those of one matrix"):
        Study(values | {"claims": claims})


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
