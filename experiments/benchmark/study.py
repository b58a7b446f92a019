"""`study`: where the time of a whole study goes, in a process of its own as a user starts it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.output import formats

from ..cli import place
from . import figures, options
from .intervals import PARTS, length, split, union
from .publish import Findings, doing

_HEADINGS = ("start", "runs", "whole", *PARTS)
_CAPTION = """\
Seconds of `python -m experiments.ablate --config={config}`, once each: from an empty folder with
nothing compiled, and again when it is finished, until it has reported. Set-up: until the first wave
is asked for, compilation apart. Compilation: tracing, lowering and compiling that no training
hides; all of it together, {compiling:.1f} s in the first start. Training: waves, with their
validation. Files, report: the rest; in the second start, which trains nothing, all but
compilation."""


def measure() -> Findings:
    config = options.STUDY_CONFIG.value
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for start in ("first", "second"):
            with doing(f"study: {start} start of {config}"):
                rows.append({"start": start, "config": config, **_measured(config, folder)})
    cells = [
        [row["start"], str(row["runs"]),
         *(formats.number(row[_column(part)], 1) for part in ("whole", *PARTS))]
        for row in rows
    ]  # fmt: skip
    bars = {f"{row['start']} start": {part: row[_column(part)] for part in PARTS} for row in rows}
    return Findings(
        "study", "A study's time: seconds", rows, _HEADINGS, cells,
        _CAPTION.format(config=config, compiling=rows[0]["compiling_seconds"]),
        figures.parts(bars, "seconds"),
    )  # fmt: skip


def _measured(config: str, folder: str) -> dict[str, Any]:
    """One start in a folder, and how many runs it then holds."""
    notes, workdir = pathlib.Path(folder) / "notes.json", pathlib.Path(folder) / "study"
    command = [sys.executable, "-m", place.module("benchmark.watched"), str(notes)]
    command += [f"--config={config}", f"--workdir={workdir}"]
    # What somebody has compiled before does not count.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    began = time.monotonic()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    ended = time.monotonic()
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError("study_config", config, f"must be a study that runs: {said}")
    found = json.loads(notes.read_text())
    parts = {"whole": ended - began, **split(began, ended, **found)}
    parts["compiling"] = length(union(found["compiling"]))  # some of it beside training
    runs = len(pd.read_csv(workdir / "runs.csv"))
    return {"runs": runs, **{_column(part): seconds for part, seconds in parts.items()}}


def _column(part: str) -> str:
    return part.replace(", ", "_").replace("-", "_") + "_seconds"
