"""ListOps: well-formed expressions within their limits, answers of a plain-Python evaluator."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import Data, make_task
from qkv_jax.tasks.generated.listops import OPERATORS
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

SPLITS = ("train", "validation", "test")
WORDS = [*"0123456789", *(f"[{name}" for name in OPERATORS), "]", "<class>", "<pad>"]
CASES = {
    "default": {"length": 32},
    "cramped": {"length": 14, "depth": 4, "arguments": 3, "nested": 1.0},
    "flat": {"length": 6, "depth": 1, "arguments": 2, "operators": ("SM",)},
}
SIZE = 400


@functools.cache
def draw(case, split):
    """The task and SIZE examples of a split, as NumPy arrays."""
    task = make_task("listops", CASES[case])
    generate = jax.jit(lambda key: task.generate(key, SIZE, split))
    return task, jax.tree.map(np.asarray, generate(jax.random.key(11)))


def words(case, split):
    """(words without class token and padding, answer) of every example."""
    _, batch = draw(case, split)
    rows = []
    columns = [batch[name].tolist() for name in ("inputs", "valid", "targets")]
    for tokens, real, answer in zip(*columns, strict=True):
        text = [WORDS[token] for token in tokens]
        end = sum(real)
        assert real == [True] * end + [False] * (len(text) - end)
        assert text[0] == "<class>" and set(text[end:]) <= {"<pad>"}
        rows.append((text[1:end], answer))
    return rows


def parse(text):
    """The tree of an expression: a digit or (operator, arguments); fails unless it is one."""

    def read(place):
        if text[place].isdigit():
            return int(text[place]), place + 1
        assert text[place][0] == "["
        operator, place, arguments = text[place][1:], place + 1, []
        while text[place] != "]":
            argument, place = read(place)
            arguments.append(argument)
        return (operator, arguments), place + 1

    tree, end = read(0)
    assert end == len(text)
    return tree


def value(tree):
    """As the published generator has it: the median of an even number is `int` of their mean."""
    if isinstance(tree, int):
        return tree
    operator, arguments = tree[0], [value(argument) for argument in tree[1]]
    return {
        "MAX": max,
        "MIN": min,
        "MED": lambda numbers: int(np.median(numbers)),
        "SM": lambda numbers: sum(numbers) % 10,
    }[operator](arguments)


def depth(tree):
    return 0 if isinstance(tree, int) else 1 + max(map(depth, tree[1]))


def operators(tree):
    """Every (operator, number of arguments)."""
    if isinstance(tree, int):
        return []
    return [(tree[0], len(tree[1])), *(found for child in tree[1] for found in operators(child))]


@pytest.mark.parametrize(
    ("case", "split"),
    [*(("default", split) for split in SPLITS), ("flat", "train"), ("cramped", "test")],
)
def test_expressions_are_well_formed_keep_their_limits_and_have_the_right_answer(case, split):
    """Parsed and worked out in plain Python, each of hundreds."""
    task, _ = draw(case, split)
    kinds, lengths, depths = collections.Counter(), set(), set()
    for text, answer in words(case, split):
        tree = parse(text)
        assert value(tree) == answer
        assert not isinstance(tree, int)
        kinds.update(operators(tree))
        lengths.add(len(text))
        depths.add(depth(tree))
    assert {name for name, _ in kinds} == set(task.operators)
    assert {count for _, count in kinds} == set(range(2, task.arguments + 1))
    assert max(lengths) <= task.length and min(lengths) >= 4
    if case == "cramped":  # it is the length that stops these
        assert max(depths) == 4 and max(lengths) == task.length
    else:
        assert depths == set(range(1, task.depth + 1))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),  # the example of the paper
        ("[MED 2 5 ]", 3),
        ("[MED 0 1 ]", 0),
        ("[MED 9 1 4 ]", 4),
        ("[MED 7 7 1 8 ]", 7),
        ("[SM 9 9 9 ]", 7),
        ("[SM 5 [SM 4 1 ] [MED 3 8 ] ]", 5),
        ("[MIN [MAX 3 [SM 8 1 ] ] 9 9 ]", 9),
    ],
)
def test_known_expressions_have_their_known_values(text, answer):
    """Worked out by hand, by the oracle and by the scan."""
    assert value(parse(text.split())) == answer
    tokens = [WORDS.index(word) for word in text.split()]
    row = jnp.asarray([tokens + [WORDS.index("<pad>")] * (16 - len(tokens))])
    assert evaluate()(row).tolist() == [answer]


@functools.cache
def evaluate():
    return jax.jit(make_task("listops", {"length": 16}).evaluate)


def checksum(text):
    """The n-th digit x counts m (x + 1) mod 11 - 1 with m = n mod 10 + 1."""
    digits = [int(word) for word in text if word.isdigit()]
    return sum((n % 10 + 1) * (x + 1) % 11 - 1 for n, x in enumerate(digits)) % 10


@pytest.mark.parametrize("case", ["default", "flat"])
def test_splits_are_disjoint_and_digits_uniform(case):
    """The checksum is 0 in validation, 1 in test, any other in training; and the last digit, which
    brings it about, is as uniform as the first."""
    for split in SPLITS:
        texts = [text for text, _ in words(case, split)]
        sums = {checksum(text) for text in texts}
        assert sums == {"validation": {0}, "test": {1}}.get(split, set(range(2, 10)))
        for place in (0, -1):
            digits = [[int(word) for word in text if word.isdigit()][place] for text in texts]
            counts = np.bincount(digits, minlength=10)
            assert np.abs(counts - SIZE / 10).max() < 4.5 * np.sqrt(SIZE / 10)


def test_the_answers_of_a_flat_sum_do_not_betray_its_split():
    """Were the checksum the sum, all sums of test would be 1 and none of training."""
    shares = {}
    for split in SPLITS:
        counts = np.bincount([answer for _, answer in words("flat", split)], minlength=10)
        shares[split] = counts / SIZE
        assert (counts > 0).sum() >= 9
    for split in ("validation", "test"):
        assert np.abs(shares["train"] - shares[split]).sum() / 2 < 0.25


def test_nesting_is_as_likely_as_the_config_says():
    """Of the places where an operator may stand and fits. `default` is roomy enough for that to be
    nearly every place one level down."""
    inner = [
        isinstance(argument, tuple)
        for split in SPLITS
        for text, _ in words("default", split)
        for argument in parse(text)[1][:2]  # the first arguments come while there is room
    ]
    assert abs(np.mean(inner) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(inner))


def test_the_breakdown_is_the_depth_of_nesting():
    """How many operators are open at once at most, as the parser finds it."""
    task, batch = draw("default", "test")
    breakdown = task.breakdown(batch)
    assert breakdown.name == "depth"
    assert list(breakdown.groups) == [depth(parse(text)) for text, _ in words("default", "test")]


def test_the_reference_is_the_most_frequent_answer():
    """That of validation, on test."""
    task, test = draw("default", "test")
    validation = draw("default", "validation")[1]
    (reference,) = task.references(Data(validation, test))
    frequent = collections.Counter(validation["targets"].tolist()).most_common(1)[0][0]
    shares = {answer: np.mean(test["targets"] == answer) for answer in range(10)}
    assert reference.value == pytest.approx(shares[frequent])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"arguments": 1}, "arguments: given 1; must be at least 2"),
        ({"length": 6}, "length: given 6; must be at least 7, to hold one operator's arguments"),
        ({"depth": 0}, "depth: given 0; must be a whole number above 0"),
        ({"nested": 1.1}, "nested: given 1.1; must be at least 0 and at most 1"),
        ({"operators": ()}, "operators: given (); must name each operator once, at least one of "
                            "MAX, MIN, MED, SM"),
        ({"operators": ("SM", "SM")}, "operators: given ('SM', 'SM'); must name each operator "
                                      "once, at least one of MAX, MIN, MED, SM"),
        ({"operators": ("SUM",)}, "operators: given 'SUM'; allowed: MAX, MIN, MED, SM"),
    ],
)  # fmt: skip
def test_expressions_that_cannot_be_are_refused(options, line):
    """One line each: the field, what was given, what is allowed."""
    with pytest.raises(ConfigError) as refusal:
        make_task("listops", options)
    assert str(refusal.value) == f"task.options.{line}"


def test_a_tiny_encoder_learns_from_padded_expressions():
    """Padding mask, class token, training and scores together: better than chance on test."""
    task, batch = draw("default", "train")
    config = TrainConfig(steps=96, report_every=96, batch_size=25)
    trainer = Trainer(ModelConfig(layers=1, width=16, heads=2), task, config)
    state = initial_state(trainer, 1e-2)
    schedule = jax.tree.map(lambda x: np.concatenate([x.reshape(16, 25, *x.shape[1:])] * 6), batch)

    @jax.jit
    def run(state, test):
        state, metrics = trainer.train(state, schedule, None)
        return metrics, trainer.evaluate(state.params, test)

    metrics, scores = run(state, draw("default", "test")[1])
    assert not metrics["diverged"] and metrics["loss"] < np.log(10)
    assert scores.shape == (SIZE,) and scores.mean() > 0.15


def initial_state(trainer, rate):
    """As `Trainer.init` has it, but drawn by NumPy: JAX takes longer to compile its own draws than
    to train this model."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(trainer.init, np.uint32(0), rate)
    )
    drawn = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape) if x.ndim > 1 else x + 1, x.dtype)
    return state.replace(params=jax.tree.map(drawn, state.params), learning_rate=jnp.float32(rate))
