"""The command line: names with signs in them, folders with things in them, and what is taken."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from qkv_jax.config import as_dict
from qkv_jax.config_files import find, put, tree
from qkv_jax.study.config import StudyFile
from qkv_jax.study.plan import Study
from tests.support.folders import command_place
from tests.support.folders.command_place import (
    ABLATE,
    BENCHMARK,
    FIELDS,
    STUDY,
    TEMPLATE,
    TIES,
    TRAIN,
    arguments_of,
    contents,
)

place = command_place.place
command = command_place.command
refused = command_place.refused

ROOT = pathlib.Path(__file__).parents[2]


# --- names with signs in them

TIED = {"separate": {"model": {"tie": "separate"}}, "Q=K": {"model": {"tie": "Q=K"}},
        "Q=K=V, no. 1": {"model": {"tie": "Q=K=V", "heads": 2}}}  # fmt: skip


@pytest.fixture
def tied_study(place):
    """A study whose arms are named as ties are written."""
    file = place / "files" / "tied.py"
    study = {**STUDY, "arms": TIED}
    file.write_text(TEMPLATE.format(study))
    return f"--config={file}"


def test_arms_named_as_ties_are_written_can_be_overridden(command, tied_study):
    """The tie of both becomes that of `separate`, so that four arms are one program; a value
    may follow as a word of its own, and its number of heads is read as a number."""
    flags = ["--config.arms.Q=K.model.tie=separate", "--config.arms.Q=K=V, no. 1.model.heads=2",
             "--config.arms.Q=K=V, no. 1.model.tie", "separate"]  # fmt: skip
    for overrides in [], flags:
        code, out, err = command(ABLATE, tied_study, "--plan", *overrides)
        assert (code, err) == (0, "")
        said = "arm 'Q=K' is the program of 'separate'" in " ".join(out.split())
        assert said == bool(overrides)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("arms.Q=K.model.tie=K=Z", "tasks.one, arm 'Q=K': model.tie: given 'K=Z'; 'K=Z' is not a "
                                   f"tie; write one of {TIES}, or 'copies' for the last"),
        ("arms.Q=K=V, no. 1.model.heads=x", "arms.Q=K=V, no. 1.model.heads: given 'x'; must be a "
                                            "whole number"),
        ("arms.Q=K=V, no. 1.model.wdth=8", "arms.Q=K=V, no. 1.model.wdth: given '8'; unknown key; "
                                           f"did you mean 'width'? allowed: {FIELDS}"),
        ("arms.Q=V.model.tie=K=V", "arms.Q=V: given 'K=V'; unknown key; did you mean 'Q=K'? "
                                   "allowed: separate, Q=K, 'Q=K=V, no. 1'"),
    ],
)  # fmt: skip
def test_names_with_signs_are_said_whole_in_refusals(override, line, refused, tied_study):
    assert refused(ABLATE, tied_study, f"--config.{override}") == line


# No attributes of a ConfigDict: ml_collections takes those for attributes.
NAMES = st.text(st.characters(exclude_categories=["C"]), min_size=1)
NAMES = NAMES.filter(lambda name: not hasattr(ConfigDict(), name))


@given(outer=NAMES, inner=NAMES)
def test_every_name_is_found_whatever_signs_it_has(outer, inner):
    """The path leads to the field, and the value is left as it was."""
    published = {outer: {inner: 1, f"{inner}=": 2}}
    config = tree({"tasks": {outer: {"kind": "reverse", "published": published}}})
    place = find(config, StudyFile, f"tasks.{outer}.published.{outer}.{inner}=K=V")
    path = ("tasks", outer, "published", outer, inner)
    assert (place.path, place.kind, place.value) == (path, int, "K=V")
    put(config, StudyFile, place, 3)
    published[outer][inner] = 3
    assert config.to_dict()["tasks"][outer]["published"] == published


# --- folders


def start_study(folder, **changes):
    """A folder as `Workdir.open` leaves it for STUDY with some fields of study.json changed."""
    folder.mkdir(parents=True, exist_ok=True)
    record = dataclasses.replace(Study(STUDY).describe(), looks=(5,), **changes)
    (folder / "study.json").write_text(json.dumps(record.as_dict()))


@pytest.fixture
def wave():
    """The wave of the commands' own machine."""
    devices = len(os.sched_getaffinity(0))
    return {"devices": devices, "packing": 1, "size": devices}


def test_folders_with_other_things_in_them_are_refused(refused, place, wave):
    """Other files, another study, another machine's study, a damaged one, one with more seeds:
    each is named and stays as it is."""
    config = f"--config={place / 'files' / 'study.py'}"
    folders = place / "folders"
    other_files, study, damaged = (folders / name for name in ("files", "study", "damaged"))
    other_files.mkdir(parents=True)
    (other_files / "thesis.txt").write_text("mine")
    start_study(study, wave=wave)
    damaged.mkdir()
    (damaged / "study.json").write_text('{"format": 1, ')
    thesis = other_files / "thesis.txt"
    for folder, flag, message in [
        (other_files, "--noplan", "holds other files; name a new folder"),
        (thesis, "--noplan", "holds other files; name a new folder"),
        (study, "--config.train.steps=40", "holds another study (its train.steps is 20, not 40); "
                                           "name another folder"),
    ]:  # fmt: skip
        line = refused(ABLATE, config, f"--workdir={folder}", flag)
        assert line == f"--workdir: given {str(folder)!r}; {message}"
    for seeds, message in [
        (4, f"the study in {study} has 5; seeds can only be added"),
        (6, f"finish the study in {study} with 5 seeds first, then add more"),
    ]:
        flag = f"--config.study.eval_seeds={seeds}"
        line = refused(ABLATE, config, f"--workdir={study}", flag)
        assert line == f"study.eval_seeds: given {seeds}; {message}"
    assert "damaged JSON" in refused(ABLATE, config, f"--workdir={damaged}")
    start_study(study, complete=True, wave={"devices": 99, "packing": 1, "size": 99})
    more = "--config.study.eval_seeds=7"
    assert "same devices" in refused(ABLATE, config, f"--workdir={study}", more)
    assert "holds other files" in refused(
        TRAIN, f"--config={place / 'files' / 'run.py'}", f"--workdir={other_files}",
        f"--config.task.options.files=('{place / 'files' / 'good'}',)",
    )  # fmt: skip


def test_folders_that_cannot_be_written_are_refused(refused, place):
    """A read-only place is named, by both commands."""
    files = place / "files"
    good = f"--config.task.options.files=('{files / 'good'}',)"
    for module, flags in ((ABLATE, []), (TRAIN, [good])):
        flags = arguments_of(place, module, [*flags, "--workdir=/proc/nothing/here"])
        assert refused(module, *flags).startswith("/proc/nothing")


def test_a_full_disk_is_named_and_leaves_what_is_finished(command, place, wave):
    """The kernel's own refusal, through /dev/full: the file is named and the study stays whole."""
    study = place / "full"
    start_study(study, wave=wave)
    (study / "costs.json.part").symlink_to("/dev/full")
    config = f"--config={place / 'files' / 'study.py'}"
    code, _, err = command(ABLATE, config, f"--workdir={study}")
    assert code == 2
    file = study / "costs.json"
    assert err == f"error: {file}: No space left on device; what was finished is intact\n"
    assert json.loads((study / "study.json").read_text())["config"] == as_dict(Study(STUDY).file)
    assert not file.exists()


# --- what is not refused


def test_the_plan_writes_nothing(command, place):
    """It prints runs, compilations and time; results of the default folder stay away."""
    before = contents(place)
    code, out, err = command(ABLATE, f"--config={place / 'files' / 'study.py'}", "--plan")
    assert (code, err) == (0, "")
    for word in ("one", "programs", "time", "Nothing was started"):
        assert word in out
    assert contents(place) == before


def test_numbers_of_the_config_reach_the_plan(command, place):
    """3 arms (with the placebo) of 2 rates on 3 tuning seeds, and on 7 evaluation seeds."""
    flags = ["--plan", "--config.study.eval_seeds=7", "--config.study.tune_seeds=3"]
    _, out, _ = command(ABLATE, f"--config={place / 'files' / 'study.py'}", *flags)
    (row,) = (line for line in out.splitlines() if line.split()[1:2] == ["one"])
    assert [cell for cell in row.split() if cell.isdigit()][:5] == ["3", "18", "21", "20", "1"]


def test_overrides_may_stand_before_the_file_that_they_override(command, place):
    """Written as one word or as two, the file is read first, and the last one that is named."""
    file, flags = str(place / "files" / "study.py"), ("--plan", "--config.study.eval_seeds=7")

    def planned(*words):
        """Arms, runs, steps and programs; the time is measured anew."""
        code, out, err = command(ABLATE, *words)
        assert (code, err) == (0, "")
        (row,) = (line for line in out.splitlines() if line.split()[1:2] == ["one"])
        return [cell for cell in row.split() if cell.isdigit()][:5]

    expected = planned(f"--config={file}", *flags)
    assert "21" in expected  # 3 arms on 7 seeds
    for named in ([f"--config={file}"], ["--config", file], ["--config=lost.py", "--config", file]):
        assert planned(*flags, *named) == expected


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_the_configs_that_come_with_it_are_sound(name, monkeypatch):
    """Each is a study, whose texts and images are there; a few of its programs are traced."""
    monkeypatch.setattr("qkv_jax.study.plan._TRACED", 5)
    config = importlib.import_module(f"configs.{name}").get_config()
    study = Study(config.to_dict())
    study.check_data()
    assert study.file.name == name


def test_the_plan_of_the_full_study_can_be_printed(command):
    """All its arms can be counted, those without any parameter of attention as well; and what is
    chosen for the machine, the packing, can be set."""
    few = "!import qkv_jax.study.plan; qkv_jax.study.plan._TRACED = 5"
    config = f"--config={ROOT / 'configs' / 'full.py'}"
    code, out, err = command(few, ABLATE, config, "--plan", "--config.study.packing=3")
    assert (code, err) == (0, "") and "3 per device" in out


def test_commands_exit_with_2_and_no_traceback(tmp_path):
    """Two of the refusals again as plain processes: exit code and stderr as the shell sees them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    config = f"--config={ROOT / 'configs' / 'train.py'}"
    for arguments, line in [
        ([TRAIN, config, "--config.model.tie=K=Z"], "error: model.tie: given 'K=Z'"),
        ([BENCHMARK, "lattice"], "error: benchmark: given 'lattice'; allowed: population, train"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
