"""Every field of a study's and a run's config, given what it cannot be: taken, or refused in one
line that names it, with exit code 2. Nothing is traced; what a trace refuses is tested on its own.
"""

import copy
import dataclasses
import json
import warnings

import pytest

from experiments import door
from experiments.train import TrainFile
from qkv_jax.config import ConfigError, as_dict, build, require_32_bits
from qkv_jax.study.plan import ArmEntry, Study, StudyConfig, StudyFile, TaskEntry
from qkv_jax.training.checkpoint import replica_of
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.rehearsal import first_batch, rehearse
from qkv_jax.training.state import TrainConfig, rate_schedule
from qkv_jax.transformer import ModelConfig

TASK = {"kind": "reverse", "options": {"length": 6, "validation_examples": 8, "test_examples": 8}}
STUDY = {
    "name": "tiny", "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8},
    "arms": {"separate": {"model": {"tie": "separate"}}}, "tasks": {"one": TASK},
    "study": {"learning_rates": (1e-3, 1e-2), "tune_seeds": 1, "eval_seeds": 5},
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


def checked(kind, values):
    """What the commands do with a config before they read data."""
    if kind == "study":
        return json.dumps(Study(values).describe())
    file = build(TrainFile, values)
    return json.dumps(as_dict(file)), replica_of(values)


@pytest.mark.parametrize(("path", "cls"), FIELDS, ids=lambda x: ".".join(x) if type(x) is tuple else "")
def test_every_field_takes_what_it_is_given_or_refuses_it_in_one_line(path, cls, capsys):
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
            assert door._said(error, []) == 2
            said = capsys.readouterr().err
            assert said.startswith("error: ") and said.count("\n") == 1, said
            assert len(said) < 1000
    assert len(taken) < len(HOSTILE) / 2, taken
