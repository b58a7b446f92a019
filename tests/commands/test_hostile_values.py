"""Every field of a study's and a run's config, given what it cannot be, and what cannot be traced:
taken, or refused in one line that names it, with exit code 2, before anything is trained.
"""

import copy
import dataclasses
import importlib
import json

import pytest

from experiments.cli import entry
from experiments.train import TrainFile
from qkv_jax.config import ConfigError, as_dict, build, check_plain
from qkv_jax.model.config import ModelConfig
from qkv_jax.study import plan
from qkv_jax.study.config import ArmEntry, StudyConfig, StudyFile, TaskEntry
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.training.loop import train_run
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig

TASK = {"kind": "reverse", "options": {"length": 6, "validation_examples": 8, "test_examples": 8}}
STUDY = {
    "name": "tiny", "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8},
    "arms": {"separate": {}}, "tasks": {"one": TASK},
    "study": {"protocol": "fixed", "learning_rates": (1e-3, 1e-2), "tune_seeds": 1,
              "eval_seeds": 5},
}  # fmt: skip
RUN = {"task": TASK, "model": STUDY["model"], "train": STUDY["train"], "mesh": {"data": 1},
       "seed": 0}  # fmt: skip
HOSTILE = [
    None, True, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 10**400, -2.5, 0.5, 0.999999, 1e-300, 1e300,
    float("nan"), float("inf"), -float("inf"), "", "x", "None", "..", "a\nb", "\0", "\ud800", (),
    ("x",), (1,), (-1,), (1e-300,), (None,), {}, {"x": 1}, {"x": {"y": 1}}, [[]], b"x", object(),
]  # fmt: skip
FIELDS = [
    *((("study", "study", f.name), StudyConfig) for f in dataclasses.fields(StudyConfig)),
    *((("study", "train", f.name), TrainConfig) for f in dataclasses.fields(TrainConfig)),
    *((("study", "model", f.name), ModelConfig) for f in dataclasses.fields(ModelConfig)),
    *((("study", f.name), StudyFile) for f in dataclasses.fields(StudyFile)),
    *((("study", "arms", "separate", f.name), ArmEntry) for f in dataclasses.fields(ArmEntry)),
    *((("study", "tasks", "one", f.name), TaskEntry) for f in dataclasses.fields(TaskEntry)),
    *((("run", "mesh", f.name), MeshConfig) for f in dataclasses.fields(MeshConfig)),
    *((("run", f.name), TrainFile) for f in dataclasses.fields(TrainFile)),
]


HELD = "must be a number that 32 bits can hold, 1e-37 to 3e+38"
IDS = [".".join(path) for path, _ in FIELDS]


def checked(kind, values):
    """What the commands do with a config before they read data."""
    if kind == "study":
        return json.dumps(Study(values).describe().as_dict())
    file = build(TrainFile, values)
    check_plain(as_dict(values))
    return json.dumps(as_dict(file)), trainer_of(values)


@pytest.mark.parametrize(("path", "cls"), FIELDS, ids=IDS)
def test_every_field_takes_what_it_is_given_or_refuses_it_in_one_line(path, cls, capsys, unchecked):
    kind, *above, name = path
    taken = []
    for value in HOSTILE:
        values = copy.deepcopy(STUDY if kind == "study" else RUN)
        holder = values
        for key in above:
            holder = holder[key]
        holder[name] = value
        try:
            checked(kind, values)
            taken.append(value)
        except Exception as error:
            assert isinstance(error, ConfigError), (value, error)
            assert entry._report(error, []) == 2
            message = capsys.readouterr().err
            assert message.startswith("error: ") and message.count("\n") == 1, message
            assert len(message) < 1000
    assert len(taken) < len(HOSTILE) / 2, taken


@pytest.mark.parametrize(
    ("part", "name", "value", "allowed"),
    [
        ("train", "beta1", 1e-300, HELD),
        ("train", "weight_decay", 1e300, HELD),
        ("train", "batch_size", 2**31, "must be at most 2147483647"),
        ("train", "steps", 10**30, "must be a whole number that 64 bits can hold"),
        ("train", "clip_norm", 10**400, "must be a number"),
        ("train", "warmup", 0.98, "must leave one of the 20 steps to come after it"),
        ("model", "norm_epsilon", 1e-300, HELD),
        ("model", "width", 2**31, "must be at most 2147483647"),
        ("model", "layers", 10_001, "must be at most 10000"),
    ],
)
def test_numbers_that_would_be_others_in_training_are_refused(part, name, value, allowed):
    """A rate of 1e-300 is 0 in 32 bits, and trains nothing."""
    study = copy.deepcopy(STUDY)
    study[part][name] = value
    with pytest.raises(ConfigError) as refusal:
        Study(study)
    field = f"tasks.one, arm 'separate': {part}.{name}"
    assert (refusal.value.field, refusal.value.allowed) == (field, allowed)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rates", (1e-300, 1.0), HELD),
        ("tune_seeds", 2_000_000, "at most 1000000"),
        ("packing", 70_000, "at most 65536 replicas per device"),
    ],
)
def test_studies_that_would_never_be_made_are_refused(name, value, allowed):
    with pytest.raises(ConfigError) as refusal:
        Study(STUDY | {"study": STUDY["study"] | {name: value}})
    assert (refusal.value.field, refusal.value.allowed) == (f"study.{name}", allowed)


def test_numbers_and_texts_alone_are_kept():
    """Also where every arm overrides what the study says."""
    with pytest.raises(ConfigError) as refusal:
        arms = {"separate": {"model": {"tie": "separate"}}}
        Study(STUDY | {"model": STUDY["model"] | {"tie": b"x"}, "arms": arms})
    assert refusal.value.field == "model.tie"


# --- what cannot be traced


def cannot(*_, **__):
    raise RuntimeError("no kernel for this\nand forty lines more")


@pytest.mark.parametrize("where", ["loss", "score", "stem", "batch", "schedule", "stream"])
def test_what_a_library_cannot_trace_is_refused_before_the_first_step(where, monkeypatch, tmp_path):
    """Task and arm are named, and the library's first line is quoted; a run leaves no folder."""
    monkeypatch.setattr(type(make_task("reverse", {})), where, cannot)
    study = Study(STUDY)
    with pytest.raises(ConfigError) as refusal:
        study.check_data()
    is_batch = where in ("batch", "schedule", "stream")
    fields = ("train.batch_size", 8)
    if not is_batch:
        given = {"layers": 1, "width": 8, "heads": 2, "steps": 20, "report_every": 10,
                 "batch_size": 8}  # fmt: skip
        fields = ("model and train", given)
    assert refusal.value.field == f"tasks.one, arm 'separate': {fields[0]}"
    assert refusal.value.given == fields[1]
    assert refusal.value.allowed == "this cannot be traced: RuntimeError: no kernel for this"
    with pytest.raises(ConfigError) as refusal:
        train_run(study.tasks[0].baseline.trainer, 0, tmp_path / "run", config={})
    assert (refusal.value.field, refusal.value.given) == fields
    assert not (tmp_path / "run").exists()


def test_a_large_grid_is_traced_in_part(monkeypatch):
    """As many programs as are worth the time, those of every arm the same chance."""
    traced = []
    monkeypatch.setattr(plan, "_TRACED", 5)
    for name in ("rehearse", "rehearse_model"):
        monkeypatch.setattr(plan, name, lambda trainer, *_: traced.append(trainer))
    grid = TASK | {"axes": {"model.width": [8 * n for n in range(1, 9)]}}
    study = Study(STUDY | {"tasks": {"one": grid}})
    study.check_data()
    assert len({plan.baseline.trainer for plan in study.tasks}) == 8
    assert len(traced) == len(set(traced)) == 5


SHIPPED = ("adapters", "claims", "depth", "options", "papers.courtois2024", "papers.kayyam2026",
           "positions", "scaling")  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_the_configs_that_come_with_it_can_be_traced(name, monkeypatch):
    """A few programs of each; those of the others are traced in test_configs.py."""
    monkeypatch.setattr(plan, "_TRACED", 2)
    Study(importlib.import_module(f"configs.{name}").get_config().to_dict()).check_data()
