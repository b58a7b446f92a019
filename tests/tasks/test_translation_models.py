"""Models that translate: a step, costs, rules, a study of them, their translations and BLEU."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.arms import same_programs
from qkv_jax.study.plan import Study
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text import bleu
from qkv_jax.training import costs
from qkv_jax.training.rules import RULE_SETS, parse_rules, partition
from qkv_jax.training.shared import program_of
from qkv_jax.training.state import TrainConfig, decay_mask
from qkv_jax.training.step import Trainer
from tests.support.sentence_pairs import MODEL, SMALL, WORDS, columns, rows, trainer, translation
from tests.support.studies import tiny_study


@pytest.fixture
def table(tmp_path):
    return columns(tmp_path / "pairs.tsv", rows())


# --- training and costs


def test_a_step_decays_what_it_should_and_learns(table):
    task = translation(table)
    made = trainer(task, cross_tie="K=V", frozen=("query",))
    state = made.init(0, 0.01)
    decays = decay_mask(state.params, ("query",))
    layer = decays["decoder"]["layer_0"]
    for part in ("attention", "cross_attention"):
        assert layer[part]["key"]["kernel"] and not layer[part]["query"]["kernel"]
    batch = jax.tree.map(jnp.asarray, task.load().test)
    step, losses = jax.jit(made.train_step), []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5
    start = made.init_params(0)["decoder"]["layer_0"]["cross_attention"]
    end = state.params["decoder"]["layer_0"]["cross_attention"]
    np.testing.assert_array_equal(end["query"]["kernel"], start["query"]["kernel"])
    assert (np.asarray(end["key"]["kernel"]) != np.asarray(start["key"]["kernel"])).any()


def test_costs_count_both_halves(table):
    """By hand, for bytes of 16 on either side: projections, scores, MLP and readout."""
    task, width, length = translation(table), 16, 16
    found = costs.measure(trainer(task, cross_tie="K=V"))
    shared, own = 3 * width**2, 4 * width**2  # of one attention: with K=V, separate
    assert found.attention_params == 2 * own + shared
    scores, mlp = 2 * length * width, 8 * width**2
    products = 2 * own + shared + 3 * scores + 2 * mlp + width * task.classes
    assert found.flops_per_token == pytest.approx(2 * products)
    assert found.kv_cache_bytes_per_token == 2 * width * 4  # of the text that grows
    deep = costs.flops_per_token(trainer(task, cross_tie="K=V", layers=3))
    readout = 2 * width * task.classes
    assert deep - readout == pytest.approx(3 * (found.flops_per_token - readout))
    made = trainer(task, cross_tie="copies", tie="copies")
    wide, left = costs.match(made, trainer(task), "params")
    assert wide.model_config.hidden > 64 and abs(left) < 0.02


@pytest.mark.parametrize("rules", RULE_SETS)
def test_every_parameter_has_a_rule_on_a_mesh(rules, table):
    """Cross-attention is cut as attention is."""
    made = trainer(translation(table), positions="learned")
    params = jax.eval_shape(lambda: made.init_params(0))
    found = partition(parse_rules(rules), params, {"data": 1, "fsdp": 2, "tensor": 1})
    for half in ("encoder", "decoder"):
        assert found[half]["positions"]["embedding"] is not None
    layer = found["decoder"]["layer_0"]
    assert layer["cross_attention"] == layer["attention"]


def test_no_program_for_any_tie_trains_cross_attention(table):
    made = trainer(translation(table), tie="K=V")
    assert program_of(made) is made


def test_a_tie_of_cross_attention_that_there_is_not_is_refused(table):
    recall = make_task("copy", {})
    with pytest.raises(ConfigError, match="cross_tie: given 'K=V'; the model of this task has no"):
        Trainer(ModelConfig(**MODEL, cross_tie="K=V"), recall, TrainConfig()).model  # noqa: B018


def study(table):
    """Two ties of cross-attention."""
    return tiny_study.TINY | {
        "model": MODEL,
        "arms": {"separate": {}, "shared": {"model": {"cross_tie": "K=V"}}},
        "tasks": {"words": {"kind": "translation", "options": {"pairs": table, **SMALL}}},
    }


def test_a_study_is_traced_before_anything_is_trained(table):
    Study(study(table)).check_data()
    evidence = {"words": {"task": "words", "arm": "shared", "expect": "above",
                          "measure": "antisymmetry", "null": 0.1, "margin": 0.1}}  # fmt: skip
    written = study(table)["arms"] | {"written": {"model": {"cross_tie": "separate"}}}
    planned = Study(study(table) | {"arms": written}).tasks[0]
    assert same_programs(planned.arms) == {"written": "separate"}
    claims = {"one": {"text": "One.", "evidence": evidence}}
    with pytest.raises(ConfigError, match="models with cross-attention are not measured"):
        Study(study(table) | {"claims": claims})
    wrong = study(table)["arms"] | {"wrong": {"model": {"cross_tie": "Q=K", "kv_heads": 1}}}
    with pytest.raises(ConfigError, match="cross_tie: .*asks for Q=K"):
        Study(study(table) | {"arms": wrong})


@pytest.mark.slow
def test_a_study_of_two_ties_runs_to_its_tables(table, tmp_path):
    """Population, rows, checkpoints and costs; what is done is not done again."""
    work = tiny_study.run(tmp_path / "study", study(table))
    runs = pd.read_csv(tmp_path / "study" / "runs.csv")
    assert set(runs.arm) >= {"separate", "shared"} and (runs.status == "done").all()
    tested = runs.test.dropna()  # those that are no tuning
    assert len(tested) >= 10 and tested.between(0, 2 * np.log(257)).all()
    summary = pd.read_csv(tmp_path / "study" / "summary.csv").set_index("arm")
    assert summary.attention_params["shared"] < summary.attention_params["separate"]
    before = (tmp_path / "study" / "runs.csv").read_bytes()
    tiny_study.run(tmp_path / "study", study(table))
    assert (tmp_path / "study" / "runs.csv").read_bytes() == before
    assert work.study.tasks[0].task.is_seq2seq


# --- translating


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that has learned eight sentences by heart."""
    texts = [(word, word[::-1]) for word in WORDS]
    pairs = [(a + b[:i], b) for a, b in texts for i in range(3)]
    table = columns(tmp_path_factory.mktemp("learned") / "pairs.tsv", pairs)
    task = translation(table, length=10, validation_examples=2, test_examples=2)
    made = trainer(task, width=32, tie="K=V", positions="rotary")
    state, data = made.init(0, 0.01), task.load()
    batch = task._batch(data.train)
    step = jax.jit(made.train_step)
    for _ in range(150):
        state, _ = step(state, batch)
    return task, made.model, {"params": state.params}


def test_translations_are_those_that_were_learned(learned):
    """In batches of any size; the model says where they end."""
    task, model, variables = learned
    train = task.splits()["train"]
    found = bleu.translate(model, variables, task, train.sources, beams=2)
    right = [a == b for a, b in zip(found, train.targets, strict=True)]
    assert np.mean(right) > 0.9
    alone = [
        bleu.translate(model, variables, task, [text], beams=2)[0] for text in train.sources[:3]
    ]
    assert alone == found[:3]


def test_bleu_is_that_of_sacrebleu(learned, monkeypatch):
    """On whole references, with its signature."""
    import sacrebleu

    task, model, variables = learned
    test = task.splits()["test"]
    monkeypatch.setattr(bleu, "translate", lambda *given: list(given[3]))
    found = bleu.bleu(model, variables, task)
    assert found.score == sacrebleu.corpus_bleu(test.sources, [test.targets]).score
    assert found.sentences == len(test.sources) and "tok:13a" in found.signature
    assert bleu.bleu(model, variables, task, examples=1).sentences == 1
    with pytest.raises(ConfigError, match="examples: "):
        bleu.bleu(model, variables, task, examples=0)
