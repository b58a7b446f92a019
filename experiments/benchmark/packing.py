"""The table of `gpu` by which the default packing is chosen: how many runs a second, by how many
are trained at once on a device."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qkv_jax.output import formats
from qkv_jax.training.step import Trainer

from ..cli import defects
from . import figures, options, ours
from .budget import Budget
from .publish import Findings, doing
from .sides import Side, Spread, interleaved, ratios
from .sizes import Size

_NO_ROOM = "out of memory"
_CAPTION = """\
Run-steps a second on one device, by the packing, which is how many runs it trains at once; below
each, how many times as fast that is as the same runs one at a time, round by round. Sizes are
width/length/batch. {best} Runs fewer than the packing are filled up, at the full price: studies of
few runs want less. 4 heads, 2 layers unless a fourth number says otherwise, task `reverse`,
float32 as this machine multiplies it by default; medians of {repeats} interleaved rounds.
{left_out}"""


def measure(budget: Budget, sizes: Sequence[Size], packings: Sequence[int]) -> Findings:
    """As many packings of as many sizes as there is time for."""
    repeats = options.REPEATS.value
    trainers = {
        # The runs that go one at a time are there in all rounds of all packings.
        size: size.trainer((repeats + 1) * len(packings), options.STEPS.value)
        for size in sizes
    }
    alone: dict[Size, Side] = {}
    full: dict[Size, int] = {}  # packings that found no room
    rows, left_out = [], []
    for packing, size in order(sizes, packings):
        if packing >= full.get(size, math.inf):
            rows.append(_row(size, packing, note=_NO_ROOM))
        elif not budget.allows_another:
            left_out.append((size, packing))
        else:
            with budget.spending(), doing(f"gpu: packing {packing} of {size}"):
                try:
                    if size not in alone:
                        alone[size] = ours.alone(trainers[size])
                    rows.append(_measured(size, packing, trainers[size], alone[size]))
                except Exception as error:
                    if not defects.out_of_memory(error):
                        raise
                    full[size] = packing
                    rows.append(_row(size, packing, note=_NO_ROOM))
    return _findings(sorted(rows, key=_place), left_out)


def order(sizes: Sequence[Size], packings: Sequence[int]) -> Iterator[tuple[int, Size]]:
    """What is measured first, should time not last: every other packing, of all sizes."""
    return itertools.chain(
        itertools.product(packings[::2], sizes), itertools.product(packings[1::2], sizes)
    )


def best(rates: Mapping[Size, Mapping[int, float]]) -> tuple[int, float] | None:
    """The packing that comes closest to the best of each size, among those that all have, and the
    share of it that it reaches: a geometric mean over sizes."""
    rates = {size: found for size, found in rates.items() if found}
    common = set.intersection(*map(set, rates.values())) if rates else set()
    reached = {
        packing: statistics.geometric_mean(
            found[packing] / max(found.values()) for found in rates.values()
        )
        for packing in common
    }
    # Of equals the smallest, which leaves the least to be filled up.
    return min(reached.items(), key=lambda item: (-item[1], item[0]), default=None)


def _measured(size: Size, packing: int, trainer: Trainer, alone: Side) -> dict[str, Any]:
    wave, runs = ours.copies(trainer, packing)
    seconds = interleaved({"wave": wave, "alone": alone}, options.REPEATS.value)
    steps = trainer.train_config.report_every
    row = _row(size, packing, steps)
    row["rate"] = Spread.of([runs * steps / s for s in seconds["wave"]])
    row["alone"] = Spread.of([steps / s for s in seconds["alone"]])
    row["ratio"] = ratios(seconds["alone"], [s / runs for s in seconds["wave"]])
    return row


def _row(size: Size, packing: int, steps: int | None = None, note: str = "") -> dict[str, Any]:
    return {"size": size, "packing": packing, "steps": steps, "note": note,
            **dict.fromkeys(("rate", "alone", "ratio"), Spread())}  # fmt: skip


def _place(row: dict[str, Any]) -> tuple:
    size = row["size"]
    return size.width, size.length, size.batch, size.layers, row["packing"]


def _findings(rows: list[dict[str, Any]], left_out: list[tuple[Size, int]]) -> Findings:
    by_size: dict[Size, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_size.setdefault(row["size"], {})[row["packing"]] = row
    packings = sorted({row["packing"] for row in rows})
    lone = {
        size: Spread.of([r["alone"].median for r in found.values() if not r["note"]])
        for size, found in by_size.items()
    }
    cells = [["one at a time", *(formats.integer(spread.median) for spread in lone.values())]]
    for packing in packings:
        cells.append([str(packing), *(_cell(found.get(packing)) for found in by_size.values())])
    panels = {
        f"{size}: thousand run-steps a second": [
            figures.Row("ours, one at a time", _thousands(lone[size])),
            *(figures.Row(f"ours, {p} at once", _thousands(r["rate"])) for p, r in found.items()),
        ]
        for size, found in by_size.items()
        if not math.isnan(lone[size].median)
    }
    caption = _CAPTION.format(
        best=_best_of(by_size), repeats=options.REPEATS.value, left_out=_said(left_out)
    )
    return Findings(
        "gpu_packing", "Packing: run-steps a second", [_written(row) for row in rows],
        ("packing", *map(str, by_size)), cells, caption,
        figures.ranges(panels, "thousands") if panels else None,
    )  # fmt: skip


def _thousands(spread: Spread) -> Spread:
    return Spread(*(x / 1000 for x in dataclasses.astuple(spread)))


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return formats.MISSING
    if row["note"]:
        return row["note"]
    return f"{formats.integer(row['rate'].median)}\nx {formats.number(row['ratio'].median, 1)}"


def _best_of(by_size: Mapping[Size, Mapping[int, dict[str, Any]]]) -> str:
    """Which packing is the fastest, in a sentence or two."""
    rates = {
        size: {p: row["rate"].median for p, row in found.items() if not row["note"]}
        for size, found in by_size.items()
    }
    chosen = best(rates)
    if chosen is None:
        return "No packing was measured at all sizes."
    fastest = [f"{max(r, key=r.get)} at {size}" for size, r in rates.items() if r]
    return (
        f"The fastest packing is {formats.join(fastest)}; one for all of them is {chosen[0]}, with "
        f"{100 * chosen[1]:.0f} % of the best of each (geometric mean)."
    )


def _said(left_out: list[tuple[Size, int]]) -> str:
    if not left_out:
        return ""
    names = ", ".join(f"{packing} of {size}" for size, packing in left_out)
    return f"Left out for want of time: packing {names}."


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = row["size"].columns | {name: row[name] for name in ("packing", "steps", "note")}
    names = {"rate": "run_steps_per_second", "alone": "alone_per_second", "ratio": "ratio"}
    for name, column in names.items():
        plain |= row[name].columns(column)
    return plain
