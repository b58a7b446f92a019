"""Every argument of what reads and looks at models, wrong: one line, with the types unchecked.

The counterpart of test_public_arguments.py for pretrained folders, survey, surgery and walkthrough.
What is right is taken in the other tests of each.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis.layers import layer_weights
from qkv_jax.config import shown
from qkv_jax.explain import examples, sources
from qkv_jax.explain import walk as walk
from qkv_jax.interop import export, hub, pretrained
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem
from qkv_jax.surgery import damage, fit, impose, store
from qkv_jax.survey import activations, measure, subjects, texts
from qkv_jax.survey import survey as survey
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from tests.support.arguments.values import NO_FLAG, NO_SEED, arguments_of, refusal
from tests.support.folders import pretrained_folders as folders
from tests.support.folders import sentence_folders

pytestmark = pytest.mark.usefixtures("unchecked")

NO_PATH = [None, 3, b"x", "", "a\0b", ["x"], "/nowhere/at/all"]
NO_COUNT = [0, -1, 2.0, True, "2", [2], np.ones(2, int), float("nan")]
NO_LENGTH = [*NO_COUNT, 1, 2, 17, 10**9]
NO_TEXTS = [None, 3, "the cat", b"the cat", [], ["the", 3], [None], [["the"]], {"a": "the"}, [b"x"],
            (t for t in "ab"), np.array([["the", "cat"]]), ["\ud800"], [""], ["  "]]  # fmt: skip
NO_TEXT = [None, 3, b"the", ["the"], "\ud800", "", " ", "the " * 40]
NO_NAMED = [None, 3, "the cat", [], {}, ["the cat"], {"a": 3, "b": 4}]
NO_TIE = [None, "K=V", 3, (), Tie]
NO_MODEL = [None, "model", {}, 3]
NO_RATE = [0, 0.0, -1e-3, float("nan"), float("inf"), "1e-3", True, [1e-3]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("world")
    bert = pretrained.load_pretrained(sentence_folders.write(place / "bert", "usual"))
    vit = pretrained.load_pretrained(folders.write(place / "vit", folders.CONFIGS["vit"]))
    encoder = Encoder(ModelConfig(layers=1, width=4, heads=2), TokenStem((5,), 4), 0, 6)
    tokens = jnp.zeros((1, 3), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    layers = layer_weights(encoder, variables)
    batches = [activations.InputBatch(tokens, 1)]
    found = activations.gather(encoder, variables, batches, np.random.default_rng(0), 9)
    subject = subjects.Subject("a", "b", encoder, variables, batches, None, "", {})
    moments = fit.InputMoments(np.zeros(4), np.eye(4))
    edited = damage.EditedModel("a", encoder, variables, (), None, None, layers, (moments,), False)
    task = make_task("relation", {"length": 4, "validation_examples": 4, "test_examples": 4})
    return {
        "place": place, "bert": bert, "vit": vit, "encoder": encoder, "variables": variables,
        "task": task, "tokens": tokens, "layers": layers, "batches": batches, "flows": found,
        "subject": subject, "moments": moments, "edited": edited,
    }  # fmt: skip


def of_folders(w):
    bert, named = w["bert"], {"pretrained": w["bert"], "texts": ["the cat"]}
    inputs, valid = bert.encode(["the cat sat", "it went"])
    images = jnp.asarray(folders.images())
    yield pretrained.load_pretrained, {"folder": bert.folder}, {
        "folder": [*NO_PATH, w["place"], bert.folder / "config.json"]}  # fmt: skip
    yield hub.model_folder, {"given": bert.folder}, {"given": [*NO_PATH, w["place"], "a/b/c"]}
    yield export.save_model, {
        "folder": w["place"] / "out", "encoder": w["encoder"], "variables": w["variables"],
        "tokenizer": "{}", "like": None,
    }, {"folder": [None, 3, "", w["place"]], "encoder": NO_MODEL, "tokenizer": [3, b"{}"],
        "variables": [None, 3, {}, {"params": {}}, w["variables"]["params"]],
        "like": [3, {}]}  # fmt: skip
    cut = {"max_length": 9, "truncate": True}
    wrong = {"pretrained": [*NO_MODEL, w["vit"]], "texts": NO_TEXTS, "max_length": NO_LENGTH,
             "truncate": NO_FLAG}  # fmt: skip
    yield pretrained.sentence_embeddings, named | cut, wrong
    batches = lambda **given: list(pretrained.batches(**given))
    yield (batches, pretrained.batches), named | cut | {"size": 2}, wrong | {"size": NO_COUNT}
    own = {name: value for name, value in wrong.items() if name != "pretrained"}
    yield bert.encode, {"texts": ["the cat"]} | cut, own
    yield bert.tokenizer.encode, {"texts": ["the cat"]} | cut, own
    yield bert.tokenizer.tokens, {"texts": ["the cat"]} | cut, own
    no_tokens = [None, 3, "x", [3.5], ["the"], [-1], [10**6], [True]]
    yield bert.tokenizer.pad, {"tokens": [[1, 4, 2]], "length": 5}, {
        "tokens": [*no_tokens, [], [[1.5]], [["a"]], [[-1]]], "length": [2, *NO_COUNT]}  # fmt: skip
    yield bert.tokenizer.words, {"tokens": [1, 4]}, {"tokens": no_tokens}
    yield bert.tokenizer.text, {"tokens": [1, 4]}, {"tokens": no_tokens}
    beyond = inputs.at[0, 0, 1].set(2)
    yield pretrained.hidden_states, {"pretrained": bert, "inputs": inputs, "valid": valid}, {
        "pretrained": NO_MODEL,
        "inputs": [None, 3, "x", [[1, 2]], inputs[..., 0], inputs[0], inputs.astype(float), -inputs,
                   beyond, inputs[..., :1], inputs[:, :0], jnp.tile(inputs, (1, 4, 1)),
                   inputs.at[0, 0, 0].set(20)],
        "valid": ["x", 3, valid.astype(int), valid[0], valid[:, :2], valid[:1],
                    jnp.where(valid, 0.0, -1e9)],
    }  # fmt: skip
    yield pretrained.hidden_states, {"pretrained": w["vit"], "inputs": images, "valid": None}, {
        "pretrained": NO_MODEL,
        "inputs": [None, images[0], images[..., 0], images[:, :4], images.astype(int), images > 0],
        "valid": [jnp.ones((2, 4), bool), 3],
    }  # fmt: skip


def of_survey(w):
    encoder, rng = w["encoder"], np.random.default_rng(0)
    place, named = w["place"], {"texts": {"line 1": "the cat"}, "seed": 0}
    no_batches = [None, 3, [], [None], w["tokens"], [activations.InputBatch(w["tokens"], 0)],
                [activations.InputBatch(w["tokens"], 2)],
                [activations.InputBatch(w["tokens"], 1.0)]]  # fmt: skip
    no_layers = [None, 3, [], [None], w["layers"][0], [w["layers"]]]
    file = place / "t.txt"
    file.write_text("the cat")
    yield survey.survey, {"subject": w["subject"], "seed": 0, "draws": 1}, {
        "subject": NO_MODEL, "seed": [-1, 0.5, "0", True, None], "draws": NO_COUNT}  # fmt: skip
    yield subjects.of_run, {"folder": place, "step": None, "most": 1}, {
        "folder": NO_PATH, "step": [-1, 0.5, "0", True], "most": [*NO_COUNT, None]}  # fmt: skip
    yield subjects.of_pretrained, named | {"folder": w["bert"].folder, "allow_unknown": False}, {
        "folder": NO_PATH, "texts": NO_NAMED, "allow_unknown": NO_FLAG,
        "seed": [seed for seed in NO_SEED if seed is not None],
    }  # fmt: skip
    yield subjects.about, {"encoder": encoder}, {"encoder": NO_MODEL}
    yield subjects.task_batches, {"encoder": encoder, "task": w["task"], "most": 2}, {
        "encoder": NO_MODEL, "task": NO_MODEL, "most": [*NO_COUNT, None]}  # fmt: skip
    yield texts.read_texts, {"path": file, "most": 2}, {
        "path": NO_PATH, "most": [*NO_COUNT, None]}  # fmt: skip
    yield texts.shakespeare_sentences, {"most": 2, "seed": 0}, {
        "most": [*NO_COUNT, None], "seed": [-1, 0.5, "0", True, None]}  # fmt: skip
    yield activations.batch_size, {"encoder": encoder, "length": 3, "most": 2}, {
        "encoder": NO_MODEL, "length": [*NO_COUNT, None], "most": [*NO_COUNT, None]}  # fmt: skip
    right = {"encoder": encoder, "variables": w["variables"], "batches": w["batches"], "rng": rng}
    no_rng = [None, 0, np.random, jax.random.key(0)]
    yield activations.gather, right | {"most": 5}, {
        "encoder": NO_MODEL, "variables": [None, 3, {}, {"params": {}}, w["variables"]["params"]],
        "batches": no_batches, "rng": no_rng, "most": [*NO_COUNT, None]}  # fmt: skip
    right = {"layers": w["layers"], "flows": w["flows"], "rng": rng, "draws": 1}
    yield measure.measure, right, {
        "layers": [*no_layers, w["layers"] * 2], "flows": [*no_layers, w["flows"] * 2],
        "rng": no_rng, "draws": [-1, 1.0, True, "2", None]}  # fmt: skip
    yield measure.beside, {"found": measure.measure(**right), "untrained": None}, {
        "found": [None, 3, {}], "untrained": [3, {}, []]}  # fmt: skip
    yield measure.spectra, {"layers": w["layers"]}, {"layers": no_layers}
    yield measure.movements, {"past": {0: w["layers"]}}, {
        "past": [None, 3, {}, {"0": w["layers"]}, {-1: w["layers"]}, {0: []}, w["layers"]]
    }  # fmt: skip


def of_surgery(w):
    encoder, variables, layer = w["encoder"], w["variables"], w["layers"][0]
    tie, place, edited = Tie.parse("K=V"), w["place"], w["edited"]
    wide = layer._replace(query=np.ones((5, 2, 2), np.float32))
    no_edits = [None, 3, [layer], {1: layer}, {-1: layer}, {"0": layer}, {0: None}, {0: wide}]
    no_variables = [None, 3, {}, {"params": {}}, variables["params"]]
    no_method = ["mean", "", None, 3, ["fit"]]
    yield impose.check, {"encoder": encoder, "tie": tie, "methods": ("fit",)}, {
        "encoder": NO_MODEL, "tie": NO_TIE,
        "methods": [None, 3, "fit", (), ("mean",), (None,), ("keep_query",)]}  # fmt: skip
    yield impose.impose, {"layer": layer, "tie": tie, "method": "fit", "moments": w["moments"],
                          "kv_heads": 2, "turns": None}, {
        "layer": NO_MODEL, "tie": NO_TIE, "method": no_method,
        "moments": [3, "x", fit.InputMoments(np.zeros(3), np.eye(3))],
        "kv_heads": [0, -1, 3, 1.0, True, "2"], "turns": [3, "x", {}]}  # fmt: skip
    for function in (impose.tied, impose.spread):
        yield function, {"encoder": encoder, "variables": variables, "edits": {0: layer}}, {
            "encoder": NO_MODEL, "variables": no_variables, "edits": no_edits}  # fmt: skip
    yield fit.InputMoments.of, {"tokens": np.ones((3, 4))}, {
        "tokens": [None, 3, [[1.0]], np.ones(3), np.ones((0, 3)), np.ones((2, 2)) > 0,
                   np.full((2, 2), np.nan)]}  # fmt: skip
    no_names = [*NO_NAMED, {"a": "the cat"}]
    yield damage.model_of_run, {"folder": place, "learning_rate": 0.1, "seed": 0}, {
        "folder": NO_PATH, "learning_rate": [*NO_RATE, None], "seed": NO_SEED}  # fmt: skip
    yield damage.model_of_pretrained, {
        "folder": w["bert"].folder, "texts": {"a": "the cat", "b": "it went"},
        "learning_rate": 0.1, "allow_unknown": False,
    }, {"folder": NO_PATH, "texts": no_names, "learning_rate": NO_RATE,
        "allow_unknown": NO_FLAG}  # fmt: skip
    yield edited.edits, {"tie": tie, "method": "fit", "numbers": [0]}, {
        "tie": NO_TIE, "method": no_method,
        "numbers": [None, 3, "0", [1], [-1], [0.0], [True], ["0"]]}  # fmt: skip
    yield edited.damage, {"edits": {}}, {"edits": no_edits}
    for function in (edited.recover, edited.recover_at_rate):
        yield function, {"edits": {}, "steps": 0}, {
            "edits": no_edits, "steps": [-1, 1.0, True, "2", None]}  # fmt: skip
    new = lambda **given: store.save_tied(**given)
    yield (new, store.save_tied), {"folder": place / "new", "source": w["bert"].folder,
                                   "encoder": encoder, "variables": variables}, {
        "folder": [None, 3, "", place], "source": NO_PATH, "encoder": NO_MODEL,
        "variables": no_variables}  # fmt: skip


def of_walkthrough(w):
    encoder, variables, tokens, place = (w[n] for n in ("encoder", "variables", "tokens", "place"))
    tie, most = Tie.parse("K=V"), {"width": 4, "heads": 2, "positions": "none", "seed": 0}
    no_layer = [-1, 1, 1.0, True, "0", None]
    valid = jnp.ones((1, 3), bool)
    yield walk.walk_through, {
        "encoder": encoder, "variables": variables, "inputs": tokens, "tokens": ("a", "b", "c"),
        "name": "x", "layer": 0, "valid": valid, "documents": jnp.zeros((1, 3), int),
    }, {
        "encoder": NO_MODEL, "variables": [None, {}, {"params": {}}],
        "inputs": [None, 3, "x", [[1]], tokens[0], jnp.zeros((2, 3), int)],
        "tokens": [None, 3, "abc", (), (1, 2, 3), ("a", "b"), ("a", "b", "c", "d")],
        "name": [None, 3], "layer": no_layer,
        "valid": [3, "x", valid[0], valid.astype(int), ~valid, valid[:, :2]],
        "documents": [3, "x", valid, jnp.zeros(3, int), jnp.zeros((1, 2), int)],
    }  # fmt: skip
    yield sources.random_walks, {"text": "the cat", "ties": [tie], **most}, {
        "text": NO_TEXT, "ties": [None, 3, [], "K=V", ["K=V"], [None]],
        "width": [0, -1, 5, 2.5, "8", None], "heads": [0, -1, 3, 0.5, "2", None],
        "positions": ["rotery", "", 3, None, ["none"]], "seed": NO_SEED,
    }  # fmt: skip
    yield sources.run_walks, {"folder": place, "steps": [], "layer": 0, "text": None,
                              "example": None}, {
        "folder": NO_PATH, "steps": [None, 3, "0", ["0"], [-1], [0.5]], "layer": [],
        "text": [], "example": []}  # fmt: skip
    yield sources.pretrained_walk, {"folder": w["bert"].folder, "layer": 0, "text": "the cat"}, {
        "folder": NO_PATH, "layer": [2, *no_layer[:1], *no_layer[2:]], "text": NO_TEXT}  # fmt: skip
    yield examples.words_of, {"text": "the cat"}, {"text": NO_TEXT}
    yield examples.pretrained_example, {"pretrained": w["bert"], "text": "the cat"}, {
        "pretrained": NO_MODEL, "text": NO_TEXT}  # fmt: skip
    yield examples.task_example, {"task": w["task"], "number": 0}, {
        "task": NO_MODEL, "number": [-1, 4, 0.5, True, "0", None]}  # fmt: skip
    yield examples.text_example, {"task": w["task"], "text": "a"}, {
        "task": [*NO_MODEL, w["task"]], "text": []}  # fmt: skip
    yield examples.random_layer, {"config": encoder.config, "seed": 0}, {
        "config": NO_MODEL, "seed": NO_SEED}  # fmt: skip


def test_types_are_not_checked_here():
    assert texts.read_texts(str(pathlib.Path(__file__)), 1)  # a str, where a Path is annotated


@pytest.mark.parametrize("group", [of_folders, of_survey, of_surgery, of_walkthrough],
                         ids=lambda group: group.__name__)  # fmt: skip
def test_what_is_wrong_is_refused_in_one_line(group, world):
    """By the package itself: nothing of other packages, and nothing is computed."""
    left = []
    for thing, right, wrong in group(world):
        call, signature = thing if isinstance(thing, tuple) else (thing, thing)
        name = signature.__qualname__
        assert arguments_of(signature) == {*wrong} <= {*right}, name
        for argument, values in wrong.items():
            for value in values:
                found = refusal(call, right | {argument: value})
                if isinstance(found, str) or "\n" in str(found):
                    left.append(f"{name}: {argument} = {shown(value)[:80]}: {found}")
    assert not left, "\n".join(left)
