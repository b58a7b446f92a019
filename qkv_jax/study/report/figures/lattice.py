"""The signature figure: the lattice of the 15 ties as a Hasse diagram, coloured by the result."""

from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.patches import FancyBboxPatch

from qkv_jax.output import formats, style
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import wording
from qkv_jax.tie import Tie, TieError

# Rows by number of learned projections; within a row the order that lets the fewest edges cross.
ROWS = (
    ("separate",),
    ("Q=K", "Q=V", "V=X", "K=X", "K=V", "Q=X"),
    ("V=X,Q=K", "Q=K=V", "K=X,Q=V", "Q=K=X", "Q=V=X", "K=V=X", "Q=X,K=V"),
    ("Q=K=V=X",),
)
_WIDTH, _HEIGHT, _STEP_X, _STEP_Y = 0.9, 0.6, 1.0, 1.12  # inches


def covering_pairs() -> list[tuple[str, str]]:
    """The edges: pairs (finer, coarser) with no tie between them in the order of refinement."""
    ties = Tie.all()
    return [
        (str(a), str(b))
        for a in ties
        for b in ties
        if a < b and not any(a < other < b for other in ties)
    ]


def lattice_nodes(record: StudyRecord, name: str) -> dict[str, str]:
    """{canonical tie: arm} for the task's arms that differ from each other in the tie alone."""
    nodes = {}
    for arm in record.tasks[name].arms:
        entry = record.arms[arm]
        if not entry.plain_tie:
            continue
        try:
            nodes.setdefault(str(Tie.parse(entry.tie)), arm)
        except TieError:  # a schedule of ties
            continue
    return nodes


def lattice_tasks(record: StudyRecord) -> list[str]:
    """The tasks with enough nodes (three) for a lattice to say something."""
    return [name for name in record.tasks if len(lattice_nodes(record, name)) >= 3]


@style.styled
def lattice(record: StudyRecord, results: wording.Results, tasks: list[str] | None = None):
    """One panel per task: a box per tie with its difference to the baseline and its verdict.

    Args: results: `wording.all_rows`; tasks: by default `lattice_tasks`.
    """
    tasks = lattice_tasks(record) if tasks is None else tasks
    panel_width = 7 * _STEP_X + 0.95
    panel_height = 3 * _STEP_Y + _HEIGHT + 0.8
    figure = style.new_figure(panel_width, panel_height * len(tasks))
    for i, name in enumerate(tasks):
        bottom = 1 - (i + 1) / len(tasks)
        axes = figure.add_axes((0, bottom, 1, 1 / len(tasks)))
        axes.set(xlim=(0, panel_width), ylim=(0, panel_height))
        axes.axis("off")
        _panel(figure, axes, record, results, name, panel_width, panel_height)
    return figure


def _panel(figure, axes, record, results, name, width, height):
    task, rows = record.tasks[name], results[name]
    nodes = lattice_nodes(record, name)
    values = {tie: _value(rows[arm], rows[record.baseline], task) for tie, arm in nodes.items()}
    norm = colour_norm(*_alike(record, results, task))
    axes.text(0.08, height - 0.1, task.title, va="top", fontsize=10.5, fontweight="bold")
    axes.text(0.08, height - 0.33, _subtitle(record, task), va="top", fontsize=8, color=style.SOFT)

    place = {}
    for level, ties in enumerate(ROWS):
        y = height - 0.92 - level * _STEP_Y
        label = f"{3 - level} learned\nprojection{'' if level == 2 else 's'}"
        axes.text(0.08, y, label, va="center", fontsize=8, color=style.SOFT)
        for i, tie in enumerate(ties):
            place[tie] = (0.9 + _STEP_X * (3.5 + i - (len(ties) - 1) / 2), y)
    for finer, coarser in covering_pairs():
        (x0, y0), (x1, y1) = place[finer], place[coarser]
        inside = finer in nodes and coarser in nodes
        ends = (y0 - _HEIGHT / 2, y1 + _HEIGHT / 2)
        colour, line = ("#8794a0", 0.9) if inside else ("#dfe4e8", 0.8)
        axes.plot((x0, x1), ends, color=colour, lw=line, zorder=1 + inside)
    for tie, at in place.items():
        arm = nodes.get(tie)
        _node(axes, at, tie, rows.get(arm), values.get(tie), norm, task)
    _scale(figure, axes, norm, task, width, height)


def _node(axes, at, tie, row, value, norm, task):
    x, y = at
    kind = "absent" if row is None else row["verdict"].kind
    face = "white"
    if row is not None and kind != "baseline" and value is not None:
        face = shade(task, norm, value, kind)
    border, line, dash = {
        "absent": ("#c3cbd2", 0.9, (0, (2, 2))),
        "pending": (style.FAINT, 0.9, (0, (2, 2))),
        "undecided": (style.GREY, 1.3, (0, (4, 2))),
        "equivalent": (style.GREEN, 2.2, "-"),
        "worse": ("#8f3a00", 2.2, "-"),
        "better": ("#083f73", 2.2, "-"),
        "baseline": (style.INK, 2.2, "-"),
    }[kind]
    ink = style.ink_on(face)
    shape = FancyBboxPatch(
        (x - _WIDTH / 2, y - _HEIGHT / 2), _WIDTH, _HEIGHT, facecolor=face, edgecolor=border,
        boxstyle="round,pad=0,rounding_size=0.08", linewidth=line, linestyle=dash, zorder=3,
    )  # fmt: skip
    axes.add_patch(shape)
    if row is None:
        axes.text(x, y, tie, ha="center", va="center", fontsize=8, color=style.FAINT, zorder=4)
        return
    text = {"ha": "center", "va": "center", "color": ink, "zorder": 4}
    axes.text(x, y + 0.18, tie, fontsize=8.5, fontweight="bold", **text)
    axes.text(x, y + 0.005, _shown(row, task), fontsize=9, **text)
    word = f"{wording.SIGNS[kind]} {row['verdict'].reason or kind}"
    word = word if kind != "pending" else "no verdict yet"
    axes.text(x, y - 0.175, word, fontsize=7.5, **text)


def _value(row, baseline, task):
    """What the colour shows: the share solved less the baseline's, or the difference of means."""
    if task.solving:
        if not (row.get("n") and baseline.get("n")):
            return None
        return row.get("n_solved", 0) / row["n"] - baseline.get("n_solved", 0) / baseline["n"]
    return row.get("delta")


def _shown(row, task):
    if task.solving:
        return f"{row.get('n_solved', 0):.0f}/{row['n']:.0f}" if row.get("n") else formats.PENDING
    if row["verdict"].kind == "baseline":
        return formats.number(row.get("mean"), wording.digits(task))
    if row.get("delta") is None:
        return formats.PENDING
    return formats.number(row["delta"], wording.digits(task), signed=True)


def _subtitle(record, task):
    if task.solving:
        return f"seeds that solve the task; colour: share less that of {record.baseline}"
    what = f"difference to {record.baseline} in {task.unit}, {wording.better_words(task)}"
    return f"{what}; pale, ?: undecided, and why"


def _alike(record, results, task):
    """(what `_value` is of all ties, the widest margin) of the tasks that share a metric with this
    one: their lattices have one scale, so that equal colours are equal differences."""
    kind = lambda one: (one.solving, one.outcome.metric, one.unit)
    alike = [name for name, one in record.tasks.items() if kind(one) == kind(task)]
    values = [
        _value(results[name][arm], results[name][record.baseline], record.tasks[name])
        for name in alike
        for arm in lattice_nodes(record, name).values()
    ]
    return values, None if task.solving else max(record.tasks[n].outcome.margin for n in alike)


def colour_norm(values, margin: float | None):
    """Symmetric about zero; near white within the margin and logarithmic well beyond it.

    Args: values: what is to be coloured, None for what is not known; margin: None of shares solved.
    """
    if margin is None:
        return Normalize(-1, 1)
    largest = max((abs(v) for v in values if v is not None), default=0)
    limit = max(largest, 2 * margin) or 1.0
    if limit > 5 * margin:
        return AsinhNorm(linear_width=margin, vmin=-limit, vmax=limit)
    return Normalize(-limit, limit)


def _scale(figure, axes, norm, task, width, height):
    """The colour bar, its better end named, ticks at the ends, the margin and zero."""
    panel = axes.get_position()
    x, y, w, h = width - 3.05, height - 0.27, 2.6, 0.11
    box = (x / width, panel.y0 + panel.height * y / height, w / width, panel.height * h / height)
    bar = figure.add_axes(box)
    steps = 120
    bar.imshow([range(steps + 1)], aspect="auto", cmap=colour_map(task))
    limit, ticks = norm.vmax, [-norm.vmax, 0, norm.vmax]
    if isinstance(norm, AsinhNorm) and norm(norm.linear_width) - 0.5 > 0.1:
        ticks += [-norm.linear_width, norm.linear_width]  # the margin
    ticks.sort()
    digits = 0 if task.solving else 2 if limit < 10 else 1
    labels = [formats.number(t, digits, signed=True) if t else "0" for t in ticks]
    bar.set_xticks([norm(t) * steps for t in ticks])
    bar.set_xticklabels(labels, fontsize=6.5)
    bar.set_yticks([])
    bar.tick_params(length=2, pad=1)
    for spine in bar.spines.values():
        spine.set_visible(False)
    left, right = ("worse", "better") if _higher(task) else ("better", "worse")
    end = {"va": "center", "fontsize": 7, "color": style.SOFT}
    axes.text(x - 0.06, y + h / 2, left, ha="right", **end)
    axes.text(x + w + 0.06, y + h / 2, right, ha="left", **end)


def shade(task: TaskRecord, norm, value: float, kind: str):
    """The colour of a difference; pale where nothing is decided."""
    face = colour_map(task)(norm(value))
    decided = kind not in ("undecided", "pending")
    return face if decided else tuple(1 - 0.35 * (1 - part) for part in face)


def colour_map(task: TaskRecord):
    """The diverging map, turned so that blue is the better end whichever way the metric runs."""
    return style.DIVERGING.reversed() if _higher(task) else style.DIVERGING


def _higher(task: TaskRecord) -> bool:
    return task.solving or task.higher_is_better
