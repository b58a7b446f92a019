"""Causal language modelling: windows of files, packed documents, what is asked for and what not."""

import collections
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.tasks.text.packing import best_fit
from qkv_jax.training.state import TrainConfig, model_inputs
from qkv_jax.training.step import Trainer
from tests.support.folders.data_writers import save
from tests.support.folders.text_tables import refusal

SPLITS = ("train", "validation", "test")


def of_file(path, content, kind="causal_bytes", **options):
    path.write_bytes(content)
    return make_task(kind, {"files": (str(path),), "length": 8} | options)


def of_rows(place, kind="causal_bytes", length=8, column="text", **rows):
    """A task on a data set, saved with the splits that are named."""
    import datasets

    if set(rows) == {"train"}:
        name = save(place, {column: rows["train"]})
    else:
        parts = {n: datasets.Dataset.from_dict({column: some}) for n, some in rows.items()}
        datasets.DatasetDict(parts).save_to_disk(str(place))
        name = str(place)
    return make_task(kind, {"dataset": name, "length": length, "text_column": column})


def batch_of(task, train, size=64, steps=2, seed=0):
    """Some training batches as one, NumPy."""

    def draw(key, train):
        entries = task.schedule(train, key, jnp.int32(0), steps, size)
        return jax.vmap(lambda entry: task.batch(train, entry))(entries)

    batches = jax.jit(draw)(jax.random.key(seed), train)
    return {name: np.asarray(a).reshape(-1, *a.shape[2:]) for name, a in batches.items()}


def noise(size, seed=0):
    """Random bytes: any eight in a row are found at one place only."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


# --- windows of files


def test_windows_ask_for_the_byte_that_comes_next(tmp_path):
    """Each input is followed by its target in the file; training windows begin anywhere in the
    first 90 % of a file and never reach from one into the next."""
    (tmp_path / "more").write_bytes(noise(1000, 1))
    task = of_file(tmp_path / "text", noise(2000))
    task = make_task("causal_bytes", {"files": (*task.files, str(tmp_path / "more")), "length": 8})
    batch = batch_of(task, task.load().train, 4000, 1)
    begins = [collections.Counter(), collections.Counter()]
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        window = np.append(inputs, targets[-1]).astype(np.uint8).tobytes()
        assert (inputs[1:] == targets[:-1]).all()
        places = [noise(2000).find(window), noise(1000, 1).find(window)]
        place = max(places)
        begins[places.index(place)][place] += 1
    assert set(begins[0]) <= set(range(1800 - 8)) and set(begins[1]) <= set(range(900 - 8))
    assert {0, 1791} <= set(begins[0]) | {0, 1791} and len(begins[0]) + len(begins[1]) > 2000
    assert max(begins[0]) > 1700 and max(begins[1]) > 850
    assert (batch["weights"] == 1).all() and "documents" not in batch


@pytest.mark.parametrize(("held_out", "ends"), [(0.1, (0.9, 0.95)), (0.5, (0.5, 0.75))])
def test_the_end_of_a_file_is_held_out(held_out, ends, tmp_path):
    """Its first half for validation, its second for test; every place is asked for once at most,
    from the beginning of the split to its very end."""
    task = of_file(tmp_path / "text", noise(2000), held_out=held_out)
    data = task.load()
    bounds = [int(2000 * end) for end in ends] + [2000]
    for split, (low, high) in zip(data.held_out.values(), itertools.pairwise(bounds), strict=True):
        asked = []
        for inputs, targets in zip(split["inputs"], split["targets"], strict=True):
            window = np.append(inputs, targets[-1]).astype(np.uint8).tobytes()
            place = noise(2000).find(window)
            asked += range(place + 1, place + 9)
        assert len(asked) == len(set(asked)) == 8 * ((high - low - 1) // 8)
        assert min(asked) == low + 1 and max(asked) == high - 1
    few = dataclasses.replace(task, test_examples=3)
    kept, whole = few.load().test["inputs"], data.test["inputs"]
    assert len(kept) == 3 and (kept[0] == whole[0]).all() and (kept[-1] == whole[-1]).all()
    assert len(data.train["text"]) == bounds[0]


def test_a_short_end_of_a_file_is_filled_up_and_not_asked_beyond(tmp_path):
    """Of 100 bytes the test part is 5; a second file is long. Its four bytes to be guessed have the
    weight of four."""
    (tmp_path / "long").write_bytes(noise(2000))
    of_file(tmp_path / "short", noise(100, 1))
    files = (str(tmp_path / "short"), str(tmp_path / "long"))
    test = make_task("causal_bytes", {"files": files, "length": 8}).load().test
    tail = np.frombuffer(noise(100, 1), np.uint8)[-5:]
    np.testing.assert_array_equal(test["inputs"][0], [*tail, 256, 256, 256])
    np.testing.assert_array_equal(test["targets"][0], [*tail[1:], 256, 256, 256, 256])
    weights = np.asarray(test["weights"])
    np.testing.assert_allclose(weights[0] / weights[1:], 4 / 8)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)


# --- packed documents


TEXTS = [
    "", "a", "bc", "the quick brown fox jumps", "déjà", "12345678", "123456789", "x" * 17,
    *(f"{i}" * (i % 7) for i in range(30)),
]  # fmt: skip


def spelled(batch, length):
    """The documents that a batch asks for, put together from its rows: bytes of each part, and
    whether it begins a document."""
    parts = []
    for inputs, targets, numbers in zip(
        *(np.asarray(batch[name]) for name in ("inputs", "targets", "documents")), strict=True
    ):
        for number in sorted(set(numbers.tolist()) - {0}):
            here = np.flatnonzero(numbers == number)
            assert (np.diff(here) == 1).all()
            given, asked = inputs[here], targets[here]
            end = len(asked) - (asked[-1] == 256)  # of the last symbol nothing follows
            assert (asked[:end] < 256).all() and end >= 1
            assert (given[1 : end + 1] == asked[: len(given) - 1]).all()
            parts.append((given[0], asked[:end].astype(np.uint8).tobytes()))
        assert (targets[numbers == 0] == 256).all() and (inputs[numbers == 0] == 256).all()
        assert len(numbers) == length
    return parts


def test_every_byte_of_every_document_is_asked_for_once(tmp_path):
    """From a begin-of-text symbol at first; of a document longer than a row the next part is given
    the last byte of the part before. Of all splits, those that a data set brings itself."""
    task = of_rows(tmp_path / "set", train=TEXTS * 3, validation=TEXTS, test=TEXTS[::-1])
    data = task.load()
    train = task.batch(data.train, {"rows": np.arange(len(data.train["windows"]))})
    for batch, times in ((train, 3), (data.validation, 1), (data.test, 1)):
        expected = []
        for text in TEXTS * times:
            whole = text.encode()
            starts = range(0, len(whole), 8)
            expected += [(whole[i - 1] if i else 256, whole[i : i + 8]) for i in starts]
        assert collections.Counter(spelled(batch, 8)) == collections.Counter(expected)
        room = batch["inputs"].size
        assert sum(len(text.encode()) for text in TEXTS) * times <= room
        np.testing.assert_allclose(np.mean(batch["weights"]), 1, rtol=1e-6)


def test_what_a_data_set_lacks_is_cut_off_the_end_of_its_rows(tmp_path):
    rows = [f"text {i:02}" for i in range(40)]
    texts = of_rows(tmp_path / "one", train=rows).texts()
    plain = {name: [part.tobytes().decode() for part in some] for name, some in texts.items()}
    assert plain == {"train": rows[:36], "validation": rows[36:38], "test": rows[38:]}
    texts = of_rows(tmp_path / "two", train=rows, test=rows[:5]).texts()
    assert [len(texts[name]) for name in SPLITS] == [38, 2, 5]


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(2, 9), max_size=40))
def test_best_fit_puts_every_part_into_one_row(sizes):
    """None overfull; and no two rows could have been one."""
    rows = best_fit(sizes, 9)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
    filled = sorted(sum(sizes[part] for part in row) for row in rows)
    assert all(size <= 9 for size in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 9


def test_documents_of_a_row_are_apart_for_loss_and_model(tmp_path):
    """The loss of a packed row is the sum over its documents of what each loses in a row of its
    own; a real model on real batches."""
    texts = ["ab", "cde", "f", "ghij", "klm"] * 4
    task = of_rows(tmp_path / "set", train=texts, length=12)
    trainer = Trainer(
        ModelConfig(width=16, heads=2, layers=2), task, TrainConfig(steps=4, report_every=2)
    )
    params = jax.tree.map(lambda leaf: 8 * leaf, trainer.init_params(0))  # that all is felt
    train = task._batch(**task._packed(task.texts()["train"], "training"))
    apart = [task._batch(**task._packed([text], "training")) for text in task.texts()["train"]]
    counts = [int((a["targets"] < 256).sum()) for a in apart]
    nats = [n * float(trainer.evaluate(params, a)[0]) for n, a in zip(counts, apart, strict=True)]
    asked = sum(counts)
    assert len(train["inputs"]) < len(apart)
    np.testing.assert_allclose(trainer.evaluate(params, train).mean(), sum(nats) / asked, rtol=1e-5)


def test_what_is_not_asked_for_has_no_loss(tmp_path):
    """Whatever the logits say of padding, of begin-of-text and behind a document's end: neither
    loss nor gradient. The mean over rows is the mean over symbols."""
    task = of_rows(tmp_path / "set", train=TEXTS)
    batch = task._batch(**task._packed(task.texts()["train"], "training"))
    asked = np.asarray(batch["targets"]) < 256
    assert not asked.all()
    logits = jax.random.normal(jax.random.key(0), (*asked.shape, 256))
    slopes = jax.grad(lambda x: task.loss(x, batch).mean())(logits)
    assert (np.abs(slopes).max(-1) > 0).tolist() == asked.tolist()
    other = jnp.where(asked[..., None], logits, 100 * logits[::-1])
    np.testing.assert_array_equal(task.loss(other, batch), task.loss(logits, batch))
    chosen = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.where(asked, batch["targets"], 0)[..., None], 2
    )[..., 0]
    np.testing.assert_allclose(task.loss(logits, batch).mean(), -chosen[asked].mean(), rtol=1e-5)
    np.testing.assert_array_equal(task.score(logits, batch), task.loss(logits, batch))


# --- training


@pytest.mark.parametrize("of", ["files", "rows"])
def test_streamed_batches_are_those_of_the_device(of, tmp_path):
    """Windows of the same texts; the same rows, each once an epoch."""
    if of == "files":
        task = of_file(tmp_path / "text", noise(400), device_limit_bytes=1)
    else:
        task = of_rows(tmp_path / "set", train=TEXTS * 2)
        task = make_task("causal_bytes", {"dataset": task.dataset, "length": 8,
                                          "device_limit_bytes": 1})  # fmt: skip
    data = task.load()
    assert data.train is None
    assert task.schedule(None, jax.random.key(0), jnp.int32(0), 2, 4) == {}
    stream = task.stream(None, 0, 4)
    rows = [task.batch(None, next(stream)) for _ in range(8)]
    if of == "files":
        for batch in rows:
            for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
                window = np.append(inputs, targets[-1]).astype(np.uint8).tobytes()
                assert 0 <= noise(400).find(window) < 360 - 8
    else:
        packed = task._packed(task.texts()["train"], "training")
        known = {row.tobytes() for row in np.asarray(task._batch(**packed)["targets"])}
        found = [np.asarray(row).tobytes() for batch in rows for row in batch["targets"]]
        assert set(found) <= known


@pytest.mark.parametrize("of", ["files", "rows"])
def test_a_model_learns_what_comes_next(of, tmp_path):
    """Letters in their order: below what pairs of letters leave, were there a choice."""
    letters = "abcdefgh" * 40
    if of == "files":
        task = of_file(tmp_path / "text", (letters * 4).encode(), length=16)
    else:
        task = of_rows(tmp_path / "set", train=[letters[:n] for n in range(8, 40)] * 3, length=40)
    config = TrainConfig(steps=60, report_every=60, batch_size=16, learning_rate=2e-2)
    trainer, data = Trainer(ModelConfig(width=32, heads=2, layers=1), task, config), task.load()
    state = trainer.init(0, config.learning_rate)
    schedule = jax.jit(trainer.schedule)(state.seed, state.step, data.train)
    state, _ = jax.jit(trainer.train)(state, schedule, data.train)
    loss = float(trainer.evaluate(state.params, data.test).mean())
    assert loss < 0.3 < task.references(data)[0].value


def test_the_example_has_the_shapes_of_a_batch(tmp_path):
    """Of what the model sees: documents only where there are several in a row."""
    file = of_file(tmp_path / "text", noise(2000))
    rows = of_rows(tmp_path / "set", train=TEXTS * 2)
    for task in (file, rows):
        seen = model_inputs(task.load().test)
        announced = jax.tree.map(lambda x: (x.shape[1:], x.dtype), task.example())
        assert announced == jax.tree.map(lambda x: (x.shape[1:], x.dtype), seen)
        assert task.is_causal and task.encoder(ModelConfig(width=8, heads=2)).is_causal
    assert "documents" not in file.example() and "documents" in rows.example()


# --- symbols


def test_characters_are_those_of_the_training_split(tmp_path):
    """In order; what test has beside them is one unknown symbol: read, not asked for, and said."""
    text = "aé日𝄞 b" * 50 + "zéx日" * 4
    task = of_file(tmp_path / "text", text.encode(), kind="causal_characters")
    assert task.characters == " abé日𝄞" and task.classes == 6
    assert task.outcome.unit == "nats/character"
    data = task.load()
    cut = text[len(text) - int(0.05 * len(text)) :]
    numbers = {character: i for i, character in enumerate(task.characters)}
    expected = [numbers.get(character, 6) for character in cut]
    window = [*data.test["inputs"][0].tolist(), int(data.test["targets"][0, -1])]
    assert window == expected[:9] and 6 in expected
    unknown = f"{sum(n == 6 for n in expected)} characters of the test split are in no training"
    assert any(note.startswith(unknown) for note in task.notes(data))
    lengths = [len(c.encode()) for c, n in zip(cut, expected, strict=True) if n < 6]
    asked = np.asarray(data.test["targets"]) < 6
    spelled = task.symbol_bytes()[np.asarray(data.test["targets"])[asked]]
    assert set(spelled) <= set(lengths)


def test_characters_of_a_data_set(tmp_path):
    rows = ["né"] * 36 + ["n"] * 2 + ["éz"] * 2
    task = of_rows(tmp_path / "set", "causal_characters", train=rows)
    assert task.characters == "né"
    batch = task.load().test
    assert (np.asarray(batch["targets"]) < 2).sum() == 2  # é twice; z is unknown
    assert task.fingerprint(task.load())["classes"] == ["n", "é"]


def test_tokens_are_learned_from_training_texts_alone(tmp_path):
    """As masked ones are; bits per byte count the bytes of each."""
    text = b"the cat sat on the mat and " * 60
    task = of_file(tmp_path / "text", text, kind="causal_tokens", vocabulary=270)
    data = task.load()
    masked = make_task("masked_tokens", {"files": task.files, "length": 8, "vocabulary": 270})
    for name in SPLITS:
        np.testing.assert_array_equal(task.symbols()[name][0], masked.texts()[name][0])
    assert (task.classes, task.outcome.unit) == (270, "nats/token")
    targets = np.asarray(data.test["targets"])
    found = task.also(1.0, data)
    spelled = task.symbol_bytes()[targets[targets < 270]].mean()
    assert spelled > 1.5 and (task.symbol_bytes()[:256] == 1).all()
    assert math.isclose(found["bits per byte"], 1 / math.log(2) / spelled)
    assert math.isclose(found["perplexity"], math.e)
    assert (
        f"Perplexity is e to the nats per token; times {found['bits per byte']:.4f} these are bits"
        in task.notes(data)[0]
    )


# --- what is printed beside the arms


@pytest.mark.parametrize("of", ["files", "rows"])
def test_references_are_the_counts_of_training(of, tmp_path):
    """Against plain Python: one added to each single count; successors smoothed by Witten and Bell;
    of documents the first byte comes after begin-of-text."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(60)]
    if of == "files":
        task = of_file(tmp_path / "text", "".join(words * 3).encode())
    else:
        task = of_rows(tmp_path / "set", train=words)
    data = task.load()
    train = [[256, *text.tolist()] for text in task.symbols()["train"]]
    singles = collections.Counter(x for text in train for x in text[1:])
    pairs = collections.Counter(pair for text in train for pair in itertools.pairwise(text))
    total = sum(singles.values()) + 256
    unigram, bigram = [], []
    for inputs, targets in zip(data.test["inputs"].tolist(), data.test["targets"].tolist(),
                               strict=True):  # fmt: skip
        for before, after in zip(inputs, targets, strict=True):
            if after == 256:
                continue
            share = (singles[after] + 1) / total
            seen = sum(n for (b, _), n in pairs.items() if b == before)
            different = sum(b == before for b, _ in pairs)
            unigram.append(-math.log(share))
            bigram.append(-math.log((pairs[before, after] + different * share)
                                    / (seen + different)))  # fmt: skip
    found = {reference.name: reference.value for reference in task.references(data)}
    assert math.isclose(found["unigrams"], np.mean(unigram), rel_tol=1e-9)
    assert math.isclose(found["bigrams"], np.mean(bigram), rel_tol=1e-9)


def test_notes_say_what_is_in_training_as_well_and_what_is_left_out(tmp_path):
    (tmp_path / "short").write_bytes(noise(9, 3))
    of_file(tmp_path / "text", b"abcdefgh" * 100)
    files = (str(tmp_path / "text"), str(tmp_path / "short"))
    task = make_task("causal_bytes", {"files": files, "length": 8})
    notes = " ".join(task.notes(task.load()))
    assert "4 of 4 test windows (100 %) are in the training split as well." in notes
    assert "The test split has room for 4 of 2048 windows." in notes
    task = of_rows(tmp_path / "set", train=["abc", "abd"] * 20 + ["xyz", "abc"])
    notes = " ".join(task.notes(task.load()))
    assert "1 of 2 test documents (50 %) are in the training split as well." in notes


# --- refusals


def test_texts_that_cannot_be_are_refused_in_one_line(tmp_path):
    path = str(tmp_path / "text")
    options = {"files": (path,), "length": 8}
    for content, kind, more, line in [
        (b"", "causal_bytes", {}, "is empty"),
        (b"", "causal_characters", {}, "is empty"),
        (b"abc", "causal_bytes", {}, "holds 3 bytes; a sequence needs 9"),
        ("äöü".encode(), "causal_characters", {}, "holds 3 characters; a sequence needs 9"),
        (b"abc " * 100 + b"\xff", "causal_bytes", {"encoding": "utf-8"},
         "is not UTF-8 at byte 400"),
        (b"abc\n" * 100 + b"\xff", "causal_characters", {}, "is not UTF-8 at byte 400 (line 101)"),
        (b"abcd" * 10, "causal_bytes", {}, "too short: the validation split (5 % of the text) must "
                                           "hold at least one sequence of 9 bytes"),
        (b"abcd" * 10, "causal_bytes", {"held_out": 0.9, "length": 4},
         "too short: the training split must hold at least one sequence of 5 bytes"),
        (b"a" * 500, "causal_characters", {}, "the training split has fewer than two characters"),
    ]:  # fmt: skip
        (tmp_path / "text").write_bytes(content)
        assert refusal(kind, options | more) == f"files: given {path!r}; {line}"
    line = refusal("causal_bytes", options | {"held_out": 1.0})
    assert line == "held_out: given 1.0; must be at least 0.0 and below 1.0"
    line = refusal("causal_characters", options | {"encoding": "bytes"})
    assert line == "encoding: given 'bytes'; allowed: utf-8"


def test_data_sets_without_texts_are_refused(tmp_path):
    empty = of_rows(tmp_path / "empty", train=[""] * 40)
    line = refusal("causal_bytes", {"dataset": empty.dataset})
    assert line.endswith("; the validation split has no text to guess")
    few = of_rows(tmp_path / "few", train=["abc"] * 5)
    line = refusal("causal_bytes", {"dataset": few.dataset})
    assert line.endswith("; the validation split has no text to guess")
