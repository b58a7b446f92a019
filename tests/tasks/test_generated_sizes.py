"""Sizes of generated tasks: which can be, and which are refused."""

import jax
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("swap", {"length": 7}, "length: given 7; must be even, to have two halves"),
        ("copy", {"symbols": 2}, "symbols: given 2; must be at least 3, to tell splits apart"),
        ("relation", {"ask": "me"}, "ask: given 'me'; allowed: named, namer, either"),
        ("relation", {"ask": "namer", "length": 2}, "length: given 2; must be at least 3 for ask "
                                                    "= 'namer'"),
        ("relation", {"ask": "either", "length": 5}, "length: given 5; must be even for ask = "
                                                     "'either'"),
        ("recall", {"form": "apart"}, "form: given 'apart'; allowed: interleaved, joint"),
        ("recall", {"keys": 7}, "keys: given 7; must be at least pairs = 8"),
        ("recall", {"queries": 9}, "queries: given 9; must be at most pairs = 8"),
        ("recall", {"pairs": 0}, "pairs: given 0; must be a whole number above 0"),
        ("recall", {"values": 2}, "values: given 2; must be at least 3, to tell splits apart"),
        ("retrieval", {"by": "name"}, "by: given 'name'; allowed: place, place_either, "
                                      "content"),
        ("retrieval", {"max_distance": 32}, "max_distance: given 32; must be below length = 32"),
        ("retrieval", {"by": "place_either", "max_distance": 16},
         "max_distance: given 16; must be below half of length = 16"),
        ("retrieval", {"max_distance": 30}, "queries: given 8; must be at most 2, the places that "
                                            "can be asked at some distance"),
        ("retrieval", {"max_distance": 0}, "max_distance: given 0; must be a whole number above 0"),
        ("retrieval", {"by": "content", "keys": 31}, "keys: given 31; must be at least length = "
                                                     "32"),
        ("retrieval", {"symbols": 2}, "symbols: given 2; must be at least 3, to tell splits apart"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(kind, options, line):
    """One line each: the field, what was given, what is allowed."""
    with pytest.raises(ConfigError) as refusal:
        make_task(kind, options)
    assert str(refusal.value) == f"task.options.{line}"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("relation", {"ask": "namer", "length": 3}),
        ("recall", {"queries": 8, "keys": 8}),
        ("retrieval", {"max_distance": 31, "queries": 1}),
        ("retrieval", {"by": "place_either", "max_distance": 15, "queries": 2}),
        ("retrieval", {"by": "content", "max_distance": 31, "queries": 1, "keys": 32}),
    ],
)
def test_the_largest_sizes_are_allowed(kind, options):
    """Each at its limit: one more, or one less, is refused above."""
    task = make_task(kind, options)
    shapes = jax.eval_shape(lambda: task.generate(jax.random.key(0), 4, "test"))
    assert shapes["inputs"].shape[1] == task.max_length
