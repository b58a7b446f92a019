"""Measures the error rates of the whole study protocol on simulated studies.

    python -m experiments.calibrate --studies=4000

Prints, for every kind of outcome, effect and pairing correlation, the family error, coverage and
power of what the report would have said, with 95 % Monte Carlo intervals in brackets. The targets
are a family error and a false-equivalence rate of at most 5 % and a coverage of at least 95 %,
within Monte Carlo error; entries that miss their target are marked with an asterisk.
"""

from __future__ import annotations

import itertools
import math
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.cli import entry
from qkv_jax.study.protocol import calibration

AT_MOST = dict.fromkeys(calibration.EVENTS, 0.05)
AT_LEAST = {"coverage": 0.95, "arm_coverage": 0.95}
CHUNK = 250  # studies per piece of work

_STUDIES = flags.DEFINE_integer("studies", 4000, "Simulated studies per row.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the simulation.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
_OUTCOME = flags.DEFINE_enum("outcome", None, calibration.OUTCOMES, "Only this kind of outcome.")


def _cell(name: str, value: calibration.Estimate) -> str:
    if math.isnan(value.value):
        return ""
    missed = value.low > AT_MOST.get(name, 1.0) or value.high < AT_LEAST.get(name, 0.0)
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.value:.1f}{'*' if missed else ''}\n[{low:.1f}, {high:.1f}]"


def main() -> None:
    chosen = [s for s in calibration.scenarios() if _OUTCOME.value in (None, s.outcome)]
    sizes = [min(CHUNK, _STUDIES.value - done) for done in range(0, _STUDIES.value, CHUNK)]
    work = list(itertools.product(chosen, enumerate(sizes)))
    start = time.perf_counter()
    with ProcessPoolExecutor(_WORKERS.value) as pool:
        pieces = list(
            pool.map(
                calibration.simulate,
                [scenario for scenario, _ in work],
                [size for _, (_, size) in work],
                [[_SEED.value, place] for _, (place, _) in work],
            )
        )
    columns = calibration.EVENTS + calibration.SHARES
    head = ("outcome", "effect", "corr.", "margin", "other\noptima")
    table = Table(*head, *(name.replace("_", "\n") for name in columns))
    for row, scenario in enumerate(chosen):
        outcomes = np.concatenate(pieces[row * len(sizes) : (row + 1) * len(sizes)])
        rates = calibration.estimate(outcomes)
        what = (scenario.outcome, scenario.effect, f"{scenario.correlation:g}")
        what += (f"{scenario.margin:g}", f"{scenario.elsewhere}")
        cells = (_cell(name, rates[name]) for name in columns)
        table.add_row(*what, *cells)
    Console(width=200).print(table)
    seconds = time.perf_counter() - start
    print(f"Per cent of {_STUDIES.value} studies per row, {seconds:.0f} s. * misses its target.")


if __name__ == "__main__":
    entry.enter(main)
