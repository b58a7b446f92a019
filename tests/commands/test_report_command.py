"""`experiments.report`: tables, page and figures anew, from the folder of a study alone."""

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from qkv_jax.study.plan import Study
from qkv_jax.study.report import page
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks.base import REGISTRY
from tests.support.studies import small_grid as grid

ROOT = pathlib.Path(__file__).parents[2]
CELL = "first, width=8"
EVIDENCE = {
    "far": {"task": CELL, "arm": "copies", "expect": "worse", "near": 1, "far": 2},
    "measured": {"task": CELL, "arm": "copies", "measure": "antisymmetry", "expect": "above",
                 "margin": 0.1, "null": 0.1},
}  # fmt: skip
VALUES = grid.with_entry(axes={"model.width": (8, 16)}) | {
    "claims": {"1": {"text": "They are no copies.", "evidence": EVIDENCE}}
}
MADE = ("summary.csv", "families.csv", "breakdown.csv", "claims.csv", "claims.json", "report.html",
        "report.md")  # fmt: skip


def start(folder, listener=lambda event: None):
    """A study as far as the listener lets it go; with all that it comes to if that is the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, grid.KIND, grid.First)
        patch.setattr(engine_module, "Population", functools.partial(grid.Scripted, grid.rule))
        patch.setattr(engine_module, "measure", lambda *_: {"antisymmetry": (0.5, 0.25)})
        study, workdir = Study(VALUES), Workdir(folder)
        record = dataclasses.replace(workdir.open(study.describe()), command="make")
        Engine(study, workdir, record, listener).run()
        page.write_outcomes(workdir)


def report(folder):
    """The command, where no backend of JAX can start and the task of this study is not known."""
    command = [sys.executable, "-m", "experiments.report", f"--workdir={folder}"]
    environment = os.environ | {"JAX_PLATFORMS": "none_such", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_report_is_made_anew_to_the_byte(tmp_path):
    """All that can be worked out again is: tables, ledger, pages and figures."""
    folder = tmp_path / "study"
    start(folder)
    before = contents(folder)
    for name in MADE:
        (folder / name).unlink()
    shutil.rmtree(folder / "figures")
    done = report(folder)
    assert done.returncode == 0, done.stderr
    assert "Report: " in done.stdout
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [str(file) for file, content in after.items() if content != before[file]] == []


def test_an_unfinished_study_is_reported_as_far_as_it_goes(tmp_path):
    def stop(event):
        if event.arm_finished and event.arm == "copies":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, stop)
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    summary = load_study(tmp_path).summary
    first, second = summary.loc[summary["arm"] == "copies", "n"]
    assert first > 0 and not second > 0
    assert "This study is not finished." in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "claims.csv").exists()
    start(tmp_path)
    assert "This study is not finished." not in (tmp_path / "report.html").read_text()
    assert (tmp_path / "claims.csv").exists()


def test_a_folder_without_a_study_or_in_use_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    begun = Workdir(tmp_path / "begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, grid.KIND, grid.First)
        begun.open(Study(VALUES).describe())
    cases = {"none": "no study there", "empty": "no study there", "begun": "no run of the study",
             "begn": f"did you mean '{begun.path}'?"}  # fmt: skip
    for name, message in cases.items():
        done = report(tmp_path / name)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists() and not any((tmp_path / "empty").iterdir())
    with begun.locked():
        done = report(begun.path)
    assert done.returncode == 2 and "is in use by process" in done.stderr
