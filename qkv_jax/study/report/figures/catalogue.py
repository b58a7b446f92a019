"""Which figures a report has, with their captions and descriptions, drawn and made part of it."""

import functools

from qkv_jax.output import formats, style
from qkv_jax.output.style import LINES, data_uri
from qkv_jax.study.axes import short_names
from qkv_jax.study.protocol import grids
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import wording
from qkv_jax.study.report.figures.cost_quality import cost_quality
from qkv_jax.study.report.figures.curves import learning_curves, learning_rates
from qkv_jax.study.report.figures.forest import forest, solving
from qkv_jax.study.report.figures.heat import heat, heat_columns
from qkv_jax.study.report.figures.lattice import lattice, lattice_nodes, lattice_tasks
from qkv_jax.study.report.figures.lines import by_group, scaling, scaling_by_arm
from qkv_jax.study.report.figures.state import state_axes, state_quality
from qkv_jax.tie import Tie

# What the page calls them where it says what there is more of.
_NAMES = {
    "lattice": "the lattice of ties", "forest": "the differences", "solving": "seeds that solve",
    "by-group": "scores by group", "learning-rates": "learning rates",
    "learning-curves": "learning curves", "cost": "quality against cost",
}  # fmt: skip
MOST_NAMED = len(LINES) + 1  # arms beside the baseline, placebo included, in one panel


def draw_task(folder, record: StudyRecord, runs, results, task, curve, table, dpi, *, only=None):
    """Draws the figures of one task, first the one that shows its verdicts best: a lattice if more
    than half of the ties are in it, else the differences with their intervals.

    Args:
      results: `wording.all_rows`; task: the task as the templates get it; table: its rows of
        breakdown.csv, or None.
      only: keys of the figures wanted; all by default.
    """
    name, spec, base = task["name"], task["record"], record.baseline
    title, band = spec.title, "mean and range over the seeds"
    spoken = "; ".join(_spoken(spec, row) for row in results[name].values())
    wanted = []
    if name in lattice_tasks(record):
        caption = (
            "The lattice of ties: the 15 ways of equating X, Q, K and V. A line joins two ties of "
            "which the lower equates one thing more. Colour and number show the result, border "
            "and word the verdict; hollow boxes are not in this study."
        )
        wanted.append(("lattice", lambda: lattice(record, results, [name]), caption))
    if spec.solving:
        caption = (
            "Seeds that solve the task (Clopper-Pearson intervals) and steps to do so (mean cut "
            "at the budget). The verdict is that of Boschloo's exact test on solving."
        )
        wanted.append(("solving", lambda: solving(record, results, name), caption))
    caption = (
        f"Differences to {base}. Thick: 95 % interval; thin: simultaneous for all "
        + ("arms and looks, at best rates" if record.protocol == "race"
           else "arms at the level of this analysis")
        + "; no bar where seeds do not vary. Hollow marks: controls and placebo. "
        + ("The verdict is on solving, not on this difference." if spec.solving
           else "Shaded: the equivalence margin.")
    )  # fmt: skip
    if task["against"]:
        caption += f" Below: arms against another than {base}."
    draw = functools.partial(forest, record, results, name, task["against"])
    wanted.append(("forest", draw, caption))
    if table is not None and len(table):
        by = table["by"].iloc[0]
        caption = f"Test {spec.outcome.metric} by {by}: mean and 95 % interval over the seeds."
        draw = functools.partial(by_group, record, name, table)
        wanted.append(("by-group", draw, caption))
    caption = (
        "Quality against learning rate on validation data, by which rates are chosen. Dots: seeds; "
        f"line: their mean; ring: the rate chosen; grey: {base}; crosses: diverged or failed."
    )
    draw = functools.partial(learning_rates, record, runs, results, name)
    wanted.append(("learning-rates", draw, caption))
    caption = f"Learning curves at the rate that is best, {band}; grey: {base}."
    lines = [reference.name for reference in spec.references or ()]
    if lines:
        caption += f" Dash-dotted, where in range: {formats.join(lines)} (on test data)."
    draw = functools.partial(learning_curves, record, results, name, curve)
    wanted.append(("learning-curves", draw, caption))
    caption = (
        "Quality against cost, with 95 % intervals: state is what must be kept of each token to "
        f"decode on; dashed: {base}. Filled and joined: arms that no other beats in one without "
        "being worse in the other, by the measured means; whether a difference is real, the marks "
        "say. Where intervals at one cost overlap, they stand side by side."
    )
    draw = functools.partial(cost_quality, record, results, name)
    wanted.append(("cost", draw, caption))
    drawn = {}
    for key, draw, caption in wanted:
        if only is not None and key not in only:
            continue
        alt = f"{title}: {key.replace('-', ' ')}. "
        alt += spoken if key in ("lattice", "forest", "solving") else caption
        picture = _embed(folder, draw(), key, task["slug"], caption, alt, dpi)
        if picture is not None:
            drawn[key] = picture
    if "lattice" in drawn and 2 * len(lattice_nodes(record, name)) <= len(Tie.all()):
        drawn["lattice"] = drawn.pop("lattice")  # behind the others
    return list(drawn.values())


def draw_family(folder, record: StudyRecord, results, scores, family, dpi) -> list[dict]:
    """Scaling curves for the axes that are numbers, a table of differences for the others.

    Two axes are shown whole, one along x and one by panels; of more axes each is drawn along x with
    the mean over the rest.
    """
    tasks, title, base = family["tasks"], family["title"], record.baseline
    if not grids.comparable(record, tasks):
        return []
    values = {f: v for f, v in grids.axis_values(record, tasks).items() if len(v) > 1}
    numeric = [field for field, given in values.items() if grids.is_numeric(given)]
    arms = [arm for arm in grids.family_arms(record, tasks) if arm != base]
    pictures = []
    named = {field: name.replace("_", " ") for field, name in short_names(values).items()}
    two = len(values) == 2
    for field in numeric[:1] if two else numeric:
        others = [other for other in values if other != field]
        by = others[0] if two else None
        rest = "" if two or not others else (
            f", the mean over {formats.join([named[other] for other in others])}"
        )
        caption = (
            f"Test score and difference to {base} against {named[field]}{rest}. Bands and bars: "
            "95 % intervals over the seeds"
            + (", a column for every value of " + named[by] if by else "")
            + ("; shaded: the equivalence margin" if family["margin"] else "")
            + ("" if rest else "; marks: the verdict of the cell") + "."
        )  # fmt: skip
        if len(arms) > MOST_NAMED:
            caption += " Named: the arms that differ most."
        figure = scaling(record, results, scores, tasks, field, by)
        pictures.append((f"scaling-{named[field]}", figure, caption))
        if len(arms) > MOST_NAMED:
            caption = (
                f"The same, one panel per arm: difference to {base} against {named[field]}{rest}"
                + (f", a line for every value of {named[by]}" if by else "") + "."
            )  # fmt: skip
            figure = scaling_by_arm(record, results, scores, tasks, field, by)
            pictures.append((f"arms-{named[field]}", figure, caption))
    sizes = [named[field] for field in state_axes(record, results, tasks)]
    if sizes:
        caption = (
            "Test score against the bytes of state that must be kept of each token to decode on, "
            f"95 % intervals; the points of an arm, joined, differ in {formats.join(sizes)}."
        )
        pictures.append(("state", state_quality(record, results, tasks), caption))
    if len(numeric) < len(values):
        caption = f"Differences to {base} by {formats.join(list(named.values()))}"
        averaged = any(len(cells) > 1 for cells in heat_columns(record, tasks).values())
        caption += ", the mean over the axes not shown." if averaged else ", with verdict marks."
        pictures.append(("grid", heat(record, results, scores, tasks), caption))
    embedded = [
        _embed(folder, figure, formats.slug(key), family["slug"], text, f"{title}: {text}", dpi)
        for key, figure, text in pictures
    ]
    return [picture for picture in embedded if picture is not None]


def _embed(folder, figure, key, slug, caption, alt, dpi) -> dict | None:
    """Saves a figure; what the templates need to show it, or None if there is nothing to show."""
    if figure is None:
        return None
    files = style.save(figure, folder / f"{key}-{slug}", dpi)
    return {
        "key": key, "name": _NAMES.get(key), "caption": caption, "alt": alt,
        "uri": data_uri(files[0]),
        "files": {file.suffix[1:]: f"figures/{file.name}" for file in files},
        "width": round(96 * figure.get_figwidth()),
    }  # fmt: skip


def _spoken(task: TaskRecord, row) -> str:
    if task.solving:
        value = f"{row.get('n_solved', 0):.0f} of {row.get('n', 0):.0f} seeds"
    else:
        digits = wording.digits(task)
        value = formats.number(row.get("delta"), digits, signed=True)
    return f"{row['arm']} {value} {str(row['verdict']) or 'no verdict yet'}"
