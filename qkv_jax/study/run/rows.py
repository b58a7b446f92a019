"""The rows of a study's runs: their columns, how they are appended, read, and merged.

One process writes runs.csv. Where several work on a study, each appends to a file of its own,
`parts/TASK/ARM.csv`, so that no two ever write to one; a reader merges them into the table that one
process would have written. Reading needs no lock: a last row that is not whole yet, or never will
be, is left out.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import with_filename
from qkv_jax.study.plan import Arm, TaskPlan
from qkv_jax.study.protocol.rounds import Part, rounds
from qkv_jax.study.record import KEY, RUN_COLUMNS, StudyRecord
from qkv_jax.training.population import RunResult, RunSpec

_TYPES = {
    "seed": int, "steps": int, "learning_rate": float, "validation": float, "test": float,
    "steps_to_solve": float, "seconds": float,
}  # fmt: skip


def append_runs(file: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to the whole ones of a file in one write and waits until the disk has them.

    The file is this process's alone; it is made if need be, and its folder.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_row(file)
    text = io.StringIO()
    writer = csv.DictWriter(text, RUN_COLUMNS, lineterminator="\n")
    if not file.exists() or not file.stat().st_size:
        writer.writeheader()
    for row in rows:
        writer.writerow({k: repr(float(v)) if isinstance(v, float) else v for k, v in row.items()})
    with with_filename(file), file.open("a", encoding="utf-8") as stream:
        stream.write(text.getvalue())
        stream.flush()
        os.fsync(stream.fileno())


def read_runs(files: Iterable[pathlib.Path]) -> pd.DataFrame:
    """The whole rows of files of runs, one file after the other; one that is not there is empty.

    Raises:
      ConfigError: naming a file that has other columns or a damaged row.
    """
    rows = [row for file in files if file.exists() for row in _rows(file)]
    if not rows:
        return pd.DataFrame(columns=RUN_COLUMNS)
    # One table for all: a table for each of a thousand files takes seconds.
    columns = dict(zip(RUN_COLUMNS, zip(*rows, strict=True), strict=True))
    return pd.DataFrame({name: pd.Series(column, dtype=_TYPES.get(name, str))
                         for name, column in columns.items()})  # fmt: skip


def read_parts(folder: pathlib.Path) -> pd.DataFrame:
    """What all writers of a study have appended: runs.csv, then parts/TASK/ARM.csv by name.

    Of rows about one run the first counts. `in_order` puts them as one process would have.

    Args: folder: that of the study.

    Raises:
      ConfigError: as `read_runs`.
    """
    files = [folder / "runs.csv", *sorted((folder / "parts").glob("*/*.csv"))]
    return read_runs(files).drop_duplicates(list(KEY), ignore_index=True)


def in_order(record: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs in the order in which one process goes about a study: by interim
    analysis, task, round and arm. Rows of what the study does not have come last.

    Args: record: of the study.
    """
    places: dict[tuple, tuple] = {}
    by_task = dict(iter(runs.groupby("task", sort=False)))
    for number, task in enumerate(record.tasks):
        mine = by_task.get(task, runs[:0])
        for turn, found in enumerate(rounds(record, task, lambda mine=mine: mine)):
            for place, part in enumerate(found.parts):
                for which, key in enumerate(part.keys):
                    places[key] = (found.analysis, number, turn, place, which)
    last = (len(record.looks) + 1,)
    keys = list(runs[list(KEY)].itertuples(index=False, name=None))
    order = sorted(range(len(keys)), key=lambda row: (places.get(keys[row], last), keys[row]))
    return runs.iloc[order].reset_index(drop=True)


def _rows(file: pathlib.Path) -> Iterator[list[Any]]:
    """The rows of a file with their numbers read, without one that is not whole."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), f"byte {error.start}", "damaged; is no text") from None
    whole = text[: text.rfind("\n") + 1]
    if "\0" in whole:  # what some file systems leave of a block that was not written
        line = whole[: whole.index("\0")].count("\n") + 1
        raise ConfigError(f"{file}: line {line}", "\0", "damaged; is no text")
    lines = csv.reader(io.StringIO(whole, newline=""))
    header = next(lines, list(RUN_COLUMNS))
    if header != list(RUN_COLUMNS):
        raise ConfigError(f"{file}: columns", ",".join(header), f"must be {','.join(RUN_COLUMNS)}")
    for row in lines:
        try:
            # Python reads floats to the bit, pandas does not, and a resumed study must compute
            # what an uninterrupted one does. Names such as "None" or "NA" are names.
            yield [_TYPES.get(n, str)(v) for n, v in zip(RUN_COLUMNS, row, strict=True)]
        except ValueError:
            allowed = f"damaged; a row holds {','.join(RUN_COLUMNS)}"
            raise ConfigError(f"{file}: line {lines.line_num}", ",".join(row), allowed) from None


def _drop_cut_row(file: pathlib.Path) -> None:
    content = file.read_bytes() if file.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(file, whole)


def run_row(
    plan: TaskPlan, arm: Arm, part: Part, run: RunSpec, done: RunResult | None
) -> dict[str, Any]:
    """The row of a run in runs.csv; None stands for one that failed."""
    outcome, steps = plan.task.outcome, arm.trainer.train_config.steps
    failure = float(outcome.failure_value)
    row = {
        "task": plan.name,
        "arm": arm.name,
        "learning_rate": float(run.learning_rate),
        "seed": run.seed,
        "round": part.round,
        "status": "failed",
        "metric": outcome.metric,
        "validation": failure,
        "test": failure if part.kind.tested else float("nan"),
        "steps": steps,
        "steps_to_solve": float("nan"),
        "seconds": float("nan"),
    }
    if done is None:
        return row
    row["seconds"] = round(done.seconds, 4)
    solved = [
        int(s) for s, v in zip(done.steps, done.value, strict=True) if outcome.solved(float(v))
    ]
    row["steps_to_solve"] = float(solved[0]) if solved else float("nan")
    scores = {"validation": float(done.value[-1])}
    if part.kind.tested:
        scores["test"] = float(np.mean(done.scores, dtype=np.float64))
    if done.diverged or not all(map(np.isfinite, scores.values())):
        return row | {"status": "diverged"}
    return row | {"status": "done"} | scores
