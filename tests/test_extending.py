"""docs/extending.md, run as it stands: an adapter, a task and a study from outside the package."""

import os
import pathlib
import re
import subprocess
import sys

import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"`(my_\w+\.py)`:\n\n```python\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Somebody's folder with the three files, and the study that was run there."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def ablate(folder, *arguments):
    command = [sys.executable, "-m", "experiments.ablate", "--config=my_study.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_each_example_is_short():
    assert set(FILES) == {"my_adapter.py", "my_task.py", "my_study.py"}
    for name, text in FILES.items():
        assert len(text.splitlines()) < 30, name


def test_the_study_runs_and_ends_in_a_report(folder):
    done = ablate(folder, "--workdir=mine")
    assert done.returncode == 0, done.stderr
    summary = pd.read_csv(folder / "mine" / "summary.csv").set_index("arm")
    assert set(summary.index) == {"separate", "Q=K", "Q=K + rotation", "placebo"}
    assert (summary["n"] == 5).all()
    # Two heads of width 8 have an angle for each of four pairs.
    extra = summary["params"]["Q=K + rotation"] - summary["params"]["Q=K"]
    assert extra == 2 * 4
    assert "Previous symbol" in (folder / "mine" / "report.html").read_text()
    again = ablate(folder, "--workdir=mine")  # finished: it only reads what is there
    assert again.returncode == 0, again.stderr


def test_what_the_adapter_refuses_is_one_line(folder):
    done = ablate(folder, "--config.model.width=18", "--config.model.positions=none", "--plan")
    assert done.returncode == 2
    assert "Q=K + rotation" in done.stderr and "needs an even head width, not 9" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
