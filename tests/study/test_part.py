"""Some of a study's tasks and arms: what goes with the others, and what is said of it."""

import pandas as pd
import pytest

from configs import claims, quick
from qkv_jax.config import ConfigError
from qkv_jax.study.part import listed, part
from qkv_jax.study.plan import Study
from qkv_jax.study.report.headlines import warnings

NAMES = ("separate", "copies", "copies, learned scale", "Q=X,K=V", "Q=X")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("copies", ("copies",)),
        ("copies,copies, learned scale", ("copies", "copies, learned scale")),
        ("Q=X,K=V,Q=X, separate", ("Q=X,K=V", "Q=X", "separate")),
        ("Q=X,Q=X", ("Q=X",)),
    ],
)
def test_names_that_hold_commas_are_told_apart(text, names):
    assert listed(text, NAMES, "--arms") == names


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="--arms: given 'copys'; did you mean 'copies'. allo"):
        listed("Q=X,copys", NAMES, "--arms")


def test_a_part_has_the_baseline_and_what_was_named():
    whole = quick.get_config().to_dict()
    study = Study(part(whole, ("relation",), ("Q=K", "K=V")))
    assert [plan.name for plan in study.tasks] == ["relation"]
    assert {arm.name for arm in study.tasks[0].arms} == {"separate", "Q=K", "K=V", "placebo"}
    full = {plan.name: plan for plan in Study(whole).tasks}["relation"]
    assert study.tasks[0].task == full.task  # the same data, seeds and training
    assert study.tasks[0].arms[0].trainer == full.arms[0].trainer


def test_tasks_without_any_of_the_arms_are_left_out():
    whole = quick.get_config().to_dict()
    assert [*part(whole, (), ("V=X",))["tasks"]] == ["relation"]
    with pytest.raises(ConfigError, match="none of them is an arm of mnist5k"):
        part(whole, ("mnist5k",), ("V=X",))


def test_claims_that_need_what_is_left_out_are_left_out():
    whole = claims.get_config().to_dict()
    every = Study(whole).claims
    kept = Study(part(whole, ("directed",), ())).claims
    assert set(kept) < set(every)
    assert all(e.task == "directed" for claim in kept.values() for e in claim.evidence.values())
    assert set(Study(part(whole, tuple(whole["tasks"]), ())).claims) == set(every)


def test_the_report_says_first_that_it_is_a_part():
    study = Study(part(quick.get_config().to_dict(), ("relation",), ("Q=K",)))
    record = study.describe()
    runs = pd.DataFrame(columns=["task", "arm", "phase", "status", "round", "seed"])
    said = warnings(record, runs, {name: {} for name in record.tasks})
    assert said[0] == (
        "This is a part of the study “quick”: of its 3 tasks relation; of its 16 arms separate and "
        "Q=K."
    )
