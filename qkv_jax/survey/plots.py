"""The figures of a survey. Dots are heads, lines their mean; grey is what chance gives."""

import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from qkv_jax.output import style
from qkv_jax.survey.quantities import PAIRS, QUANTITIES, ROLES
from qkv_jax.survey.remarks import number, select

_SHADES = LinearSegmentedColormap.from_list("shades", ["#f6f8f9", "#8fbbdb", style.BLUE, "#08385e"])
_BAND = "#dfe4e8"
Item = tuple[str, str, str]  # quantity, roles, title of the panel


@style.styled
def similarity(figures: pd.DataFrame) -> Figure:
    """Linear CKA of X, Q, K and V, one map per layer: below the diagonal the model, above it random
    projections of the same inputs."""
    layers = sorted(figures["layer"].unique())
    figure, axes = style.grid(len(layers), (1.75, 1.75), footer=0.1, left=0.35)
    for layer, panel in zip(layers, axes, strict=True):
        here = figures[figures["layer"] == layer]
        cells = np.full((4, 4), np.nan)
        for pair in PAIRS:
            row, column = ROLES.index(pair[1]), ROLES.index(pair[0])
            means = select(here, "cka", pair)[["value", "null_random_mean"]].mean()
            cells[row, column], cells[column, row] = means
        panel.imshow(cells, cmap=_SHADES, vmin=0, vmax=1)  # what is below 0 is white
        for (row, column), value in np.ndenumerate(cells):
            text, style_of = ROLES[row], {"color": style.SOFT, "fontsize": 10}
            if row != column:
                text = number(value)
                style_of = {"color": style.ink_on(_SHADES(value)), "fontsize": 8}
                style_of |= {"fontstyle": "italic"} if row < column else {"fontweight": "bold"}
            panel.text(column, row, text, ha="center", va="center", **style_of)
        panel.set_title(f"layer {layer}")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure


@style.styled
def strips(figures: pd.DataFrame, items: list[Item], columns: int) -> Figure:
    """One panel per item, layers along x: every head, their mean, and what it is to be held
    against."""
    rows = -(-len(items) // columns)
    figure = style.new_figure(0.4 + 2.5 * columns, 0.6 + 1.85 * rows)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    drawn: dict = {}
    for panel, item in zip(panels, items, strict=False):
        drawn |= _strip(panel, figures, item)
    for panel in panels[len(items) :]:
        panel.axis("off")
    for i, (panel, (quantity, _, _)) in enumerate(zip(panels, items, strict=False)):
        below = i + columns >= len(items)
        panel.tick_params(labelbottom=below)
        panel.set_xlabel("layer" if below else "")
        if i % columns == 0 or items[i - 1][0] != quantity:
            panel.set_ylabel(textwrap.fill(QUANTITIES[quantity].title, 20), fontsize=8)
        # One scale for what is to be compared; the rank of X is of another order than a head's.
        if quantity != "effective_rank":
            of_one = [p for p, item in zip(panels, items, strict=False) if item[0] == quantity]
            ends = np.array([p.get_ylim() for p in of_one])
            panel.set_ylim(ends[:, 0].min(), ends[:, 1].max())
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=min(3, len(drawn)))
    return _laid_out(figure)


def _strip(panel, figures, item: Item) -> dict:
    quantity, roles, title = item
    here = figures[(figures["quantity"] == quantity) & (figures["roles"] == roles)]
    drawn = {}
    if not len(here):
        panel.text(0.5, 0.5, "does not apply", ha="center", transform=panel.transAxes)
        return drawn
    heads = here if quantity == "effective_rank" and roles == "X" else select(here, quantity, roles)
    means = heads.groupby("layer").mean(numeric_only=True)
    layers = means.index.to_numpy()
    # A band of one layer would have no width.
    wide = np.repeat(layers, 2) + np.tile([-0.4, 0.4], len(layers))
    for kind, label in (("random", "random projections, 95 %"), ("rotation", "random bases, 95 %")):
        ends = (means[f"null_{kind}_{end}"].to_numpy() for end in ("low", "high"))
        low, high = (np.repeat(end, 2) for end in ends)
        if np.isfinite(low).any():
            colour = _BAND if kind == "random" else "#ece3d6"
            drawn[label] = panel.fill_between(wide, low, high, color=colour, lw=0)
    if means["chance"].notna().any():
        label = "equal weights" if quantity in ("entropy", "distance", "diagonal") else "chance"
        chance = np.repeat(means["chance"].to_numpy(), 2)
        drawn[label] = panel.plot(wide, chance, color=style.SOFT, lw=1, ls=":")[0]
    if means["null_untrained"].notna().any():
        line = panel.plot(layers, means["null_untrained"], color=style.VERMILLION, ls="--", lw=1.2,
                          marker="x", ms=4)[0]  # fmt: skip
        drawn["untrained, mean of heads"] = line
    spread = (np.arange(len(heads)) * 0.618 % 1 - 0.5) * 0.3
    dots = panel.scatter(heads["layer"] + spread, heads["value"], s=7, color=style.BLUE,
                         alpha=0.45, lw=0)  # fmt: skip
    mean = panel.plot(layers, means["value"], color=style.BLUE, lw=1.6, marker="o", ms=3.5)[0]
    panel.set_title(title)
    panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
    panel.set_xlim(layers.min() - 0.5, layers.max() + 0.5)
    panel.grid(axis="y")
    return drawn | {"a head": dots, "mean of heads": mean}


@style.styled
def spectra(found: pd.DataFrame) -> Figure:
    """Singular values of the circuits, as shares of the largest, mean over the heads."""
    layers = sorted(found["layer"].unique())
    figure = style.new_figure(7.2, 2.9)
    figure.set_layout_engine("constrained")
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(layers)))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (circuit, name) in zip(panels, (("QK", "W_Q W_Kᵀ"), ("OV", "W_V W_O")), strict=True):
        here = found[found["circuit"] == circuit]
        for shade, layer in zip(shades, layers, strict=True):
            some = here[here["layer"] == layer].copy()
            some["share"] = some["singular_value"] / some.groupby("head")[
                "singular_value"
            ].transform("max")
            line = some.groupby("index")["share"].mean()
            panel.plot(line.index, line, color=shade, lw=1.4, label=f"layer {layer}",
                       marker="o" if len(line) < 10 else None, ms=3)  # fmt: skip
        panel.set(title=f"{circuit} circuit, {name}", xlabel="number of the singular value")
        panel.set_ylim(0, 1.03)
        panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
        panel.grid()
    panels[0].set_ylabel("share of the largest")
    handles, labels = panels[0].get_legend_handles_labels()
    some = slice(None, None, max(1, len(layers) // 8))
    figure.legend(handles[some], labels[some], loc="outside right center")
    return _laid_out(figure)


@style.styled
def movement(found: pd.DataFrame) -> Figure:
    """How far the matrices are from where they started, one panel per layer."""
    return _over_steps(found, "movement", ("W_Q", "W_K", "W_V", "W_O"), "|W − W_start| / |W_start|",
                       "a fresh draw")  # fmt: skip


@style.styled
def circuits_over_training(found: pd.DataFrame) -> Figure:
    """Antisymmetric share and copying score by step: one panel each, one line per layer."""
    layers = sorted(found["layer"].unique())
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(layers)))
    figure = style.new_figure(7.2, 2.7)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2)
    for panel, quantity in zip(panels, ("antisymmetric_share", "copying"), strict=True):
        here = found[found["quantity"] == quantity]
        for shade, layer in zip(shades, layers, strict=True):
            line = here[here["layer"] == layer].groupby("step")["value"].mean()
            panel.plot(line.index, line, color=shade, marker="o", ms=3.5, label=f"layer {layer}")
        panel.axhline(here["chance"].iloc[0], color=style.SOFT, lw=1, ls=":", label="chance")
        circuit = here["roles"].iloc[0]
        panel.set(xlabel="step", ylabel=QUANTITIES[quantity].title, title=f"{circuit} circuit")
        panel.grid(axis="y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return _laid_out(figure)


def _over_steps(found, quantity, roles, title, chance) -> Figure:
    here = found[found["quantity"] == quantity]
    layers = sorted(here["layer"].unique())
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = style.new_figure(1.6 + 2.4 * columns, 0.5 + 2.1 * rows)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = dict(zip(roles, style.LINES, strict=False))
    marks = dict(zip(roles, "os^D", strict=False))
    for panel, layer in zip(panels.ravel(), layers, strict=False):
        some = here[here["layer"] == layer]
        for role in roles:
            line = some[some["roles"] == role].groupby("step")["value"].mean()
            panel.plot(line.index, line, color=colours[role], marker=marks[role], ms=4, lw=1.3,
                       label=role, alpha=0.9)  # fmt: skip
        panel.axhline(some["chance"].iloc[0], color=style.SOFT, lw=1, ls=":", label=chance)
        panel.set_title(f"layer {layer}")
        panel.grid(axis="y")
    for panel in panels.ravel()[len(layers) :]:
        panel.axis("off")
    for panel in panels[-1]:
        panel.set_xlabel("step")
    for panel in panels[:, 0]:
        panel.set_ylabel(title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return _laid_out(figure)


def _laid_out(figure: Figure) -> Figure:
    """The figure with all things where they go, before anybody measures it."""
    figure.draw_without_rendering()
    return figure
