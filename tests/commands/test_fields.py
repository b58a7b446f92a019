"""Every field of the dataclasses on every command line, whether a config file gives it or not."""

import dataclasses
import importlib

import pytest

from experiments.cli import config_file, help
from experiments.train import TrainFile
from qkv_jax.config import ConfigError, as_dict
from qkv_jax.config_files import fields, tree
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.config import ArmEntry, StudyConfig, StudyFile, TaskEntry
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig
from tests.commands.test_configs import STUDIES, config_of

RUNS = ("configs.train", "configs.big")
MODEL = {
    "model.qk_norm=True": True, "model.tie=K=V": "K=V", "model.kv_heads=1": 1,
    "model.kv_heads=None": None, "model.scale=0.5": 0.5, "model.scale=sqrt": "sqrt",
    "model.frozen=value": ("value",), "model.frozen=('key','value')": ("key", "value"),
    "model.adapters.query=lowrank:2": "lowrank:2", "model.dropout=1e-1": 0.1,
    "train.clip_norm=0.5": 0.5, "train.decay=cosine": "cosine", "train.weight_decay=0": 0.0,
}  # fmt: skip
STUDY = MODEL | {
    "study.packing=4": 4, "study.packing=None": None, "study.match=flops": "flops",
    "study.learning_rates=(0.01,)": (0.01,), "study.learning_rates=0.1": (0.1,),
    "tasks.TASK.learning_rates=(0.01,)": (0.01,), "tasks.TASK.options.margin=0.3": 0.3,
    "tasks.TASK.model.heads=8": 8, "tasks.TASK.train.steps=30": 30,
    "tasks.TASK.arms=separate": ("separate",), "arms.ARM.model.tie=K=V": "K=V",
    "arms.ARM.model.norm=rms": "rms", "arms.ARM.role=control": "control",
    "arms.ARM.note=None": "None",
}  # fmt: skip
RUN = MODEL | {
    "mesh.data=-1": -1, "mesh.rules=fsdp": "fsdp", "mesh.rules=[('.*','')]": [(".*", "")],
    "seed=3": 3, "checkpoint_steps=(10,20)": (10, 20), "checkpoint_every=5": 5,
    "task.options.masked=0.3": 0.3, "task.options.files=my.txt": ("my.txt",),
}  # fmt: skip


def overridden(config, cls, *given):
    assert config_file.override(config, cls, [f"--config.{word}" for word in given]) == []
    return config.to_dict()


def check(config, cls, cases, names):
    """Each case by itself is found in the config as the value that it stands for; `names`: of the
    file, in the place of those of the cases."""
    for given, value in cases.items():
        path, _, text = given.partition("=")
        path = [names.get(name, name) for name in path.split(".")]
        found = overridden(config, cls, f"{'.'.join(path)}={text}")
        for name in path:
            found = found[name]
        assert found == value and type(found) is type(value), given


@pytest.mark.parametrize(("name", "size"), STUDIES)
def test_every_study_takes_the_fields_of_its_dataclasses(name, size):
    config = config_of(name, size)
    names = {"TASK": next(iter(config.tasks)), "ARM": next(iter(config.arms))}
    check(config, StudyFile, STUDY, names)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_takes_the_fields_of_its_dataclasses(name):
    check(importlib.import_module(name).get_config(), TrainFile, RUN, {})


@pytest.mark.parametrize(("name", "size"), STUDIES)
@pytest.mark.parametrize(
    ("given", "known", "cls"),
    [
        ("model.qk_norms", "'qk_norm'", ModelConfig),
        ("train.clip_nrm", "'clip_norm'", TrainConfig),
        ("study.pakcing", "'packing'", StudyConfig),
        ("tasks.TASK.learning_rate", "'learning_rates'", TaskEntry),
        ("arms.ARM.rol", "'role'", ArmEntry),
    ],
)
def test_unknown_fields_are_refused_with_what_there_is(name, size, given, known, cls):
    config = config_of(name, size)
    given = given.replace("TASK", next(iter(config.tasks))).replace("ARM", next(iter(config.arms)))
    with pytest.raises(ConfigError) as refusal:
        overridden(config, StudyFile, f"{given}=1")
    there_are = ", ".join(field.name for field in dataclasses.fields(cls))
    message = f"unknown key; did you mean {known}? allowed: {there_are}"
    assert (refusal.value.field, refusal.value.allowed) == (given, message)


def test_another_kind_of_task_drops_the_options_that_it_does_not_have():
    """Wherever on the command line the kind is named; what both have stays."""
    text = {"length": 64, "masked": 0.2}
    for given in (["task.kind=relation", "task.options.names=99"],
                  ["task.options.names=99", "task.kind=relation"]):  # fmt: skip
        config = tree({"task": {"kind": "masked_bytes", "options": text}})
        found = overridden(config, TrainFile, *given)
        assert found["task"] == {"kind": "relation", "options": {"length": 64, "names": 99}}
    with pytest.raises(ConfigError, match=r"task.kind: given 'relatoin'; did you mean 'relation'"):
        overridden(config, TrainFile, "task.kind=relatoin")


def test_a_config_of_the_other_command_is_refused():
    for path, cls, what in [
        ("configs/train.py", StudyFile, "a single run: python -m experiments.train"),
        ("configs/quick.py", TrainFile, "a study: python -m experiments.ablate"),
    ]:
        with pytest.raises(ConfigError, match=f"this is {what} takes it"):
            config_file.read(path, cls)


def test_a_file_that_may_have_been_meant_is_named():
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'configs/quick.py'\? allow"):
        config_file.read("configs/quik.py", StudyFile)


@pytest.mark.parametrize(("name", "size"), STUDIES)
def test_configs_do_not_repeat_defaults(name, size):
    values = config_of(name, size).to_dict()
    for part, cls in {"model": ModelConfig, "train": TrainConfig, "study": StudyConfig}.items():
        for field in dataclasses.fields(cls):
            given = values.get(part, {})
            assert field.name not in given or size or given[field.name] != field.default, field.name


@pytest.mark.parametrize("cls", [StudyFile, TrainFile])
def test_help_lists_every_field_with_its_default_and_a_line(cls):
    rows = {name: (default, about) for name, default, about in help.described(cls)}
    for part in (ModelConfig, TrainConfig):
        prefix = "model." if part is ModelConfig else "train."
        for name, _, default in fields(part):
            if name != "adapters":
                assert rows[prefix + name][0] == default and rows[prefix + name][1], name
    if cls is TrainFile:
        for name, _, default in fields(MeshConfig):
            assert rows[f"mesh.{name}"][0] == default and rows[f"mesh.{name}"][1], name
    assert as_dict(list(rows))


def test_help_exits_with_0(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ablate", "--help"])
    help.show([], StudyFile)
    message = capsys.readouterr().out
    assert "\n  papers/borji2023 " in message and "model.qk_norm=False" in message
    assert "\n  train " not in message and "\n  big " not in message  # which are no studies
    assert max(map(len, message.splitlines())) <= 100
    assert "  relation\n" in message and "options.names=64" in message
