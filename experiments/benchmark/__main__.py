"""Benchmarks, side by side in one run: `python -m experiments.benchmark population`.

`population`: a wave of training runs as a population (pmap x vmap over all devices), one at a time,
in plain Flax, and in PyTorch at its best; and the share of the floor that matrix products set.
`train`: one run alone that may use every core, beside the same others.
`attention`: the step time of tied arms against `separate`, beside the ratio of their FLOPs.
`study`: where the time of a study goes, from an empty folder and when it is started again.
`decode`: tokens a second of each way to keep keys and values, beside the floor that reading sets.
`gpu`: in eight minutes on a GPU, whether what is fast there is right, which packing of populations
is the fastest, and which share of the peak large encoders reach; three tables, in gpu.md as well.

Each prints a table, writes NAME.csv, NAME.svg and NAME.png into `--out`, and ends with one line of
JSON. PyTorch is never a dependency: it is run by the Python that `--torch` names, which
`make benchmark` sets up, and left out where that is missing.
"""

import functools
from collections.abc import Callable

from ..cli import entry
from . import attention, decode, gpu, population, study, train
from .publish import Findings, publish


def main(measure: Callable[[], Findings]) -> None:
    publish(measure())


MAINS = {
    "population": functools.partial(main, population.measure),
    "train": functools.partial(main, train.measure),
    "attention": functools.partial(main, attention.measure),
    "study": functools.partial(main, study.measure),
    "decode": functools.partial(main, decode.measure),
    "gpu": gpu.main,
}

if __name__ == "__main__":
    entry.enter_one("benchmark", MAINS)
