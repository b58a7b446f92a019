"""Small models in folders, good ones and broken ones, and studies that share what they compile."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest

from qkv_jax.study.run import engine
from qkv_jax.training.checkpoint import Checkpoints, trainer_of
from qkv_jax.training.population import Population
from tests.support.folders import pretrained_folders
from tests.support.folders.pretrained_folders import tensors


def write(folder):
    """Fills a folder and returns it: `run`, in which all parameters shrink by a quarter in 10 steps
    and are 1.5 times as large after 20; `bert`, a pretrained model; `here`, an empty folder; and
    folders that are neither."""
    (folder / "text").write_bytes(b"the cat sat on the mat. " * 80)
    values = {
        "task": {"kind": "masked_bytes",
                 "options": {"length": 16, "files": (str(folder / "text"),)}},
        "model": {"layers": 2, "width": 8, "heads": 2},
        "train": {"steps": 20, "report_every": 10, "batch_size": 8, "learning_rate": 0.01},
    }  # fmt: skip
    trainer = trainer_of(values)
    state = trainer.init(0, 0.01)
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(values))
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step, factor in ((0, 1.0), (10, 0.75), (20, 1.5)):
        params = jax.tree.map(lambda leaf, factor=factor: factor * leaf, state.params)
        checkpoints.save(state.replace(step=jnp.int32(step), params=params))
    checkpoints.close()
    bert = pretrained_folders.BERT
    pretrained_folders.write(folder / "bert", bert)
    pretrained_folders.write(folder / "shard", bert)
    (folder / "shard" / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.LayerNorm.bias": "model-00001-of-00001.safetensors"}}
    (folder / "shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    pretrained_folders.write(folder / "shapes", bert | {"hidden_size": 24}, tensors(bert))
    pretrained_folders.write(folder / "words", bert)
    pretrained_folders.write_tokenizer(folder / "words", words=[f"word{i}" for i in range(30)])
    (folder / "here").mkdir()
    (folder / "none").mkdir()
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text(json.dumps(values))
    (folder / "torn" / "checkpoints" / "0").mkdir(parents=True)
    (folder / "torn" / "config.json").write_text('{"task": ')
    (folder / "broken" / "checkpoints" / "20").mkdir(parents=True)
    (folder / "broken" / "config.json").write_text(json.dumps(values))
    return folder


@contextlib.contextmanager
def shared_programs():
    """Studies that are run meanwhile share what they compile: {(program, packing): population}."""
    known = {}

    def population(trainer, data, packing):
        if (trainer, packing) not in known:
            known[trainer, packing] = Population(trainer, data, packing=packing)
        return known[trainer, packing]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Population", population)
        yield known
