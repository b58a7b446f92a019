"""The worked example: its numbers are the model's, its remarks follow from them, and what is shown
is what was computed."""

import base64
import functools
import html.parser
import io
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_folders
import pytest
from PIL import Image
from rich.console import Console

from qkv_jax.analysis import walkthrough
from qkv_jax.analysis import walkthrough_inputs as inputs
from qkv_jax.analysis.layers import layer_weights
from qkv_jax.analysis.walkthrough import walk_through
from qkv_jax.analysis.walkthrough_colours import colours_of
from qkv_jax.analysis.walkthrough_heat import heat_map
from qkv_jax.analysis.walkthrough_page import write_page
from qkv_jax.analysis.walkthrough_panels import Panel, number
from qkv_jax.analysis.walkthrough_remarks import (
    asymmetry,
    equal_roles,
    facts,
    movement,
    remarks,
    small,
    symmetric_share,
)
from qkv_jax.analysis.walkthrough_steps import steps
from qkv_jax.analysis.walkthrough_terminal import print_walks
from qkv_jax.attention import MultiHeadAttention
from qkv_jax.config import ConfigError, build
from qkv_jax.model_config import ModelConfig
from qkv_jax.positions import POSITIONS
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from qkv_jax.training.checkpoint import Checkpoints, replica_of

ROOT = pathlib.Path(__file__).parent.parent
EXPLAIN = "experiments.explain"
TIES = ", ".join(repr(str(tie)) for tie in Tie.all())


@functools.cache
def walked(tie="separate", positions="sinusoidal", text="the cat sat"):
    """A walk through a random layer of width 8 and 2 heads, with its parameters."""
    config = ModelConfig(tie=tie, layers=1, width=8, heads=2, positions=positions, mlp_width=8)
    encoder, variables = inputs.random_layer(config, 0)
    example = inputs.words_of(text)
    walk = walk_through(encoder, variables, example.inputs, example.tokens, name=tie)
    return walk, variables["params"]["layer_0"]["attention"]


def drawn_model(encoder, tokens):
    """Parameters of an encoder, none of them zero or one, quicker than its own."""
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens)
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(0.5 * draw.normal(size=leaf.shape)), shapes)


# --- the numbers


def turned(x):
    """Rotary positions of heads [T, N, 4], written out for two pairs."""
    angles = np.arange(len(x))[:, None] * np.array([1.0, 10_000.0**-0.5])
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :2], x[..., 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def bias_of(positions, params, length):
    """The bias on the scores [N, T, T] of 2 heads, for distances below 8."""
    offsets = np.arange(length)[None, :] - np.arange(length)[:, None]
    if positions == "relative":
        buckets = np.abs(offsets) + 16 * (offsets > 0)
        return np.moveaxis(np.asarray(params["relative"]["buckets"])[buckets], -1, 0)
    if positions == "alibi":
        return -np.array([2.0**-4, 2.0**-8])[:, None, None] * np.abs(offsets)
    return np.zeros((2, length, length))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_numbers_multiplied_out_are_those_of_the_layer(positions):
    """For all 15 ties: plain NumPy on the parameters gives every array of the walk, and what
    MultiHeadAttention returns for its X."""
    for tie in Tie.all():
        walk, params = walked(str(tie), positions)
        x, kernels = walk.x, {name: np.asarray(params[name]["kernel"]) for name in tie.sources}
        heads = {"X": x.reshape(3, 2, 4)}
        heads |= {name: np.einsum("td,dnh->tnh", x, kernel) for name, kernel in kernels.items()}
        query, key, value = (heads[tie.source(role)] for role in "QKV")
        for ours, theirs in zip(walk.projected, (query, key, value), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        if positions == "rotary":
            query, key = turned(query), turned(key)
        scores = np.stack([query[:, n] @ key[:, n].T for n in range(2)])
        scaled = scores / np.sqrt(4) + bias_of(positions, params, 3)
        weights = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
        mixed = np.stack([weights[n] @ value[:, n] for n in range(2)], 1)
        output = mixed.reshape(3, 8) @ np.asarray(params["out"]["kernel"]).reshape(8, 8)
        layer = MultiHeadAttention(2, tie, positions=positions)
        returned = layer.apply({"params": params}, jnp.asarray(x[None], jnp.float32))[0]
        for ours, theirs in [
            (walk.query, query), (walk.key, key), (walk.scores, scores), (walk.scaled, scaled),
            (walk.weights, weights), (walk.mixed, mixed), (walk.output, output),
            (returned, output),
        ]:  # fmt: skip
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert walk.error < 1e-5
        assert walk.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


OPTIONS = {
    "biases, learned scale": {"use_bias": True, "scale": "learned_per_head"},
    "norm of queries and keys": {"qk_norm": True, "positions": "rotary"},
    "nobody sees itself": {"diagonal_mask": True, "tie": "Q=K"},
    "2D": {"positions_2d": True},
    "adapters": {"tie": "Q=K=V", "adapters": {"query": "head:1.0", "value": "diag"}},
    "latent, a fixed scale": {"latent_dim": 3, "scale": 0.2},
    "grouped": {"kv_heads": 2, "tie": "K=V"},
    "no output projection": {"output_projection": False, "tie": "V=X"},
    "post-norm": {"norm_position": "post", "norm": "rms"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_of_a_model_is_walked_as_it_computes(options):
    """In the second of two layers with four heads, where no parameter is zero or one; and every
    step of it can be told."""
    config = build(ModelConfig, {"layers": 2, "width": 8, "heads": 4, **options})
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    example = jnp.array([[3, 1, 4, 1, 5]])
    variables = drawn_model(encoder, example)
    for layer in (0, 1):
        walk = walk_through(encoder, variables, example, tuple("31415"), name="x", layer=layer)
        assert walk.error < 1e-5
        assert len(steps([walk])) == 8 + bool(walk.between)
        assert remarks([walk])


@pytest.mark.parametrize("end", ["weights", "output"])
def test_a_wrong_walk_is_seen_by_its_error(end, monkeypatch):
    """Were a step multiplied out wrongly, the walk would say how far it is off."""
    config = ModelConfig(layers=1, width=8, heads=2)
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    tokens = jnp.array([[3, 1, 4]])
    variables = drawn_model(encoder, tokens)
    walk = functools.partial(walk_through, encoder, variables, tokens, tuple("314"), name="x")
    right = walk()
    if end == "weights":
        monkeypatch.setattr(walkthrough, "softmax", lambda scores: np.full(scores.shape, 1 / 3))
        off = np.abs(right.weights - 1 / 3).max()
    else:
        layer = layer_weights(encoder, variables)[0]
        bent = layer._replace(out_bias=layer.out_bias + 7)
        monkeypatch.setattr(walkthrough, "layer_weights", lambda *_: (bent,))
        off = 7
    assert right.error < 1e-5 and walk().error >= off - 1e-5


def test_padding_is_left_out():
    """Real tokens are walked as if there were no others."""
    config = ModelConfig(layers=1, width=8, heads=2)
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    tokens = jnp.array([[3, 1, 4, 1, 5]])
    variables = drawn_model(encoder, tokens)
    padding = jnp.array([[True, True, True, False, False]])
    labels = ("3", "1", "4")
    padded = walk_through(encoder, variables, tokens, labels, name="x", padding=padding)
    alone = walk_through(encoder, variables, tokens[:, :3], labels, name="x")
    assert padded.error < 1e-5 and padded.weights.shape == (2, 3, 3)
    np.testing.assert_allclose(padded.output, alone.output, atol=1e-6)


def test_what_ties_have_in_common_is_equal():
    """X, and every matrix of the same name, to the bit: a difference is the tie's alone."""
    base, params = walked()
    for tie in Tie.all():
        walk, own = walked(str(tie))
        np.testing.assert_array_equal(walk.x, base.x)
        for name in (*tie.sources, "out"):
            np.testing.assert_array_equal(own[name]["kernel"], params[name]["kernel"])


def test_other_words_leave_the_vectors_of_a_word_alone():
    """They depend on the seed and on which new word it is, not on those after it."""
    one, _ = walked(text="the cat sat")
    two, _ = walked(text="the cat the")
    np.testing.assert_array_equal(one.x[:2], two.x[:2])
    np.testing.assert_array_equal(two.embedded[0], two.embedded[2])
    assert not np.array_equal(two.x[0], two.x[2])  # another place


# --- the remarks


@pytest.mark.parametrize("positions", POSITIONS)
def test_symmetry_is_computed(positions):
    """Under Q=K scores are symmetric with every kind of position; a learned relative bias breaks
    that, and the remark says so. Under separate they are not symmetric."""
    tied, _ = walked("Q=K", positions)
    found = facts(tied)
    assert found.asymmetry == 0 and found.symmetric_share == 1
    said = " ".join(remarks([tied])[0])
    if positions == "relative":
        assert found.asymmetry_biased > 0.1
        apart = small(found.asymmetry_biased)
        assert f"but the position bias is not: with it the difference is up to {apart}" in said
    else:
        assert found.asymmetry_biased == 0
        assert "The score matrix is symmetric: max |S − Sᵀ| = 0 " in said
    free, _ = walked("separate", positions)
    largest = np.abs(free.scores - free.scores.transpose(0, 2, 1)).max()
    assert largest > 0.1 and facts(free).asymmetry == largest
    assert f"not symmetric: max |S − Sᵀ| = {small(largest)}" in " ".join(remarks([free])[0])


def test_equal_roles_are_the_groups_of_the_tie():
    for tie in Tie.all():
        groups, apart = equal_roles(walked(str(tie))[0])
        assert {frozenset(group) for group in groups} == {frozenset(g) for g in tie.groups}
        for pair, difference in apart.items():
            assert (difference == 0) == tie.equates(*pair)


def test_facts_in_closed_form():
    """Symmetric shares of a symmetric and an antisymmetric matrix; the spread and the diagonal of
    equal weights and of weights on oneself alone; movement by its own size."""
    a = np.array([[[1.0, 2.0], [5.0, 3.0]]])
    even, odd = a + a.swapaxes(1, 2), a - a.swapaxes(1, 2)
    assert symmetric_share(even) == 1 and symmetric_share(odd) == 0 and asymmetry(odd) == 6
    assert symmetric_share(even + 0 * odd + odd * 0) == 1
    np.testing.assert_allclose(symmetric_share(np.array([[[1.0, 1.0], [-1.0, 1.0]]])), 0.5)
    walk, _ = walked()
    equal = facts(walk._replace(weights=np.full((2, 3, 3), 1 / 3)))
    np.testing.assert_allclose((equal.reach, equal.on_itself), (3, 1 / 3))
    alone = facts(walk._replace(weights=np.stack([np.eye(3)] * 2)))
    assert (alone.reach, alone.on_itself, alone.to_itself) == (1, 1, 3)
    layer = walk.layer
    moved = movement(layer, layer._replace(query=2 * layer.query))
    assert moved == {"W_Q": 1, "W_K": 0, "W_V": 0, "W_O": 0}
    copies = walked("copies")[0].layer
    assert movement(copies, copies) == {"W_O": 0}


def test_remarks_compare_with_the_first_tie():
    """The numbers of the sentences, computed again."""
    walks = [walked("separate")[0], walked("copies")[0]]
    diagonals = [np.mean([np.diag(head) for head in walk.weights]) for walk in walks]
    said = " ".join(remarks(walks)[1])
    assert f"mean weight on oneself {diagonals[1]:.2f} against {diagonals[0]:.2f} under" in said
    assert "X, Q, K and V are the same numbers: max difference = 0." in said
    assert "64 parameters of attention, 0 learned projections, against 256 parameters" in said
    apart = np.linalg.norm(walks[1].output - walks[0].output) / np.linalg.norm(walks[0].output)
    assert f"differs from that under separate by {100 * apart:.0f} %" in said


# --- what is shown


def printed(walks, width):
    out = io.StringIO()
    print_walks(Console(file=out, width=width), "about", walks, steps(walks), remarks(walks))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_shows_the_numbers_in_its_width(width):
    """No line is wider, and the printed weights are those of the walk."""
    walk, _ = walked(text="to be or not to be that is the question and more")
    text = printed([walk], width)
    assert max(map(len, text.splitlines())) <= width
    rows = re.findall(
        r"^ +\d+ (?:to|be|or) +((?:0\.\d\d +)+)", text.partition("A (head 1)")[2], re.M
    )
    shown = np.array([[float(cell) for cell in row.split()] for row in rows[:3]])
    np.testing.assert_allclose(shown, walk.weights[0, :3, : shown.shape[1]], atol=0.0051)
    assert shown.shape[1] >= 6


def test_what_is_the_same_is_not_printed_twice():
    walks = [walked(tie)[0] for tie in ("separate", "Q=K", "copies")]
    text = printed(walks, 100)
    assert "E embeddings, P positions, X: as under separate" in text
    assert "W_Q = W_K [8 × 8]: as W_Q [8 × 8] under separate" in text
    assert re.search(r"K \(head 1\): as Q \(head 1\) *\n", text)
    assert "No W_V: V is X itself, cut into heads." in text
    assert text.count("W_O [8 × 8]: as under separate") == 2 and text.count("W_O [8 × 8]") == 3


def test_large_arrays_are_shown_by_their_corner(tmp_path):
    """Width 384 and 12 heads: six columns, four rows, two heads."""
    config = ModelConfig(layers=1, width=384, heads=12, mlp_width=8)
    encoder = make_task("reverse", {"length": 5}, "task").encoder(config)
    tokens = jnp.array([[3, 1, 4]])
    walk = walk_through(encoder, drawn_model(encoder, tokens), tokens, tuple("314"), name="x")
    text = printed([walk], 100)
    assert "… 384 columns" in text and "… 384 rows" in text and "… 12 heads in all" in text
    assert len(text.splitlines()) < 200 and max(map(len, text.splitlines())) <= 100
    write_page(tmp_path / "page.html", "about", [walk], steps([walk]), remarks([walk]))
    page = (tmp_path / "page.html").read_text()
    assert "<small>first 64 × 64</small>" in page and len(page) < 1_000_000
    assert "The first 4 of 12 heads." in page


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(-0.001, 1.0, "0.00"), (-1.234, 2.0, "−1.23"), (-12.34, 20.0, "−12.3"), (123.4, 200.0, "123"),
     (-0.0123, 0.05, "−.012"), (12345.0, 2e4, "1e4"), (-2e-7, 3e-7, "−2e−7"),
     (0.0, 0.0, ".000"), (9.996, 9.996, "10.0")],
)  # fmt: skip
def test_numbers_fit_their_cells(value, limit, text):
    assert number(value, limit) == text and len(text) <= 5


def test_a_heat_map_writes_its_numbers():
    walk, _ = walked()
    panel = Panel("A", walk.weights[0], walk.tokens, walk.tokens, "weights")
    drawn = heat_map(panel, 1.0)
    texts = re.findall(r'<text x="(\d+)" y="(\d+)"[^>]*>([\d.]+)</text>', drawn)
    by_place = sorted((int(y), int(x), float(text)) for x, y, text in texts)
    cells = np.array([text for _, _, text in by_place]).reshape(3, 3)
    np.testing.assert_allclose(cells, walk.weights[0], atol=0.0051)
    assert 'role="img"' in drawn and "the: 0." in drawn and drawn.count("<rect") == 9


def test_a_large_heat_map_is_a_picture_of_the_same_colours():
    values = np.random.default_rng(0).normal(size=(20, 30))
    labels = tuple(map(str, range(30)))
    drawn = heat_map(Panel("W", values, labels[:20], labels), 2.0)
    data = re.search(r"data:image/png;base64,([^\"]+)", drawn)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(pixels, colours_of(values, "signed", 2.0))
    assert "20 by 30 numbers from" in drawn


def test_colours_grow_darker_with_the_number():
    """So that they are told apart without hue: to both sides of zero, and along the weights."""
    lightness = lambda values, kind: colours_of(np.array(values), kind, 1.0) @ [0.21, 0.72, 0.07]
    for values, kind in [
        (np.linspace(0, 1, 11), "weights"),
        (np.linspace(0, 1, 11), "signed"),
        (-np.linspace(0, 1, 11), "signed"),
    ]:
        assert (np.diff(lightness(values, kind)) < 0).all()


# --- inputs


def test_texts_become_tokens_of_the_task(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"tale {i},{'ab'[i % 2]}\n" for i in range(40)))
    task = make_task("text_classification", {"files": (str(table),), "length": 8}, "task")
    example = inputs.text_example(task, "é b\n")
    assert example.tokens == ("[class]", "\\xc3", "\\xa9", "␣", "b", "⏎")
    assert example.inputs.tolist() == [[0xC3, 0xA9, 32, 98, 10]]
    shown = inputs.task_example(task, 1)
    assert shown.tokens[:6] == ("[class]", *"tale", "␣") and int(shown.padding.sum()) < 9
    assert len(shown.tokens) == int(shown.padding.sum())
    with pytest.raises(ConfigError, match="is 9 tokens; the run's model reads at most 8"):
        inputs.text_example(task, "nine byte")
    with pytest.raises(ConfigError, match="write one character"):
        inputs.text_example(task, "")


def test_byte_pairs_are_labelled_by_what_they_stand_for(tmp_path):
    pytest.importorskip("tokenizers")
    file = tmp_path / "text"
    file.write_text("the cat sat on the mat, the dog ate the hat. " * 200)
    options = {"files": (str(file),), "length": 8, "vocabulary": 270}
    task = make_task("masked_tokens", options, "task")
    example = inputs.text_example(task, "the cat")
    assert "".join(example.tokens) == "the␣cat" and len(example.tokens) < 7


def test_examples_of_other_tasks_have_labels():
    options = {"length": 4, "validation_examples": 3, "test_examples": 3}
    task = make_task("relation", options, "task")
    fields = inputs.task_example(task, 2)
    assert len(fields.tokens) == 4 and all(label.count("·") == 2 for label in fields.tokens)
    image = inputs.task_example(make_task("digits", {"patch": 4}, "task"), 0)
    assert image.tokens == ("[class]", "1,1", "1,2", "2,1", "2,2")
    with pytest.raises(ConfigError, match="--example: given 3; the task has 0 to 2"):
        inputs.task_example(task, 3)


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder, a run in which all parameters shrink by a quarter in 10 steps and are 1.5
    times as large after 20, and folders that are no runs."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "text").write_bytes(b"the cat sat on the mat. " * 80)
    values = {
        "task": {"kind": "masked_bytes",
                 "options": {"length": 16, "files": (str(folder / "text"),)}},
        "model": {"layers": 2, "width": 8, "heads": 2},
        "train": {"steps": 20, "report_every": 10, "batch_size": 8, "learning_rate": 0.01},
    }  # fmt: skip
    replica = replica_of(values)
    state = replica.init(0, 0.01)
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(values))
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step, factor in ((0, 1.0), (10, 0.75), (20, 1.5)):
        params = jax.tree.map(lambda leaf, factor=factor: factor * leaf, state.params)
        checkpoints.save(state.replace(step=jnp.int32(step), params=params))
    checkpoints.close()
    pretrained_folders.write(folder / "bert", pretrained_folders.CONFIGS["bert"])
    (folder / "here").mkdir()
    (folder / "none").mkdir()
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text(json.dumps(values))
    (folder / "torn" / "checkpoints" / "0").mkdir(parents=True)
    (folder / "torn" / "config.json").write_text('{"task": ')
    (folder / "broken" / "checkpoints" / "20").mkdir(parents=True)
    (folder / "broken" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "door_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=place / "here",
        env=environment,
    ) as server:

        def run(*flags):
            server.stdin.write(json.dumps([EXPLAIN, *map(str, flags)]) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


WORDS = " ".join("abcdefghijklm")
REFUSED = [
    (["--text="], "--text: given ''; write one word at least"),
    (["--text=  "], "--text: given ' '; write one word at least"),
    ([f"--text={WORDS}"], f"--text: given '{WORDS}'; has 13 words; the random layer takes at most "
     "12, a trained model (--run) as many tokens as its task has"),
    (["--tie=K=Z"], f"--tie: given 'K=Z'; 'K=Z' is not a tie; write one of {TIES}, or 'copies' for "
     "the last"),
    (["--tie=Q=K|"], f"--tie: given 'Q=K|'; '' is not a tie; write one of {TIES}, or 'copies' for "
     "the last"),
    (["--width=9"], "--width: given 9; must be divisible by heads = 2"),
    (["--width=0"], "--width: given '0'; allowed: an integer in the range [1, 1024]"),
    (["--heads=x"], "--heads: given 'x'; allowed: an integer in the range [1, 1024]"),
    (["--positions=rotray"], "--positions: given 'rotray'; did you mean 'rotary'? allowed: "
     + ", ".join(POSITIONS)),
    (["--positions=rotary", "--width=6"], "--positions: given 'rotary'; needs an even head width, "
     "not 3"),
    (["--seed=-1"], "--seed: given '-1'; allowed: an integer in the range [0, 4294967295]"),
    (["--steps=0,100"], "--steps: given '0,100'; is for a trained model; name its folder by --run"),
    (["--layer=1"], "--layer: given 1; is for a trained model; name its folder by --run or "
     "--pretrained"),
    (["--example=1"], "--example: given 1; is for a trained model; name its folder by --run"),
    (["--html=."], "--html: given '.'; is a folder; name a file"),
    (["--txet=a"], "command line: given '--txet=a'; no such flag; did you mean '--text'? allowed: "
     "--text, --tie, --width, --heads, --positions, --seed, --run, --pretrained, --layer, --steps, "
     "--example, --html"),
    (["--run={run}", "--width=16"], "--width: given 16; is for the random layer; a trained model "
     "has its own"),
    (["--run={run}", "--tie=Q=K"], "--tie: given 'Q=K'; is for the random layer; a trained model "
     "has its own"),
    (["--run={run}", "--steps=0,7"], "--steps: given 7; checkpoints there: 0, 10, 20"),
    (["--run={run}", "--steps=last"], "--steps: given 'last'; write whole numbers, as in 0,100"),
    (["--run={run}", "--steps="], "--steps: given ''; write whole numbers, as in 0,100"),
    (["--run={run}", "--layer=2"], "--layer: given 2; the model has layers 0 to 1"),
    (["--run={run}", "--text="], "--text: given ''; write one character at least"),
    (["--run={run}", "--pretrained={none}"], "--pretrained: given '{none}'; --run is given as "
     "well; choose one"),
    (["--pretrained={bert}", "--steps=0"], "--steps: given '0'; is for a trained model; name its "
     "folder by --run"),
    (["--pretrained={bert}", "--layer=2"], "--layer: given 2; the model has layers 0 to 1"),
    (["--pretrained={bert}", "--text= "], "--text: given ' '; is empty: no token beside the "
     "special ones"),
    (["--pretrained={lost}"], "--pretrained: given '{lost}'; is no folder"),
    (["--html="], "--html: given ''; is a folder; name a file"),
    (["--run={run}", f"--text={WORDS}"], f"--text: given '{WORDS}'; is 25 tokens; the run's model "
     "reads at most 16"),
    (["--run={run}", "--text=a", "--example=0"], "--example: given 0; a text is given as well; "
     "choose one"),
    (["--run={none}"], "--run: given '{none}'; is no run of experiments.train: no config.json"),
    (["--run={lost}"], "--run: given '{lost}'; is no run of experiments.train: no config.json"),
    (["--run={bare}"], "--run: given '{bare}'; holds no checkpoint"),
]  # fmt: skip


def test_bad_input_is_one_line(command, place):
    """The flag, what was given, what is allowed; exit code 2; nothing is written."""
    names = {name: str(place / name) for name in ("run", "none", "lost", "bare", "bert")}
    for flags, line in REFUSED:
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err) == (2, "", f"error: {line.format(**names)}\n")
    assert not list((place / "here").iterdir())


def test_damaged_runs_are_named(command, place):
    for name, said in [
        ("torn", "its config.json is damaged: JSONDecodeError"),
        ("broken", "the checkpoint of step 20 cannot be read"),
    ]:
        code, out, err = command(f"--run={place / name}")
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert err.startswith(f"error: --run: given '{place / name}'; {said}")


class _Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def check_page(text, rows):
    """Nothing is loaded from elsewhere, every map has words for those who do not see it, and the
    overview has a row each."""
    page = _Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    table = text.partition("<tbody>")[2].partition("</tbody>")[0]
    assert table.count("<tr>") == rows and table.count("<td>") == 7 * rows
    return page


def test_two_ties_in_the_terminal_and_on_a_page(command, place):
    """The command as in the README, with text that looks like markup; the page says what the
    terminal says."""
    file = place / "pages" / "explain.html"
    code, out, err = command("--text=the [b]cat <b>sat", "--tie=separate|q = k", f"--html={file}")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    page = check_page(file.read_text(), rows=2)
    assert (
        "b" not in [tag for tag, _ in page.tags] and "2 [b]cat" in out and "2 [b]cat" in page.text
    )
    config = ModelConfig(layers=1, width=8, heads=2, positions="sinusoidal", mlp_width=8, tie="Q=K")
    example = inputs.words_of("the [b]cat <b>sat")
    model = inputs.random_layer(config, 0)
    walk = walk_through(*model, example.inputs, example.tokens, name="Q=K")
    for place_of in (page.text, out):
        assert "The score matrix is symmetric: max |S − Sᵀ| = 0" in " ".join(place_of.split())
        for value in np.concatenate([walk.weights.ravel(), walk.query.ravel()]):
            assert number(value, 2.0) in place_of
    assert not list((place / "here").iterdir())


def test_a_run_at_several_points_of_its_training(command, place):
    """The same validation example, masks and all, at three checkpoints, and how far the matrices
    have come."""
    file = place / "run.html"
    flags = (f"--run={place / 'run'}", "--steps=0,10,20", "--layer=1", f"--html={file}")
    code, out, err = command(*flags, "--example=1")
    assert (code, err) == (0, "")
    check_page(file.read_text(), rows=3)
    text = " ".join(out.split())
    assert "Validation example 1 through layer 1" in text and "[mask]" in text
    assert "Where the first 12 tokens look most (head 1): " in text
    assert "Its matrices are as they were drawn at the start." in text
    assert "Training has moved W_Q by 25 %, W_K by 25 %, W_V by 25 % and W_O by 25 % of" in text
    assert "Training has moved W_Q by 50 %, W_K by 50 %, W_V by 50 % and W_O by 50 % of" in text


def test_a_pretrained_model(command, place):
    """Its second layer on tokens of its own tokenizer; the numbers are those that it computes."""
    code, out, err = command(f"--pretrained={place / 'bert'}", "--layer=1", "--text=the cat sat")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "Tokens: [CLS] the cat sat [SEP]" in text and "12 numbers each" in text
    assert float(re.search(r"itself computed by at most (\S+)\.", text)[1]) < 1e-5


def test_every_step_is_told_for_every_tie_beside_others():
    """All 15 side by side, in any order of positions."""
    walks = [walked(str(tie), "alibi")[0] for tie in Tie.all()]
    told = steps(walks)
    assert all(len(step.views) == 15 for step in told)
    panels = itertools.chain.from_iterable(view.panels for step in told for view in step.views)
    for panel in panels:
        assert panel.matrix.shape == (len(panel.rows), len(panel.columns))
