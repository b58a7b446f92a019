"""The command: its texts and examples, what it refuses, what it prints and writes."""

import re

import jax
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.explain import examples, views
from qkv_jax.explain.panels import number
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.positions import POSITIONS
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from tests.support import commands, small_models
from tests.support.folders.data_writers import save
from tests.support.walks import quick_compilation, walk_through  # noqa: F401

EXPLAIN = "experiments.explain"
TIES = ", ".join(repr(str(tie)) for tie in Tie.all())


# --- inputs


def test_texts_become_tokens_of_the_task(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"tale {i},{'ab'[i % 2]}\n" for i in range(40)))
    task = make_task("text_classification", {"files": (str(table),), "length": 8}, "task")
    example = examples.text_example(task, "é b\n")
    assert example.tokens == ("[class]", "\\xc3", "\\xa9", "␣", "b", "⏎")
    assert example.inputs.tolist() == [[0xC3, 0xA9, 32, 98, 10]]
    shown = examples.task_example(task, 1)
    assert shown.tokens[:6] == ("[class]", *"tale", "␣") and int(shown.valid.sum()) < 9
    assert len(shown.tokens) == int(shown.valid.sum())
    with pytest.raises(ConfigError, match="is 9 tokens; the run's model reads at most 8"):
        examples.text_example(task, "nine byte")
    with pytest.raises(ConfigError, match="write one character"):
        examples.text_example(task, "")


def test_byte_pairs_are_labelled_by_what_they_stand_for(tmp_path):
    pytest.importorskip("tokenizers")
    file = tmp_path / "text"
    file.write_text("the cat sat on the mat, the dog ate the hat. " * 200)
    options = {"files": (str(file),), "length": 8, "vocabulary": 270}
    task = make_task("masked_tokens", options, "task")
    example = examples.text_example(task, "the cat")
    assert "".join(example.tokens) == "the␣cat" and len(example.tokens) < 7


def test_causal_texts_are_walked_as_they_are_read(tmp_path):
    """A text of a user's; packed documents, of which none sees another."""
    pytest.importorskip("datasets")
    rows = save(tmp_path / "set", {"text": [f"{i} a{i}b" for i in range(40)]})
    (tmp_path / "text").write_text("abc 0123456789 " * 60)
    for options in ({"files": (str(tmp_path / "text"),)}, {"dataset": rows}):
        task = make_task("causal_characters", options | {"length": 16}, "task")
        example, packed = examples.text_example(task, "a 1"), "dataset" in options
        assert example.tokens == (("[begin]",) * packed + ("a", "␣", "1"))
        with pytest.raises(ConfigError, match="text: given 'é'; must be of characters that"):
            examples.text_example(task, "é")
        with pytest.raises(ConfigError, match="write one character"):
            examples.text_example(task, "")
        example = examples.task_example(task, 0)
        assert len(example.tokens) == 16 and (example.documents is not None) == packed
    encoder = task.encoder(ModelConfig(layers=1, width=8, heads=2))
    variables = encoder.init(jax.random.key(0), example.inputs)
    shown = walk_through(
        encoder, variables, *example[:2], name="x", documents=example.documents
    )
    (documents,) = np.asarray(example.documents)
    apart = documents[:, None] != documents[None]
    assert apart.any() and shown.error < 1e-5
    assert (shown.hidden == (apart | ~np.tri(16, dtype=bool))).all()
    line = "Then hidden from each token: those after it and those of other texts."
    assert line in views.of_scaled(shown)[1]


def test_examples_of_other_tasks_have_labels():
    options = {"length": 4, "validation_examples": 3, "test_examples": 3}
    task = make_task("relation", options, "task")
    fields = examples.task_example(task, 2)
    assert len(fields.tokens) == 4 and all(label.count("·") == 2 for label in fields.tokens)
    image = examples.task_example(make_task("digits", {"patch": 4}, "task"), 0)
    assert image.tokens == ("[class]", "1,1", "1,2", "2,1", "2,2")
    with pytest.raises(ConfigError, match="example: given 3; the task has 0 to 2"):
        examples.task_example(task, 3)


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return small_models.write(tmp_path_factory.mktemp("explain"))


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    with commands.server(place / "here") as run:
        yield lambda *flags: run(EXPLAIN, *flags)


WORDS = " ".join("abcdefghijklm")
REFUSED = [
    (["--text="], "--text: given ''; write one word at least"),
    (["--text=  "], "--text: given ' '; write one word at least"),
    ([f"--text={WORDS}"], f"--text: given '{WORDS}'; has 13 words; the random layer takes at most "
     "12, a trained model as many tokens as its task has"),
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
    (["--pretrained={lost}"], "--pretrained: given '{lost}'; is no folder, and no org/name or "
     "org/name@revision of the Hugging Face hub"),
    (["--pretrained={shard}"], "--pretrained: given '{shard}/model-00001-of-00001.safetensors'; "
     "is missing; model.safetensors.index.json names it"),
    (["--pretrained={shapes}"], "tensor embeddings.LayerNorm.bias: given "
     "(12,); must have the shape (24,), by config.json"),
    (["--pretrained={words}"], "--pretrained: given '{words}/tokenizer.json'; does not match: it "
     "has a token 33, the model's table 20 rows"),
    (["--pretrained={bert}", f"--text={'the ' * 15}the"], f"--text: given '{'the ' * 10}…'; is 18 "
     "tokens; at most 16"),
    (["--html="], "--html: given ''; must name a file or folder"),
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
    known = ("run", "none", "lost", "bare", "bert", "shard", "shapes", "words")
    names = {name: str(place / name) for name in known}
    for flags, line in REFUSED:
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err) == (2, "", f"error: {line.format(**names)}\n")
    assert not list((place / "here").iterdir())


def test_damaged_runs_are_named(command, place):
    for name, message in [
        ("torn", "its config.json is damaged: JSONDecodeError"),
        ("broken", "the checkpoint of step 20 cannot be read"),
    ]:
        code, out, err = command(f"--run={place / name}")
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert err.startswith(f"error: --run: given '{place / name}'; {message}")


def check_page(text, rows):
    """Nothing is loaded from elsewhere, every map has words for those who do not see it, and the
    overview has a row each."""
    page = commands.Page(text)
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
    assert (code, err) == (0, "") and out.startswith("On ")
    assert max(map(len, out.splitlines())) <= 100
    page = check_page(file.read_text(), rows=2)
    assert (
        "b" not in [tag for tag, _ in page.tags] and "2 [b]cat" in out and "2 [b]cat" in page.text
    )
    config = ModelConfig(layers=1, width=8, heads=2, positions="sinusoidal", mlp_width=8, tie="Q=K")
    example = examples.words_of("the [b]cat <b>sat")
    model = examples.random_layer(config, 0)
    walk = walk_through(*model, example.inputs, example.tokens, name="Q=K")
    for place_of in (page.text, out):
        assert "Scores are symmetric in both heads: max |S − Sᵀ| = 0" in " ".join(place_of.split())
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
