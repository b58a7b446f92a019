"""Ties: the 15 partitions of {X, Q, K, V}, how they are written, and what each role reads.

Query, key and value are each a learned projection of the layer's input X or X itself, and any of
them may share a projection. A scheme is therefore a partition of the set {Q, K, V, X}. It is
written as equalities joined by commas (`"Q=X,K=V"`); a depth schedule joins ties by bars
(`"K=V*2|separate*4"`). Pure Python: nothing here knows about arrays.
"""

import dataclasses
import functools
import re
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

    @staticmethod
    def parse(text: "str | Tie") -> "Tie":
        """Reads any order, case and spacing; takes the closure (`"Q=K,K=V"` is `Q=K=V`).

        Raises:
          TieError: if the text is not a tie; the message lists all that can be written.
        """
        return text if isinstance(text, Tie) else _parse(text)

    @staticmethod
    def all() -> tuple["Tie", ...]:
        """All 15 ties, `separate` first and `copies` (`Q=K=V=X`) last."""
        return tuple(Tie.parse(text) for text in _IN_ORDER)

    def source(self, role: Role) -> Source:
        """What a role reads: `"X"`, or the parameter named after the first role of its group."""
        group = next(group for group in self.groups if role in group)
        return "X" if "X" in group else SOURCE_NAMES[group[0]]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The learned sources, each once, in the order query, key, value."""
        read = (self.source(role) for role in ("Q", "K", "V"))
        return tuple(dict.fromkeys(source for source in read if source != "X"))

    def equates(self, *elements: str) -> bool:
        """Whether all the given elements of {Q, K, V, X} are one."""
        return any(set(elements) <= set(group) for group in self.groups)

    def __le__(self, other: "Tie") -> bool:
        """Refinement: every equality of self holds in other. `separate` <= all <= `copies`."""
        return all(other.equates(*group) for group in self.groups)

    def __lt__(self, other: "Tie") -> bool:
        return self != other and self <= other

    def __str__(self) -> str:
        return ",".join("=".join(g) for g in self.groups if len(g) > 1) or "separate"


def parse_schedule(text: "str | Tie", num_layers: int) -> tuple[Tie, ...]:
    """One tie a layer: a tie alone serves all layers, `"K=V*2|separate*4"` lists them bottom up.

    Raises:
      TieError: if a tie or a count cannot be read, or the counts do not add up to `num_layers`.
    """
    if isinstance(text, Tie) or ("|" not in text and "*" not in text):
        return (Tie.parse(text),) * num_layers
    ties = []
    for part in text.split("|"):
        name, star, count = part.partition("*")
        if star and not re.fullmatch(r"\s*[1-9]\d*\s*", count):
            raise TieError(f"{text!r}: the count in {part!r} must be a positive whole number")
        ties += [Tie.parse(name)] * (int(count) if star else 1)
    if len(ties) != num_layers:
        raise TieError(f"{text!r} names {len(ties)} layers, but the model has {num_layers}")
    return tuple(ties)


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Tie:
    if not isinstance(text, str):
        raise TieError(f"{text!r} is not a tie; {_what_can_be_written()}")
    name = re.sub(r"\s+", "", text)
    if name.lower() in _ALIASES:
        equalities = _ALIASES[name.lower()]
    else:
        equalities = [part.split("=") for part in name.upper().split(",")]
        for members in equalities:
            unknown = not set(members) <= set(ELEMENTS)
            if unknown or len(members) < 2 or len(set(members)) < len(members):
                raise TieError(f"{text!r} is not a tie; {_what_can_be_written()}")
    groups = [{element} for element in ELEMENTS]
    for members in equalities:
        joined = [group for group in groups if group & set(members)]
        groups = [group for group in groups if not group & set(members)] + [set().union(*joined)]
    ordered = [tuple(sorted(group, key=ELEMENTS.index)) for group in groups]
    return Tie(tuple(sorted(ordered, key=lambda g: ("X" not in g, ELEMENTS.index(g[0])))))


def _what_can_be_written() -> str:
    return "write one of " + ", ".join(repr(t) for t in _IN_ORDER) + ", or 'copies' for the last"
