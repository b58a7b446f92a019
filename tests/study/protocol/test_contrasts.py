"""Arms against other arms than the baseline: verdicts are right, and as rarely wrong as claimed."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.contrasts import contrast_table, contrasted
from qkv_jax.study.protocol.hostile import DECLARED, Case, record_of, run_study
from qkv_jax.study.protocol.race import Race, Rules
from qkv_jax.study.protocol.summary import summarise
from tests.study.test_names import VALUES

ALPHA = 0.05


def case(*effect, **options):
    """Of a baseline and two arms, the second of which is compared with the first."""
    return Case("made", arms=2, effect=effect, margin=1.0, **options)


def contrast(made, rng):
    losses = made.draw(rng)
    inside = lambda place: -2 <= place < losses.shape[2] - 2
    runs = lambda arm, place: losses[:, arm, place + 2] if inside(place) else np.empty((2, 0))
    return Race(Rules(2, DECLARED, made.margin), runs).contrast(2, 1)


@pytest.mark.parametrize("level", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_equal_arms_differ_as_rarely_as_alpha_says(level, shared):
    """Whenever their own verdicts stopped them, and whatever they share at a seed."""
    rng, made = np.random.default_rng(1), case(0.0, level, level, shared=shared)
    found = [contrast(made, rng) for _ in range(300)]
    wrong = np.mean([2 * min(c.worse, c.better) <= ALPHA * c.share for c in found])
    assert wrong <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


def test_arms_a_margin_apart_are_equivalent_as_rarely():
    rng, made = np.random.default_rng(2), case(0.0, 0.0, 1.0, noise=0.3)
    found = [contrast(made, rng) for _ in range(300)]
    assert np.mean([c.equal <= ALPHA * c.share for c in found]) <= ALPHA + 0.025


def tabled(made, protocol, seed=0):
    record = record_of(made, protocol)
    arms = record.arms | {"arm2": dataclasses.replace(record.arms["arm2"], against="arm1")}
    record = dataclasses.replace(record, arms=arms)
    losses = made.draw(np.random.default_rng(seed))
    if protocol == "fixed":  # its placebo has runs of its own
        losses = np.concatenate([losses, losses[:, :1] + 0.01], 1)
    runs, _ = run_study(record, losses)
    return record, runs, contrast_table(record, runs)


@pytest.mark.parametrize("protocol", ["race", "fixed"])
@pytest.mark.parametrize(
    "effects, verdict",
    [((0.0, 2.0, 6.0), "worse"), ((0.0, 6.0, 2.0), "better"), ((0.0, 3.0, 3.0), "equivalent")],
)
def test_a_contrast_is_what_the_arms_are(protocol, effects, verdict):
    """The difference is that of the two means, towards the arm; the baseline has no part in it."""
    record, runs, table = tabled(case(*effects, noise=0.15), protocol)
    assert contrasted(record, "task") == [("arm2", "arm1")]
    ((_, row),) = table.iterrows()
    assert (row.arm, row.against, row.verdict.kind) == ("arm2", "arm1", verdict)
    means = summarise(record, runs).set_index("arm")["mean"]
    assert row.delta == pytest.approx(means["arm2"] - means["arm1"])
    assert row.delta_low < effects[2] - effects[1] < row.delta_high
    assert (row.p_adjusted <= ALPHA) == (verdict != "equivalent")
    assert (row.p_equivalence <= ALPHA) == (verdict == "equivalent")


def test_without_runs_there_is_no_verdict():
    record, runs, _ = tabled(case(0.0, 0.0, 0.0), "race")
    ((_, row),) = contrast_table(record, runs.iloc[:0]).iterrows()
    assert row.verdict.kind == "pending" and pd.isna(row.delta)


@pytest.mark.parametrize(
    "arm, against, said",
    [("K=V", "Q=V", "arms.K=V.against: given 'Q=V'; must be another arm"),
     ("K=V", "K=V", "arms.K=V.against"), ("K=V", "separate", "arms.K=V.against"),
     ("separate", "K=V", "arms.separate.against")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(arm, against, said):
    arms = {"separate": {}, "K=V": {"model": {"tie": "K=V"}}, "Q=K": {"model": {"tie": "Q=K"}}}
    arms[arm] = arms[arm] | {"against": against}
    with pytest.raises(ConfigError) as refused:
        Study(VALUES | {"arms": arms})
    assert str(refused.value).startswith(said)


def test_arms_that_meet_on_no_task_are_refused():
    arms = {"separate": {}, "K=V": {"model": {"tie": "K=V"}, "against": "Q=K"},
            "Q=K": {"model": {"tie": "Q=K"}}}  # fmt: skip
    (name, task), *_ = VALUES["tasks"].items()
    tasks = {name: dict(task) | {"arms": ("separate", "K=V")}}
    with pytest.raises(ConfigError, match="arms.K=V.against: given 'Q=K'; no task has both"):
        Study(VALUES | {"arms": arms, "tasks": tasks})
    Study(VALUES | {"arms": arms, "tasks": {name: task}})
