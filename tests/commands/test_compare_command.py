"""`experiments.compare`: folders of studies in; a table, a figure and a page out; or a refusal."""

import os
import pathlib
import subprocess
import sys

import pandas as pd
import pytest

from tests.commands.test_report_command import CELL, start

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    for name in ("one", "two"):
        start(folder / name)
    (folder / "bare").mkdir()
    return folder


def compare(place, *words):
    """The command, where no backend of JAX can start."""
    command = [sys.executable, "-m", "experiments.compare", *words]
    environment = os.environ | {"JAX_PLATFORMS": "none_such", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=place)


def test_studies_are_put_beside_each_other(place):
    done = compare(place, "one", "two", "--workdir=both")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(place / "both/comparison.csv")
    assert set(table["study"]) == {"one", "two"} and CELL in set(table["task"])
    assert "copies" in done.stdout and "Report: both/report.html" in done.stdout
    assert list((place / "both/figures").glob("*.pdf"))
    page = (place / "both/report.html").read_text()
    assert "python -m experiments.compare one two --workdir=both" in page


@pytest.mark.parametrize(("words", "line"), [
    ((), "command line: given ''; name the folders of two studies or more: compare runs/a runs/b"),
    (("one",), "command line: given 'one'; name the folders of two studies or more"),
    (("one", "none"), "command line: given 'none'; no study there: No such file or directory"),
    (("one", "bare"), "command line: given 'bare'; no study there"),
    (("one", "./one"), "command line: given 'one'; was given twice"),
    (("--workdir=both", "one", "two"),
     "command line: given 'one two'; names come first, before all flags"),
    (("one", "two", "--workdir=one"), "--workdir: given 'one'; holds files already"),
])  # fmt: skip
def test_what_it_cannot_take_is_refused_in_a_line(place, words, line):
    done = compare(place, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1
    assert not (place / "runs").exists()
