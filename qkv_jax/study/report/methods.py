"""How a study was measured, in sentences: budget, seeds, tests, what the intervals leave out."""

from qkv_jax.output import formats
from qkv_jax.study.protocol import inference
from qkv_jax.study.protocol.grids import families
from qkv_jax.study.protocol.selection import tuning_runs
from qkv_jax.study.rates import is_among
from qkv_jax.study.record import StudyRecord, TaskRecord
from qkv_jax.study.report import race_methods, wording


def protocol(record: StudyRecord, runs, results: wording.Results) -> list[str]:
    """The paragraphs of "How this was measured", from the study's own settings and runs."""
    base, tasks, grids = record.baseline, record.tasks, families(record)
    if record.protocol == "race":
        lines = race_methods.rules(record)
        lines += [race_methods.spent(record, runs, results, name) for name in tasks]
    else:
        lines = _fixed(record, runs, results)
    if grids:
        lines.append(
            "Averages over a grid. The mean over the cells at one seed, then over the seeds, with "
            f"95 % t-intervals; differences to {base} have Welch's. They describe the "
            "grid as it was chosen and carry no verdict: the tests, and their adjustment, are "
            "those of each cell."
        )
    second = "the second half of its seeds against the first"
    if record.protocol == "fixed":
        second = "with other initial values and tuned on its own"
    lines.append(
        f"Placebo. {base} a second time, {second}. By chance "
        f"it comes out better or worse on fewer than one {'cell' if grids else 'task'} in twenty."
    )
    on = "on this test set" if record.protocol == "race" else (
        "on the chosen learning rate and on this test set"
    )  # fmt: skip
    lines.append(
        f"What the intervals leave out. They are conditional {on}; they speak of new seeds, not of "
        "new data or another rate." + _sampling(record, results)
    )
    lines += _failed(record, runs)
    lines += _more_steps(record, results)
    lines.append(
        "Costs. Parameters, FLOPs and state are counted from the model. State bytes are what must "
        "be kept of each token to decode on: keys and values of all layers, or what they are made "
        f"from. Step time, where shown, was measured on this machine as a ratio to {base}'s."
        + " ± is by how much that of the placebo, which is the same program, was off."
        * (record.protocol == "fixed")
    )
    return lines


def _more_steps(record: StudyRecord, results: wording.Results) -> list[str]:
    """What "more steps" says, if any arm has such a number."""
    rows = (row for name in record.tasks for row in results[name].values())
    if not any(row.get("more_steps") is not None for row in rows):
        return []
    return [
        f"More steps. What a difference to {record.baseline} is worth in training: how many per "
        "cent more steps the arm takes for the value that the worse of the two ends with. It took "
        "all its steps for that; when the better one was there, its own learning curve says (mean "
        "validation score over the seeds at the best rate, the best so far, linear between "
        "reports in the logarithm of the step). “Beyond” the curve: at its first report already. "
        "Runs that failed count with the failure value throughout. Intervals are Student's, of "
        "whole curves, as of independent runs, and with no p-value: verdicts are on the test "
        "score. Where learning rates decay, a curve understates what a run of so many steps would "
        "have come to, so these numbers are too near to zero: lower bounds of how many steps more, "
        "or fewer."
    ]


def _fixed(record: StudyRecord, runs, results: wording.Results) -> list[str]:
    """The protocol with numbers of seeds that were fixed beforehand."""
    base, tasks, grids = record.baseline, record.tasks, families(record)
    solving = {task.solving for task in tasks.values()}
    lines = [
        "Tuning. Every arm, the baseline and the placebo included, had the same learning rates on "
        f"the same tuning seeds ({_seeds(record.tune_seeds)}); the rate with the best mean on "
        "validation data was taken, runs that diverged or failed counted in. Where an arm's best "
        "rate was at the end of the grid, the grid was extended for every arm of that task, at "
        "most twice a side; an arm that is still at the edge gets no verdict."
    ]
    alone = [name for name, task in tasks.items() if task.grid is None]
    lines += [_tuning(record, runs, results, name) for name in alone]
    lines += [_tuning_of_grid(record, runs, results, cells) for cells in grids.values()]
    lines.append(
        f"Evaluation. {len(record.eval_seeds)} fresh seeds ({_seeds(record.eval_seeds)}), the "
        f"same for every arm, on test data at the final step. At one seed the parameters that "
        "two arms share start equal and batches come in the same order."
    )
    if False in solving:
        lines.append(
            "Differences in the mean. Welch's t for independent runs, less what arms share with "
            f"{base} at the same seed{_correlation(record, results)}; no variance is taken for "
            "less than the median of the task's arms. Equivalence is claimed where two "
            "one-sided tests place the difference within the margin that the task declares; it "
            "is tried first, so that an arm can differ detectably and yet be equivalent. Claims "
            "that luck in the choice of a learning rate could explain are undecided (tuning)."
        )
    if True in solving:
        lines.append(
            "Solving. Share of seeds that reach the threshold with Clopper-Pearson intervals; p by "
            "Boschloo's exact test of independent runs. Steps to solve are means restricted at "
            "the budget: a seed that never solved the task counts with the whole budget."
        )
    lines.append(_error(record))
    return lines


def _error(record: StudyRecord) -> str:
    """What error the verdicts have, and what seeds that were added did to it."""
    text = (
        f"Error. α = {record.alpha:g}. Each of the A arms that a task asks about is tested at α/A, "
        "which bounds the chance of any false verdict in the task, better, worse or equivalent, by "
        "α; controls and the placebo are tested alike and do not count. Adjusted p-values are to "
        "be compared with α. Verdicts are final."
    )
    if record.analysis > 1:
        sizes = formats.join([f"{size}" for size in record.looks])
        most = record.alpha * sum(inference.shares(record.analysis))
        text += (
            f" Seeds were added after the study had ended as planned: analyses at {sizes} seeds, "
            f"each but the first at half the level of the one before, {most:.3g} in all."
        )
    return text


def _correlation(record: StudyRecord, results: wording.Results) -> str:
    """What was reckoned with, over the tasks, as in " (correlation 0 to 0.31, measured)"."""
    rows = (row for name in record.tasks for row in results[name].values())
    known = sorted(r["correlation"] for r in rows if r.get("correlation") is not None)
    if not known:
        return ""
    ends = dict.fromkeys(f"{value:.2g}" for value in (known[0], known[-1]))
    return f" (correlation {' to '.join(ends)}, measured)"


def _seeds(seeds) -> str:
    """"1, 2" or "100 to 105"."""
    seeds = sorted(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "none"


def _tuning(record, runs, results, name) -> str:
    task = record.tasks[name]
    tuning = tuning_runs(record, runs[runs["task"] == name])
    tried = sorted(set(tuning["learning_rate"]))
    extra = [r for r in tried if not is_among(r, task.learning_rates)]
    budget = sorted(set(tuning.groupby("arm").size()))
    text = f"{task.title}: learning rates {', '.join(map(wording.rate, task.learning_rates))}"
    if extra:
        text += f", extended by {', '.join(map(wording.rate, extra))}"
    text += f"; {' or '.join(map(str, budget)) or 'no'} tuning runs per arm"
    text += f"; {task.steps:,} steps per run{_own_steps(task)}"
    rows = results[name].values()
    at_edge = [row["arm"] for row in rows if row.get("edge")]
    text += f"; at the edge: {formats.join(at_edge)}" if at_edge else "; no arm at the edge"
    return f"{text}; outcome: {_outcome(task)}."


def _tuning_of_grid(record, runs, results, tasks) -> str:
    """The same of all cells of a grid, in one paragraph."""
    task = record.tasks[tasks[0]]
    tuning = tuning_runs(record, runs[runs["task"].isin(tasks)])
    budget = sorted(set(tuning.groupby(["task", "arm"]).size()))
    steps = sorted({record.tasks[name].steps for name in tasks})
    extended, at_edge = 0, []
    for name in tasks:
        tried = tuning[tuning["task"] == name]["learning_rate"].unique()
        extended += any(not is_among(r, task.learning_rates) for r in tried)
        rows = results[name].values()
        named = formats.join([row["arm"] for row in rows if row.get("edge")])
        at_edge += [f"{named} ({record.tasks[name].cell})"] if named else []
    rates = ", ".join(map(wording.rate, task.learning_rates))
    text = f"{task.family_title}, {len(tasks)} cells, each tuned on its own: "
    text += f"learning rates {rates}"
    text += f", extended in {extended} of the cells" if extended else ""
    text += f"; {' or '.join(map(str, budget)) or 'no'} tuning runs per arm and cell"
    own = dict.fromkeys(_own_steps(record.tasks[name]) for name in tasks)
    text += f"; {' or '.join(f'{n:,}' for n in steps)} steps per run{''.join(own)}"
    text += f"; at the edge: {formats.join(at_edge)}" if at_edge else "; no arm at the edge"
    return f"{text}; outcome: {_outcome(task)}."


def _outcome(task: TaskRecord) -> str:
    outcome = task.outcome
    if task.solving:
        return f"solved at {outcome.threshold:g} {outcome.metric}"
    return f"mean {outcome.metric}, equivalence margin {wording.margin(task)}"


def _own_steps(task: TaskRecord) -> str:
    """Arms that train for another number of steps than the baseline, and are judged at theirs."""
    by_steps: dict[int, list[str]] = {}
    for arm, steps in task.steps_of.items():
        by_steps.setdefault(steps, []).append(arm)
    return "".join(
        f", {n:,} for {formats.join(arms)}, judged at {'its' if len(arms) == 1 else 'their'} own"
        for n, arms in by_steps.items()
    )


def _sampling(record, results) -> str:
    largest: dict[str, tuple[float, TaskRecord]] = {}
    for name, task in record.tasks.items():
        rows = results[name].values()
        errors = [row["sampling_error"] for row in rows if row.get("sampling_error") is not None]
        if errors:
            title = task.title if task.grid is None else task.family_title
            known = largest.get(title, (0.0, task))[0]
            largest[title] = max(known, *errors), task
    if not largest:
        return ""
    parts = [f"{t} {error:.2g} {wording.unit_words(s)}" for t, (error, s) in largest.items()]
    return (
        " The finite test set adds a paired sampling error of at most: " + "; ".join(parts) + ". "
        "A margin under twice that error is refused."
    )


def _failed(record, runs) -> list[str]:
    bad = runs[runs["status"] != "done"]
    if not len(bad):
        return ["Failures. No run diverged or failed."]
    tuning = bad["seed"].isin(record.tune_seeds)
    other = "evaluation runs" if record.tune_seeds else "runs"
    what = tuning.map({True: "tuning runs", False: other})
    counts = bad.groupby([what, "status"]).size()
    named = [f"{n} {kind} {status}" for (kind, status), n in counts.items()]
    title = lambda task: task.title if task.grid is None else task.family_title
    values = "; ".join(dict.fromkeys(
        f"{title(task)} {task.outcome.failure_value:g}" for task in record.tasks.values()
    ))  # fmt: skip
    return [
        f"Failures. Of {len(runs):,} runs, {formats.join(named)}. They are never dropped, but take "
        f"the failure value of their task ({values})."
    ]
