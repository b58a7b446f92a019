"""Many runs: the made-up folder of `make scale` in small, and what keeps a report from growing with
the number of tasks and the length of curves."""

import json
import subprocess
import sys

import numpy as np
import pytest

from qkv_jax.study.report import page
from qkv_jax.study.report.figures.curves import _MOST_POINTS, _thin
from tests.stress import scale
from tests.support.studies.synthetic_study import RECALL, TEXT

pytestmark = pytest.mark.slow


def test_made_up_folder_is_merged_and_reported(tmp_path):
    """In a process of its own, as `make scale` does it, with curves longer than are drawn."""
    runs = scale.make_folder(tmp_path, 1, 1000, grid=False)
    assert runs == scale.RUNS_OF_A_TASK
    command = [sys.executable, scale.__file__, f"--finish={tmp_path}"]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    found = json.loads(ended.stdout)
    assert found["runs"] == runs and found["MB before"] <= found["MB report"]
    assert "learning-curves" in (tmp_path / "report.md").read_text()
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(scale.TIES) + 1


@pytest.mark.parametrize("points", [_MOST_POINTS + 1, 1000, 12_345])
def test_long_bands_are_thinned_between_their_extremes(points):
    rng = np.random.default_rng(points)
    steps, mean = np.arange(1, points + 1), rng.random(points)
    low, high = mean - rng.random(points), mean + rng.random(points)
    at, middle, lowest, highest = _thin(steps, mean, low, high)
    assert len(at) == len(middle) == len(lowest) == len(highest) == _MOST_POINTS
    assert at[-1] == points and (np.diff(at) > 0).all()
    assert lowest.min() == low.min() and highest.max() == high.max()
    assert (lowest <= middle).all() and (middle <= highest).all()
    sizes = np.diff(at, prepend=0)
    assert np.average(middle, weights=sizes) == pytest.approx(mean.mean())


def test_short_bands_are_drawn_as_they_are():
    band = [np.arange(_MOST_POINTS) + float(n) for n in range(4)]
    assert all(thin is given for thin, given in zip(_thin(*band), band, strict=True))


@pytest.mark.parametrize("record, figure", [(RECALL, "solving"), (TEXT, "forest")])
def test_a_report_of_many_tasks_has_a_figure_each(record, figure):
    """At the limit all figures are wanted; with one task more those of the verdicts alone."""
    task = {"family": None, "record": record}
    assert page._wanted({"tasks": [task] * page._MANY}, task) is None
    assert page._wanted({"tasks": [task] * (page._MANY + 1)}, task) == (figure,)
