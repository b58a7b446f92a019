"""The table of `gpu` of large encoders: tokens a second, and the share of the chip's peak (MFU)."""

import contextlib
import dataclasses
import functools
import re
import runpy
import time
from typing import Any

import jax
import jax.numpy as jnp

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.dot_product import resolved, unsupported
from qkv_jax.output import formats
from qkv_jax.tasks import make_task
from qkv_jax.training import costs
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

from ..cli import defects, place
from . import figures, options, ours, peer
from .budget import Budget
from .publish import Findings, doing
from .sides import Side, Spread, interleaved, ratios
from .workers import WorkerError

# Dense bfloat16 FLOPs a second, by what JAX calls the chip; NVIDIA's data sheets, read in 2026,
# whose numbers with sparsity are twice these.
_PEAKS = {
    r"\bH100 PCIe\b": 756e12,
    r"\bH100 NVL\b": 835e12,
    r"\bH100\b": 989e12,
    r"\bH200 NVL\b": 836e12,
    r"\bH200\b": 989e12,
    r"\bA100\b": 312e12,
    r"\bL40S\b": 362e12,
}
_SEPARATE = "ours, separate"
_TIES = {_SEPARATE: "separate", "ours, K=V": "K=V"}
_TORCH = "PyTorch, compiled"
_PRODUCTS = 20  # of a block
_TORCH_SHARE = 0.8  # of the time left to an encoder: what starting and compiling may take
_HEADINGS = ("encoder", "side", "tokens\na second", "TFLOP/s", "MFU", "share of\nproduct",
             "speed,\nPyTorch = 1")  # fmt: skip
_CAPTION = """\
Training steps of encoders on sequences of {lengths} tokens, task `reverse`, arithmetic in bfloat16,
parameters in float32, AdamW. FLOPs are those of the matrix products, forward and twice that
backwards; what remat computes again does not count. MFU: FLOPs a second over {peak}. Share of
product: over the rate of a {side} x {side} x {side} product in the same rounds
({rate} TFLOP/s). Ours: attention by {attention}, remat 'dots', the layers as one loop. PyTorch:
float32 parameters under autocast, fused AdamW, each layer compiled, nothing computed again; its
mean loss of the first block must be ours within {tolerance:.0%}. Medians of {repeats} interleaved
rounds, least and most below them. {left_out}"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A large encoder and its batches; `steps` are those of a block."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    steps: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.length * self.batch

    def trainer(self, tie: str, blocks: int) -> Trainer:
        model = ModelConfig(
            layers=self.layers, width=self.width, heads=self.heads, tie=tie, dtype="bfloat16",
            implementation=attention(self.width // self.heads), remat="dots", scan_layers=True,
        )  # fmt: skip
        held_out = {"validation_examples": 8, "test_examples": 8}
        task = make_task("reverse", {"length": self.length, **held_out})
        config = TrainConfig(
            steps=self.steps * blocks,
            report_every=self.steps,
            batch_size=self.batch,
            learning_rate=3e-4,
        )
        # Joined moments are for small models: here they would be copies of gigabytes.
        return Trainer(model, task, config, moments="by_leaf")


def shapes() -> tuple[Shape, ...]:
    """About 100 million and 1 billion parameters, 32 and 16 thousand tokens a step."""
    sizes = runpy.run_path(str(place.CONFIGS / "big.py"))["SIZES"]
    (few, narrow, heads, _), (many, wide, more, _) = sizes["100m"], sizes["1b"]
    return Shape(few, narrow, heads, 1024, 32, 10), Shape(many, wide, more, 1024, 16, 5)


TINY = (Shape(1, 32, 4, 16, 4, 5), Shape(2, 64, 4, 16, 4, 5))


def attention(head_dim: int) -> str:
    """The implementation that is measured: cuDNN's, where it can be had."""
    lacks = unsupported("cudnn", "bfloat16", head_dim, jax.default_backend())
    return resolved("auto") if lacks else "cudnn"


def peak(kind: str) -> float | None:
    """FLOPs a second of a whole chip of this kind; None if it is not known."""
    if "MIG" in kind:  # a part of one
        return None
    return next((flops for name, flops in _PEAKS.items() if re.search(name, kind)), None)


def measure(budget: Budget, shapes: tuple[Shape, ...], side: int) -> Findings:
    """Each encoder that there is time for, beside a product of so many rows and columns."""
    torch = peer.version(options.TORCH.value)
    rows, left_out = [], []
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(peer.alone(options.TORCH.value, _device())) if torch else None
        for place, shape in enumerate(shapes):
            share = _TORCH_SHARE / (len(shapes) - place)
            found, missing = _measured(budget, shape, side, worker, share)
            rows += found
            left_out += missing
    return dataclasses.replace(_findings(rows, shapes, side, left_out), torch=torch)


def _device() -> str:
    """As PyTorch calls it."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _measured(
    budget: Budget, shape: Shape, side: int, worker: peer.Alone | None, share: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each side, and which were left out and why. PyTorch may take a share of the time
    that is left."""
    repeats = options.REPEATS.value
    trainers = {name: shape.trainer(tie, repeats + 2) for name, tie in _TIES.items()}
    size = f"{formats.count(costs.measure(trainers[_SEPARATE]).params)} parameters"
    sides, means, left_out = {"product": products(side)}, {}, []
    for name, trainer in trainers.items():
        if not budget.allows_another:
            left_out.append(f"{name}, {size} (no time)")
            continue
        with budget.spending(), doing(f"gpu: {name}, {size}"):
            try:
                sides[name], means[name] = _compiled(trainer)
            except Exception as error:
                if not defects.out_of_memory(error):
                    raise
                left_out.append(f"{name}, {size} (out of memory)")
    if worker and _SEPARATE in sides:
        with doing(f"gpu: {_TORCH}, {size}"):
            try:
                with worker.limited(share * budget.left):
                    sides[_TORCH] = worker.side(trainers[_SEPARATE], means[_SEPARATE])
            except (WorkerError, ConfigError) as error:
                peer.left_out(f"{size}: {error}")
                left_out.append(f"{_TORCH}, {size} ({error})")
    with doing(f"gpu: {size}, {repeats} rounds"):
        seconds = interleaved(sides, repeats)
    rate = [_PRODUCTS * 2 * side**3 / s for s in seconds.pop("product")]
    rows = []
    for name, blocks in seconds.items():
        trainer = trainers.get(name, trainers[_SEPARATE])
        flops = [shape.steps * costs.step_flops(trainer) / s for s in blocks]
        params = costs.measure(trainer).params
        row: dict[str, Any] = {"shape": shape, "side": name, "params": params}
        row["tokens"] = Spread.of([shape.steps * shape.tokens / s for s in blocks])
        row["tflops"] = Spread.of([f / 1e12 for f in flops])
        row["share"] = ratios(flops, rate)
        row["product"] = Spread.of([r / 1e12 for r in rate])
        row["speed"] = ratios(seconds[_TORCH], blocks) if _TORCH in seconds else Spread()
        rows.append(row)
    return rows, left_out


def _compiled(trainer: Trainer) -> tuple[Side, float]:
    """Our side, which is known to fit, and its mean loss in the first block."""
    means: list[float] = []
    block = ours.alone(trainer, means)
    block()
    return block, means[0]


def products(side: int) -> Side:
    """A block of large products in bfloat16 on the default device."""
    square = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(functools.partial(jnp.matmul, precision="default"))

    def block() -> float:
        start = time.perf_counter()
        for _ in range(_PRODUCTS):
            last = product(square, square)  # whose forerunner makes room for the next
        last.block_until_ready()
        return time.perf_counter() - start

    return block


def _findings(
    rows: list[dict[str, Any]], shapes: tuple[Shape, ...], side: int, left_out: list[str]
) -> Findings:
    kind = jax.local_devices()[0].device_kind
    most = peak(kind)
    cells, panels, written = [], {}, []
    for row in rows:
        of_peak = (lambda x: x * 1e12 / most) if most else (lambda x: x / row["product"].median)  # noqa: B023
        row["mfu"] = Spread(*map(of_peak, dataclasses.astuple(row["tflops"])))
        size = formats.count(row["params"])
        cells.append(
            [size, row["side"], *(row[name].cell() for name in ("tokens", "tflops")),
             *(row[name].cell(2) for name in ("mfu", "share", "speed"))]
        )  # fmt: skip
        title = f"{row['shape'].layers} layers, {row['shape'].width} wide: MFU"
        panels.setdefault(title, []).append(figures.Row(row["side"], row["mfu"], 1.0))
        written.append(_written(row))
    rates = Spread.of([row["product"].median for row in rows])
    caption = _CAPTION.format(
        lengths=formats.join([str(n) for n in sorted({shape.length for shape in shapes})]),
        peak=f"the peak of {kind}, {most / 1e12:.0f} TFLOP/s" if most
        else f"that of the product, since the peak of {kind} is not known here",
        side=side,
        rate=formats.number(rates.median, 1 if rates.median >= 1 else 3),
        attention=attention(shapes[-1].width // shapes[-1].heads),
        tolerance=peer.OF_MEANS,
        repeats=options.REPEATS.value,
        left_out=f"Left out: {'; '.join(left_out)}." if left_out else "",
    )  # fmt: skip
    figure = figures.ranges(panels, "share of the peak") if panels else None
    return Findings(
        "gpu_mfu", "Large encoders in bfloat16", written, _HEADINGS, cells, caption, figure
    )


def _written(row: dict[str, Any]) -> dict[str, Any]:
    plain = dataclasses.asdict(row["shape"]) | {name: row[name] for name in ("params", "side")}
    names = {"tokens": "tokens_per_second", "tflops": "tflops", "mfu": "mfu",
             "share": "share_of_product", "product": "product_tflops",
             "speed": "torch_time_over_this"}  # fmt: skip
    for name, column in names.items():
        plain |= row[name].columns(column)
    return plain
