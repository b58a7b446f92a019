"""Ties imposed on pretrained decoders, and what flows through them: heads that are shared, rotary
positions, the loss of the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import load_pretrained
from qkv_jax.surgery.damage import model_of_pretrained
from qkv_jax.survey.activations import batch_size
from qkv_jax.survey.subjects import of_pretrained
from qkv_jax.survey.survey import survey
from qkv_jax.tie import Tie
from tests.support import commands
from tests.support.folders import decoder_folders as folders
from tests.support.folders import decoder_oracle as oracle

pytestmark = pytest.mark.slow

LINES = ["the sun set", "in the west", "birds and the sea", "the shore. the wind", "so it was",
         "the other side", "as we were"]  # fmt: skip
TEXTS = {f"line {i}": line for i, line in enumerate(LINES)}
NAMES = ("llama", "gpt2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of each family, and texts."""
    folder = tmp_path_factory.mktemp("decoders")
    for name in NAMES:
        folders.write(folder / name, folders.CONFIGS[name])
    (folder / "lines").write_text("\n".join(LINES))
    (folder / "here").mkdir()
    return folder


def loss(config, tokens):
    """Of some lists of tokens by NumPy: nats per token that has one before it."""
    nats = []
    for row in tokens:
        logits = oracle.logits(config, folders.tensors(config), np.array([row]))[0, :-1]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats += [-logs[i, token] for i, token in enumerate(row[1:])]
    return np.mean(nats)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_the_original_is_that_of_numpy(place, name):
    """On every other text, whatever the batches; the edits of no layer change nothing."""
    edited = model_of_pretrained(place / name, TEXTS, None)
    assert edited.has_control
    tokens = load_pretrained(place / name).tokenizer.tokens(LINES[1::2])
    expected = loss(folders.CONFIGS[name], tokens)
    assert edited.damage({})[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_tie_costs_what_it_costs_and_training_lowers_the_loss(place, name):
    edited = model_of_pretrained(place / name, TEXTS, 1e-2)
    edits = edited.edits(Tie.parse("K=V"), "fit", (0, 1))
    (before,) = edited.damage(edits)
    encoder, variables = edited.recover(edits, 40)
    assert edited.measure(encoder, variables)[0] < before - 0.1
    attention = variables["params"]["layer_0"]["attention"]
    assert {*attention} == {"query", "key", "out"}
    groups = 2 if name == "llama" else 3
    assert attention["key"]["kernel"].shape == (12, groups, 4)


def test_a_fit_of_values_that_are_keys_already_costs_nothing(place, tmp_path):
    """Llama whose W_V is W_K in another basis of each shared head: K=V is exact, through rotary
    positions and without biases."""
    config = folders.LLAMA
    weights, rng = folders.tensors(config), np.random.default_rng(0)
    for i in range(2):
        at = f"model.layers.{i}.self_attn"
        turned = rng.normal(size=(2, 4, 4)) @ weights[f"{at}.k_proj.weight"].reshape(2, 4, 12)
        weights[f"{at}.v_proj.weight"] = np.float32(turned.reshape(8, 12))
    folders.write(tmp_path, config, weights)
    edited = model_of_pretrained(tmp_path, TEXTS, None)
    edits = edited.edits(Tie.parse("K=V"), "fit", (0, 1))
    assert edited.damage(edits)[0] == pytest.approx(edited.damage({})[0], abs=2e-3)
    average = edited.edits(Tie.parse("K=V"), "average", (0, 1))
    assert abs(edited.damage(average)[0] - edited.damage({})[0]) > 0.02


def test_texts_of_one_token_foretell_nothing(place):
    with pytest.raises(ConfigError, match="texts: given .*; must be of two tokens at least"):
        model_of_pretrained(place / "gpt2", dict.fromkeys("abcd", "the"), None)


def test_the_command_ties_measures_trains_and_keeps(place):
    folder = place / "operated"
    with commands.server(place / "here") as run:
        code, out, err = run(
            "experiments.surgery", f"--pretrained={place / 'llama'}", "--method=fit", "--steps=5",
            f"--texts={place / 'lines'}", "--learning_rate=1e-3", f"--workdir={folder}",
        )  # fmt: skip
    assert (code, err) == (0, "") and "K=V imposed" in out
    found = pd.read_csv(folder / "surgery.csv", dtype={"layers": str}, keep_default_na=False)
    assert np.isfinite(found["loss, nats per token"]).all()
    assert found[["method", "layers", "trained"]].to_numpy().tolist() == [
        ["original", "", 0], ["original", "", 5], ["fit", "0", 0], ["fit", "1", 0],
        ["fit", "all", 0], ["fit", "all", 5],
    ]  # fmt: skip
    tied = load_pretrained(folder / "models" / "fit")
    encoder, variables = tied.encoder, tied.variables
    assert encoder.apply(variables, jnp.zeros((1, 4), jnp.int32)).shape == (1, 4, 23)


@pytest.mark.parametrize("name", NAMES)
def test_a_survey_of_a_decoder(place, name):
    """No head looks ahead: what is even in a causal model has a smaller entropy."""
    subject = of_pretrained(place / name, TEXTS, 0)
    found = survey(subject, 0, draws=2).figures.set_index("quantity")
    heads = 6 if name == "llama" else 3
    assert len(found.loc["copying"]) == 2 * heads
    entropy = found.loc["entropy"]
    assert (entropy["value"] <= entropy["chance"] + 1e-6).all()
    tokens = [np.asarray(batch.valid).sum(1)[: batch.count] for batch in subject.batches]
    even = [np.log(np.arange(1, n + 1)) for n in np.concatenate(tokens)]
    assert entropy["chance"].iloc[0] == pytest.approx(np.concatenate(even).mean())


def test_logits_of_a_large_vocabulary_come_a_few_at_a_time(place):
    encoder = of_pretrained(place / "llama", TEXTS, 0).encoder
    stem = encoder.stem.clone(vocabulary=(50_000,))
    large = encoder.clone(stem=stem, classes=50_000)
    assert batch_size(encoder, 64) == 32 and batch_size(large, 64) == 5
    assert jax.eval_shape(large.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
