"""Checks of `gpu`: what is fast on a machine computes what is right there.

Every implementation of `attend` that the machine has against einsum in float32, and the runs of a
population against lone runs. Products are taken in full precision meanwhile: NVIDIA GPUs round
those of float32 to 10 bits otherwise.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.model.dot_product import attend, unsupported
from qkv_jax.output import formats
from qkv_jax.training.device_data import DeviceData
from qkv_jax.training.population import Population, RunSpec
from qkv_jax.training.single import LoneProgram

from . import ours
from .budget import Budget
from .publish import Findings, doing
from .sizes import Size

PRECISION = "highest"
_ALLOWED = {"float32": 2e-5, "bfloat16": 2e-2}  # of the largest number of an array
_OF_LOSSES = 1e-5
_HEADS, _KV_HEADS, _HEAD_DIM = 8, 2, 64
_CASES = ("causal", "mask", "causal, mask, bias")
_TIES = ("separate", "K=V")
_RUNS = 4
_HEADINGS = ("check", "worst difference", "allowed", "passes")
_CAPTION = """\
Products in full precision (`jax.default_matmul_precision("{precision}")`). `attend`: the output and
the gradients of queries, keys, values and bias against einsum in float32 at the same numbers,
{length} tokens, {heads} heads that share {kv_heads} of keys and values, {width} wide; the largest
difference in an array over its largest number. Population: losses of the first {steps} steps of
{runs} runs of {size} (width/length/batch) trained at once, against each of them alone, relative.
{left_out}"""


@dataclasses.dataclass(frozen=True)
class Check:
    """A difference that has a bound; `worst` measures it."""

    name: str
    allowed: float
    worst: Callable[[], float]


def measure(budget: Budget, length: int, size: Size) -> Findings:
    """All checks for which there is time: attention on so many tokens, populations of a size."""
    rows, left_out = [], []
    with jax.default_matmul_precision(PRECISION):
        for check in checks(length, size):
            if budget.allows_another:
                with budget.spending(), doing(f"gpu: {check.name}"):
                    rows.append(checked(check))
            else:
                left_out.append(check.name)
    cells = [
        [row["check"], _shown(row), f"{row['allowed']:.0e}", "yes" if row["passes"] else "NO"]
        for row in rows
    ]
    caption = _CAPTION.format(
        precision=PRECISION, length=length, heads=_HEADS, kv_heads=_KV_HEADS, width=_HEAD_DIM,
        steps=ours.CHECKED, runs=_RUNS, size=size,
        left_out=f"Left out for want of time: {'; '.join(left_out)}." if left_out else "",
    )  # fmt: skip
    return Findings("gpu_checks", "Checks", rows, _HEADINGS, cells, caption)


def checked(check: Check) -> dict[str, Any]:
    """A row; a check that cannot be made does not pass, and says why."""
    try:
        worst, reason = check.worst(), ""
    except Exception as error:  # whatever it is, the others go on
        lines = str(error).strip().splitlines() or [""]
        worst, reason = math.nan, f"{type(error).__name__}: {lines[0]}"
    passes = bool(worst <= check.allowed)
    return {"check": check.name, "worst": worst, "allowed": check.allowed, "passes": passes,
            "reason": reason}  # fmt: skip


def checks(length: int, size: Size) -> Iterator[Check]:
    here = jax.default_backend()
    for dtype, allowed in _ALLOWED.items():
        for name in ("einsum", "xla", "cudnn"):
            is_reference = (name, dtype) == ("einsum", "float32")
            if is_reference or unsupported(name, dtype, _HEAD_DIM, here):
                continue
            for case in _CASES:
                worst = functools.partial(_attention, name, dtype, case, length)
                yield Check(f"attend by {name}, {dtype}: {case}", allowed, worst)
    for tie in _TIES:
        worst = functools.partial(_population, tie, size)
        yield Check(f"population of {_RUNS} runs, {tie}", _OF_LOSSES, worst)


def _attention(implementation: str, dtype: str, case: str, length: int) -> float:
    floats, mask = _problem(case, length)
    # What bfloat16 rounds is rounded on both sides.
    floats = {name: array.astype(dtype) for name, array in floats.items()}
    exact = {name: array.astype(jnp.float32) for name, array in floats.items()}
    if "bias" in floats:
        floats["bias"] = exact["bias"]
    causal = "causal" in case
    found = _both_ways(floats, mask, implementation=implementation, is_causal=causal)
    expected = _both_ways(exact, mask, implementation="einsum", is_causal=causal)
    differences = jax.tree.map(_difference, found, expected)
    return float(np.max(jax.tree.leaves(differences)))  # NaN, if one is


def _problem(case: str, length: int) -> tuple[dict[str, jax.Array], jax.Array | None]:
    keys = jax.random.split(jax.random.key(0), 5)
    heads = {"query": _HEADS, "key": _KV_HEADS, "value": _KV_HEADS}
    floats = {
        name: jax.random.normal(key, (2, length, count, _HEAD_DIM))
        for key, (name, count) in zip(keys, heads.items(), strict=False)
    }
    mask = None
    if "bias" in case:
        floats["bias"] = jax.random.normal(keys[3], (1, _HEADS, length, length))
    if "mask" in case:
        # With causal order some queries see nothing.
        mask = jax.random.bernoulli(keys[4], 0.7, (2, 1, length, length))
    return floats, mask


@functools.partial(jax.jit, static_argnames=("implementation", "is_causal"))
def _both_ways(floats, mask, *, implementation: str, is_causal: bool) -> Any:
    """Output and gradients."""
    options = {"mask": mask, "is_causal": is_causal, "implementation": implementation}
    output, backward = jax.vjp(lambda floats: attend(**floats, **options), floats)
    upstream = jnp.sin(1 + jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
    return output, backward(upstream.astype(output.dtype))[0]


def _difference(found: jax.Array, expected: jax.Array) -> float:
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _population(tie: str, size: Size) -> float:
    trainer = size.trainer(3, ours.CHECKED, tie)
    by_step = dataclasses.replace(trainer.train_config, report_every=1)
    trainer = dataclasses.replace(trainer, train_config=by_step)
    data, rate = trainer.task.load(), by_step.learning_rate
    whole = Population(trainer, DeviceData(data, jax.local_devices()[:1]), _RUNS)
    wave = whole.start([RunSpec(rate, seed) for seed in range(_RUNS)])
    together, lone = [], LoneProgram(trainer, data)
    for _ in range(ours.CHECKED):
        wave, metrics = whole.advance(wave)
        together.append(np.asarray(metrics["loss"])[0])
    alone = []
    for seed in range(_RUNS):
        state, losses = jax.device_put(lone.start(seed)), []
        for _ in range(ours.CHECKED):
            state, metrics = lone.advance(state, None)
            losses.append(float(metrics["loss"]))
        alone.append(losses)
    expected = np.transpose(alone)
    return float(np.max(np.abs(np.stack(together) - expected) / expected))


def _shown(row: dict[str, Any]) -> str:
    if row["reason"]:
        return formats.shorten(row["reason"], 40)
    return f"{row['worst']:.1e}"
