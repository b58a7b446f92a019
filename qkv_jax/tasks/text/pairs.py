"""Sentence pairs: two aligned files, or one of two columns; read whole, or refused with the line.

A line is a sentence. Pairs of which one side is empty are dropped together and counted, so that
what follows stays aligned.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks.splits import held_out_split
from qkv_jax.tasks.text.plain_text import read_text, split_lines


class Pairs(NamedTuple):
    """Sentences and their translations, side by side."""

    sources: Sequence[str]
    targets: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, str]]) -> "Pairs":
        return cls([source for source, _ in rows], [target for _, target in rows])


def read_aligned(source: pathlib.Path, target: pathlib.Path) -> list[tuple[str, str]]:
    """The lines of two files, side by side.

    Raises:
      ConfigError: `source` or `target`, if a file cannot be read or is no UTF-8, or if one of them
        has more lines.
    """
    sides = _lines(source, "source"), _lines(target, "target")
    if len(sides[0]) != len(sides[1]):
        name, path = ("source", source) if len(sides[0]) > len(sides[1]) else ("target", target)
        few, many = sorted(map(len, sides))
        what = f"has {many} lines, the other file {few}: line {few + 1} has no translation"
        raise ConfigError(name, str(path), what)
    return [*zip(*sides, strict=True)]


def read_columns(path: pathlib.Path) -> list[tuple[str, str]]:
    """The lines of one file, each a sentence, a tab and its translation; no header.

    Raises:
      ConfigError: `pairs`, naming the line that has not two columns.
    """
    rows = []
    for number, line in enumerate(_lines(path, "pairs"), 1):
        columns = line.split("\t") if line.strip() else ["", ""]
        if len(columns) != 2:
            what = f"line {number}: {len(columns)} columns, not 2, a sentence, a tab, a translation"
            raise ConfigError("pairs", str(path), what)
        rows.append((columns[0], columns[1]))
    return rows


def whole(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs whose sides both say something, without white space around them."""
    stripped = ((source.strip(), target.strip()) for source, target in rows)
    return [row for row in stripped if all(row)]


def drawn(rows: list[tuple[str, str]], sizes: dict[str, int], seed: int) -> dict[str, Pairs]:
    """Splits of some numbers of different sources, and `train`; all pairs of a source, equal but
    for white space, are in one.

    Raises:
      ConfigError: if nothing is left to train on.
    """
    places: dict[str, list[int]] = {}
    for place, (source, _) in enumerate(rows):
        places.setdefault(spaced(source), []).append(place)
    groups = list(places.values())
    chosen = held_out_split(np.zeros(len(groups), int), sizes, seed)
    return {
        name: Pairs.of([rows[place] for number in numbers for place in groups[number]])
        for name, numbers in chosen.items()
    }


def spaced(text: str) -> str:
    """A text with single spaces: what nobody would call another text is the same."""
    return " ".join(text.split())


def _lines(path: pathlib.Path, field: str) -> list[str]:
    lines = split_lines(read_text(path, field))
    return lines[:-1] if not lines[-1] else lines  # behind the last line end there is no line
