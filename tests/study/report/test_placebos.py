"""Placebos of real studies, kept in one file."""

import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.output import style
from qkv_jax.runtime.files import json_text
from qkv_jax.study.protocol.hostile import run_study
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.report import placebos
from qkv_jax.study.run.workdir import Workdir
from tests.support.studies.raced_study import race_record, steep
from tests.support.studies.synthetic_study import make_study


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A study with a placebo of its own runs, and a race."""
    place = tmp_path_factory.mktemp("studies")
    fixed, runs, costs, _ = make_study(tasks=("text", "digits"))
    race = race_record(2, seeds=12, started="2026-01-05T00:00:00")
    raced, _ = run_study(race, steep((0.0, 0.4, 0.6), noise=1.0))
    for name, record, table in (("fixed", fixed, summarise(fixed, runs, costs)),
                                ("race", race, summarise(race, raced))):  # fmt: skip
        (place / name).mkdir()
        wave = {"devices": 1, "packing": 1, "size": 1}
        known = {"config": {"study": {}, "tasks": {}}, "wave": wave}
        text = json_text(record.as_dict() | known)
        (place / name / "study.json").write_text(text)
        table.to_csv(place / name / "summary.csv", index=False)
    return place


def test_placebos_are_kept_once(folders, tmp_path):
    file = tmp_path / "placebos.csv"
    for name, count in (("fixed", 2), ("race", 3), ("fixed", 3)):
        rows = placebos.keep(file, placebos.placebos_of(Workdir(folders / name)))
        assert len(rows) == count
    assert set(rows["task"]) == {"text", "digits", "task"}
    again = placebos.keep(file, rows[:0])
    pd.testing.assert_frame_equal(again, rows, check_dtype=False)


def test_a_file_that_is_no_table_is_named(folders, tmp_path):
    file = tmp_path / "placebos.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="damaged") as caught:
        placebos.keep(file, placebos.placebos_of(Workdir(folders / "race")))
    assert "placebos.csv" in caught.value.field and file.read_text() == "a,b\n1,2\n"


def test_uniform_p_values_look_so_and_others_do_not():
    even = (np.arange(100) + 0.5) / 100
    small, low, high, p = placebos.uniformity(even)
    assert small == 0.05 and low < 0.05 < high and p > 0.99
    assert placebos.uniformity(even**3)[3] < 1e-3


def test_the_figure_shows_every_placebo():
    rows = pd.DataFrame({"p_value": [0.5, 0.1, 0.9]})
    (axes,) = placebos.figure(rows).axes
    shown = axes.lines[1].get_ydata()
    assert list(shown) == [0.1, 0.5, 0.9] and "3 placebos" in axes.get_title(loc="left")
    assert axes.lines[1].get_color() == style.BLUE
