"""The command that imposes ties: refusals, and what it measures, trains and keeps."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop import pretrained
from qkv_jax.interop.pretrained import load_pretrained
from qkv_jax.surgery import distillation
from qkv_jax.surgery.damage import model_of_run
from qkv_jax.surgery.impose import METHODS
from qkv_jax.surgery.page import notes
from qkv_jax.survey.activations import InputBatch
from qkv_jax.training.checkpoint import trainer_of
from tests.support import commands, small_models
from tests.support.folders import pretrained_folders as folders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = small_models.write(tmp_path_factory.mktemp("surgery"))
    (folder / "lines").write_text("the cat sat\nsat on the mat\n" * 6)
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    with commands.server(place / "here") as run:
        yield lambda *flags: run("experiments.surgery", *flags)


def test_bad_input_to_the_command_is_one_line(command, place):
    for flags, line in [
        ([], "--run: given None; name one model: --run or --pretrained"),
        (["--run={none}"], "--run: given '{none}'; is no run of experiments.train: no config.json"),
        (["--run={torn}"], "--run: given '{torn}'; its config.json is damaged: JSONDecodeError: "
         "Expecting value: line 1 column 10 (char 9)"),
        (["--run={run}", "--tie=separate"], "--tie: given 'separate'; ties nothing"),
        (["--run={run}", "--texts=a"], "--texts: given 'a'; is for --pretrained"),
        (["--run={run}", "--layers=2"], "--layers: given '2'; the model has layers 0 to 1"),
        (["--run={run}", "--layers="], "--layers: given ''; the model has layers 0 to 1"),
        (["--run={run}", "--learning_rate=nan"],
         "--learning_rate: given nan; must be a number"),
        (["--run={run}", "--method=mean"], "--method: given 'mean'; allowed: "
         + ", ".join(METHODS)),
        (["--run={run}", "--workdir={bare}"], "--workdir: given '{bare}'; holds files already; "
         "name a new folder"),
    ]:  # fmt: skip
        names = {path.name: str(path) for path in place.iterdir()}
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err) == (2, "", f"error: {line.format(**names)}\n")
    assert not list((place / "here").iterdir())


def test_a_run_is_tied_measured_trained_on_and_kept(command, place):
    """Every layer alone, all of them, and after training; the tied model comes back and is tied."""
    folder = place / "operated"
    code, out, err = command(
        f"--run={place / 'run'}", "--tie=K=V", "--method=fit", "--steps=10", f"--workdir={folder}"
    )
    assert (code, err) == (0, "") and "K=V imposed" in out
    assert re.match("On .*: imposing K=V on .*\nmeasuring the original", out)
    found = pd.read_csv(folder / "surgery.csv", dtype={"layers": str})
    found["layers"] = found["layers"].fillna("")
    shown = found[["method", "layers", "trained"]].to_numpy().tolist()
    assert shown == [
        ["original", "", 0], ["original", "", 10], ["fit", "0", 0], ["fit", "1", 0],
        ["fit", "all", 0], ["fit", "all", 10],
    ]  # fmt: skip
    loss, change = found["test loss"], found["test loss change"]
    assert np.isfinite(loss).all() and np.isnan(change[0])
    rivals = [0, 0, 0, 0, 1]  # of one that was trained on: the original trained on as long
    np.testing.assert_allclose(change[1:], loss[1:] - loss[rivals].to_numpy(), atol=1e-12)
    inside = (found["test loss change low"] < change) & (change < found["test loss change high"])
    assert inside[1:].all()
    page = commands.Page((folder / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    shown, printed = " ".join(page.text.split()), " ".join(out.split())
    assert f"K=V in all layers by fit: test loss {loss[4]:.3f}, " in shown
    assert f"after 10 steps test loss {loss[5]:.3f}, " in printed
    assert "than the original trained on as long." in shown
    assert f"python -m experiments.surgery --run={place / 'run'} --tie=K=V" in shown
    tied = load_pretrained(folder / "models" / "fit")
    encoder, variables = tied.encoder, tied.variables
    assert [str(tie) for tie in encoder.config.ties] == ["K=V", "K=V"]
    attention = variables["params"]["layer_0"]["attention"]
    assert {*attention} == {"query", "key", "out"}
    assert encoder.apply(variables, jnp.zeros((1, 16), jnp.int32)).shape[0] == 1


def test_a_run_is_trained_on_for_as_many_steps_as_asked(place):
    """7, where the run reported every 10: the same parameters as 7 single steps give."""
    edited = model_of_run(place / "run", 0.01)
    _, found = edited.recover({}, 7)
    trainer = trainer_of(json.loads((place / "run" / "config.json").read_text()))
    config = dataclasses.replace(trainer.train_config, steps=7, report_every=1)
    trainer = dataclasses.replace(trainer, train_config=config)
    data = trainer.task.load().train
    state = trainer.init(0, 0.01).replace(params=edited.variables["params"])
    state = state.replace(opt_state=trainer.optimizer.init(state.params))
    train, schedule = jax.jit(trainer.train), jax.jit(trainer.schedule)
    for _ in range(7):
        state, _ = train(state, schedule(state.seed, state.step, data), data)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found["params"],
                              state.params)  # fmt: skip
    assert max(jax.tree.leaves(difference)) < 1e-4


def test_a_pretrained_model_loses_by_what_is_changed_and_distillation_gives_back(command, place):
    folder = place / "pretrained"
    code, out, err = command(
        f"--pretrained={place / 'bert'}", f"--texts={place / 'lines'}", "--method=average",
        "--method=fit", "--steps=40", f"--workdir={folder}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = pd.read_csv(folder / "surgery.csv").set_index(["method", "trained"])
    change, cosine = "change of hidden states", "cosine of embeddings"
    assert found.loc[("original", 0), change].max() < 1e-5
    assert f"{change} change" not in found  # what the original has by definition needs none
    assert (found[f"{cosine} low"] <= found[cosine]).all()
    assert "0 being that of the original" in " ".join((folder / "report.html").read_text().split())
    assert found.loc[("original", 0), cosine].min() > 0.9999
    whole = found[found["layers"] == "all"]
    assert whole.loc[("fit", 0), change] < whole.loc[("average", 0), change]
    rates = json.loads((folder / "surgery.json").read_text())["learning_rate"]
    assert rates == {"average": 1e-3, "fit": 1e-4}  # which is nearer to the original already
    message = " ".join(out.split())
    rates = "Learning rate of further training: average at 0.001, fit at 0.0001."
    assert f"{rates} K=V in all layers by fit: {change} " in message and " 0.0 % of" in message
    # Distillation: the tied model nears the original, which has nothing to learn from itself.
    assert ("original", 40) not in found.index
    assert whole.loc[("average", 40), change] < 0.9 * whole.loc[("average", 0), change]
    tied = load_pretrained(folder / "models" / "average")
    assert {str(tie) for tie in tied.encoder.config.ties} == {"K=V"}
    # With the tokenizer and the padding of the one that it was made from.
    inputs, valid = tied.encode(["the cat sat", "the cat sat on the mat"])
    assert inputs.shape == (2, 8, 2) and int(valid.sum()) == 13
    assert load_pretrained(place / "bert").encode(["the cat sat"])[0].tolist() == (
        tied.encode(["the cat sat"])[0].tolist()
    )


def test_the_learning_rate_of_distillation_is_the_best_on_texts_kept_aside(place, monkeypatch):
    """Too large, diverged and too small ones lose, whatever the order."""
    model = load_pretrained(place / "bert")
    batches = [InputBatch(batch.inputs, len(batch.rows), batch.valid)
               for batch in pretrained.batches(model, folders.TEXTS * 4, size=8)]  # fmt: skip
    taught = distillation.Distillation(model.encoder, model.variables, batches)
    worn = jax.tree.map(lambda leaf: 0.9 * leaf, model.variables)
    monkeypatch.setattr(distillation, "RATES", (1e9, 0.9, 1e-3, 1e-9, float("inf")))
    _, rate = taught.train_at_best_rate(model.encoder, worn, 20)
    assert rate == 1e-3


def test_a_fifth_of_the_texts_is_kept_aside_however_they_lie_in_batches(place, monkeypatch):
    model = load_pretrained(place / "bert")
    counts = []
    monkeypatch.setattr(distillation, "RATES", (1e-3,))
    for size in (1, 2, 8):
        batches = [InputBatch(batch.inputs, len(batch.rows), batch.valid)
                   for batch in pretrained.batches(model, folders.TEXTS * 4, size=size)]
        taught = distillation.Distillation(model.encoder, model.variables, batches)
        kept = lambda encoder, params, rows, taught=taught: (
            counts.append(sum(some.sum() for some in taught._meant(rows))) or 0.0
        )
        monkeypatch.setattr(taught, "mean", kept)
        taught.train_at_best_rate(model.encoder, model.variables, 1)
    texts = 4 * len(folders.TEXTS)
    assert set(counts) == {(texts + 3) // 5}
    alone = distillation.Distillation(model.encoder, model.variables, batches[:1])
    alone._inputs = [batches[0]._replace(count=1)]
    with pytest.raises(ConfigError, match="learning_rate: .*must be given where there is a single"):
        alone.train_at_best_rate(model.encoder, model.variables, 1)


def test_training_that_does_harm_is_warned_of(place):
    """Of the control and of a tied model, by every metric that got worse."""
    edited = model_of_run(place / "run", 0.01)
    row = lambda method, layers, trained, loss: {
        "method": method, "layers": layers, "trained": trained, "test loss": loss
    }
    found = [row("original", "", 0, 1.0), row("fit", 0, 0, 9.0), row("fit", "all", 0, 1.5)]
    worse = [row("fit", "all", 5, 1.25), row("original", "", 5, 1.125)]
    better = [row("fit", "all", 5, 1.25), row("original", "", 5, 1.0)]
    assert notes(pd.DataFrame(found), edited) == notes(pd.DataFrame(found + better), edited) == []
    assert notes(pd.DataFrame(found + worse), edited) == [
        "Warning: further training made the original worse (test loss from 1.0000 to 1.1250); a "
        "lower learning rate may suit it."
    ]
