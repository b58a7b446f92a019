"""A model that the machine cannot compute is refused in one line, before anything is written."""

import jax
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime import distributed
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.loop import train_run
from qkv_jax.training.mesh import MeshConfig, MeshProgram
from qkv_jax.training.pmap import PmapProgram
from qkv_jax.training.population import Population
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

FIELDS = {"layers": 1, "width": 16, "heads": 2, "dtype": "bfloat16", "implementation": "cudnn"}
TASK = make_task("reverse", {"length": 4})
TRAINER = Trainer(ModelConfig(**FIELDS), TASK, TrainConfig(steps=2, report_every=1, batch_size=2))
PROGRAMS = {
    "lone": LoneProgram,
    "pmap": PmapProgram,
    "mesh": lambda trainer, data: MeshProgram(trainer, data, MeshConfig(data=2)),
    "population": lambda trainer, data: Population(trainer, DeviceData(data)),
}

pytestmark = pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN may be there")


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_is_made_without_cudnn(program, tmp_path):
    message = (
        "model.implementation: given 'cudnn'; cuDNN needs an NVIDIA GPU, and the platform is cpu"
    )
    with pytest.raises(ConfigError) as refusal:
        make = PROGRAMS[program]
        train_run(TRAINER, 0, tmp_path / "run", config={"model": FIELDS}, make_program=make)
    assert str(refusal.value) == message
    assert not list(tmp_path.iterdir())


def test_a_study_says_which_arm_needs_cudnn():
    """Of the machine that its runs go to; the others are not asked about their names."""
    arms = {"separate": {}, "fast": {"model": {"implementation": "cudnn"}}}
    study = Study({
        "name": "x", "tasks": {"reverse": {"kind": "reverse", "options": {"length": 4}}},
        "arms": arms, "model": FIELDS | {"implementation": "auto"},
        "train": {"steps": 2, "report_every": 1},
    })  # fmt: skip
    with pytest.raises(ConfigError) as refusal:
        study.check_platform()
    where = "tasks.reverse, arm 'fast': model.implementation"
    assert str(refusal.value).startswith(f"{where}: given 'cudnn'; cuDNN needs an NVIDIA GPU")
    study.check_platform("gpu")  # of a cluster's jobs, whatever is here
    study.check_data()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dtype": "float32"}, "cuDNN computes in bfloat16, not in float32"),
        ({"width": 12}, "heads whose width is a multiple of 8, not 6"),
    ],
)
def test_what_no_cudnn_takes_is_no_config(fields, message):
    with pytest.raises(ConfigError) as refusal:
        ModelConfig(**FIELDS | fields)
    assert refusal.value.field == "implementation" and message in str(refusal.value)


@pytest.mark.parametrize("error", [ConfigError("workdir", "x", "no"), OSError(28, "full")])
def test_what_one_process_refuses_or_cannot_write_all_stop_at(error, monkeypatch):
    """The one with its own words; the others, which nothing is wrong with, name the passage."""
    asked = []
    monkeypatch.setattr(distributed, "any_process", lambda flag: asked.append(flag) or True)
    with pytest.raises(type(error)) as raised, distributed.raise_together("workdir"):
        raise error
    assert raised.value is error and asked == [True]
    together = distributed.raise_together("workdir")
    with pytest.raises(ConfigError, match="workdir: .* process"), together:
        pass
    assert asked == [True, False]
