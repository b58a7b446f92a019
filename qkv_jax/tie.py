"""Ties: the 15 partitions of {X, Q, K, V}, how they are written, and what each role reads.

Query, key and value are each a learned projection of the layer's input X or X itself, and any of
them may share a projection. A scheme is therefore a partition of the set {Q, K, V, X}. It is
written as equalities joined by commas (`"Q=X,K=V"`); a depth schedule joins ties by bars
(`"K=V*2|separate*4"`). Pure Python: nothing here knows about arrays.
"""

import dataclasses
import functools
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Literal

Role = Literal["Q", "K", "V"]
Source = Literal["X", "query", "key", "value"]

ELEMENTS = ("Q", "K", "V", "X")
SOURCE_NAMES = {"Q": "query", "K": "key", "V": "value", "X": "X"}

# The order in which people meet the schemes; `Tie.all`, tables and figures follow it.
_IN_ORDER = (
    "separate", "K=V", "Q=K", "Q=V", "Q=K=V", "Q=X", "K=X", "V=X", "Q=X,K=V", "K=X,Q=V",
    "V=X,Q=K", "Q=K=X", "Q=V=X", "K=V=X", "Q=K=V=X",
)  # fmt: skip
_ALIASES = {"separate": (), "copies": (ELEMENTS,)}


class TieError(ValueError):
    """A tie or schedule that cannot be read; the message lists what can be written."""


@dataclasses.dataclass(frozen=True)
class Tie:
    """One partition of {Q, K, V, X}. `groups` covers all four, X's group first."""

    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self):
        if self.groups not in _partitions():
            raise TieError(f"groups {self.groups!r} are not a tie; {_what_can_be_written()}")

    @staticmethod
    def parse(text: "str | Tie") -> "Tie":
        """Reads any order, case and spacing; takes the closure (`"Q=K,K=V"` is `Q=K=V`).

        Raises:
          TieError: if the text is not a tie; the message lists all that can be written.
        """
        if isinstance(text, Tie):
            return text
        if not isinstance(text, str):
            raise TieError(f"{text!r} is not a tie; {_what_can_be_written()}")
        return _parse(text)

    @staticmethod
    def all() -> tuple["Tie", ...]:
        """All 15 ties, `separate` first and `copies` (`Q=K=V=X`) last."""
        return tuple(Tie.parse(text) for text in _IN_ORDER)

    def source(self, role: Role) -> Source:
        """What a role reads: `"X"`, or the parameter named after the first role of its group.

        Raises:
          TieError: if there is no such role.
        """
        if role not in ("Q", "K", "V"):
            raise TieError(f"role {role!r}: allowed are 'Q', 'K' and 'V'")
        group = next(group for group in self.groups if role in group)
        return "X" if "X" in group else SOURCE_NAMES[group[0]]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The learned sources, each once, in the order query, key, value."""
        read = (self.source(role) for role in ("Q", "K", "V"))
        return tuple(dict.fromkeys(source for source in read if source != "X"))

    def equates(self, *elements: str) -> bool:
        """Whether all the given elements of {Q, K, V, X} are one.

        Raises:
          TieError: if one is none of them, or there are fewer than two.
        """
        if len(elements) < 2 or any(element not in ELEMENTS for element in elements):
            raise TieError(f"elements {elements!r}: name two or more of 'Q', 'K', 'V' and 'X'")
        return any(set(elements) <= set(group) for group in self.groups)

    def __le__(self, other: "Tie") -> bool:
        """Refinement: every equality of self holds in other. `separate` <= all <= `copies`."""
        if not isinstance(other, Tie):
            return NotImplemented
        return all(other.equates(*group) for group in self.groups if len(group) > 1)

    def __lt__(self, other: "Tie") -> bool:
        return self != other and self.__le__(other)

    def __str__(self) -> str:
        return ",".join("=".join(g) for g in self.groups if len(g) > 1) or "separate"


def parse_schedule(text: "str | Tie", num_layers: int) -> tuple[Tie, ...]:
    """One tie per layer: a tie alone serves all layers, `"K=V*2|separate*4"` lists them bottom up.

    Raises:
      TieError: if a tie or a count cannot be read, or the counts do not add up to `num_layers`.
    """
    if isinstance(num_layers, bool) or not isinstance(num_layers, numbers.Integral):
        raise TieError(f"{num_layers!r} layers: must be a whole number")
    if num_layers < 0:
        raise TieError(f"{num_layers} layers: must not be below 0")
    if not isinstance(text, str) or ("|" not in text and "*" not in text):
        return (Tie.parse(text),) * int(num_layers)
    ties: list[tuple[Tie, int]] = []
    for part in text.split("|"):
        name, star, count = part.partition("*")
        if star and not re.fullmatch(r"\s*[1-9]\d{0,5}\s*", count):
            raise TieError(f"{text!r}: the count in {part!r} must be a positive whole number")
        ties.append((Tie.parse(name), int(count) if star else 1))
    named = sum(count for _, count in ties)
    if named != num_layers:
        raise TieError(f"{text!r} names {named} layers, but the model has {num_layers}")
    return tuple(tie for tie, count in ties for _ in range(count))


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Tie:
    return Tie(_closure(_equalities(text)))


def _equalities(text: str) -> Sequence[Sequence[str]]:
    name = re.sub(r"\s+", "", text)
    if name.lower() in _ALIASES:
        return _ALIASES[name.lower()]
    equalities = [part.split("=") for part in name.upper().split(",")]
    for members in equalities:
        unknown = not set(members) <= set(ELEMENTS)
        if unknown or len(members) < 2 or len(set(members)) < len(members):
            raise TieError(f"{text!r} is not a tie; {_what_can_be_written()}")
    return equalities


@functools.cache
def _partitions() -> tuple:
    """The groups of the 15 ties, each as `_parse` orders them."""
    return tuple(map(_closure, map(_equalities, _IN_ORDER)))


def _closure(equalities: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The groups that equalities make of the four elements, in order."""
    groups = [{element} for element in ELEMENTS]
    for members in equalities:
        joined = [group for group in groups if group & set(members)]
        groups = [group for group in groups if not group & set(members)] + [set().union(*joined)]
    ordered = [tuple(sorted(group, key=ELEMENTS.index)) for group in groups]
    return tuple(sorted(ordered, key=lambda g: ("X" not in g, ELEMENTS.index(g[0]))))


def _what_can_be_written() -> str:
    return "write one of " + ", ".join(repr(t) for t in _IN_ORDER) + ", or 'copies' for the last"
