"""Damage and recovery as tables, a figure and a page."""

import json
import pathlib
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from qkv_jax.output import style
from qkv_jax.output.html import write_page
from qkv_jax.surgery.damage import EditedModel

_TEMPLATE = pathlib.Path(__file__).with_name("surgery.html.jinja")
ALL, ORIGINAL = "all", "original"


def write_surgery(
    folder: pathlib.Path,
    edited: EditedModel,
    tie: str,
    found: pd.DataFrame,
    record: dict[str, Any],
) -> pathlib.Path:
    """Writes `surgery.csv`, `surgery.json`, `figures/` and `report.html`; returns the page.

    Args:
      found: method, layers, trained (steps after surgery), and one column per metric.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    found.to_csv(folder / "surgery.csv", index=False)
    remarked = notes(found, edited)
    facts = {"model": edited.name, "tie": tie, "notes": remarked, **record}
    (folder / "surgery.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    files = style.save(damage_figure(found, edited), folder / "figures" / "damage")
    context = {
        "edited": edited, "tie": tie, "headings": [m.name for m in edited.metrics],
        "rows": _rows(found, edited), "uri": style.data_uri(files[0]),
        "files": {file.suffix[1:]: f"figures/{file.name}" for file in files},
        "notes": remarked,
    }  # fmt: skip
    return write_page(folder / "report.html", _TEMPLATE, context)


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
    """The whole of it for the terminal; fits into 78 columns."""
    table = Table(title=f"{tie} imposed", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("method", "layers", "trained"):
        table.add_column(name, no_wrap=True)
    for metric in edited.metrics:
        arrow = "↑" if metric.higher_is_better else "↓"
        table.add_column(f"{metric.name} {arrow}", justify="right", max_width=16)
    for row in _rows(found, edited):
        table.add_row(*row)
    return table


def _rows(found: pd.DataFrame, edited: EditedModel) -> list[list[str]]:
    rows = []
    for row in found.to_dict("records"):
        trained = f"{row['trained']} steps" if row["trained"] else ""
        values = [f"{row[metric.name]:.4f}" for metric in edited.metrics]
        rows.append([row["method"], str(row["layers"]), trained, *values])
    return rows


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
    originals = found[found["method"] == ORIGINAL]
    for row in originals.to_dict("records"):
        axes.axhline(row[metric.name], color=style.INK, lw=0.9, ls="--" if row["trained"] else "-")
    trained = bool((found["trained"] > 0).any())
    ticks = [*places, "all, then\ntrained"] if trained else places
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlabel("layer that is tied")
    arrow = "↑ better" if metric.higher_is_better else "↓ better"
    axes.set_ylabel(f"{metric.name}, {arrow}")
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure
