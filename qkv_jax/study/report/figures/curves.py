"""Figures along an axis of training: quality against learning rate, and learning curves.

Both are small multiples, one panel per arm with the baseline behind it in grey: seventeen lines in
one panel are a tangle that nobody can read.
"""

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from qkv_jax.output import formats, style
from qkv_jax.study.protocol.selection import tuning_runs
from qkv_jax.study.rates import same_rate
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording

_MOST_POINTS = 400  # of a band: more than a panel has pixels across


def _panels(rows):
    """The arms in the order of the panels: as in the study, the placebo last."""
    return sorted(rows, key=lambda arm: rows[arm]["group"])


def _colour(row):
    return style.COLOURS[row["verdict"].kind]


def _title(axes, arm, row):
    kind = row["verdict"].kind
    sign = "" if kind in ("pending", "baseline") else f" {wording.SIGNS[kind]}"
    style_ = "italic" if row["group"] else "normal"
    weight = "bold" if kind == "baseline" else "normal"
    style.panel_title(axes, arm, sign, color=_colour(row), fontstyle=style_, fontweight=weight)


def _score_label(task, stage):
    unit, metric = task.unit, task.outcome.metric
    name = metric if unit == metric else f"{metric} ({unit})"
    arrow = "↑" if task.higher_is_better else "↓"
    return f"{stage} {name}, {arrow} better"


def _limits(values, pad=0.06):
    values = np.asarray([v for v in values if np.isfinite(v)], float)
    if not values.size:
        return None
    low, high = values.min(), values.max()
    room = (high - low) * pad or abs(high) * 0.05 or 0.05
    return low - room, high + room


@style.styled
def learning_rates(record: StudyRecord, runs, results: wording.Results, name: str):
    """Validation score of the tuning runs against the learning rate, one panel per arm.

    A dot is a seed, the line joins the means, the ring marks the rate that was chosen, the grey
    line is the baseline. A run that diverged or failed is a cross at the rim of the panel.
    """
    task, rows = record.tasks[name], results[name]
    runs = tuning_runs(record, runs[runs["task"] == name])
    order = [arm for arm in _panels(rows) if (runs["arm"] == arm).any()] or _panels(rows)
    done = runs[runs["status"] == "done"]
    figure, axes = style.grid(len(order))
    means = {arm: part.groupby("learning_rate")["validation"].mean() for arm, part in
             runs[runs["arm"].isin(order)].groupby("arm")}  # fmt: skip
    limits = _limits(done["validation"]) or (0.0, 1.0)
    rates = sorted(set(task.learning_rates) | set(runs["learning_rate"]))
    worst = limits[0] if task.higher_is_better else limits[1]
    # Before anything is drawn: a grid of one rate has no width to scale to.
    axes[0].set(xscale="log", xlim=(rates[0] / 1.5, rates[-1] * 1.5), ylim=limits)
    for axis, arm in zip(axes, order, strict=True):
        _rate_panel(axis, runs[runs["arm"] == arm], means, arm, record, rows[arm], worst)
        if rows[arm].get("edge"):
            y, side = (0.04, "bottom") if task.higher_is_better else (0.96, "top")
            axis.text(
                0.97, y, "at the edge", transform=axis.transAxes, ha="right", va=side, fontsize=7,
                color=style.VERMILLION,
            )  # fmt: skip
        _title(axis, arm, rows[arm])
        axis.grid(axis="y")
    for axis in axes:  # a label at every second rate where they would touch
        shown = rates if len(rates) <= 4 else rates[:: -(-len(rates) // 4)]
        axis.xaxis.set_major_locator(FixedLocator(shown))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.1g}"))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.tick_params(axis="x", labelsize=7)
    figure.supxlabel("learning rate (log scale)", fontsize=9, y=0.02)
    figure.supylabel(_score_label(task, "validation"), fontsize=9, x=0.005)
    return figure


def _rate_panel(axis, part, means, arm, record, row, worst):
    baseline = record.baseline
    if arm != baseline and baseline in means:
        axis.plot(means[baseline].index, means[baseline], color="#bcc5cc", lw=1.4, zorder=1)
    colour = _colour(row)
    good, bad = part[part["status"] == "done"], part[part["status"] != "done"]
    x, y = good["learning_rate"], good["validation"]
    axis.plot(x, y, "o", ms=2.6, color=colour, alpha=0.55, mew=0)
    axis.plot(
        bad["learning_rate"], np.full(len(bad), worst), "x", ms=5, mew=1.3, color=style.INK,
        clip_on=False, zorder=5,
    )  # fmt: skip
    if arm in means:
        axis.plot(means[arm].index, means[arm], color=colour, lw=1.4, zorder=3)
        chosen = row.get("learning_rate")
        near = [r for r in means[arm].index if chosen and same_rate(r, chosen)]
        if near:
            axis.axvline(near[0], color=style.LINE, lw=0.9, zorder=0)
            axis.plot(
                near, means[arm].loc[near], "o", ms=7, mfc="none", mec=colour, mew=1.5, zorder=4
            )


@style.styled
def learning_curves(record: StudyRecord, results: wording.Results, name: str, curve):
    """Validation score against the step in the evaluation runs: mean and range over the seeds.

    Args: curve: callable (task, arm, learning_rate, seed) -> DataFrame(step, value) or None.
    Returns: the figure, or None if there are no curves.
    """
    task, rows = record.tasks[name], results[name]
    bands = {}
    for arm, row in rows.items():
        band = _band(record, name, arm, row, curve)
        if band is not None:
            bands[arm] = band
    if not bands:
        return None
    order = [arm for arm in _panels(rows) if arm in bands]
    figure, axes = style.grid(len(order))
    for axis, arm in zip(axes, order, strict=True):
        baseline = bands.get(record.baseline)
        if arm != record.baseline and baseline is not None:
            axis.plot(baseline[0], baseline[1], color="#aab4bc", lw=1.3, zorder=2)
        step, mean, low, high = bands[arm]
        colour = _colour(rows[arm])
        axis.fill_between(step, low, high, color=colour, alpha=0.22, lw=0, zorder=1)
        axis.plot(step, mean, color=colour, lw=1.4, zorder=3)
        threshold = task.outcome.threshold
        if threshold is not None:
            axis.axhline(threshold, color=style.FAINT, lw=0.8, ls=(0, (3, 2)), zorder=0)
        for reference in task.references or ():
            axis.axhline(reference.value, color=style.PURPLE, lw=0.9, ls=(0, (5, 2, 1, 2)))
        _title(axis, arm, rows[arm])
        axis.grid(axis="y")
    axes[0].set_ylim(*_curve_limits(task, bands))
    last = max(band[0][-1] for band in bands.values())
    axes[0].set_xlim(0, last)
    for axis in axes:
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.xaxis.set_major_locator(FixedLocator([0, last / 2, last]))
        axis.xaxis.set_major_formatter(FuncFormatter(_step_label))
        ticks = axis.xaxis.get_major_ticks(3)
        for tick, side in zip(ticks, ("left", "center", "right"), strict=True):
            tick.label1.set_horizontalalignment(side)  # so that neighbours do not touch
    figure.supxlabel("training step", fontsize=9, y=0.02)
    figure.supylabel(_score_label(task, "validation"), fontsize=9, x=0.005)
    return figure


def _step_label(x, _):
    return f"{x:,.0f}" if x < 10_000 else formats.count(x)


def _band(record, name, arm, row, curve):
    """(steps, mean, lowest, highest) over the evaluation seeds; None if no seed has a curve."""
    found = []
    rate = row.get("learning_rate")
    for seed in record.eval_seeds if rate is not None else ():
        frame = curve(name, arm, rate, seed)
        if frame is not None and len(frame):
            found.append(frame.set_index("step")["value"])
    if not found:
        return None
    steps = np.unique(np.concatenate([f.index for f in found]))
    table = np.stack([f[~f.index.duplicated()].reindex(steps) for f in found]).astype(float)
    table[~np.isfinite(table)] = np.nan
    measured = ~np.isnan(table).all(0)
    if not measured.any():
        return None
    steps, table = steps[measured], table[:, measured]
    return _thin(steps, np.nanmean(table, 0), np.nanmin(table, 0), np.nanmax(table, 0))


def _thin(steps, mean, low, high):
    """At most `_MOST_POINTS` of a band: in each bin of steps the mean, the lowest, the highest.

    Vector graphics hold every point, and the page every figure: both would grow with the curves.
    """
    if len(steps) <= _MOST_POINTS:
        return steps, mean, low, high
    starts = np.arange(_MOST_POINTS) * len(steps) // _MOST_POINTS
    sizes = np.diff(starts, append=len(steps))
    means = np.add.reduceat(mean, starts) / sizes
    last = steps[starts + sizes - 1]
    return last, means, np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)


def _curve_limits(task, bands):
    """The whole range for a share; for a loss the first fifth of training is left off the top.

    All losses start at the same height, which would flatten the differences of interest.
    """
    if task.higher_is_better or task.solving:
        return _limits([v for band in bands.values() for v in (*band[2], *band[3])])
    values = []
    for step, mean, low, high in bands.values():
        late = step >= 0.2 * step[-1]
        values += [*low[late], *mean[late], *np.minimum(high[late], mean[late][0])]
    return _limits(values)
