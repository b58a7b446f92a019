"""The lattice of ties: there are 15, they print and parse as one, and refinement orders them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv_jax.tie import ELEMENTS, Tie, TieError, parse_schedule

# name: the parameter (or X) that query, key and value read, as the table of the design has it.
TABLE = {
    "separate": ("query", "key", "value"),
    "K=V": ("query", "key", "key"),
    "Q=K": ("query", "query", "value"),
    "Q=V": ("query", "key", "query"),
    "Q=K=V": ("query", "query", "query"),
    "Q=X": ("X", "key", "value"),
    "K=X": ("query", "X", "value"),
    "V=X": ("query", "key", "X"),
    "Q=X,K=V": ("X", "key", "key"),
    "K=X,Q=V": ("query", "X", "query"),
    "V=X,Q=K": ("query", "query", "X"),
    "Q=K=X": ("X", "X", "value"),
    "Q=V=X": ("X", "key", "X"),
    "K=V=X": ("query", "X", "X"),
    "Q=K=V=X": ("X", "X", "X"),
}
LEARNED = dict(zip(TABLE, (3, 2, 2, 2, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0), strict=True))


def blocks(tie):
    return {frozenset(group) for group in tie.groups}


def connected(equalities):
    """The partition that pairs of equal elements generate, by merging until nothing changes."""
    partition = {frozenset(element) for element in ELEMENTS}
    for pair in equalities:
        touched = {block for block in partition if block & set(pair)}
        partition = (partition - touched) | {frozenset().union(*touched)}
    return partition


@st.composite
def writings(draw):
    """(text, partition): equalities in any order, case and spacing, overlapping or not."""
    group = st.lists(st.sampled_from(ELEMENTS), min_size=2, max_size=4, unique=True)
    equalities = draw(st.lists(group, min_size=1, max_size=4))
    space = st.sampled_from(["", " ", "\t", "  ", "\n"])
    letter = lambda e: draw(space) + draw(st.sampled_from([e, e.lower()])) + draw(space)
    text = ",".join("=".join(letter(e) for e in members) for members in equalities)
    return text, connected(equalities)


def test_there_are_as_many_ties_as_partitions_and_no_more():
    """`Tie.all` is the set of all partitions of four elements, found here by brute force."""
    partitions = set()
    for labels in itertools.product(range(4), repeat=4):
        named = list(zip(ELEMENTS, labels, strict=True))
        members = [frozenset(e for e, label in named if label == n) for n in set(labels)]
        partitions.add(frozenset(members))
    assert len(partitions) == 15  # the Bell number B(4)
    assert {frozenset(blocks(tie)) for tie in Tie.all()} == partitions
    assert len(Tie.all()) == 15


def test_the_order_is_that_of_the_table():
    assert [str(tie) for tie in Tie.all()] == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_roles_read_the_sources_of_the_table(name):
    tie = Tie.parse(name)
    assert tuple(tie.source(role) for role in "QKV") == TABLE[name]
    assert len(tie.sources) == LEARNED[name]
    assert list(tie.sources) == [s for s in ("query", "key", "value") if s in TABLE[name]]


@pytest.mark.parametrize("name", TABLE)
def test_canonical_printing_round_trips(name):
    tie = Tie.parse(name)
    assert str(tie) == name
    assert Tie.parse(str(tie)) == tie
    assert Tie.parse(tie) is tie
    assert hash(Tie.parse(name.lower())) == hash(tie)


def test_the_two_aliases():
    assert str(Tie.parse("copies")) == "Q=K=V=X"
    assert str(Tie.parse(" Separate ")) == "separate"
    assert Tie.parse("COPIES") == Tie.all()[-1]


@given(writings())
def test_any_writing_is_read_as_its_closure(writing):
    """Order, case, spacing and redundant equalities do not matter; equality is transitive."""
    text, partition = writing
    tie = Tie.parse(text)
    assert blocks(tie) == partition
    assert tie in Tie.all()
    assert Tie.parse(str(tie)) == tie


@pytest.mark.parametrize("left", Tie.all(), ids=str)
def test_refinement_is_a_partial_order(left):
    for right in Tie.all():
        finer = all(any(block <= other for other in blocks(right)) for block in blocks(left))
        assert (left <= right) == finer
        assert (left < right) == (finer and left != right)
        assert not (left <= right and right <= left) or left == right
        for third in Tie.all():
            assert not (left <= right and right <= third) or left <= third
    assert left <= left and not left < left
    assert Tie.parse("separate") <= left <= Tie.parse("copies")


def test_the_diagram_of_the_lattice_has_31_lines():
    """Covering pairs: 6 above `separate`, 3 above each of those 6, 7 under `copies`."""
    ties = Tie.all()
    covers = [
        (a, b)
        for a, b in itertools.permutations(ties, 2)
        if a < b and not any(a < c < b for c in ties)
    ]
    assert len(covers) == 6 + 6 * 3 + 7


def test_equates():
    tie = Tie.parse("V=X,Q=K")
    assert tie.equates("V", "X") and tie.equates("K", "Q")
    assert not tie.equates("Q", "V") and not tie.equates("Q", "K", "V")


NONSENSE = [
    "K=Z", "Q==K", "", " ", "K", "=", ",", "K=", "=V", "Q=Q", "K=V=K", "Q-K=V", "K=V,", "K=V;Q=X",
    "separate,K=V", "copies,K=V", "QK=V", "Q K", "tied", "K=V*2", "K=V|Q=K",
]  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_with_all_that_can_be_written(text):
    with pytest.raises(TieError) as caught:
        Tie.parse(text)
    assert repr(text) in str(caught.value)
    for name in (*TABLE, "copies"):
        assert repr(name) in str(caught.value)


def test_what_is_no_text_is_refused(unchecked):
    with pytest.raises(TieError, match="3 is not a tie"):
        Tie.parse(3)


@given(st.lists(st.tuples(st.sampled_from(list(TABLE)), st.integers(1, 4)), min_size=1, max_size=4))
def test_schedules_give_each_layer_its_tie(runs):
    """Bottom up, a tie and its number of layers at a time; a count of one may be left out."""
    layers = [Tie.parse(name) for name, count in runs for _ in range(count)]
    text = "|".join(f"{name}*{count}" for name, count in runs)
    assert parse_schedule(text, len(layers)) == tuple(layers)
    loose = " | ".join(f"{n.lower()} * {c}" if c > 1 else n for n, c in runs)
    if "|" in loose or "*" in loose:
        assert parse_schedule(loose, len(layers)) == tuple(layers)
    for wrong in (len(layers) - 1, len(layers) + 1):
        if "|" in text or "*" in text:
            with pytest.raises(TieError, match=f"{len(layers)} layers, but the model has {wrong}"):
                parse_schedule(text, wrong)


def test_a_tie_alone_serves_all_layers():
    assert parse_schedule("k = v", 3) == (Tie.parse("K=V"),) * 3
    assert parse_schedule(Tie.parse("K=V"), 2) == (Tie.parse("K=V"),) * 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("K=V*0|separate*2", "positive whole number"),
        ("K=V*-1|separate*3", "positive whole number"),
        ("K=V*1.5|separate", "positive whole number"),
        ("K=V*|separate", "positive whole number"),
        ("K=V*2*1", "positive whole number"),
        ("K=V|", "is not a tie"),
        ("*2", "is not a tie"),
        ("K=V|K=Z", "'K=Z' is not a tie"),
        ("K=V|Q=K|separate", "names 3 layers, but the model has 2"),
    ],
)
def test_schedules_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(TieError, match=message.replace("(", r"\(")):
        parse_schedule(text, 2)
