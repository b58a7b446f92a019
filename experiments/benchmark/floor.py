"""The floor: the time that a step's matrix products alone take at the rate of one core's large
product, measured in turns with the sides.

No program of these products is faster. What of a step is above it goes to everything else: softmax,
norms, the optimiser, copies, and products too small for the full rate.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from .sides import Side
from .workers import started

_SIDE, _PRODUCTS = 1024, 5
BLOCK_FLOPS = 2 * _SIDE**3 * _PRODUCTS


@contextlib.contextmanager
def core_products() -> Iterator[Side]:
    """A side whose block is a few large products on one core."""
    # This process may see other devices; the floor is one of the CPU.
    with started(sys.executable, "core_worker.py", _SIDE, {"JAX_PLATFORMS": "cpu"}) as worker:
        yield lambda: worker.ask(_PRODUCTS)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def milliseconds(step_flops: float, block_seconds: float, working: int) -> float:
    """A step's floor where so many cores work at once, each on a run of its own."""
    return 1000 * step_flops * block_seconds / BLOCK_FLOPS / working
