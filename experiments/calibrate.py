"""Measures the error rates of the whole study protocol on simulated studies.

    python -m experiments.calibrate --studies=1000

Of the race (`qkv_jax/study/protocol/race.py`), on the cases of `hostile.py`: how often any verdict
of a task was false, how often any interval missed the difference at best rates, how many arms were
decided, and at how many runs. Targets are at most 5 % unless the row allows more, within Monte
Carlo error, whose 95 % interval stands in brackets; an asterisk marks what misses its target.

    python -m experiments.calibrate --protocol=fixed --studies=4000

Of the protocol with a fixed number of seeds, for every kind of outcome, effect and pairing
correlation: family error and false equivalence (at most 5 %), coverage (at least 95 %) and power.

    python -m experiments.calibrate --protocol=both --studies=100

sets the two side by side on these cases, as whole studies of six seeds or of up to 32, from their
rows to their tables: a second or so for each pair.

    python -m experiments.calibrate --real=runs/quick --real=runs/claims

takes no simulation at all: the placebos of real studies, baselines against themselves, are added to
those that `--placebos` (runs/placebos.csv) holds, and all p-values ever made are set against what
uniform ones would be, in a figure beside it.
"""

from __future__ import annotations

import itertools
import math
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
from absl import flags
from rich.console import Console
from rich.table import Table

from qkv_jax.config import ConfigError
from qkv_jax.output import style
from qkv_jax.runtime.files import with_filename
from qkv_jax.study.protocol import calibration, hostile, inference
from qkv_jax.study.report import placebos
from qkv_jax.study.run.workdir import Workdir

from .cli import entry
from .cli.paths import PathParser, path_flag

AT_MOST = dict.fromkeys(calibration.EVENTS, 0.05)
AT_LEAST = {"coverage": 0.95, "arm_coverage": 0.95}
CHUNK = 250  # studies per piece of work

_STUDIES = flags.DEFINE_integer("studies", 1000, "Simulated studies per row.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the simulation.", lower_bound=0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", lower_bound=1)
_PROTOCOL = flags.DEFINE_enum("protocol", "race", ("race", "fixed", "both"), "What is calibrated.")
_REAL = flags.DEFINE_multi(
    PathParser(), flags.ArgumentSerializer(), "real", None, "Folders of studies: their placebos."
)
_PLACEBOS = path_flag("placebos", "runs/placebos.csv", "With --real: keeps all p-values.")
_OUTCOME = flags.DEFINE_enum("outcome", None, calibration.OUTCOMES, "Only this kind of outcome.")


def _cell(name: str, value: calibration.Estimate) -> str:
    if math.isnan(value.value):
        return ""
    missed = value.low > AT_MOST.get(name, 1.0) or value.high < AT_LEAST.get(name, 0.0)
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.value:.1f}{'*' if missed else ''}\n[{low:.1f}, {high:.1f}]"


def _pieces(simulate: Callable, cases: list) -> list[np.ndarray]:
    """The outcomes of the studies of each case, on all workers."""
    sizes = [min(CHUNK, _STUDIES.value - done) for done in range(0, _STUDIES.value, CHUNK)]
    work = list(itertools.product(cases, enumerate(sizes)))
    with ProcessPoolExecutor(_WORKERS.value) as pool:
        pieces = list(
            pool.map(
                simulate,
                [case for case, _ in work],
                [size for _, (_, size) in work],
                [[_SEED.value, place] for _, (place, _) in work],
            )
        )
    count = len(sizes)
    return [np.concatenate(pieces[i : i + count]) for i in range(0, len(pieces), count)]


def _race_table() -> Table:
    """A row for each hostile case."""
    head = ("case", "any false\nverdict", "allowed", "any missed\ninterval", "decided", "runs")
    table = Table(*head)
    for case, counts in zip(hostile.CASES, _pieces(hostile.simulate, hostile.CASES), strict=True):
        wrong, missed = (_share(column, case.at_most) for column in counts.T[:2])
        decided, runs = counts[:, 2:].mean(0)
        allowed = f"{100 * case.at_most:g}"
        table.add_row(case.name, wrong, allowed, missed, f"{100 * decided:.0f}", f"{runs:.0f}")
    return table


def _both_table() -> Table:
    """A row for each hostile case, the two protocols beside each other."""
    columns = ("any false\nverdict", "any missed\ninterval", "decided", "runs")
    heads = [f"{name}:\n{head}" for name in ("fixed", "race") for head in columns]
    table = Table("case", *heads)
    for case, counts in zip(hostile.CASES, _pieces(hostile.compare, hostile.CASES), strict=True):
        cells = []
        for wrong, missed, decided, runs in np.split(counts.T, 2):
            cells += [_share(wrong, case.at_most), _share(missed, case.at_most)]
            cells += [f"{100 * decided.mean():.0f}", f"{runs.mean():.0f}"]
        table.add_row(case.name, *cells)
    return table


def _share(events: np.ndarray, at_most: float) -> str:
    """Per cent with its Monte Carlo interval, on one line."""
    low, high = inference.solve_interval(events.sum(), len(events))
    mark = "*" if low > at_most else ""
    return f"{100 * events.mean():.1f}{mark} [{100 * low:.1f}, {100 * high:.1f}]"


def _real() -> None:
    """Keeps the placebos of studies, and shows all there are."""
    found = [placebos.placebos_of(Workdir(folder)) for folder in _REAL.value]
    file = pathlib.Path(_PLACEBOS.value)
    with with_filename(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = placebos.keep(file, pd.concat(found, ignore_index=True))
    if rows.empty:
        raise ConfigError("real", _REAL.value, "no placebo of these studies has a p-value yet")
    table = Table(*placebos.COLUMNS)
    for row in rows.itertuples(index=False):
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row))
    Console(width=120).print(table)
    small, low, high, uniform = placebos.uniformity(rows["p_value"].to_numpy(float))
    style.save(placebos.figure(rows), file.with_suffix(""))
    print(
        f"{len(rows)} placebos: {100 * small:.0f} % have p <= 0.05 ({100 * low:.0f} to "
        f"{100 * high:.0f} %); Kolmogorov-Smirnov p = {uniform:.2g}. {file.with_suffix('.svg')}"
    )


def main() -> None:
    if _REAL.value:
        _real()
        return
    if _PROTOCOL.value != "fixed" and _OUTCOME.value is not None:
        allowed = "is of --protocol=fixed: hostile cases have their own outcomes"
        raise ConfigError("outcome", _OUTCOME.value, allowed)
    start = time.perf_counter()
    # No JAX: a process in which it has started is not to be forked.
    print(f"On {_WORKERS.value} processes: {_STUDIES.value} studies per row …", flush=True)
    tables = {"fixed": _fixed_table, "race": _race_table, "both": _both_table}
    table = tables[_PROTOCOL.value]()
    Console(width=220).print(table)
    seconds = time.perf_counter() - start
    print(f"Per cent of {_STUDIES.value} studies per row, {seconds:.0f} s. * misses its target.")


def _fixed_table() -> Table:
    """A row for each scenario of the protocol with a fixed number of seeds."""
    chosen = [s for s in calibration.scenarios() if _OUTCOME.value in (None, s.outcome)]
    columns = calibration.EVENTS + calibration.SHARES
    head = ("outcome", "effect", "corr.", "margin", "other\noptima", "seeds")
    table = Table(*head, *(name.replace("_", "\n") for name in columns))
    for scenario, outcomes in zip(chosen, _pieces(calibration.simulate, chosen), strict=True):
        rates = calibration.estimate(outcomes)
        what = (scenario.outcome, scenario.effect, f"{scenario.correlation:g}")
        what += (f"{scenario.margin:g}", f"{scenario.elsewhere}")
        what += (", ".join(map(str, scenario.analyses or (scenario.eval_seeds,))),)
        cells = (_cell(name, rates[name]) for name in columns)
        table.add_row(*what, *cells)
    return table


if __name__ == "__main__":
    entry.enter(main)
