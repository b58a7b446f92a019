"""Instruments on a task whose rows hold several documents: what they look at is what the model
computes, and padding is no token."""

import jax
import numpy as np
import pytest

from qkv_jax.analysis.layers import probe
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.measures import MEASURES, measure
from qkv_jax.survey.subjects import task_batches
from qkv_jax.tasks import make_task
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.folders.data_writers import save

LENGTH = 12
TEXTS = [("ab" * 9)[:size] for size in (3, 7, 5, 2, 4, 11, 6, 3) * 8]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    name = save(tmp_path_factory.mktemp("packed") / "set", {"text": TEXTS})
    options = {"dataset": name, "length": LENGTH, "held_out": 0.5}
    task = make_task("causal_bytes", options | {"validation_examples": 6, "test_examples": 6})
    return Trainer(ModelConfig(width=16, heads=2, positions="learned"), task, TrainConfig())


def test_the_first_document_of_a_row_is_seen_as_the_model_sees_it(trainer):
    model, data = trainer.model, trainer.task.load().validation
    variables = {"params": jax.device_get(trainer.init_params(0))}
    (batch,), words = task_batches(model, trainer.task, 100)
    assert words.endswith(" validation examples, the first document of each")
    documents = np.asarray(data["documents"])[: batch.count]
    several = [row for row in documents if len(set(row)) > 1]
    assert several  # of one document a row nothing would be shown
    valid = np.asarray(batch.valid)[: batch.count]
    np.testing.assert_array_equal(valid, documents == documents[:, :1])
    whole = model.apply(variables, data["inputs"], documents=data["documents"])
    alone = model.apply(variables, batch.inputs, batch.valid)
    shown = np.asarray(alone)[: batch.count][valid]
    np.testing.assert_allclose(shown, np.asarray(whole)[: batch.count][valid], atol=1e-5)
    weights = np.asarray(probe(model, variables, batch.inputs, batch.valid)[0].weights)
    hidden = ~valid[:, None, None, :] & valid[:, None, :, None]
    assert not weights[: batch.count][np.broadcast_to(hidden, weights[: batch.count].shape)].any()


def test_a_study_measures_models_of_packed_documents(trainer):
    params = trainer.init_params(3)
    found = measure(trainer, 3, 0, params, trainer.task.load().test, MEASURES)
    assert {*found} == {*MEASURES} and np.isfinite([*found.values()]).all()
