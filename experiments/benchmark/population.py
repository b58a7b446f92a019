"""`population`: many small runs, as a study has them."""

import contextlib
import dataclasses
import math
from typing import Any

import jax

from qkv_jax.runtime.devices import use_cpu_cores
from qkv_jax.training.costs import step_flops

from . import figures, floor, options, ours, peer, plain_flax
from .publish import Findings, doing
from .sides import Side, Spread, interleaved, ratios
from .sizes import Size

_SIZES = (Size(32, 16, 32), Size(64, 16, 32), Size(64, 32, 64), Size(128, 32, 64))
_HEADINGS = ("width/\nlength/\nbatch", "ours", "plain\nFlax", "PyTorch", "its best is",
             "PyTorch\n/ ours", "ours, one\nat a time", "share of\nfloor")  # fmt: skip
_CAPTION = """\
Milliseconds a run-step: the wall time of a block divided by its steps and by the runs that it
trains at once: a wave of {wave} for ours, one for plain Flax and one at a time, one for each
process of PyTorch. "2 x 1" are two processes of one thread each. Its ratio is taken round by round;
above 1 ours is faster. Share of floor: the time of the step's matrix products alone, at the rate of
one core's 1024 x 1024 x 1024 product in the same round ({rate:.0f} GFLOP/s), over our time.
{layers}4 heads, task `reverse`, float32; medians of {repeats} interleaved rounds, least and most
below them."""


def measure() -> Findings:
    use_cpu_cores()
    torch = peer.version(options.TORCH.value)
    with contextlib.ExitStack() as stack:
        products = stack.enter_context(floor.core_products())
        workers = (
            stack.enter_context(peer.peer(options.TORCH.value, together=True)) if torch else None
        )
        rows = []
        for size in options.SIZES.value or _SIZES:
            with doing(f"population: {size}"):
                rows.append(_measured(size, products, workers))
    return dataclasses.replace(_findings(rows), torch=torch)


def _measured(size: Size, products: Side, workers: peer.Peer | None) -> dict[str, Any]:
    """All sides at one size; spreads are of milliseconds a run-step."""
    trainer = size.trainer(options.REPEATS.value, options.STEPS.value)
    steps = trainer.train_config.report_every
    expected = ours.losses(trainer, ours.batches_of(trainer, ours.CHECKED))
    wave, runs = ours.population(trainer, options.PACKING.value)
    plain, losses = plain_flax.side(trainer)
    peer.require_equal("plain Flax", losses, expected)
    variants = workers.sides(trainer, expected) if workers else {}
    sides = {"ours": (wave, runs), "flax": (plain, 1), "alone": (ours.alone(trainer), 1)}
    sides |= variants
    blocks = {name: side for name, (side, _) in sides.items()} | {"products": products}
    seconds = interleaved(blocks, options.REPEATS.value)
    times = {
        name: [1000 * block / steps / at_once for block in seconds[name]]
        for name, (_, at_once) in sides.items()
    }
    best = min(variants, key=lambda name: Spread.of(times[name]).median, default=None)
    working = min(floor.cores(), runs)
    floors = [floor.milliseconds(step_flops(trainer), s, working) for s in seconds["products"]]
    on_cpu = jax.default_backend() == "cpu"  # the floor is one of the CPU
    row = {"size": size, "steps": steps, "runs": runs, "best": best}
    row |= {name: Spread.of(values) for name, values in times.items()}
    row["torch"] = Spread.of(times[best]) if best else Spread()
    row["ratio"] = ratios(times[best], times["ours"]) if best else Spread()
    row["share"] = ratios(floors, times["ours"]) if on_cpu else Spread()
    row["rate"] = Spread.of([floor.BLOCK_FLOPS / s / 1e9 for s in seconds["products"]])
    return row | {"variants": list(variants)}


def _findings(rows: list[dict[str, Any]]) -> Findings:
    cells, panels, written = [], {}, []
    for row in rows:
        shown = ("ours", "flax", "torch")
        cells.append(
            [str(row["size"]), *(row[name].cell() for name in shown),
             "\n".join((row["best"] or "–").split(", ")),
             *(row[name].cell() for name in ("ratio", "alone", "share"))]
        )  # fmt: skip
        lines = [figures.Row("ours", row["ours"]), figures.Row("ours, one at a time", row["alone"]),
                 figures.Row("plain Flax", row["flax"])]  # fmt: skip
        names = row["variants"] or ["left out"]
        lines += [figures.Row(f"PyTorch, {n}", row.get(n, Spread())) for n in names]
        panels[f"{row['size']}: milliseconds a run-step"] = lines
        written.append(_written(row))
    rates = [row["rate"].median for row in rows]
    layers = {row["size"].layers for row in rows}
    caption = _CAPTION.format(
        wave=rows[0]["runs"],
        rate=math.fsum(rates) / len(rates),
        layers=f"{layers.pop()} layers, " if len(layers) == 1 else "",
        repeats=options.REPEATS.value,
    )
    title = "Training many runs: milliseconds a run-step"
    figure = figures.ranges(panels, "milliseconds")
    return Findings("population", title, written, _HEADINGS, cells, caption, figure)


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = row["size"].columns | {name: row[name] for name in ("steps", "runs")}
    plain["torch_best"] = row["best"]
    names = {"ours": "ours_ms", "flax": "flax_ms", "alone": "alone_ms", "torch": "torch_ms",
             "ratio": "torch_over_ours", "share": "share_of_floor",
             "rate": "core_gflops"}  # fmt: skip
    for name, column in names.items():
        plain |= row[name].columns(column)
    return plain | peer.columns(row, together=True)
