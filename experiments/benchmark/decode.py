"""`decode`: what a token costs to decode, under each way of keeping keys and values."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.output import formats

from . import figures, options
from .publish import Findings, doing
from .sides import Side, Spread, interleaved, ratios

_WIDTH, _HEADS = 256, 4
_ROTARY: dict[str, Any] = {"positions": "rotary"}
# Of one layer of attention: heads of 64, a latent of 128 with 32 rotary coordinates beside it.
_ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "separate": ("separate", _ROTARY),
    "K=V": ("K=V", _ROTARY),
    "K=V, rotated": ("K=V", _ROTARY | {"scheme": "rotated"}),
    "GQA": ("separate", _ROTARY | {"num_kv_heads": 2}),
    "GQA, K=V": ("K=V", _ROTARY | {"num_kv_heads": 2}),
    "MQA": ("separate", _ROTARY | {"num_kv_heads": 1}),
    "MQA, K=V, rotated": ("K=V", _ROTARY | {"num_kv_heads": 1, "scheme": "rotated"}),
    "GTA": ("K=V", _ROTARY | {"scheme": "grouped_tied", "num_kv_heads": 2}),
    "MLA": ("separate", _ROTARY | {"scheme": "mla", "latent_dim": 128, "rotary_dims": 32}),
}
_TOKENS = (2**13, 2**15, 2**17, 2**19)  # of a batch: 16 MiB to 1 GiB of `separate`
_BLOCK_BYTES = 2**30  # of cache that a block of steps reads, about
_HEADINGS = ("cache of\nseparate", "arm", "bytes\na token", "tokens a\nsecond", "over\nseparate",
             "share of\nread floor")  # fmt: skip
_CAPTION = """\
Decoding by one layer of attention, {heads} heads of {head}, rotary, float32, {context} tokens in
the cache of every row; tokens of all rows together. "Over separate" is the ratio of tokens a
second. The floor is the time that a sum over as many bytes takes, in the same round ({rate} GB/s);
a product may read a little faster. Medians of {repeats} interleaved rounds."""


def measure() -> Findings:
    rows, context = [], options.CONTEXT.value
    tokens = _TOKENS if jax.default_backend() == "cpu" else (*_TOKENS, 2**21)
    for batch in sorted({max(1, total // context) for total in tokens}):
        with doing(f"decode: {batch} rows"):
            rows += _measured(batch)
    return _findings(rows)


def _measured(batch: int) -> list[dict[str, Any]]:
    repeats, context = options.REPEATS.value, options.CONTEXT.value
    layers = {name: MultiHeadAttention(_HEADS, tie, **own) for name, (tie, own) in _ARMS.items()}
    empty = {name: layer.init_cache(batch, context, _WIDTH) for name, layer in layers.items()}
    sizes = {name: cache.nbytes for name, cache in empty.items()}
    steps = max(2, _BLOCK_BYTES // sizes["separate"])
    del empty
    read = _reading(sizes["separate"], steps)
    seconds: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    # One cache at a time beside that of `separate`: all of them would not fit.
    for name, layer in layers.items():
        sides = {"separate": _decoding(layers["separate"], batch, steps), "read": read}
        if name != "separate":
            sides[name] = _decoding(layer, batch, steps)
        found = interleaved(sides, repeats)
        seconds[name], floors[name] = found[name], found["read"]
        seconds[f"{name}/separate"] = found["separate"]
    rows = []
    for name, size in sizes.items():
        own = seconds[name]
        share = [f * size / sizes["separate"] / s for f, s in zip(floors[name], own, strict=True)]
        rows.append({
            "rows": batch, "mebibytes": sizes["separate"] / 2**20, "arm": name, "steps": steps,
            "bytes_per_token": size // batch // context,
            "tokens": Spread.of([batch * steps / s for s in own]),
            "ratio": ratios(seconds[f"{name}/separate"], own),
            "share": Spread.of(share),
            "rate": Spread.of([sizes["separate"] * steps / f / 1e9 for f in floors[name]]),
        })  # fmt: skip
    return rows


def _decoding(layer: MultiHeadAttention, batch: int, steps: int) -> Side:
    """Steps of one token for every row, the cache all but full."""
    context = options.CONTEXT.value
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, 1, _WIDTH)), jnp.float32)
    params = layer.init(jax.random.key(0), x)

    # The cache goes round in a ring of constant length: each block finds it as the one before did.
    @functools.partial(jax.jit, donate_argnums=1)
    def step(x, cache):
        out, cache = layer.apply(params, x, cache=cache)
        return out, cache.replace(lengths=jnp.full_like(cache.lengths, context - 1))

    cache = layer.init_cache(batch, context, _WIDTH)
    filled = jax.tree.map(lambda leaf: leaf + jnp.float32(0.1), cache.sources)
    cache = cache.replace(sources=filled, lengths=jnp.full(batch, context - 1, jnp.int32))

    def block() -> float:
        nonlocal cache
        start = time.perf_counter()
        for _ in range(steps):
            out, cache = step(x, cache)
        jax.block_until_ready((out, cache))
        return time.perf_counter() - start

    return block


def _reading(size: int, steps: int) -> Side:
    """Sums over so many bytes, by all cores."""
    numbers = jnp.ones((64, size // 256), jnp.float32)
    total = jax.jit(lambda numbers: numbers.sum(1))

    def block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            out = total(numbers)
        jax.block_until_ready(out)
        return time.perf_counter() - start

    return block


def _findings(rows: list[dict[str, Any]]) -> Findings:
    cells, panels, written = [], {}, []
    for row in rows:
        title = f"{formats.number(row['mebibytes'], 0)} MiB of separate"
        first = title not in panels
        panels.setdefault(title, []).append(figures.Row(row["arm"], row["ratio"], 1.0))
        cells.append([
            f"{row['mebibytes']:.0f} MiB" if first else "", row["arm"],
            str(row["bytes_per_token"]), row["tokens"].cell(), row["ratio"].cell(2),
            row["share"].cell(2),
        ])  # fmt: skip
        plain = {k: v for k, v in row.items() if not isinstance(v, Spread)}
        for name in ("tokens", "ratio", "share", "rate"):
            plain |= row[name].columns(name)
        written.append(plain)
    rate = Spread.of([row["rate"].median for row in rows]).median
    caption = _CAPTION.format(
        heads=_HEADS, head=_WIDTH // _HEADS, context=options.CONTEXT.value,
        rate=formats.number(rate, 1), repeats=options.REPEATS.value,
    )  # fmt: skip
    figure = figures.ranges(panels, "tokens a second, separate = 1")
    title = "Decoding: tokens a second by what a cache keeps"
    return Findings("decode", title, written, _HEADINGS, cells, caption, figure)
