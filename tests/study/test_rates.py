"""Learning rates: when two are one, and that no grid is extended without an end."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.config import ConfigError
from qkv_jax.study.config import StudyConfig
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import selection
from qkv_jax.study.protocol.fixed import MAX_REPEATS
from qkv_jax.study.protocol.rounds import rounds
from qkv_jax.study.rates import HIGHEST, LOWEST, check_rates, is_among, rate_at, same_rate
from qkv_jax.study.record import KEY, RUN_COLUMNS
from qkv_jax.study.run.workdir import _run_name
from tests.study.test_names import VALUES

NEAR = (1e-2, 1.0000000001e-2)  # with these a study never ended


def accepted(rates):
    try:
        check_rates(rates)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("rates", "line"),
    [
        (NEAR, r"given \(0.01, 0.010000000001\); neighbours must differ by one per cent at least"),
        ((1e-2, 1.00001e-2), "neighbours must differ"),
        ((1e-3, 1e-2, 1.005e-2), r"given \(0.01, 0.01005\)"),
        ((), "must hold at least one rate"),
        ((0.1, 0.1), "must ascend, each rate once"),
        ((math.nan,), "must be a finite number above 0"),
        ((-1.0,), "must be a finite number above 0"),
        ((1e-35, 1e-3), "must be from 1e-30 to 1e.30"),
    ],
)
def test_rates_that_cannot_be_told_apart_are_refused_wherever_they_are_given(rates, line):
    with pytest.raises(ConfigError, match=line):
        StudyConfig(learning_rates=rates)
    if rates:  # none stand for the study's
        entry = VALUES["tasks"]["one"] | {"learning_rates": rates}
        with pytest.raises(ConfigError, match=f"tasks.one.learning_rates: .*{line}"):
            Study(VALUES | {"tasks": {"one": entry}})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"train": VALUES["train"] | {"learning_rate": 0.01}}, "train"),
        ({"tasks": {"one": VALUES["tasks"]["one"] | {"train": {"learning_rate": 0.01}}}},
         "tasks.one.train"),
        ({"arms": VALUES["arms"] | {"copies": {"train": {"learning_rate": 0.01}}}},
         "arms.copies.train"),
    ],
)  # fmt: skip
def test_a_rate_that_a_study_would_ignore_is_refused(changes, field):
    with pytest.raises(ConfigError) as refused:
        Study(VALUES | changes)
    assert str(refused.value) == (
        f"{field}.learning_rate: given 0.01; the study tunes it in every cell; give learning_rates"
    )


positive = st.floats(LOWEST, HIGHEST)
grids = st.lists(positive, min_size=1, max_size=5, unique=True).map(sorted)
close = st.tuples(positive, st.floats(1.0, 1.03)).map(lambda pair: [pair[0], pair[0] * pair[1]])


@settings(max_examples=60)
@given(grids | close, st.randoms(use_true_random=False))
def test_tuning_of_any_grid_ends_within_its_rounds_and_names_every_run(grid, random):
    """Whatever the runs bring; rates of one grid never share a file nor count as one."""
    if not accepted(tuple(grid)):
        return
    study = Study(VALUES | {"study": VALUES["study"] | {"learning_rates": tuple(grid)}})
    record = dataclasses.replace(study.describe(), looks=(5,))
    table = pd.DataFrame(columns=RUN_COLUMNS)
    seen = []
    for _ in range(MAX_REPEATS + 3):
        *_, last = rounds(record, "one", lambda table=table: table)
        seen.append(last.name)
        if last.name == "evaluate":
            break
        rows = [
            dict(zip(KEY, key, strict=True))
            | {"round": last.name, "status": random.choice(["done", "done", "failed"]),
               "metric": "accuracy", "validation": random.random(), "test": random.random(),
               "steps": 8, "steps_to_solve": np.nan, "seconds": 1.0}
            for part in last.missing for key in part.keys
        ]  # fmt: skip
        table = pd.DataFrame([*table.to_dict("records"), *rows], columns=RUN_COLUMNS)
    assert seen[-1] == "evaluate" and len(seen) <= MAX_REPEATS + 2
    rates = sorted({*table["learning_rate"]})
    assert not any(same_rate(a, b) for a, b in zip(rates, rates[1:], strict=False))
    assert len({_run_name(rate, 0) for rate in rates}) == len(rates)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_a_grid_that_grows_for_ever_is_a_defect_and_not_an_endless_study(monkeypatch):
    """The bound of the loops themselves, should the extension of grids ever be wrong."""
    study = Study(VALUES)
    record = dataclasses.replace(study.describe(), looks=(5,))
    asked = iter(range(1, 100))
    monkeypatch.setattr(
        selection, "extension_needed", lambda *_: [float(f"{next(asked)}e-9")]
    )
    monkeypatch.setattr("qkv_jax.study.protocol.rounds.Part.keys", [])
    table = pd.DataFrame([{"task": "two"}], columns=RUN_COLUMNS)
    with pytest.raises(RuntimeError, match="one: extend goes on without an end"):
        list(rounds(record, "one", lambda: table))


def test_one_rate_is_one_at_any_size():
    for size in (1e-30, 1e-12, 1e-8, 1.0, 1e30):  # np.isclose takes all below 1e-8 for one
        assert same_rate(size, size * (1 + 1e-7)) and not same_rate(size, size * 1.01)
        assert is_among(size, (3 * size, size)) and not is_among(size, (3 * size,))


@pytest.mark.parametrize(("grid", "below", "above"), [
    ((3e-3, 1e-2, 3e-2), (3e-4, 1e-3), (0.1, 0.3)),
    ((1e-3, 1e-2), (1e-5, 1e-4), (0.1, 1.0)),
    ((1e-3, 3e-3), (1e-4, 3e-4), (0.01, 0.03)),
    ((1e-3, 2e-3), (2.5e-4, 5e-4), (4e-3, 8e-3)),
    ((1e-3, 3e-3, 1e-1), (1e-5, 1e-4), (1.0, 10.0)),  # uneven: by the mean of its ratios
    ((4.6e-4, 2.2e-3, 1e-2), (2.116e-5, 9.866e-5), (0.04663, 0.2174)),
])  # fmt: skip
def test_a_grid_goes_on_in_its_own_steps(grid, below, above):
    """Round where it is round."""
    assert (rate_at(grid, -2), rate_at(grid, -1)) == below
    assert (rate_at(grid, len(grid)), rate_at(grid, len(grid) + 1)) == above
