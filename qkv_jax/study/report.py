"""Writes the report of a study: one self-contained web page, the same as Markdown, the figures.

Everything that needs judgement is elsewhere: verdicts in `statistics.py`, sentences in
`findings.py` and `headlines.py`, figures in `figures.py`. Here the pieces are put in order for
the templates.
"""

import base64
import functools
import json
import pathlib
import re
from collections.abc import Callable

import jinja2

from qkv_jax.study import figures, findings, headlines, wording
from qkv_jax.study.console import console_table
from qkv_jax.study.protocol import protocol

__all__ = ["console_table", "write_report"]

_TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write_report(
    workdir: pathlib.Path, study: dict, runs, summary, curve: Callable, *, dpi: int = 150
) -> pathlib.Path:
    """Writes report.html, report.md and figures/*.svg|png into the workdir of a study.

    Args:
      workdir: an existing folder.
      study, runs, summary: the dict of study.json, the runs, and `statistics.summarise` of them.
        An unfinished study is reported as far as it goes, under a banner.
      curve: (task, arm, phase, learning_rate, seed) -> DataFrame(step, value) or None.
      dpi: resolution of the PNG files.

    Returns: the path of report.html.
    """
    workdir = pathlib.Path(workdir)
    folder = workdir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    context = _context(study, runs, summary)
    for task in context["tasks"]:
        task["lattice"], task["figures"] = _draw(folder, study, runs, summary, task, curve, dpi)
    for kind in ("md", "html"):
        text = _environment().get_template(f"report.{kind}.jinja").render(context)
        (workdir / f"report.{kind}").write_text(text, encoding="utf-8")
    return workdir / "report.html"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown
    environment.filters["unbroken"] = unbroken
    return environment


def unbroken(text) -> str:
    """No line break inside "95 %", "p < 0.0001" and between a number and its seeds."""
    text = re.sub(r"(\d) (%|seeds?\b|paired\b)", "\\1\u00a0\\2", str(text))
    return re.sub(r"\bp ([=<≤]) ", "p\u00a0\\1\u00a0", text)


def markdown(text) -> str:
    """Text with all that Markdown or HTML would take for markup escaped, for one line."""
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|#\[\]~$])", r"\\\1", text).replace("\n", " ")


def _context(study, runs, summary) -> dict:
    return {
        "study": study,
        "warnings": headlines.warnings(study, runs, summary),
        "overview": headlines.overview(study, summary),
        "tasks": [_task(study, summary, name) for name in study["tasks"]],
        "protocol": protocol(study, runs, summary),
        "number_of_runs": f"{len(runs):,}",
        "duration": _duration(study.get("seconds")),
        "config": json.dumps(study.get("config"), indent=2, default=str, ensure_ascii=False),
        "arms": study["arms"],
        "signs": wording.SIGNS,
    }


def _duration(seconds) -> str:
    if not wording.known(seconds):
        return wording.MISSING
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90
        else f"{hours:.1f} h"
    )  # fmt: skip


def _task(study, summary, name) -> dict:
    spec, rows = study["tasks"][name], wording.task_rows(study, summary, name)
    spec = {"chance": None, "threshold": None, "unit": None} | spec
    return {
        "name": name,
        "spec": spec,
        "slug": wording.slug(name),
        "direction": wording.better_words(spec),
        "findings": findings.task_findings(study, summary, name),
        "table": _solve_table(spec, rows) if spec["kind"] == "solve" else _mean_table(spec, rows),
        "costs": _cost_table(study, rows),
        "notes": {a: study["arms"][a]["note"] for a in rows if study["arms"][a].get("note")},
    }


def _rows(rows, cells) -> list[dict]:
    return [
        {
            "arm": arm,
            "group": wording.role_group(row),
            "role": row["role"],
            "cells": cells(row),
            "verdict": row["verdict"] or "no result",
            "kind": wording.kind(row["verdict"]),
        }
        for arm, row in sorted(rows.items(), key=lambda item: wording.role_group(item[1]))
    ]


def _seeds(row) -> str:
    bad = wording.failures(row)
    return f"{row.get('n', 0):.0f}" + (f" ({bad} failed)" if bad else "")


def _rate(row) -> str:
    edge = f" ({row['edge']} edge)" if row.get("edge") else ""
    return wording.rate(row.get("learning_rate")) + edge


def _plan(row) -> str:
    return str(row.get("seeds_to_decide", ""))


def _bracket(value, low, high, digits, signed=False) -> str:
    text = wording.number(value, digits, signed)
    if not (wording.known(low) and wording.known(high)):
        return text
    return f"{text} [{wording.number(low, digits)}, {wording.number(high, digits)}]"


def _mean_table(spec, rows) -> dict:
    digits = wording.decimals(spec)

    def cells(row):
        get = row.get
        difference = _bracket(get("delta"), get("delta_low"), get("delta_high"), digits, True)
        p_equivalence = wording.p_value(get("p_equivalence"))
        return [
            _rate(row),
            _bracket(get("mean"), get("ci_low"), get("ci_high"), digits),
            difference, wording.p_value(get("p_holm")), p_equivalence, _seeds(row), _plan(row),
        ]  # fmt: skip

    head = [
        "rate", f"mean {spec['metric']} [95 %]", "difference [95 %]", "p (Holm)",
        "p (equivalence)", "seeds", "seeds to decide",
    ]  # fmt: skip
    return {"head": head, "rows": _rows(rows, cells)}


def _solve_table(spec, rows) -> dict:
    digits = wording.decimals(spec)

    def cells(row):
        get = row.get
        share = f"{get('n_solved', 0):.0f} of {get('n', 0):.0f}" if get("n") else wording.MISSING
        if wording.known(get("solve_low")):
            share += f" [{100 * get('solve_low'):.0f}, {100 * get('solve_high'):.0f} %]"
        steps = wording.integer(get("steps_to_solve"))
        if wording.known(get("steps_to_solve_low")) and wording.known(get("steps_to_solve_high")):
            ends = map(wording.integer, (get("steps_to_solve_low"), get("steps_to_solve_high")))
            steps += f" [{', '.join(ends)}]"
        mean = wording.number(get("mean"), digits)
        p = wording.p_value(get("p_holm"))
        return [_rate(row), share, steps, mean, p, _seeds(row), _plan(row)]

    head = [
        "rate", "seeds solved [95 %]", "steps to solve [95 %]", f"mean {spec['metric']}",
        "p (Holm)", "seeds", "seeds to decide",
    ]  # fmt: skip
    return {"head": head, "rows": _rows(rows, cells)}


def _cost_table(study, rows) -> dict | None:
    """Costs with their change against the baseline; None if none is known."""
    columns = {
        "params": "parameters",
        "attention_params": "in attention",
        "flops_per_token": "FLOPs per token",
        "kv_cache_bytes_per_token": "KV cache, bytes per token",
    }
    shown = [c for c in columns if any(row.get(c) is not None for row in rows.values())]
    timed = any(row.get("step_time_ratio") is not None for row in rows.values())
    if not (shown or timed):
        return None
    base = rows.get(study["baseline"], {})

    def cell(row, column):
        value, reference = row.get(column), base.get(column)
        exact = value is not None and abs(value) < 100_000
        text = wording.integer(value) if exact else wording.count(value)
        if value is None or not reference or value == reference:
            return text
        change = 100 * (value / reference - 1)
        size = f"{abs(change):.0f}" if abs(change) >= 9.5 else f"{abs(change):.1f}"
        return f"{text} ({wording.MINUS if change < 0 else '+'}{size} %)"

    def cells(row):
        ratio = row.get("step_time_ratio")
        time = f"{ratio:.2f} ×" if ratio is not None else wording.MISSING
        return [cell(row, c) for c in shown] + ([time] if timed else [])

    head = [columns[c] for c in shown] + (["step time, of the baseline's"] if timed else [])
    return {"head": head, "rows": _rows(rows, cells)}


def _draw(folder, study, runs, summary, task, curve, dpi):
    """Draws the figures of one task: (the lattice or None, the others)."""
    name, spec, base = task["name"], task["spec"], study["baseline"]
    title, band = spec["title"], "mean and range over the seeds"
    results = "; ".join(_spoken(spec, row) for row in
                        wording.task_rows(study, summary, name).values())  # fmt: skip
    wanted = []
    if name in figures.lattice_tasks(study):
        caption = (
            "The lattice of ties: the 15 ways of equating X, Q, K and V. A line joins two ties of "
            "which the lower equates one thing more. Colour and number show the result, border "
            "and word the verdict; hollow boxes are not in this study."
        )
        wanted.append(("lattice", lambda: figures.lattice(study, summary, [name]), caption))
    if spec["kind"] == "solve":
        caption = (
            "Seeds that solve the task (Clopper-Pearson intervals) and steps to do so (mean cut "
            "at the budget). The verdict is that of the exact McNemar test on solving."
        )
        wanted.append(("solving", lambda: figures.solving(study, summary, name), caption))
    caption = (
        f"Differences to {base}, paired by seed. Thick: 95 % interval; thin: simultaneous for all "
        "arms at the level of this look; no bar where seeds do not vary. Hollow marks: controls "
        "and placebo. "
        + ("The verdict is on solving, not on this difference." if spec["kind"] == "solve"
           else "Shaded: the equivalence margin.")
    )  # fmt: skip
    wanted.append(("forest", lambda: figures.forest(study, summary, name), caption))
    caption = (
        "Quality against learning rate in the tuning runs, on validation data. Dots: seeds; line: "
        f"their mean; ring: the rate chosen; grey: {base}; crosses: diverged or failed."
    )
    draw = functools.partial(figures.learning_rates, study, runs, summary, name)
    wanted.append(("learning-rates", draw, caption))
    caption = f"Learning curves of the evaluation runs, {band}; grey: {base}."
    draw = functools.partial(figures.learning_curves, study, summary, name, curve)
    wanted.append(("learning-curves", draw, caption))
    caption = (
        "Cost against quality. Filled and joined: arms that no other beats in one without being "
        "worse in the other, by the measured means; whether a difference is real, the marks say."
    )
    draw = functools.partial(figures.cost_quality, study, summary, name)
    wanted.append(("cost", draw, caption))

    drawn = {}
    for key, draw, caption in wanted:
        figure = draw()
        if figure is None:
            continue
        svg, png = figures.save(figure, folder / f"{key}-{task['slug']}", dpi)
        alt = f"{title}: {key.replace('-', ' ')}. "
        alt += results if key in ("lattice", "forest", "solving") else caption
        uri = "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
        drawn[key] = {
            "key": key, "caption": caption, "alt": alt, "uri": uri, "png": f"figures/{png.name}",
            "svg": f"figures/{svg.name}", "width": round(96 * figure.get_figwidth()),
        }  # fmt: skip
    return drawn.pop("lattice", None), list(drawn.values())


def _spoken(spec, row) -> str:
    if spec["kind"] == "solve":
        value = f"{row.get('n_solved', 0):.0f} of {row.get('n', 0):.0f} seeds"
    else:
        value = wording.number(row.get("delta"), wording.decimals(spec), signed=True)
    return f"{row['arm']} {value} {row['verdict'] or 'no result'}"
