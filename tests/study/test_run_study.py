"""`run_study`: what a notebook runs is what the command runs, resumed and refused alike."""

import os

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.config_files import tree
from qkv_jax.study.results import load_study, run_study
from tests.support.studies.tiny_study import TINY


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook") / "tiny"
    return folder, run_study(tree(TINY), folder)  # a ConfigDict, as config files return


def test_a_study_is_run_reported_and_opened(done):
    folder, study = done
    assert study.record.complete and set(study.summary["arm"]) == {"separate", "copies", "placebo"}
    assert study.matrix().loc["separate"].str.contains("baseline").all()
    assert "Reverse" in (folder / "report.html").read_text()


def test_a_finished_study_is_opened_again_with_nothing_run(done):
    folder, study = done
    again = run_study(TINY, folder)
    assert again.runs.equals(study.runs) and again.summary.equals(study.summary)
    assert load_study(folder).runs.equals(again.runs)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model": {"widht": 8}}, "widht"),
        ({"model": {"width": 9}}, "width"),
        ({"tasks": {"none": {"kind": "none"}}}, "kind"),
        ({"model": {"layers": 2, "width": 8, "heads": 2}}, "layers"),
    ],
)
def test_what_cannot_be_run_or_is_another_study_is_refused_and_nothing_lost(done, values, field):
    folder, study = done
    before = {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=field):
        run_study(TINY | values, folder)
    assert before == {path: os.stat(path).st_mtime_ns for path in before}
    assert load_study(folder).runs.equals(study.runs)


def test_a_folder_is_a_path():
    with pytest.raises(ConfigError, match="workdir"):
        run_study(TINY, "a\0b")


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        run_study(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
