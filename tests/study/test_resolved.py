"""A study keeps what its configs are resolved to; other programs are not mixed in unasked."""

import copy
import json

import pytest

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.runtime.stopping import StopSignal
from qkv_jax.study.cluster.worker import run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part
from qkv_jax.study.record import Change
from qkv_jax.study.report import headlines
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir
from tests.study.test_names import VALUES

LONGER = {"copies": {"model": {"tie": "copies"}, "train": {"steps": 12}}}
STUDY = VALUES | {"arms": VALUES["arms"] | LONGER}


@pytest.fixture
def started(tmp_path):
    """A study that has been opened, and its description."""
    described = Study(STUDY).describe()
    workdir = Workdir(tmp_path / "study")
    workdir.open(described)
    return workdir, described


def rewritten(workdir, change):
    """Changes study.json to what another default or version would have made it."""
    known = json.loads(workdir.study_file.read_text())
    change(known["tasks"]["one"]["resolved"])
    workdir.study_file.write_text(json.dumps(known))


def other_decay(resolved):
    resolved["separate"]["train"]["weight_decay"] = 0.5


def test_every_arms_config_is_kept_and_read_back_whole(started):
    """Of the baseline everything, of others what differs; a notebook gets all of each."""
    workdir, _ = started
    kept = load_study(workdir.path)
    for arm in Study(STUDY).tasks[0].arms:
        train = as_dict(arm.trainer.train_config)
        del train["learning_rate"]
        whole = {"model": as_dict(arm.trainer.model_config), "train": train}
        assert kept.config("one", arm.name) == whole
    resolved = kept.record.tasks["one"].resolved
    assert resolved["copies"] == {"model": {"tie": "copies"}, "train": {"steps": 12}}
    assert resolved["placebo"] == {"model": {}, "train": {}}


def test_a_default_that_changed_is_refused_by_its_name(started):
    """Locally and by the job of a cluster; the folder is left as it was."""
    workdir, described = started
    rewritten(workdir, other_decay)
    before = workdir.study_file.read_bytes()
    part = Part.parse("one/copies/tune/0.001:1000000-1000000,0.01:1000000-1000000")
    for once in (
        lambda: workdir.open(described),
        lambda: run_part(Study(STUDY), workdir.path, part, StopSignal()),
    ):
        with pytest.raises(ConfigError) as refused:
            once()
        line = str(refused.value)
        assert line.startswith("tasks.one, arm 'separate': train.weight_decay: given 0.01; was 0.5")
        assert "(and 2 more)" in line and "accept_changes" in line and "\n" not in line
    assert workdir.study_file.read_bytes() == before


def test_what_an_arm_differs_in_counts_as_well(started):
    workdir, described = started
    rewritten(workdir, lambda resolved: resolved["copies"]["model"].update(mlp_width=24))
    with pytest.raises(ConfigError, match=r"arm 'copies': model\.mlp_width: given .*; was 24 when"):
        workdir.open(described)


def test_changes_that_are_accepted_are_kept_and_reported(started):
    workdir, described = started
    rewritten(workdir, other_decay)
    workdir.accept_changes(described)
    workdir.accept_changes(described)  # once is enough
    record = workdir.open(described)
    (accepted,) = record.accepted
    field = "tasks.one, arm 'separate': train.weight_decay"
    assert accepted.changes[0] == Change(field, before=0.5, now=0.01)
    assert workdir.open(described) == record  # from here on they are the study's
    (line,) = headlines._accepted(record)
    assert "separate': train.weight_decay was 0.5, then 0.01" in line and "accepted" in line


def test_a_field_that_a_later_version_added_is_no_change(started):
    workdir, described = started
    rewritten(workdir, lambda resolved: resolved["separate"]["model"].pop("use_bias"))
    rewritten(workdir, lambda resolved: resolved["separate"]["model"].update(gone=1))
    assert "use_bias" in workdir.open(described).tasks["one"].resolved["separate"]["model"]


def test_another_format_is_one_line(started):
    workdir, _ = started
    known = json.loads(workdir.study_file.read_text())
    workdir.study_file.write_text(json.dumps(known | {"format": 99}))
    with pytest.raises(ConfigError, match="format: given 99; was written by another version"):
        load_study(workdir.path)


@pytest.mark.parametrize("where", [("train",), ("tasks", "one", "train"),
                                   ("arms", "copies", "train")])  # fmt: skip
def test_a_learning_rate_in_a_study_is_refused(where):
    values = copy.deepcopy(VALUES)
    *above, last = where
    here = values
    for name in above:
        here = here[name]
    here[last] = here.get(last, {}) | {"learning_rate": 0.1}
    with pytest.raises(ConfigError) as refused:
        Study(values)
    line = str(refused.value)
    assert line.startswith(f"{'.'.join(where)}.learning_rate: given 0.1; the study tunes it")
