"""Placebos of real studies, kept in one file: thirty tasks test an error of 5 %, one does not.

A placebo is the baseline against itself, so its p-values are uniform if seeds are independent and
the tests are right.
"""

import io
import pathlib

import numpy as np
import pandas as pd
from scipy import stats

from qkv_jax.output import style
from qkv_jax.runtime.files import write_whole
from qkv_jax.study.protocol import inference
from qkv_jax.study.run.tables import read_checked
from qkv_jax.study.run.workdir import Workdir

COLUMNS = ("study", "started", "task", "n", "delta", "p_value")
_KEY = ["study", "started", "task"]


def placebos_of(workdir: Workdir) -> pd.DataFrame:
    """A row for each task of a study whose placebo has a p-value.

    Raises:
      ConfigError: if the folder holds no study.
    """
    record, summary = workdir.read_study(), workdir.table("summary.csv")
    if summary is None:
        return pd.DataFrame(columns=COLUMNS)
    found = summary[(summary["role"] == "placebo") & summary["p_value"].notna()]
    found = found.assign(study=record.name, started=record.started or "")
    return found[list(COLUMNS)].reset_index(drop=True)


def keep(file: pathlib.Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Adds rows to those that a file holds, in place of what it has of the same studies.

    Raises:
      ConfigError: if the file is no such table.
    """
    known = read_checked(file) if file.exists() else pd.DataFrame(columns=COLUMNS)
    tables = [table for table in (known, rows) if len(table)]
    merged = pd.concat(tables, ignore_index=True) if tables else known
    merged = merged.drop_duplicates(_KEY, keep="last", ignore_index=True)
    text = io.StringIO()
    merged.to_csv(text, index=False)
    write_whole(file, text.getvalue())
    return merged


def uniformity(p: np.ndarray) -> tuple[float, float, float, float]:
    """The share of p-values of at most 0.05 with its 95 % interval (Clopper and Pearson), and the
    p-value of Kolmogorov and Smirnov's test that all are uniform."""
    small = int((p <= 0.05).sum())
    low, high = inference.solve_interval(small, len(p))
    return small / len(p), float(low), float(high), float(stats.kstest(p, "uniform").pvalue)


@style.styled
def figure(rows: pd.DataFrame):
    """p-values in their order against what uniform ones would be, with the band that 95 % of single
    order statistics of uniform ones fall into."""
    p = np.sort(rows["p_value"].to_numpy(float))
    rank = np.arange(1, len(p) + 1)
    drawn = style.new_figure(4.2, 4.0)
    axes = drawn.subplots()
    low, high = (stats.beta.ppf(q, rank, len(p) + 1 - rank) for q in (0.025, 0.975))
    expected = rank / (len(p) + 1)
    axes.fill_between(expected, low, high, color=style.MARGIN, lw=0)
    axes.plot((0, 1), (0, 1), color=style.FAINT, lw=0.9)
    axes.plot(expected, p, "o", ms=4, color=style.BLUE, mew=0)
    axes.axhline(0.05, color=style.VERMILLION, lw=0.8, ls=(0, (3, 2)))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="expected of uniform p-values",
             ylabel="p of a placebo, in order")  # fmt: skip
    axes.set_title(f"{len(p)} placebos; shaded: 95 %; dashed: 0.05", loc="left")
    return drawn
