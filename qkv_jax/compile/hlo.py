"""What a compiled program sends between devices and moves through memory, read off its HLO text.

XLA's own cost analysis counts the body of a loop once, whatever the number of its turns, and says
nothing of collectives. Here the text is walked from its entry: loops are multiplied by their turns,
calls and fusions followed. A collective that XLA has split into pieces of one channel counts once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# `%name = SHAPE operation(operands), attributes`; a tuple's shape holds no " word(".
_OPERATION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=\d+")
_WITH_LAYOUT = re.compile(r"\w+\[[\d,]*\](?:\{[^}]*\})?")
_APPLIES = ("all-reduce", "reduce", "scatter", "sort", "select-and-scatter", "map")
# Operations that move nothing: names for what is there, or loops whose bodies count themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one run of a program, on one device.

    Attributes:
      count: how many are run, those in loops as often as the loop turns.
      bytes: the size of their results, or of their operands where these are larger.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Operation:
    """`name = shape kind(rest`: a line of a computation."""

    shape: str
    kind: str
    rest: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])


Computations = dict[str, dict[str, Operation]]


def collectives(text: str) -> dict[str, Traffic]:
    """Traffic by kind, of the text of a compiled HLO module; kinds that do not occur are left out.

    Raises:
      ValueError: if the turns of a loop cannot be read.
    """
    channels: dict[tuple[str, str], tuple[int, int]] = {}
    for operation, times, names, _ in _walk(*_parse(text)):
        kind = operation.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            channel = _CHANNEL.search(operation.rest)
            key = (kind, channel[0] if channel else f"{id(operation)}")
            here = (times, times * _moved_bytes(operation, names))
            channels[key] = max(channels.get(key, (0, 0)), here)
    found = {}
    for kind in COLLECTIVES:
        of_kind = [moved for (other, _), moved in channels.items() if other == kind]
        if of_kind:
            found[kind] = Traffic(sum(n for n, _ in of_kind), sum(b for _, b in of_kind))
    return found


def memory_bytes(text: str) -> int:
    """Bytes that one run of a program reads from and writes to the device's main memory: operands
    and results of every operation that is not inside a fusion, of slices only what is cut out or
    put in. What lies in another memory space than the main one does not count.

    Raises:
      ValueError: if the turns of a loop cannot be read.
    """
    computations, entry = _parse(text)
    total = 0
    for operation, times, names, in_fusion in _walk(computations, entry):
        if not in_fusion and operation.kind not in _FREE and not operation.kind.endswith("-done"):
            total += times * _touched_bytes(operation, names, computations)
    return total


def _parse(text: str) -> tuple[Computations, str]:
    computations: Computations = {}
    entry = current = ""
    for line in text.splitlines():
        line = line.strip()
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif current and (found := _OPERATION.match(line)):
            computations[current][found[1]] = Operation(
                found[2], found[3], found[4], line.startswith("ROOT ")
            )
    return computations, entry


def _walk(
    computations: Computations, name: str, times: int = 1, in_fusion: bool = False
) -> Iterator[tuple[Operation, int, dict[str, Operation], bool]]:
    """Every operation that is run: with how often, its neighbours by name, and whether it is part
    of a fusion."""
    names = computations.get(name, {})
    for operation in names.values():
        yield operation, times, names, in_fusion
        if operation.kind.startswith(_APPLIES):
            continue  # what they apply is the sum of two numbers, or the like
        called = dict(_CALLED.findall(operation.rest))
        for branches in _BRANCHES.findall(operation.rest):
            called |= {branch: branch for branch in re.findall(r"[\w.\-]+", branches)}
        if operation.kind == "while":
            turns = _turns(operation, computations[called.pop("condition")])
            yield from _walk(computations, called["body"], times * turns, in_fusion)
            continue
        fused = in_fusion or operation.kind == "fusion"
        for other in called.values():
            yield from _walk(computations, other, times, fused)


def _turns(loop: Operation, condition: dict[str, Operation]) -> int:
    """How often a loop turns: as XLA says, or the constant that its counter is compared with."""
    if known := _TURNS.search(loop.rest):
        return int(known[1])
    constants = [o.rest.split(")")[0] for o in condition.values() if o.kind == "constant"]
    limits = [int(value) for value in constants if value.isdigit()]
    if len(limits) != 1:
        raise ValueError(f"the turns of a loop cannot be read: {loop.rest[:200]}")
    return limits[0]


def _moved_bytes(operation: Operation, names: dict[str, Operation]) -> int:
    """The larger of result and operands: the result of a gather, the operand of a scatter."""
    given = sum(_bytes(names[o].shape) for o in operation.operands if o in names)
    result = _bytes(operation.shape)
    if operation.kind.endswith("-start"):  # its result holds the operands as well
        result -= given
    return max(result, given)


def _touched_bytes(
    operation: Operation, names: dict[str, Operation], computations: Computations
) -> int:
    operands = [names[o].shape if o in names else "" for o in operation.operands]
    if operation.kind in ("dynamic-slice", "gather", "slice"):
        return 2 * _main_bytes(operation.shape)
    if operation.kind in ("dynamic-update-slice", "scatter"):
        put = 1 if operation.kind == "dynamic-update-slice" else -1
        return 2 * _main_bytes(operands[put])
    result = _main_bytes(operation.shape)
    if operation.kind != "fusion":
        return result + sum(map(_main_bytes, operands))
    inner = computations.get(dict(_CALLED.findall(operation.rest)).get("calls", ""), {})
    return _fusion_bytes(inner, operands, operation.shape)


def _fusion_bytes(inner: dict[str, Operation], operands: list[str], result: str) -> int:
    """Of a fusion's operands that it only cuts slices from, the slices; of a result that it only
    puts a slice into, the slice."""
    total = 0
    for name, parameter in inner.items():
        if parameter.kind != "parameter":
            continue
        whole = operands[int(parameter.rest.split(")")[0])]
        users = [o for o in inner.values() if name in o.operands]
        cut = [o for o in users if o.kind == "dynamic-slice" and o.operands[0] == name]
        put = [o for o in users if o.kind == "dynamic-update-slice" and o.operands[0] == name]
        if users and len(cut) + len(put) == len(users) and _main_bytes(whole):
            total += sum(_bytes(o.shape) for o in cut)
        else:
            total += _main_bytes(whole)
    put = [o for o in inner.values() if o.kind == "dynamic-update-slice" and o.is_root]
    if put and _main_bytes(result):
        update = inner.get(put[0].operands[1])
        return total + (_bytes(update.shape) if update else 0)
    return total + _main_bytes(result)


def _main_bytes(shape: str) -> int:
    """Of the arrays of a shape, those in main memory: a layout says `S(1)` for another."""
    return sum(
        _bytes(array) for array in _WITH_LAYOUT.findall(shape) if not re.search(r"S\(\d", array)
    )


def _bytes(shape: str) -> int:
    total = 0
    for kind, dimensions in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += math.prod(int(size) for size in dimensions.split(",") if size) * bits // 8
    return total
