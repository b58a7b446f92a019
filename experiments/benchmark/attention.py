"""`attention`: does a tie save the time that it saves of arithmetic?"""

from typing import Any

from qkv_jax.output import formats
from qkv_jax.runtime.devices import use_cpu_cores
from qkv_jax.training.costs import flops_per_token

from . import figures, options, ours
from .publish import Findings, doing
from .sides import Spread, interleaved, ratios
from .sizes import Size

_SIZES = (Size(32, 32, 32), Size(128, 32, 32), Size(256, 32, 32))
_BASELINE = "separate"
_ARMS = ("K=V", "Q=K", "Q=K=V", "V=X", "copies")
_PHASES = ("training", "inference")
_HEADINGS = ("width/\nlength/\nbatch", "arm", "FLOPs", "training", "less FLOPs", "inference",
             "less FLOPs")  # fmt: skip
_CAPTION = """\
Step time of each arm over that of `separate`, round by round, beside the ratio of their matrix
FLOPs; "less FLOPs" is the ratio of times minus that of FLOPs: above 0, a tie saves less time than
arithmetic. Training is a population of {runs} runs, inference the forward passes and scores of the
same batches. 4 heads, task `reverse`, float32; medians of {repeats} interleaved rounds, least and
most below them. In the figure a stroke marks the ratio of FLOPs."""


def measure() -> Findings:
    use_cpu_cores()
    rows, runs = [], 0
    for size in options.SIZES.value or _SIZES:
        with doing(f"attention: {size}"):
            found, runs = _measured(size)
            rows += found
    return _findings(rows, runs)


def _measured(size: Size) -> tuple[list[dict[str, Any]], int]:
    """A row for each arm; and the runs of a wave."""
    repeats, packing = options.REPEATS.value, options.PACKING.value
    steps = size.trainer(repeats, options.STEPS.value).train_config.report_every
    arms = {arm: size.trainer(repeats, steps, arm) for arm in (_BASELINE, *_ARMS)}
    waves = {arm: ours.population(trainer, packing) for arm, trainer in arms.items()}
    forward = {arm: ours.inference(trainer, packing) for arm, trainer in arms.items()}
    seconds = {
        "training": interleaved({arm: side for arm, (side, _) in waves.items()}, repeats),
        "inference": interleaved(forward, repeats),
    }
    rows = []
    for arm, trainer in arms.items():
        row: dict[str, Any] = {"size": size, "arm": arm}
        row["steps"] = trainer.train_config.report_every
        row["flops"] = flops_per_token(trainer) / flops_per_token(arms[_BASELINE])
        for phase in _PHASES:
            blocks = seconds[phase]
            row[phase] = ratios(blocks[arm], blocks[_BASELINE])
            row[f"{phase}_ms"] = Spread.of([1000 * s / row["steps"] for s in blocks[arm]])
        rows.append(row)
    return rows, waves[_BASELINE][1]


def _findings(rows: list[dict[str, Any]], runs: int) -> Findings:
    cells, panels, written = [], {}, []
    for row in rows:
        size, flops = row["size"], row["flops"]
        written.append(_written(row))
        if row["arm"] == _BASELINE:
            for phase in _PHASES:
                panels[f"{size}: {phase}"] = []
            continue
        cell = [str(size) if row["arm"] == _ARMS[0] else "", row["arm"], f"{flops:.2f}"]
        for phase in _PHASES:
            beyond = formats.number(row[phase].median - flops, 2, signed=True)
            cell += [row[phase].cell(2), beyond]
            panels[f"{size}: {phase}"].append(figures.Row(row["arm"], row[phase], flops))
        cells.append(cell)
    caption = _CAPTION.format(runs=runs, repeats=options.REPEATS.value)
    title = "Tied attention: step time against `separate`"
    figure = figures.ranges(panels, "time, separate = 1")
    return Findings("attention", title, written, _HEADINGS, cells, caption, figure)


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = row["size"].columns | {"arm": row["arm"], "steps": row["steps"]}
    plain["flops_ratio"] = row["flops"]
    for phase in _PHASES:
        plain |= row[phase].columns(f"{phase}_ratio") | row[f"{phase}_ms"].columns(f"{phase}_ms")
    return plain
