"""How a race was run, in one screen: its rules as they were, and what it spent where."""

import re

from qkv_jax.output import formats
from qkv_jax.study.config import PILOT
from qkv_jax.study.protocol import race_rules
from qkv_jax.study.protocol.selection import MAX_EXTENSIONS
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import wording


def rules(record: StudyRecord) -> list[str]:
    """The paragraphs that hold for all tasks."""
    base, most = record.baseline, record.analyses[-1]
    shares = []
    for seeds, share in race_rules.looks():
        if seeds > most:
            break
        shares.append(f"{seeds} seeds {100 * share:.3g} %")
    spend = [
        f"{record.max_runs} runs" if record.max_runs is not None else "",
        f"{record.max_minutes:g} minutes of training" if record.max_minutes is not None else "",
    ]
    budget = f", or when a task has taken {' or '.join(filter(None, spend))}" if any(spend) else ""
    return [
        "Race. Every run tunes and compares: its validation score chooses learning rates, its test "
        f"score compares arms. Pilot: {PILOT} seeds of every arm at every rate of the "
        "grid. An arm whose best rate is at an end of its own gets up to "
        f"{MAX_EXTENSIONS} more on that side, for itself, then or whenever another rate "
        "comes to lead; if it is still at the end, there is no verdict (edge).",
        "Live rates. A rate leaves for good when its validation mean is three standard errors "
        "worse than that of the arm's best, up to a tenth of the margin. A verdict must hold at "
        "every rate that is still alive, the baseline's too (intersection-union): it is about each "
        "arm at its best rate, and luck in choosing one cannot make it. Means are of scores each "
        "at the rate that the other seeds chose.",
        f"Looks. Undecided arms are run on to the next look, at most to {most} seeds{budget}; "
        f"{base} has twice the seeds from the third look on while several are open. Each look "
        f"spends a share of α = {record.alpha:g}: {', '.join(shares)}. Each of the A arms that a "
        "task asks about is tested at α/A, which bounds the chance of any false verdict in the "
        "task by α at whatever look the race stops; seeds may be added for ever. Verdicts are "
        "final. Arms that would need more than 64 seeds are given up (power).",
        "Tests. Welch's t for independent runs, less what arms share with the baseline at the "
        "same seed, as measured; no variance is taken for less than the median of those that are "
        "open or were given up. Equivalence is two one-sided tests against the margin, tried "
        "first. Where seeds solve a task or do not, Boschloo's exact test takes their place. The "
        "interval of a verdict holds at best rates, for all arms and all looks together (at half "
        "the level of the tests for equivalence, so that it may reach over the margin a little); "
        "differences in the tables have the 95 % interval of that one comparison, by the same "
        "standard error. Estimates of arms that stopped early lean away from zero.",
        "Collapses. A run has collapsed if it failed, or ended past halfway from the baseline's "
        "median to the failure value: of a baseline that mostly fails nothing can be told so. "
        "Equivalence is conditional on none at any live rate, of arm "
        "or baseline (“when it trains”, with the upper 95 % limit), and refused where one has: a "
        "collapse rate of a tenth cannot be excluded with fewer than 29 runs.",
    ]


def spent(record: StudyRecord, runs, results: wording.Results, name: str) -> str:
    """What the race of a task took, and where it stands."""
    task, rows = record.tasks[name], list(results[name].values())
    mine = runs[runs["task"] == name]
    kinds = mine["round"].map(lambda name: re.sub(r"\d+$", "", name))
    counts = kinds.value_counts()
    looks = sorted({int(r.removeprefix("look")) for r in mine["round"] if r.startswith("look")})
    text = f"{task.title}: {len(mine):,} runs of {task.steps:,} steps, {counts.get('pilot', 0)} "
    text += f"in the pilot at rates {', '.join(map(wording.rate, task.learning_rates))}"
    if counts.get("bracket"):
        text += f", {counts['bracket']} at rates beyond"
    if looks:
        text += f", {counts['look']} for looks at {formats.join([str(look) for look in looks])} "
        text += "seeds"
    rho = [row["correlation"] for row in rows if row.get("correlation") is not None]
    text += f"; correlation by seed {rho[0]:.2g}" if rho else ""
    collapsed = [f"{row['arm']} {row['n_collapsed']:.0f} of {row['n_live']:.0f}"
                 for row in rows if row.get("n_collapsed")]  # fmt: skip
    if not task.solving:
        text += f"; collapsed: {formats.join(collapsed)}" if collapsed else "; none collapsed"
    return f"{text}; {_outcome(task)}."


def _outcome(task: TaskRecord) -> str:
    if task.solving:
        return f"solved at {task.outcome.threshold:g} {task.outcome.metric}"
    return f"margin {wording.margin(task)}"
