"""`gpu`: all that is to be measured on a GPU, in the minutes for which one is lent.

Three parts, each with the time by which it begins nothing new: checks, packing, large encoders.
What is found is written as soon as a part is done, and a part that fails does not take the others
with it. Without a GPU all of it is tried at tiny sizes.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from . import agreement, options, packing, publish, utilisation
from .budget import Budget
from .publish import Findings
from .sizes import Size

_TINY_SIZES = (Size(8, 6, 4, layers=1), Size(16, 6, 4, layers=1))
# That of the goal first: one that is 20 times as fast as one run at a time.
_SIZES = tuple(Size(width, 16, 32) for width in (64, 128, 32, 256))
_PACKINGS, _TINY_PACKINGS = tuple(2**n for n in range(9)), (1, 4)
# Seconds; what is under way by then may last another half minute.
_UNTIL, _TINY_UNTIL = (70, 230, 430), (50, 110, 170)
_TINY = "Tried on a CPU at tiny sizes: the numbers mean nothing. "


@dataclasses.dataclass(frozen=True)
class Part:
    """A table; `until` is the second, counted from the start, from which on it begins nothing."""

    until: float
    measure: Callable[[Budget], Findings]


def main() -> int:
    """The exit code is 1 if a check does not pass."""
    began = time.monotonic()
    # PyTorch works beside JAX, which would take most of the memory for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    tiny = jax.default_backend() == "cpu"
    note = _TINY if tiny else ""
    head = f"# What a GPU gives\n\n{_machine_line()}"
    sections, found, errors = [], {}, []
    for name, part in _parts(tiny).items():
        left = part.until - (time.monotonic() - began)
        if left <= 0:
            sections.append(_left_out(name, "no time is left"))
            continue
        try:
            table = part.measure(Budget(left))
            table = dataclasses.replace(table, caption=note + table.caption)
            if table.rows:
                found[name] = table
                publish.write(table)
                sections.append(publish.markdown(table))
            else:
                sections.append(_left_out(name, "none of it could be measured"))
            publish.show(table)
        except Exception as error:  # raised below, once the others are done
            errors.append(error)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            sections.append(_left_out(name, f"it failed, {reason}"))
        publish.write_page("gpu", [head, *sections])
    publish.write_page("gpu", [head, *sections])
    if errors:
        raise errors[0]
    print(json.dumps(_last(found, time.monotonic() - began), allow_nan=False))
    return _failed(found)


def _parts(tiny: bool) -> dict[str, Part]:
    packings = (options.PACKING.value,) if options.PACKING.value else None
    sizes = options.SIZES.value or (_TINY_SIZES if tiny else _SIZES)
    packings = packings or (_TINY_PACKINGS if tiny else _PACKINGS)
    shapes = utilisation.TINY if tiny else utilisation.shapes()
    length, side = (16, 256) if tiny else (256, 8192)
    first, second, third = _TINY_UNTIL if tiny else _UNTIL
    return {
        "checks": Part(first, lambda budget: agreement.measure(budget, length, sizes[0])),
        "packing": Part(second, lambda budget: packing.measure(budget, sizes, packings)),
        "large encoders": Part(third, lambda budget: utilisation.measure(budget, shapes, side)),
    }


def _left_out(name: str, reason: str) -> str:
    """A section in the place of a table, which is said on stderr as well."""
    print(f"{name}: left out, {reason}", file=sys.stderr)
    return f"## {name.capitalize()}\n\nLeft out: {reason}."


def _failed(found: Mapping[str, Findings]) -> int:
    rows = found["checks"].rows if "checks" in found else ()
    failing = [row["check"] for row in rows if not row["passes"]]
    if failing:
        print(f"{len(failing)} of {len(rows)} checks fail: {'; '.join(failing)}", file=sys.stderr)
    return int(bool(failing))


def _machine() -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {"device": device.device_kind, "devices": jax.local_device_count(),
            "runtime": " ".join(device.client.platform_version.split())}  # fmt: skip


def _machine_line() -> str:
    facts = publish.machine(None) | _machine()
    shown = ("device", "runtime", "cpu", "cores", "python", "jax", "flax", "date")
    return ", ".join(f"{name} {facts[name]}" for name in shown) + "."


def _last(found: Mapping[str, Findings], seconds: float) -> dict[str, Any]:
    torch = found["large encoders"].torch if "large encoders" in found else None
    return {
        "benchmark": "gpu",
        "seconds": round(seconds, 1),
        "tables": {table.name: publish.plain_rows(table) for table in found.values()},
        "machine": publish.machine(torch) | _machine(),
    }
