"""Texts of classes, from tables and from data sets: splits, tokens, references and refusals."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.classification import bag_of_words
from qkv_jax.tasks.text.tables import Labelled, read_table
from qkv_jax.tasks.text.tokenizers import train_byte_pairs
from qkv_jax.training.state import model_inputs
from tests.support.folders import text_tables
from tests.support.folders.text_tables import refusal, reviews, write_table

table = text_tables.table


# --- classification


def test_one_file_is_split_by_shares_and_classes(table):
    """60 texts into 42, 6 and 12, a third of each positive, none twice; the seed decides."""
    task = make_task("text_classification", {"files": (table,)})
    splits = task.splits()
    sizes = {name: len(part.labels) for name, part in splits.items()}
    assert sizes == {"train": 42, "validation": 6, "test": 12}
    assert task.outcome.failure_value == 1 / task.classes == 0.5
    for part in splits.values():
        assert part.labels.count("positive") * 3 == len(part.labels)
    assert len({text for part in splits.values() for text in part.texts}) == 60
    pairs = dict(reviews(60))
    assert all(pairs[t] == label for p in splits.values() for t, label in zip(*p, strict=True))
    other = make_task("text_classification", {"files": (table,), "split_seed": 1}).splits()
    assert set(other["test"].texts) != set(splits["test"].texts)


def test_published_splits_are_kept(tmp_path):
    """Of three files all, of two the test set; validation then comes out of training."""
    files = [write_table(tmp_path / f"{i}.csv", reviews(30, seed=i)) for i in range(3)]
    texts = [read_table(tmp_path / f"{i}.csv", "text", "label").texts for i in range(3)]
    three = make_task("text_classification", {"files": tuple(files)}).splits()
    assert [three[name].texts for name in ("train", "validation", "test")] == texts
    two = make_task("text_classification", {"files": (files[0], files[2])}).splits()
    assert two["test"].texts == texts[2]
    assert sorted(two["train"].texts + two["validation"].texts) == sorted(texts[0])
    assert len(two["validation"].texts) == 3


def test_tokens_are_cut_padded_and_marked(table):
    """A class token and 9 bytes: longer texts lose their end, padding is no byte and not seen."""
    task = make_task("text_classification", {"files": (table,), "length": 9})
    data, splits = task.load(), task.splits()
    for name, split in data.held_out.items():
        batch = jax.tree.map(np.asarray, split)
        assert batch["valid"].shape == (len(batch["targets"]), task.max_length)
        for i, text in enumerate(splits[name].texts):
            kept = text.encode()[:9]
            expected = list(kept) + [256] * (9 - len(kept))
            assert batch["inputs"][i].tolist() == expected
            assert batch["valid"][i].tolist() == [True] + [t < 256 for t in expected]
            assert task.classes_in_order[batch["targets"][i]] == splits[name].labels[i]


def test_batches_are_the_rows_of_the_schedule(table):
    """Tokens, valid and targets of the training texts that are named; 21 at a time are asked for
    two steps ahead, and every text comes once in them."""
    task = make_task("text_classification", {"files": (table,), "length": 40})
    train = jax.tree.map(jnp.asarray, task.load().train)
    draw = jax.jit(lambda train: task.schedule(train, jax.random.key(0), jnp.int32(0), 2, 21))
    rows = np.asarray(draw(train)["rows"])
    assert sorted(rows.ravel()) == list(range(42))
    batch = jax.tree.map(np.asarray, task.batch(train, {"rows": rows[1]}))
    texts = task.splits()["train"]
    for place, row in enumerate(rows[1]):
        tokens = batch["inputs"][place][batch["valid"][place, 1:]]
        assert tokens.astype(np.uint8).tobytes().decode() == texts.texts[row]
        assert task.classes_in_order[batch["targets"][place]] == texts.labels[row]


def test_byte_pairs_of_texts_are_learned_from_training_texts_alone(tmp_path):
    """Pairs that are frequent in test texts only are no token; tokens spell the texts they cut."""
    rows, strange = reviews(40), [("qzqz " * 60, label) for _, label in reviews(9)]
    files = [write_table(tmp_path / f"{i}.csv", part) for i, part in enumerate((rows, strange))]
    options = {"files": tuple(files), "tokenizer": "bpe", "vocabulary": 280, "length": 24}
    task = make_task("text_classification", options)
    data, train = task.load(), task.splits()["train"]
    tokenizer = train_byte_pairs(tuple(text.encode() for text in train.texts), 280)
    for row, text in zip(data.train["tokens"], train.texts, strict=True):
        tokens = row[row < 280]
        assert text.encode().startswith(tokenizer.decode(tokens)) and tokens.max() >= 256
    assert np.asarray(data.test["inputs"]).max() < 256  # no pair of them was seen in training


def test_padding_does_not_reach_the_logits(table):
    """Whatever stands in padded places, the answer is the same; in a real place it is not."""
    task = make_task("text_classification", {"files": (table,), "length": 64})
    encoder = task.encoder(ModelConfig(layers=1, width=8, heads=2))
    batch = jax.tree.map(lambda a: jnp.asarray(a[:4]), task.load().test)
    logits, seen = jax.jit(encoder.apply), model_inputs(batch)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), **seen)
    draw = np.random.default_rng(0).normal
    variables = jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(np.float32), shapes)
    junk = jnp.where(batch["valid"][:, 1:], batch["inputs"], 7)
    assert not np.array_equal(junk, batch["inputs"])
    plain = logits(variables, **seen)
    assert plain.shape == (4, 2)
    np.testing.assert_array_equal(plain, logits(variables, **seen | {"inputs": junk}))
    changed = seen | {"inputs": batch["inputs"].at[:, 0].set(90)}
    assert not np.allclose(plain, logits(variables, **changed))


def test_references_are_scored_on_the_same_test_set(table):
    """The majority class has its share there; words that give the label away are found by the bag
    of words, and labels that mean nothing are not."""
    task = make_task("text_classification", {"files": (table,)})
    majority, bag = task.references(None)
    assert (majority.name, bag.name) == ("most frequent class", "TF-IDF + logistic regression")
    assert np.isclose(majority.value, 8 / 12) and "negative" in majority.note
    assert bag.value == 1.0 and "C = " in bag.note
    splits = {name: part._replace(labels=part.labels[::-1]) for name, part in task.splits().items()}
    assert bag_of_words(splits)[1] < 1.0


def test_the_bag_of_words_is_chosen_on_validation(monkeypatch):
    """Scores of either split that peak at another C: the one of validation decides."""
    from sklearn.linear_model import LogisticRegression

    texts = Labelled(["good film", "bad film"] * 3, ["a", "b"] * 3)
    splits = {"train": texts, "validation": texts, "test": Labelled(*(x[:2] for x in texts))}
    scores = {6: {3.0: 0.9}, 2: {3.0: 0.4, 30.0: 0.8}}  # by the size of the split, and C
    monkeypatch.setattr(
        LogisticRegression, "score", lambda self, x, _: scores[x.shape[0]].get(self.C, 0.1)
    )
    assert bag_of_words(splits) == (3.0, 0.4)


def test_texts_without_words_have_no_bag_of_words(tmp_path):
    """The only reference is then the larger class; the study goes on."""
    rows = [("!" * (1 + i % 5), "ab"[i % 2]) for i in range(30)]
    file = write_table(tmp_path / "marks.csv", rows)
    (only,) = make_task("text_classification", {"files": (file,)}).references(None)
    assert only.name == "most frequent class"


@pytest.mark.parametrize("labels", [("negative",), ("negative", "positive", "positive")])
def test_labels_are_two_at_least_and_each_once(labels, table):
    line = refusal("text_classification", {"files": (table,), "labels": labels})
    assert line == f"labels: given {labels!r}; must be two at least, each once"


# --- Hugging Face


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A data set saved by the library itself, with classes as numbers, and its rows."""
    import datasets

    rows = reviews(40)
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    place = tmp_path_factory.mktemp("saved")
    split = {"train": whole.select(range(30)), "test": whole.select(range(30, 40))}
    datasets.DatasetDict(split).save_to_disk(str(place / "splits"))
    whole.save_to_disk(str(place / "whole"))
    files = place / "files"
    files.mkdir()
    split["train"].to_parquet(str(files / "train-0.parquet"))
    split["test"].to_parquet(str(files / "test-0.parquet"))
    return place, rows


def test_data_sets_are_classified_with_their_own_splits(saved):
    """Labels by name; the test set is the published one; a data set without splits is split."""
    place, rows = saved
    task = make_task("text_classification", {"dataset": str(place / "splits")})
    splits = task.splits()
    assert task.classes_in_order == ("negative", "positive")
    assert list(zip(*splits["test"], strict=True)) == rows[30:]
    together = [
        pair for name in ("train", "validation") for pair in zip(*splits[name], strict=True)
    ]
    assert sorted(together) == sorted(rows[:30]) and len(splits["validation"].texts) == 3
    whole = make_task("text_classification", {"dataset": str(place / "whole")}).splits()
    assert {name: len(part.texts) for name, part in whole.items()} == {
        "train": 28, "validation": 4, "test": 8,
    }  # fmt: skip


def test_data_sets_are_texts_too(saved, tmp_path, monkeypatch):
    """Rows joined by line ends; a folder of parquet files, read without a network; what there is no
    split for comes off the end of the training split."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    place, rows = saved
    task = make_task("masked_bytes", {"dataset": str(place / "files"), "length": 8})
    texts = {name: b"".join(t.tobytes() for t in some) for name, some in task.texts().items()}
    assert texts["test"] == "\n".join(text for text, _ in rows[30:]).encode()
    assert texts["train"] + texts["validation"] == "\n".join(t for t, _ in rows[:30]).encode()
    assert len(texts["validation"]) == int(0.05 * len(texts["train"] + texts["validation"]))


def test_data_sets_that_cannot_be_are_refused(saved, tmp_path, monkeypatch):
    """No such name without a network, an empty folder, no such column; in one line each."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place, _ = saved
    for name in ("nobody/nothing", str(tmp_path)):
        line = refusal("masked_bytes", {"dataset": name})
        assert line.startswith(f"dataset: given {name!r}; cannot be loaded: ")
    line = refusal("masked_bytes", {"dataset": str(place / "splits"), "text_column": "body"})
    message = "its train split has no column 'body'; columns: 'text', 'label'"
    assert line == f"dataset: given {str(place / 'splits')!r}; {message}"


def test_loading_says_nothing_but_the_refusal(tmp_path, monkeypatch, capfd, caplog):
    """No bar of progress over a folder of tables; no warning for each attempt at the network."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "train.csv", reviews(30))
    make_task("text_classification", {"dataset": str(tmp_path / "data")}).load()

    def unreachable(*_):
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    line = refusal("masked_bytes", {"dataset": "nobody/nothing"})
    assert line.endswith("cannot be loaded: ConnectionError: no network")
    assert capfd.readouterr() == ("", "") and not caplog.messages
    logging.getLogger("huggingface_hub").warning("heard again")
    assert caplog.messages == ["heard again"]


@pytest.mark.parametrize("column", ["text", "label"])
def test_empty_rows_of_a_data_set_are_refused(column, tmp_path):
    """They would become the word, or the class, "None"."""
    import datasets

    columns = {"text": ["a", "b", "c"], "label": ["x", "y", "x"]}
    columns[column][1] = None
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path))
    line = refusal("text_classification", {"dataset": str(tmp_path)})
    message = f"column {column!r} of its train split is empty in row 1"
    assert line == f"dataset: given {str(tmp_path)!r}; {message}"
