"""Damage and recovery as sentences, tables, a figure and a page."""

import pathlib
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from qkv_jax.output import formats, style
from qkv_jax.output.html import write_page
from qkv_jax.runtime.files import json_text, write_whole
from qkv_jax.surgery.damage import EditedModel
from qkv_jax.surgery.operation import ALL, CHANGE, ORIGINAL, OWN
from qkv_jax.surgery.scores import Metric

_TEMPLATE = pathlib.Path(__file__).with_name("surgery.html.jinja")


def write_surgery(
    folder: pathlib.Path,
    edited: EditedModel,
    tie: str,
    found: pd.DataFrame,
    record: dict[str, Any],
) -> pathlib.Path:
    """Writes `surgery.csv`, `surgery.json`, `figures/` and `report.html`; returns the page.

    Args:
      found: of `operation.operate`.
      record: what was done, its `command` among it.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    found.to_csv(folder / "surgery.csv", index=False)
    results, remarked = result_sentences(found, edited, tie), notes(found, edited)
    facts = {"model": edited.name, "tie": tie, "results": results, "notes": remarked, **record}
    write_whole(folder / "surgery.json", json_text(facts))
    figure = damage_figure(found, edited)
    files = style.save(figure, folder / "figures" / "damage")
    context = {
        "edited": edited, "tie": tie, "headings": _headings(edited), "rows": _rows(found, edited),
        "uri": style.data_uri(files[0]), "width": round(96 * figure.get_figwidth()),
        "files": {file.suffix[1:]: f"figures/{file.name}" for file in files},
        "results": results, "notes": remarked, "caption": _caption(found, edited),
        "command": record.get("command", ""),
    }  # fmt: skip
    return write_page(folder / "report.html", _TEMPLATE, context)


def result_sentences(found: pd.DataFrame, edited: EditedModel, tie: str) -> list[str]:
    """What the tie costs in all layers, a sentence for each method, the least harmful first."""
    metric = edited.metrics[0]
    whole = found[found["layers"] == ALL]
    best = whole[whole["trained"] == 0].sort_values(
        metric.name, ascending=not metric.higher_is_better
    )
    lines = []
    for method in best["method"]:
        here, *later = whole[whole["method"] == method].to_dict("records")
        text = f"{tie} in all layers by {method}: {_measured(edited, here, 'the original')}"
        for row in later:
            rival = "the original trained on as long" if edited.has_control else "the original"
            text += f"; after {row['trained']} steps {_measured(edited, row, rival)}"
        lines.append(text + ".")
    return lines


def _measured(edited: EditedModel, row: dict, rival: str) -> str:
    parts = []
    for metric in edited.metrics:
        if metric.perfect is not None:
            parts.append(f"{metric.name} {_bracket(row, metric, OWN)}, {metric.perfect:g} being "
                         "that of the original")  # fmt: skip
        else:
            change, *ends = (row[metric.name + column] for column in CHANGE)
            sign = 1 if change >= 0 else -1
            low, high = sorted(sign * end for end in ends)
            size = f"{_number(sign * change)} [{_number(low)}, {_number(high)}]"
            more = "more" if sign > 0 else "less"
            parts.append(f"{metric.name} {_number(row[metric.name])}, {size} {more} than {rival}")
    return " and ".join(parts)


def _bracket(row: dict, metric: Metric, columns: tuple[str, str, str]) -> str:
    names = [metric.name + column for column in columns]
    return formats.bracket(row, *names, digits=3, signed=columns is CHANGE)


def _number(value: float) -> str:
    return formats.number(value, 3)


def notes(found: pd.DataFrame, edited: EditedModel) -> list[str]:
    """What to know of the table: how the texts suit the model, and where training did harm."""
    lines = [edited.note] if edited.note else []
    whole = found[found["layers"].isin((ALL, ""))]
    for method, rows in whole.groupby("method", sort=False):
        trained = rows[rows["trained"] > 0].to_dict("records")
        before = rows[rows["trained"] == 0].to_dict("records")
        for metric in edited.metrics if trained and before else ():
            old, new = before[0][metric.name], trained[0][metric.name]
            if new < old if metric.higher_is_better else new > old:
                model = "the original" if method == ORIGINAL else f"the model tied by {method}"
                what = f"{metric.name} from {old:.4f} to {new:.4f}"
                lines.append(
                    f"Warning: further training made {model} worse ({what}); a lower "
                    "learning rate may suit it."
                )
    return lines


def console_table(found: pd.DataFrame, edited: EditedModel, tie: str) -> Table:
    """The whole of it for the terminal; fits into 80 columns."""
    table = Table(title=f"{tie} imposed", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(_headings(edited)):
        justify = "left" if place < 3 else "right"
        table.add_column(heading, no_wrap=place < 3, justify=justify, max_width=24)
    for row in _rows(found, edited):
        table.add_row(*row)
    return table


def _headings(edited: EditedModel) -> list[str]:
    found = ["method", "layers", "trained"]
    for metric in edited.metrics:
        if metric.perfect is None:
            found += [f"{metric.name} {metric.arrow}", "change [95 %]"]
        else:
            found.append(f"{metric.name} {metric.arrow} [95 %]")
    return found


def _rows(found: pd.DataFrame, edited: EditedModel) -> list[list[str]]:
    rows = []
    for row in found.to_dict("records"):
        cells = [row["method"], str(row["layers"])]
        cells.append(f"{row['trained']} steps" if row["trained"] else "")
        for metric in edited.metrics:
            if metric.perfect is not None:
                cells.append(_bracket(row, metric, OWN))
            else:
                changed = formats.known(row.get(metric.name + CHANGE[0]))
                change = _bracket(row, metric, CHANGE) if changed else ""
                cells += [_number(row[metric.name]), change]
        rows.append(cells)
    return rows


def _caption(found: pd.DataFrame, edited: EditedModel) -> str:
    what = "95 % intervals over the examples that it is measured on"
    if all(metric.perfect is not None for metric in edited.metrics):
        return f"In brackets: {what}; the model is the only one of its kind."
    text = f"Change: to the original, on the same examples; in brackets {what}, of this one model"
    if edited.has_control and (found["trained"] > 0).any():
        text += ". Of a tied model that was trained on: to the original trained on as long"
    return text + "."


@style.styled
def damage_figure(found: pd.DataFrame, edited: EditedModel) -> Figure:
    """The first metric by layer, one line per method; right: all layers, and after training."""
    metric = edited.metrics[0]
    untrained = found[(found["trained"] == 0) & (found["method"] != ORIGINAL)]
    layers = [str(n) for n in range(edited.encoder.config.layers)]
    places = [*layers, ALL]
    figure = style.new_figure(max(4.8, 0.55 * len(places) + 2.6), 3.0)
    axes = figure.subplots()
    for colour, marker, (method, part) in zip(
        style.LINES, "osD^v", untrained.groupby("method", sort=False), strict=False
    ):
        values = part.assign(layers=part["layers"].astype(str)).set_index("layers")[metric.name]
        alone = values.reindex(layers)
        line_style = {"marker": marker, "color": colour}
        axes.plot(range(len(layers)), alone, ms=4, lw=1.2, label=method, **line_style)
        if ALL in values:
            axes.plot(len(layers), values[ALL], ms=6, **line_style)
        later = found[(found["method"] == method) & (found["trained"] > 0)]
        if len(later):
            axes.plot(len(layers) + 1, later[metric.name].iloc[0], ms=6, mfc="white", **line_style)
        for x, row in [*zip(_xs(part, places), part.to_dict("records"), strict=True),
                       *((len(layers) + 1, row) for row in later.to_dict("records"))]:  # fmt: skip
            low, high = _ends(row, metric)
            axes.plot((x, x), (low, high), lw=1, color=colour, zorder=1)
    originals = found[found["method"] == ORIGINAL]
    for row in originals.to_dict("records"):
        axes.axhline(row[metric.name], color=style.INK, lw=0.9, ls="--" if row["trained"] else "-")
    trained = bool((found["trained"] > 0).any())
    ticks = [*places, "all, then\ntrained"] if trained else places
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("layer that is tied")
    axes.set_ylabel(f"{metric.name}, {metric.arrow} better")
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _xs(part: pd.DataFrame, places: list[str]) -> list[int]:
    return [places.index(str(layer)) for layer in part["layers"]]


def _ends(row: dict, metric: Metric) -> tuple[float, float]:
    """Of a bar about the value: the interval of the change where there is one, which is the smaller
    of the two, since it is paired."""
    if metric.perfect is not None:
        return row[metric.name + OWN[1]], row[metric.name + OWN[2]]
    shift = row[metric.name] - row[metric.name + CHANGE[0]]
    return shift + row[metric.name + CHANGE[1]], shift + row[metric.name + CHANGE[2]]
