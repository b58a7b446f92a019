"""`train`: one run alone, which may use every core."""

import contextlib
import dataclasses
from typing import Any

from . import figures, options, ours, peer, plain_flax
from .floor import cores
from .publish import Findings, doing
from .sides import Spread, interleaved, ratios
from .sizes import Size

_SIZES = (Size(128, 64, 32), Size(256, 128, 16, layers=4))
_HEADINGS = ("width/\nlength/\nbatch", "ours", "plain Flax", "PyTorch", "its best is",
             "plain Flax\n/ ours", "PyTorch\n/ ours")  # fmt: skip
_CAPTION = """\
Milliseconds a step of one run, which may use all {cores} cores; a fourth number in the first column
is that of layers, else 2. PyTorch is one process of as many threads, which wait for each other
asleep or, as by default, spinning. Ratios are taken round by round; above 1 ours is faster.
4 heads, task `reverse`, float32; medians of {repeats} interleaved rounds, least and most below
them."""



def measure() -> Findings:
    torch = peer.version(options.TORCH.value)
    with contextlib.ExitStack() as stack:
        workers = (
            stack.enter_context(peer.peer(options.TORCH.value, together=False)) if torch else None
        )
        rows = []
        for size in options.SIZES.value or _SIZES:
            with doing(f"train: {size}"):
                rows.append(_measured(size, workers))
    return dataclasses.replace(_findings(rows), torch=torch)


def _measured(size: Size, workers: peer.Peer | None) -> dict[str, Any]:
    trainer = size.trainer(options.REPEATS.value, options.STEPS.value)
    steps = trainer.train_config.report_every
    expected = ours.losses(trainer, ours.batches_of(trainer, ours.CHECKED))
    plain, losses = plain_flax.side(trainer)
    peer.require_equal("plain Flax", losses, expected)
    variants = workers.sides(trainer, expected) if workers else {}
    sides = {"ours": ours.alone(trainer), "flax": plain}
    sides |= {name: side for name, (side, _) in variants.items()}
    seconds = interleaved(sides, options.REPEATS.value)
    times = {name: [1000 * block / steps for block in blocks] for name, blocks in seconds.items()}
    best = min(variants, key=lambda name: Spread.of(times[name]).median, default=None)
    row = {"size": size, "steps": steps, "best": best, "variants": list(variants)}
    row |= {name: Spread.of(values) for name, values in times.items()}
    row["torch"] = Spread.of(times[best]) if best else Spread()
    row["flax_ratio"] = ratios(times["flax"], times["ours"])
    row["torch_ratio"] = ratios(times[best], times["ours"]) if best else Spread()
    return row


def _findings(rows: list[dict[str, Any]]) -> Findings:
    cells, panels, written = [], {}, []
    for row in rows:
        cells.append(
            [str(row["size"]), *(row[name].cell() for name in ("ours", "flax", "torch")),
             "\n".join((row["best"] or "–").split(", ")),
             row["flax_ratio"].cell(), row["torch_ratio"].cell()]
        )  # fmt: skip
        names = row["variants"] or ["left out"]
        panels[f"{row['size']}: milliseconds a step"] = [
            figures.Row("ours", row["ours"]),
            figures.Row("plain Flax", row["flax"]),
            *(figures.Row(f"PyTorch, {name}", row.get(name, Spread())) for name in names),
        ]
        written.append(_written(row))
    caption = _CAPTION.format(cores=cores(), repeats=options.REPEATS.value)
    figure = figures.ranges(panels, "milliseconds")
    title = "Training one run alone: milliseconds a step"
    return Findings("train", title, written, _HEADINGS, cells, caption, figure)


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = row["size"].columns | {"steps": row["steps"], "torch_best": row["best"]}
    names = {"ours": "ours_ms", "flax": "flax_ms", "torch": "torch_ms",
             "flax_ratio": "flax_over_ours", "torch_ratio": "torch_over_ours"}  # fmt: skip
    for name, column in names.items():
        plain |= row[name].columns(column)
    return plain | peer.columns(row, together=False)
