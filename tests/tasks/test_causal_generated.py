"""Causal recall and induction: against the definitions, read with plain Python."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task
from qkv_jax.tasks.generated.mqar import distinct_of_many

SMALL = {"length": 24, "pairs": 3, "vocabulary": 40, "train_examples": 50, "test_examples": 20}


def mqar(**options):
    return make_task("mqar", SMALL | options)


def drawn(task, size=200, seed=0):
    batch = task.generate(jax.random.key(seed), size, "train")
    return jax.tree.map(np.asarray, batch)


def rows(batch):
    return zip(*(batch[name].tolist() for name in ("inputs", "read", "targets")), strict=True)


# --- recall


@pytest.mark.parametrize("noise", [True, False])
def test_every_query_asks_for_the_value_that_followed_its_key(noise):
    """Keys from 1 .. V/2 - 1, values from V/2 on, each once among the pairs; every key is asked for
    once, at an even place behind the pairs, and what is asked for stood behind it there."""
    task = mqar(noise=noise)
    for tokens, places, answers in rows(drawn(task)):
        keys, values = tokens[0:6:2], tokens[1:6:2]
        assert len(set(keys)) == 3 and all(1 <= key < 20 for key in keys)
        assert len(set(values)) == 3 and all(20 <= value < 40 for value in values)
        assert sorted(tokens[place] for place in places) == sorted(keys)
        for place, answer in zip(places, answers, strict=True):
            assert place >= 6 and place % 2 == 0
            assert answer == tokens[tokens.index(tokens[place]) + 1]
        rest = [t for place, t in enumerate(tokens) if place >= 6 and place not in places]
        assert noise or set(rest) == {0}


def test_noise_is_any_token_of_the_vocabulary():
    """Keys and values among it, and the token 0; uniform."""
    batch = drawn(mqar(), size=2000)
    is_noise = np.ones_like(batch["inputs"], bool)
    is_noise[:, :6] = False
    np.put_along_axis(is_noise, batch["read"], False, axis=1)
    counts = np.bincount(batch["inputs"][is_noise], minlength=40)
    expected = counts.sum() / 40
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0])
def test_gaps_follow_the_power_law(alpha):
    """The first key's query is at the n-th even place with a probability in proportion to
    n^(alpha - 1); that of the second, drawn from the places left, is the sum over the first's."""
    task, size = mqar(alpha=alpha), 20_000
    places = (drawn(task, size)["read"] - 6) // 2
    weights = np.arange(1, 10) ** (alpha - 1.0)
    first = weights / weights.sum()
    second = sum(
        p * np.where(np.arange(9) == n, 0, weights) / (weights.sum() - weights[n])
        for n, p in enumerate(first)
    )
    for column, expected in zip(places.T, (first, second), strict=False):
        found = np.bincount(column, minlength=9) / size
        assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / size)


def test_a_fixed_training_set_is_gone_through_in_epochs():
    """50 examples, in batches of 10: five hold each of them once, in an order of the seed's; the
    examples are those of every seed, and held-out ones are others."""
    task = mqar()
    data = task.load()
    assert data.train["inputs"].shape == (50, 24) and data.test["inputs"].shape == (20, 24)

    def epoch(seed):
        entries = task.schedule(data.train, jax.random.key(seed), jnp.int32(0), 5, 10)
        batches = jax.vmap(lambda entry: task.batch(data.train, entry))(entries)
        return [tuple(row) for row in batches["inputs"].reshape(50, 24).tolist()]

    known = {tuple(row) for row in data.train["inputs"].tolist()}
    assert len(known) == 50 and set(epoch(0)) == set(epoch(1)) == known and epoch(0) != epoch(1)
    assert not known & {tuple(row) for row in data.test["inputs"].tolist()}
    assert task.notes(data) == ()
    same = data._replace(train=data.test)
    assert task.notes(same)[-1].startswith("20 of 20 test examples (100 %) are in the training")
    assert task.references(data)[0].value == 1 / 3


def test_fresh_examples_for_ever():
    task = mqar(train_examples=0)
    assert task.load().train is None
    entries = task.schedule(None, jax.random.key(0), jnp.int32(0), 4, 10)
    inputs = np.asarray(jax.vmap(lambda entry: task.batch(None, entry))(entries)["inputs"])
    assert len({tuple(row) for row in inputs.reshape(40, 24).tolist()}) == 40
    task.load()


def test_the_defaults_are_those_of_its_authors():
    task = make_task("mqar", {})
    assert (task.length, task.pairs, task.vocabulary) == (64, 4, 8192)
    assert (task.train_examples, task.test_examples) == (100_000, 3000)
    assert task.classes == 8192 and task.is_causal
    shapes = jax.eval_shape(task.load)
    assert shapes.train["inputs"].shape == (100_000, 64)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"length": 25}, "length: given 25; must be even: queries stand at even places"),
        ({"pairs": 7}, "pairs: given 7; must be at most length / 4 = 6"),
        ({"vocabulary": 24}, "vocabulary: given 24; must be above length = 24"),
        ({"alpha": 1.5}, "alpha: given 1.5; must be at most 1: queries spread evenly"),
        ({"train_examples": -1}, "train_examples: given -1; must be 0 or above"),
    ],
)
def test_recall_that_cannot_be_is_refused(options, line):
    with pytest.raises(ConfigError) as refusal:
        mqar(**options)
    assert str(refusal.value) == f"task.options.{line}"
    mqar(length=24, pairs=6, vocabulary=25, train_examples=0).load()


def test_numbers_of_a_large_population_are_distinct_and_uniform():
    """Every ordered pair of four equally often; the whole population where all are drawn."""
    pairs = np.asarray(distinct_of_many(jax.random.key(0), 12_000, 4, 2)).tolist()
    counts = collections.Counter(map(tuple, pairs))
    assert len(counts) == 12 and all(a != b for a, b in counts)
    assert max(abs(n - 1000) for n in counts.values()) < 5 * np.sqrt(1000)
    whole = np.asarray(distinct_of_many(jax.random.key(1), 500, 6, 6))
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(6), (500, 1)))
    assert all(len(set(column)) == 6 for column in whole.T.tolist())


# --- induction


@pytest.mark.parametrize("trigger", ["drawn", "special"])
def test_induction_asks_for_what_followed_the_trigger(trigger):
    """The last token stands once more before it, anywhere but next to it, and the answer is what
    came after; a special trigger is no symbol, a drawn one any of them."""
    task = make_task("induction", {"trigger": trigger, "length": 9, "symbols": 6})
    firsts, triggers = set(), set()
    batch = drawn(task)
    for (tokens, places, answers), distance in zip(
        rows(batch), task.breakdown(batch).groups, strict=True
    ):
        assert places == [8] and tokens.count(tokens[-1]) == 2
        first = tokens.index(tokens[-1])
        assert answers == [tokens[first + 1]] and answers[0] < task.classes == 6
        assert distance == 8 - first
        firsts.add(first)
        triggers.add(tokens[-1])
    assert firsts == set(range(7))
    assert triggers == ({6} if trigger == "special" else set(range(6)))
    assert task.is_causal and task.stem(4).vocabulary == (7 if trigger == "special" else 6,)


def test_induction_that_cannot_be_is_refused():
    for options, line in [
        ({"length": 2}, "length: given 2; must be at least 3"),
        (
            {"symbols": 3, "trigger": "drawn"},
            "symbols: given 3; must be at least 4, to tell splits apart by the other",
        ),
        ({"trigger": "x"}, "trigger: given 'x'; allowed: drawn, special"),
    ]:
        with pytest.raises(ConfigError) as refusal:
            make_task("induction", options)
        assert str(refusal.value).startswith(f"task.options.{line}")
    make_task("induction", {"length": 3, "symbols": 3}).load()
