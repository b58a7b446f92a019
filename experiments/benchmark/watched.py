"""Runs `ablate` as it is, and notes when it compiled and trained.

    python -m experiments.benchmark.watched NOTES --config=… --workdir=…

NOTES is a JSON file of intervals on the machine's monotonic clock: `compiling` as JAX reports it,
one for each program's tracing, lowering and compilation (they nest), and `training`, one for each
wave. `first` is when the first wave was asked for, compilation and all.
"""

import functools
import json
import pathlib
import runpy
import sys
import time

import jax

from ..cli import place

_COMPILATION = "/jax/core/compile/"  # how the events of tracing, lowering and compiling begin


def main() -> None:
    file = pathlib.Path(sys.argv.pop(1))
    notes = {"compiling": [], "training": [], "first": None}

    def listen(event: str, seconds: float, **_) -> None:
        if event.startswith(_COMPILATION):
            now = time.monotonic()
            notes["compiling"].append((now - seconds, now))

    jax.monitoring.register_event_duration_secs_listener(listen)
    _watch_waves(notes)
    try:
        runpy.run_module(place.module("ablate"), run_name="__main__", alter_sys=True)
    finally:
        file.write_text(json.dumps(notes))


def _watch_waves(notes: dict) -> None:
    from qkv_jax.training.population import Population

    train = Population.train

    @functools.wraps(train)
    def watched(self, *args, **kwargs):
        if notes["first"] is None:
            notes["first"] = time.monotonic()
        finished = train(self, *args, **kwargs)
        now = time.monotonic()
        # Of a wave's time the runs know what was training.
        notes["training"].append((now - finished[0].seconds, now))
        return finished

    Population.train = watched


if __name__ == "__main__":
    main()
