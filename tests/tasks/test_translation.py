"""Translation as a task: reading pairs, splits, symbols, batches and the loss."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task
from qkv_jax.training.state import model_inputs
from tests.support.sentence_pairs import SMALL, columns, rows, trainer, translation


@pytest.fixture
def table(tmp_path):
    return columns(tmp_path / "pairs.tsv", rows())


# --- reading and splits


def test_two_aligned_files_are_one_of_two_columns(table, tmp_path):
    paths = {name: tmp_path / name for name in ("source", "target")}
    for side, path in enumerate(paths.values()):
        path.write_bytes("\r\n".join(pair[side] for pair in rows()).encode())
    given = {name: str(path) for name, path in paths.items()}
    aligned = make_task("translation", {**given, **SMALL})
    assert aligned.splits() == translation(table).splits()
    known = dict(rows())
    sizes = {name: len(pairs.sources) for name, pairs in aligned.splits().items()}
    assert sizes == {"train": 30, "validation": 4, "test": 6}
    found = [pair for pairs in aligned.splits().values() for pair in zip(*pairs, strict=True)]
    assert len(found) == 40 and all(known[source] == target for source, target in found)


def test_pairs_of_one_source_stay_together(tmp_path):
    """Equal but for white space; the seed decides which are held out, and always the same."""
    doubled = [*rows(), *((f" {a.replace(' ', '  ')}", f"{b} ?") for a, b in rows())]
    table = columns(tmp_path / "twice.tsv", doubled)
    task = translation(table)
    splits = {n: {" ".join(s.split()) for s in p.sources} for n, p in task.splits().items()}
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 40
    assert [len(p.sources) for p in task.splits().values()] == [60, 8, 12]
    assert translation(table, split_seed=1).splits()["test"] != task.splits()["test"]


def test_pairs_with_an_empty_side_are_dropped_together_and_counted(tmp_path):
    pairs = rows(20)
    lost = [*pairs[:5], ("", "alone"), ("alone", " "), *pairs[5:]]
    path = tmp_path / "pairs.tsv"
    columns(path, lost)
    path.write_text(path.read_text() + "\n")  # a line without a tab that says nothing
    task = translation(str(path))
    assert sum(len(p.sources) for p in task.splits().values()) == 20
    notes = " ".join(task.notes(task.load()))
    assert "3 of 23 lines have an empty side and are left out." in notes


@pytest.mark.parametrize(
    "source, target, message",
    [
        (b"a\nb\nc", b"x\ny", "source: .*has 3 lines, the other file 2: line 3 has no translation"),
        (b"a\n", b"x\ny\n", "target: .*has 2 lines, the other file 1: line 2 has no translation"),
        (b"a\nb\xff", b"x\ny", r"source: .*is not UTF-8 at byte 3 \(line 2\)"),
        (b"a\nb", b"x\n\xff", r"target: .*is not UTF-8 at byte 2 \(line 2\)"),
        (b"\n\n", b"x\ny\n", "source: .*has no line with a sentence on both sides"),
        (b"a\nb\n", b"x\ny\n", "validation_examples|test_examples: .*nothing is left to train on"),
    ],
)
def test_files_that_are_no_pairs_are_refused(source, target, message, tmp_path):
    """In one line, which names the file, the line and what is wrong."""
    for name, content in (("s", source), ("t", target)):
        (tmp_path / name).write_bytes(content)
    given = {"source": str(tmp_path / "s"), "target": str(tmp_path / "t")}
    with pytest.raises(ConfigError, match=message) as error:
        make_task("translation", {**given, **SMALL}).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line, message",
    [("one", "line 2: 1 columns, not 2"), ("a\tb\tc", "line 2: 3 columns, not 2")],
)
def test_a_line_without_two_columns_is_refused(line, message, tmp_path):
    (tmp_path / "pairs.tsv").write_text(f"a\tb\n{line}\nc\td\n")
    with pytest.raises(ConfigError, match=f"pairs: .*pairs.tsv'; {message}"):
        translation(str(tmp_path / "pairs.tsv")).load()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pairs": ""}, "pairs: given ''; name source and target, or pairs, one of the two"),
        ({"source": "s"}, "pairs: .*one of the two"),
        ({"pairs": "", "source": "s"}, "target: given ''; must be given where source is"),
        ({"smoothing": 1.0}, "smoothing: "),
        ({"vocabulary": 256, "tokenizer": "bpe"}, "vocabulary: .*above the 256 bytes"),
        ({"length": 0}, "length: "),
        ({"split_seed": -1}, "split_seed: "),
    ],
)
def test_options_that_cannot_be_are_refused(options, message, table):
    with pytest.raises(ConfigError, match=message):
        make_task("translation", {"pairs": table, **SMALL, **options})


# --- symbols and batches


def test_batches_spell_the_pairs(table):
    """Source and target end with their symbol; what the decoder reads is the target one later."""
    task = translation(table, length=12)
    batch, pairs = jax.tree.map(np.asarray, task.load().test), task.splits()["test"]
    for row, (source, target) in enumerate(zip(*pairs, strict=True)):
        for name, text in (("source", source), ("targets", target)):
            spelled = [*text.encode(), task.end][:12]
            assert batch[name][row].tolist() == spelled + [task.mark] * (12 - len(spelled))
        assert batch["inputs"][row].tolist() == [task.mark, *batch["targets"][row, :-1]]
        assert batch["source_valid"][row].tolist() == (batch["source"][row] < task.mark).tolist()
        encoded = task.encode(source)
        np.testing.assert_array_equal(encoded, batch["source"][row][: len(encoded)])
        assert target.startswith(task.decode(batch["targets"][row]).rstrip("�"))
    assert jax.tree.map(jnp.shape, model_inputs(batch)).keys() == task.example().keys()


def test_byte_pairs_are_learned_from_both_sides_of_the_training_split(table):
    task = translation(table, tokenizer="bpe", vocabulary=270)
    data, pairs = task.load(), task.splits()["train"]
    assert task.classes == 271
    for name in ("source", "target"):
        tokens = data.train[name]
        assert ((tokens >= 256) & (tokens < task.end)).any()
        texts = pairs.sources if name == "source" else pairs.targets
        whole = [text for row, text in zip(tokens, texts, strict=True) if task.end in row]
        decoded = [task.decode(row) for row in tokens if task.end in row]
        assert decoded == whole and len(whole) > 10


def test_what_is_cut_is_counted_and_its_end_not_asked_for(table):
    task = translation(table, length=5)
    data = task.load()
    assert not (np.asarray(data.test["targets"]) == task.end).any()
    notes = " ".join(task.notes(data))
    assert "targets of 30 train pairs are longer than 5 tokens and are cut." in notes


def test_targets_that_training_has_as_well_are_noted(tmp_path):
    same = [(source, "always the same") for source, _ in rows()]
    task = translation(columns(tmp_path / "same.tsv", same))
    notes = task.notes(task.load())
    assert "6 of 6 test targets (100 %) are in the training split as well." in notes
    assert not any("sources" in note and "as well" in note for note in notes)


# --- loss


def test_smoothing_is_in_the_loss_and_not_in_the_score(table):
    """By hand: the target's probability is 1 - e + e / C, each other's e / C."""
    task = translation(table, smoothing=0.3)
    batch = jax.tree.map(jnp.asarray, task.load().test)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 16, task.classes)), jnp.float32)
    nats, expected = -np.asarray(jax.nn.log_softmax(logits)), {0.0: [], 0.3: []}
    targets = np.asarray(batch["targets"])
    for share, means in expected.items():
        for row in range(6):
            asked = [t for t in range(16) if targets[row, t] < task.mark]
            each = [
                (1 - share) * nats[row, t, targets[row, t]] + share * nats[row, t].mean()
                for t in asked
            ]
            means.append(np.sum(each))
        means[:] = np.array(means) * 6 / (targets < task.mark).sum()
    np.testing.assert_allclose(task.loss(logits, batch), expected[0.3], rtol=2e-5)
    np.testing.assert_allclose(task.score(logits, batch), expected[0.0], rtol=2e-5)
    plain = dataclasses.replace(task, smoothing=0.0)
    np.testing.assert_array_equal(plain.loss(logits, batch), task.score(logits, batch))


def test_padding_and_the_future_do_not_reach_a_score(table):
    """Nor does what stands behind the source."""
    task = translation(table, length=24)
    made = trainer(task, positions="rotary", tie="K=V")
    params, batch = made.init_params(0), jax.tree.map(jnp.asarray, task.load().test)
    scores = made.evaluate(params, batch)
    other = batch | {
        name: jnp.where(batch[name] == task.mark, 7, batch[name]) for name in ("source", "inputs")
    }
    other["inputs"] = other["inputs"].at[:, 0].set(task.mark)
    np.testing.assert_allclose(made.evaluate(params, other), scores, rtol=1e-5)
    changed = batch | {"source": batch["source"].at[:, 0].set(7)}
    assert (np.abs(made.evaluate(params, changed) - scores) > 1e-6).all()


def test_data_on_the_host_are_streamed_and_fingerprints_do_not_change(table):
    task = translation(table)
    small = dataclasses.replace(task, device_limit_bytes=1)
    data = small.load()
    assert data.train is None
    batch = small.batch(None, next(small.stream(None, 0, 5)))
    assert batch["inputs"].shape == (5, 16)
    assert json.dumps(task.fingerprint(task.load())) == json.dumps(task.fingerprint(task.load()))
