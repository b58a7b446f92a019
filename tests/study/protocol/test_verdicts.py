"""Verdicts and notes: data in the program, the words of the tables in files."""

from typing import get_args

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.study.protocol import verdicts
from qkv_jax.study.protocol.ledger import _FINDINGS, _finding, read_finding
from qkv_jax.study.protocol.verdicts import Kind, Note, Notes, Reason, Verdict, What
from qkv_jax.study.report import sentences, wording

ALL = [Verdict(kind) for kind in get_args(Kind)]
ALL += [Verdict("undecided", reason) for reason in get_args(Reason) if reason]


def test_every_verdict_reads_back_from_its_cell_of_a_table():
    assert len({*ALL}) == len({*map(str, ALL)}) == len(ALL)  # two are not written alike
    for verdict in ALL:
        assert Verdict.read(str(verdict)) == verdict
        assert read_finding(_finding(verdict)) == verdict
    assert str(verdicts.EDGE) == f"{verdicts.EDGE}" == "undecided (edge)"
    assert str(verdicts.PENDING) == "" and _finding(verdicts.WORSE) == _FINDINGS["worse"]
    for cell in ("worst", "undecided (", "undecided (late)", "worse (edge)", "pending", " worse"):
        with pytest.raises(ConfigError, match="verdict: given"):
            Verdict.read(cell)


def test_every_verdict_has_its_words_in_a_report():
    assert {verdict.kind for verdict in ALL} <= wording.SIGNS.keys()
    assert {verdict.reason for verdict in ALL} == {"", "power", "tuning", *sentences._REASONS}


def test_notes_are_told_apart_by_what_they_say_not_by_their_words():
    """An arm may be called as the words of a note, or hold what separates two of them."""
    arm = "edge; runs failed {}"
    lost = Note(What.LOST, (arm, 3, 3))
    notes = Notes([lost, Note(What.UNTUNED)])
    assert str(notes) == f"{arm} failed at every rate tried (3 of 3); one learning rate, not tuned"
    assert lost == Note(What.LOST, (arm, 3, 3)) and len({*notes, lost}) == 2
    assert str(Notes()) == ""
