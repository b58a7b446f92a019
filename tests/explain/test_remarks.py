"""Remarks on a walk are true: every sentence is read and held against plain NumPy."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qkv_jax.explain.facts import (
    asymmetry,
    cosines,
    equal_roles,
    facts_of,
    movement,
    symmetric_share,
)
from qkv_jax.explain.remarks import answers, compared, remarks_on
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.positions import POSITIONS
from qkv_jax.tie import Tie
from tests.support.walks import digits_model, quick_compilation, walked, walked_digits  # noqa: F401

NUMBER = r"(−?[\d.]+(?:e-\d+)?)"


def scores_of(walk):
    """Q K^T as the scores see them, and with scale and bias, head by head."""
    plain = np.stack([walk.query[:, n] @ walk.key[:, n].T for n in range(len(walk.scores))])
    return plain, plain * walk.scale[:, None, None] + (0 if walk.bias is None else walk.bias)


def spread(scores):
    return max(np.abs(head - head.T).max() for head in scores)


def same(text, value):
    """Whether a number that is written with two or three digits is that value."""
    return np.isclose(float(text.replace("−", "-")), value, rtol=0.02, atol=0.0051)


def diagonal(walk):
    mean = sum(walk.weights) / len(walk.weights)
    return mean, np.array([mean[i, i] for i in range(len(mean))])


def check_roles(walk, line):
    x = walk.x.reshape(walk.projected.query.shape)
    roles = {"X": x, "Q": walk.projected.query, "K": walk.projected.key, "V": walk.projected.value}
    sentences = [re.findall("[XQKV]", part) for part in re.findall(r"([XQKV, and]+) are the same", line)]
    for one in roles:
        for other in roles:
            equal = np.allclose(roles[one], roles[other], rtol=0, atol=1e-5)
            assert equal == (one == other or any({one, other} <= set(group) for group in sentences))
    if not sentences:
        one, other, apart = re.search(
            rf"closest two, (.) and (.), by up to {NUMBER}\.", line
        ).groups()
        assert same(apart, np.abs(roles[one] - roles[other]).max())


def check_symmetry(walk, line):
    plain, scaled = scores_of(walk)
    symmetric = spread(plain) <= 1e-5 * np.abs(plain).max()
    assert same(re.search(rf"max \|S − Sᵀ\| = {NUMBER}", line)[1], spread(plain))
    if line.startswith("Scores are not symmetric"):
        assert not symmetric
        even = sum(np.square(head + head.T).sum() for head in plain) / 4 / np.square(plain).sum()
        assert same(re.search(rf"part has {NUMBER} of", line)[1], even)
        return
    assert symmetric and line.startswith(("Scores are symmetric in ", "QKᵀ is symmetric in "))
    biased = spread(scaled) > 1e-5 * np.abs(scaled).max()
    assert biased == line.startswith("QKᵀ")
    if biased:
        assert same(re.search(rf"difference is up to {NUMBER} ", line)[1], spread(scaled))
    else:
        differ = re.search(rf"weights still differ, by up to {NUMBER},", line)
        apart = spread(walk.weights)
        assert same(differ[1], apart) if differ else apart < 1e-4
        assert ("after rotary" in line) == (walk.config.positions == "rotary")


def check_itself(walk, line):
    if walk.hidden is not None:
        assert "hides every token" in line and not np.diagonal(walk.weights, 0, 1, 2).any()
        return
    mean, own = diagonal(walk)
    most = [max(v for j, v in enumerate(row) if j != i) for i, row in enumerate(mean)]
    count, total = map(int, re.search(r"(\d+) of (\d+) tokens? attend", line).groups())
    assert (count, total) == (sum(own > np.array(most) + 1e-5), len(own))
    equal = re.search(r", (\d+) as much to another", line)
    assert int(equal[1] if equal else 0) == sum(abs(own - np.array(most)) <= 1e-5)
    assert same(re.search(rf"average {NUMBER}", line)[1], own.mean())
    for token, weight in zip(walk.tokens, own, strict=True):
        assert f"{token} {weight:.2f}," in line


def check_spread(walk, line):
    exps = [
        np.exp(-sum(w * np.log(w) for w in row if w > 0)) for head in walk.weights for row in head
    ]
    assert abs(float(re.search(rf"over {NUMBER} of", line)[1]) - np.mean(exps)) <= 0.0501


def check_output(walk, base, line):
    apart = np.sqrt(np.square(walk.output - base.output).sum() / np.square(base.output).sum())
    assert float(re.search(r"by (\S+) %", line)[1]) == pytest.approx(
        100 * apart, rel=0.06, abs=0.51
    )


def check_remarks(walks):
    """Every sentence on every walk is one of those known here, and true."""
    for walk, lines in zip(walks, remarks_on(walks), strict=True):
        roles, symmetry, itself, spread_line, parameters, *output = lines
        check_roles(walk, roles)
        check_symmetry(walk, symmetry)
        check_itself(walk, itself)
        check_spread(walk, spread_line)
        assert parameters.startswith(f"{walk.parameters} parameters of attention, ")
        assert len(output) == (walk is not walks[0])
        for line in output:
            check_output(walk, walks[0], line)


def check_answer(walk, line):
    """ "Yes" where Q, K and V are X, "No" where none is; the cosines are those of the others."""
    x = walk.x.ravel()
    arrays_of = dict(zip("QKV", (role.ravel() for role in walk.projected), strict=True))
    copies = [role for role, a in arrays_of.items() if np.allclose(a, x, rtol=0, atol=1e-5)]
    assert line.split(".")[0] == ("No", "In part", "In part", "Yes")[len(copies)]
    for role, a in arrays_of.items():
        cosine = re.search(rf"[ :,]{role} {NUMBER}[, (]", line)
        if role in copies:
            assert cosine is None
        else:
            assert same(cosine[1], a @ x / np.linalg.norm(a) / np.linalg.norm(x))
    equal = [{a, b} for a in "QKV" for b in "QKV" if a < b and a not in copies and b not in copies
             and np.allclose(arrays_of[a], arrays_of[b], rtol=0, atol=1e-5)]  # fmt: skip
    assert ("the same numbers as each other" in line) == bool(equal)


@pytest.mark.parametrize("positions", POSITIONS)
def test_remarks_are_true_of_every_tie(positions):
    """All 15 beside each other; without positions, of a text in which a word comes twice."""
    text = "the cat the" if positions == "none" else "the cat sat"
    walks = [walked(str(tie), positions, text)[0] for tie in Tie.all()]
    check_remarks(walks)
    for walk, line in zip(walks, answers(walks), strict=True):
        name, _, sentences = line.partition(": ")
        assert name == walk.name
        check_answer(walk, sentences)
    for walk, row in zip(walks, compared(walks)[1:], strict=True):
        same_numbers = {frozenset(group) for group in walk.tie.groups if len(group) > 1}
        assert {frozenset(g.split("=")) for g in row[1].split(", ")} - {frozenset({"none"})} == (
            same_numbers
        )
        assert same(row[2], spread(scores_of(walk)[0])) and row[6] == str(walk.parameters)


OPTIONS = [
    {"tie": "Q=K", "qk_norm": True},
    {"tie": "Q=K", "qk_norm": True, "positions": "rotary"},
    {"tie": "Q=K", "diagonal_mask": True},
    {"tie": "Q=K", "adapters": {"query": "head:1.0"}},
    {"tie": "Q=K", "adapters": {"query": "diag"}},
    {"tie": "Q=K", "adapters": {"query": "diag"}, "positions": "rotary"},
    {"tie": "Q=K", "positions": "alibi", "scale": "learned_per_head"},
    {"tie": "Q=K", "positions_2d": True},
    {"tie": "Q=K=V", "use_bias": True, "heads": 1},
    {"tie": "copies", "heads": 4, "positions": "relative"},
    {"tie": "K=V", "kv_heads": 2, "heads": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_remarks_are_true_of_every_option(options):
    walk = walked_digits(digits_model(**options), "3141")
    (lines,) = remarks_on([walk])
    if walk.config.heads == 1:
        assert all("head" not in line for line in lines)
        lines[1] = lines[1].replace("symmetric:", "symmetric in it:")
    check_roles(walk, lines[0])
    check_symmetry(walk, lines[1])
    check_itself(walk, lines[2])
    check_spread(walk, lines[3])
    check_answer(walk, answers([walk])[0])


def test_what_leaves_shared_scores_symmetric():
    """With Q=K: every kind of position but a learned relative bias does, rotary ones included (both
    sides turn alike), and so do norms and diagonals, but not under rotary positions."""
    symmetric = lambda **options: facts_of(walked_digits(digits_model(tie="Q=K", **options)))
    for positions in POSITIONS:
        found = symmetric(positions=positions)
        assert found.asymmetry == 0 and found.symmetric_share == 1
        assert (found.asymmetry_biased > 0.01) == (positions == "relative")
    for options in ({"qk_norm": True}, {"adapters": {"query": "diag"}}):
        assert symmetric(**options).asymmetry < 1e-6
        assert symmetric(**options, positions="rotary").asymmetry > 0.001
    assert symmetric(adapters={"query": "head:1.0"}).asymmetry > 0.001


@settings(max_examples=60, deadline=None)
@given(arrays(float, (2, 3, 3), elements=st.integers(-2, 2).map(float)))
def test_remarks_are_true_of_any_scores(scores):
    """Of small whole numbers, among which many are equal."""
    powers = np.exp(scores)
    weights = powers / powers.sum(-1, keepdims=True)
    walk = walked()[0]._replace(
        scores=scores, query=np.moveaxis(scores, 0, 1), key=np.stack([np.eye(3)] * 2, 1),
        scale=np.ones(2), bias=None, scaled=scores, weights=weights,
    )  # fmt: skip
    (lines,) = remarks_on([walk])
    check_symmetry(walk, lines[1])
    check_itself(walk, lines[2])
    check_spread(walk, lines[3])


def test_one_token_has_little_to_say():
    sentences = " ".join(remarks_on([walked(text="alone")[0]])[0])
    assert "The only token has nobody to attend to but itself." in sentences
    assert "symmetric" not in sentences and "spreads" not in sentences


def test_equal_roles_are_the_groups_of_the_tie():
    for tie in Tie.all():
        groups, apart = equal_roles(walked(str(tie))[0])
        assert {frozenset(group) for group in groups} == {frozenset(g) for g in tie.groups}
        for pair, difference in apart.items():
            assert (difference == 0) == tie.equates(*pair)


def test_facts_in_closed_form():
    """Symmetric shares of a symmetric and an antisymmetric matrix, and their mean by chance; the
    spread and the diagonal of equal weights and of weights on oneself alone; cosines."""
    a = np.array([[[1.0, 2.0], [5.0, 3.0]]])
    even, odd = a + a.swapaxes(1, 2), a - a.swapaxes(1, 2)
    assert symmetric_share(even) == 1 and symmetric_share(odd) == 0 and asymmetry(odd) == 6
    np.testing.assert_allclose(symmetric_share(np.array([[[1.0, 1.0], [-1.0, 1.0]]])), 0.5)
    walk, _ = walked()
    drawn = np.random.default_rng(0).normal(size=(20_000, 3, 3))
    chance = facts_of(walk).symmetric_chance
    np.testing.assert_allclose(symmetric_share(drawn), chance, atol=0.005)
    equal = facts_of(walk._replace(weights=np.full((2, 3, 3), 1 / 3)))
    np.testing.assert_allclose((equal.reach, equal.on_itself), (3, 1 / 3))
    assert (equal.to_itself, equal.to_others) == (0, 0)
    alone = facts_of(walk._replace(weights=np.stack([np.eye(3)] * 2)))
    assert (alone.reach, alone.on_itself, alone.to_itself) == (1, 1, 3)
    q = -2 * walk.x.reshape(3, 2, 4)
    turned = walk._replace(projected=walk.projected._replace(query=q))
    np.testing.assert_allclose(cosines(turned)["Q"], -1)


def test_movement_is_told_of_what_can_move():
    """In shares of the first size; not of roles that are X, nor of an output projection that is not
    there."""
    walk, _ = walked()
    moved = walk._replace(layer=walk.layer._replace(query=2 * walk.layer.query))
    assert movement(walk.layer, moved) == {"W_Q": 1, "W_K": 0, "W_V": 0, "W_O": 0}
    sentences = remarks_on([walk, moved], walk.layer)
    assert "Its matrices are as they were drawn at the start." in sentences[0]
    assert "Training has moved W_Q by 100 %, W_K by 0 %, W_V by 0 % and W_O by 0 % of" in sentences[1][4]
    copies, _ = walked("copies")
    assert movement(copies.layer, copies) == {"W_O": 0}
    assert compared([copies], copies.layer)[1][-1] == "–/–/–"
    config = ModelConfig(layers=1, width=8, heads=2, output_projection=False)
    assert "W_O" not in movement(walk.layer, walk._replace(config=config))


def test_remarks_compare_with_the_first_tie():
    """The numbers of the sentences, computed again."""
    walks = [walked("separate")[0], walked("copies")[0]]
    diagonals = [diagonal(walk)[1].mean() for walk in walks]
    sentences = " ".join(remarks_on(walks)[1])
    assert f"on average {diagonals[1]:.2f} against {diagonals[0]:.2f} under separate" in sentences
    assert "X, Q, K and V are the same numbers: max difference = 0." in sentences
    assert "64 parameters of attention, no projections for Q, K and V; 256 parameters" in sentences
