"""The forest plot of a task, and steps to solve: intervals against the baseline, arm by arm."""

import math

import numpy as np
from matplotlib.ticker import FuncFormatter

from qkv_jax.output import formats, style
from qkv_jax.study.protocol.verdicts import Verdict
from qkv_jax.study.record import StudyRecord
from qkv_jax.study.report import wording

_ENDS = ("low", "high")
_CONTRASTS = 9  # their group: below arms, controls and placebo
_LABELS = 2.6  # inches for names at most
_ROW, _GAP = 0.27, 0.2  # inches: height of a row, extra room before controls and placebo


def _ladder(rows: dict, with_baseline: bool):
    """Heights of the rows, top down: ([(arm, y)], total height, y of the separating lines)."""
    arms = sorted(rows, key=lambda arm: rows[arm]["group"])
    arms = [a for a in arms if with_baseline or rows[a]["role"] != "baseline"]
    places, lines, y, group = [], [], 0.0, None
    for arm in arms:
        new = rows[arm]["group"]
        if group is not None and new != group:
            lines.append(y - (_ROW - _GAP) / 2)
            y -= _GAP
        group = new
        places.append((arm, y))
        y -= _ROW
    return places, -y, lines


def _label(arm: str) -> str:
    return formats.shorten(arm, 34)


def _label_room(places) -> float:
    return min(_LABELS, max(style.text_width(_label(arm), 8.5) for arm, _ in places) + 0.1)


def _arm_labels(axes, places, rows):
    axes.set_yticks([y for _, y in places])
    labels = axes.set_yticklabels([_label(arm) for arm, _ in places])
    for label, (arm, _) in zip(labels, places, strict=True):
        label.set(color=style.INK, fontsize=8.5)
        if 0 < rows[arm]["group"] < _CONTRASTS:
            label.set(fontstyle="italic", color=style.SOFT)
        if rows[arm]["role"] == "baseline":
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _contrast_rows(contrasts) -> dict[str, dict]:
    """Rows of contrasts.csv as those of arms, below all of them; "arm − other" as their names."""
    return {
        f"{row['arm']} {formats.MINUS} {row['against']}": {
            column: value for column, value in row.items() if formats.known(value)
        }
        | {"group": _CONTRASTS, "role": "contrast", "verdict": Verdict.read(row["verdict"])}
        for row in contrasts
    }


@style.styled
def forest(record: StudyRecord, results: wording.Results, name: str, contrasts=()):
    """Differences to the baseline: 95 % intervals thick, simultaneous ones thin, margin shaded.

    Args: contrasts: rows of contrasts.csv, shown below as "arm − other".
    Returns: the figure, or None if no arm has a difference yet.
    """
    task, rows = record.tasks[name], results[name] | _contrast_rows(contrasts)
    places, height, lines = _ladder(rows, with_baseline=False)
    shown = [rows[arm] for arm, _ in places if rows[arm].get("delta") is not None]
    if not shown:
        return None
    left = _label_room(places)
    plot, right, top, bottom = 4.3, 3.3, 0.42, 0.78
    width, total = left + plot + right, top + height + bottom
    figure = style.new_figure(width, total)
    axes = figure.add_axes((left / width, bottom / total, plot / width, height / total))
    digits, margin = wording.digits(task), task.outcome.margin
    axes.axvspan(-margin, margin, color="#e3efe9", lw=0, zorder=0)
    axes.axvline(0, color=style.INK, lw=1, zorder=1)
    note = _forest_scale(axes, shown, margin)
    for line in lines:
        axes.plot((-left / plot, 1 + right / plot), (line, line), color=style.LINE, lw=0.8,
                  clip_on=False, transform=axes.get_yaxis_transform())  # fmt: skip
    columns = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    axes.text(1.03, _ROW, "difference [95 % interval]", color=style.SOFT, **columns)
    head = "verdict (on solving)" if task.solving else "verdict"
    axes.text(1.49, _ROW, head, color=style.SOFT, **columns)
    key = "thick: 95 %, thin: simultaneous" + f", shaded: margin ±{margin:g}"
    axes.text(0, _ROW, key, color=style.SOFT, **columns)
    for arm, y in places:
        row = rows[arm]
        kind = row["verdict"].kind
        colour = style.COLOURS[kind]
        if row.get("delta") is None:
            axes.text(1.03, y, "no result yet", color=style.FAINT, **columns)
            continue
        axes.plot((row.get("delta_low_simultaneous", row["delta"]),
                   row.get("delta_high_simultaneous", row["delta"])), (y, y),
                  color=colour, lw=1, zorder=2, solid_capstyle="butt")  # fmt: skip
        axes.plot((row.get("delta_low", row["delta"]), row.get("delta_high", row["delta"])),
                  (y, y), color=colour, lw=3.2, zorder=3, solid_capstyle="butt")  # fmt: skip
        hollow = 0 < row["group"] < _CONTRASTS
        axes.plot(row["delta"], y, style.MARKERS[kind], ms=5.5, mfc="white" if hollow else colour,
                  mec=colour if hollow else "white", mew=1.2 if hollow else 0.7, zorder=4)
        low, high = row.get("delta_low"), row.get("delta_high")
        text = formats.number(row["delta"], digits, signed=True)
        if low is not None and high is not None:
            text += f"  [{formats.number(low, digits)}, {formats.number(high, digits)}]"
        axes.text(1.03, y, text, color=style.INK, **columns)
        verdict = f"{wording.SIGNS[kind]} {row['verdict']}"
        axes.text(1.49, y, verdict, color=colour, fontweight="bold", **columns)
    _arrows(axes, [(y, rows[arm]) for arm, y in places])
    axes.set_ylim(-height + _ROW / 2, _ROW / 2)
    _arm_labels(axes, places, rows)
    axes.grid(axis="x")
    unit = task.unit
    ends = ("worse ←  ", "  → better") if task.higher_is_better else ("better ←  ", "  → worse")
    for end, side in zip(ends, ("right", "left"), strict=True):
        axes.annotate(end, (0, 0), (0, -0.3 * 72), xycoords=axes.get_xaxis_transform(), ha=side,
                      textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
    other = ", or as named" if contrasts else ""
    label = f"difference to {record.baseline}{other} ({unit}){note}"
    axes.set_xlabel(label, fontsize=8.5, labelpad=16)
    return figure


def _arrows(axes, rows) -> None:
    """At the ends of the axis where a simultaneous interval goes on."""
    low, high = axes.get_xlim()
    for y, row in rows:
        colour = style.COLOURS[row["verdict"].kind]
        ends = (row.get(f"delta_{end}_simultaneous", row.get("delta", 0.0)) for end in _ENDS)
        for value, end, marker in zip(ends, (low, high), "<>", strict=True):
            if not low <= value <= high and (value < low) == (end == low):
                axes.plot(end, y, marker, ms=4, color=colour, clip_on=False, zorder=5)


def _end(row, end: str) -> float:
    """Where the widest interval of a row ends; contrasts have no simultaneous one."""
    found = (row.get(f"delta_{end}{kind}") for kind in ("_simultaneous", ""))
    return next((value for value in found if value is not None), row["delta"])


def _forest_scale(axes, shown, margin) -> str:
    """Limits of the axis; logarithmic beyond the margin where one arm dwarfs it. What to add."""
    ends = [
        abs(row.get(column, 0))
        for row in shown
        for column in ("delta", "delta_low", "delta_high",
                       "delta_low_simultaneous", "delta_high_simultaneous")
    ]  # fmt: skip
    centre = max(abs(row["delta"]) for row in shown)
    # A simultaneous interval from few seeds can be many times the rest: do not let it rule.
    plain = max(abs(row.get(f"delta_{end}", 0)) for row in shown for end in _ENDS)
    limit = 1.06 * max(min(max(ends), 2.5 * max(centre, margin)), plain, 2 * margin) or 1.0
    low = min([0, -margin] + [_end(row, "low") for row in shown])
    high = max([0, margin] + [_end(row, "high") for row in shown])
    low, high = max(1.1 * low, -limit), min(1.1 * high, limit)
    if limit <= 20 * margin:
        axes.set_xlim(low, high)
        return ""
    # Near a ceiling the margin in force is next to nothing: not more than three decades a side.
    linear = max(2 * margin, float(f"{limit / 500:.0e}"))
    axes.set_xscale("symlog", linthresh=linear, linscale=0.8)
    steps = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5)]
    powers = [p for p in steps if linear * 1.9 < p <= limit]
    powers = [p for p in powers if len(powers) < 7 or f"{p:e}"[0] == "1"]
    ticks = [0.0, -linear, linear] + powers + [-p for p in powers]
    axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.number(x, *_digits(x))))
    axes.set_xlim(min(low, -linear), high)
    return f", logarithmic beyond ±{linear:g}"


def _digits(x) -> tuple[int]:
    return (0 if x == 0 else max(0, -math.floor(math.log10(abs(x)) + 1e-9)),)


@style.styled
def solving(record: StudyRecord, results: wording.Results, name: str):
    """Share of seeds that reach the threshold, and steps to reach it, with 95 % intervals."""
    task, rows = record.tasks[name], results[name]
    places, height, lines = _ladder(rows, with_baseline=True)
    left = _label_room(places)
    plot, gap, right, top, bottom = 2.7, 0.75, 1.6, 0.35, 0.6
    width, total = left + 2 * plot + gap + right, top + height + bottom
    figure = style.new_figure(width, total)
    share, steps = (
        figure.add_axes((x / width, bottom / total, plot / width, height / total))
        for x in (left, left + plot + gap)
    )
    for arm, y in places:
        row = rows[arm]
        kind = row["verdict"].kind
        common = {"color": style.COLOURS[kind], "zorder": 3}
        marker = style.MARKERS[kind]
        n = row.get("n", 0)
        if n:
            solved = row.get("n_solved", 0)
            share.plot((row.get("solve_low", np.nan), row.get("solve_high", np.nan)), (y, y),
                       lw=2.4, **common)  # fmt: skip
            share.plot(solved / n, y, marker, ms=6, mec="white", mew=0.7, clip_on=False, **common)
            share.text(1.04, y, f"{solved:.0f}/{n:.0f}", transform=share.get_yaxis_transform(),
                       va="center", fontsize=8, color=style.INK)  # fmt: skip
        if row.get("steps_to_solve") is not None:
            ends = row.get("steps_to_solve_low", np.nan), row.get("steps_to_solve_high", np.nan)
            steps.plot(ends, (y, y), lw=2.4, **common)
            steps.plot(row["steps_to_solve"], y, marker, ms=6, mec="white", mew=0.7,
                       clip_on=False, **common)  # fmt: skip
        text = formats.PENDING
        if kind != "pending":
            text = f"{wording.SIGNS[kind]} {row['verdict']}"
        steps.text(1.05, y, text, transform=steps.get_yaxis_transform(), va="center",
                   fontsize=8, color=style.COLOURS[kind], fontweight="bold")  # fmt: skip
    for axes in (share, steps):
        axes.set_ylim(-height + _ROW / 2, _ROW / 2)
        axes.grid(axis="x")
        for line in lines:
            axes.axhline(line, color=style.LINE, lw=0.8)
    _arm_labels(share, places, rows)
    steps.set_yticks([])
    steps.spines["left"].set_visible(False)
    share.set_xlim(0, 1)
    share.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    share.set_xlabel("seeds that solve the task")
    budgets = {task.steps_for(arm) for arm in rows}
    steps.set_xlim(0, max(budgets) * 1.02)
    for budget in budgets:
        steps.axvline(budget, color=style.FAINT, ls=(0, (3, 2)), lw=0.9)
    steps.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    steps.locator_params(axis="x", nbins=5)
    steps.set_xlabel(f"steps to solve (mean, cut at {task.steps:,})")
    return figure


