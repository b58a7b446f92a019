"""The common look of the figures: colours, type, layout of small multiples, saving.

Colours are those of Okabe and Ito (2008), told apart by readers with any colour vision; every
figure says the same thing a second time by marker, border or word. Files are the same bytes for
the same data: no dates, a fixed hash salt, and type as paths.
"""

import base64
import functools
import io
import pathlib
import textwrap

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from qkv_jax.output import colours, formats
from qkv_jax.runtime.files import write_whole

INK, SOFT, FAINT, LINE = "#1f2933", "#5b6770", "#8d98a1", "#d5dbe0"
BLUE, VERMILLION, GREEN, GREY, PURPLE = "#0072B2", "#D55E00", "#007A5E", "#6b7780", "#8A4F7D"

_TITLE = 20  # characters of a line above a panel of a grid

COLOURS = {
    "better": BLUE,
    "worse": VERMILLION,
    "equivalent": GREEN,
    "undecided": GREY,
    "baseline": INK,
    "pending": FAINT,
}
MARKERS = {
    "better": "^",
    "worse": "v",
    "equivalent": "s",
    "undecided": "o",
    "baseline": "D",
    "pending": "x",
}
# Blue (better) over near-white to orange (worse): safe for all common colour deficiencies.
DIVERGING = LinearSegmentedColormap.from_list("better_worse", colours.SIGNED)

# Lines of arms, told apart a second time by the label at their end.
LINES = ("#0072B2", "#D55E00", "#007A5E", "#AA4499", "#8C6A00", "#2E9BD6", "#B3261E")
MARGIN = "#e3efe9"
_DARK_TO_LIGHT = 0.05, 0.82  # of the colour map of ordered values

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e8ecef",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "qkv_jax",
    "text.parse_math": False,  # a "$" in an arm's name is a dollar
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
}


def styled(draw):
    """Runs a drawing function under the style of this project."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


# Suffix: what a file would say of the day and the program that made it, so that equal figures are
# equal files.
_OPTIONS = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@styled
def save(figure: Figure, path: pathlib.Path, dpi: int = 150) -> tuple[pathlib.Path, ...]:
    """Writes `path`.svg, .png and .pdf, cut to what is drawn, so that nothing is cut off."""
    files = tuple(path.parent / (path.name + suffix) for suffix in _OPTIONS)
    box = figure.get_tightbbox(figure.canvas.get_renderer()).padded(0.08)
    for file, metadata in zip(files, _OPTIONS.values(), strict=True):
        drawn, kind = io.BytesIO(), file.suffix[1:]
        figure.savefig(drawn, format=kind, bbox_inches=box, metadata=metadata, dpi=dpi)
        write_whole(file, drawn.getvalue())
    return files


def data_uri(svg: pathlib.Path) -> str:
    """An SVG file as an address that a self-contained page can show."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def text_width(text: str, size: float = 9) -> float:
    """Upper estimate of a label's width in inches."""
    return 0.66 * size / 72 * len(text)


def grid(count: int, panel=(1.5, 1.2), *, header=0.0, footer=0.55, left=0.6):
    """A figure of small multiples with shared axes: (figure, axes in reading order)."""
    columns = count if count <= 4 else 4 if count <= 8 else 5 if count <= 15 else 6
    rows = -(-count // columns)
    gap_x, gap_y, head = 0.14, 0.36, 0.3 + header
    width = left + columns * (panel[0] + gap_x)
    height = head + rows * panel[1] + (rows - 1) * gap_y + footer
    figure = new_figure(width, height)
    axes = []
    for i in range(count):
        row, column = divmod(i, columns)
        x = left + column * (panel[0] + gap_x)
        y = height - head - row * (panel[1] + gap_y) - panel[1]
        box = (x / width, y / height, panel[0] / width, panel[1] / height)
        shared = {"sharex": axes[0], "sharey": axes[0]} if axes else {}
        axes.append(figure.add_axes(box, **shared))
        below = i + columns >= count  # the lowest panel of its column carries the ticks
        axes[-1].tick_params(labelleft=column == 0, labelbottom=below, length=2.5)
        axes[-1].tick_params(which="minor", labelleft=False, labelbottom=False, length=0)
    return figure, axes


def panel_title(axes, label: str, sign: str = "", **text) -> Text:
    """The name of a panel of a grid and a sign behind it; a long name takes two small lines."""
    lines = textwrap.wrap(label, _TITLE) or [label]
    if len(lines) > 2:
        lines = [lines[0], formats.shorten(" ".join(lines[1:]), _TITLE)]
    size = 8 if len(lines) == 1 and len(label) <= 17 else 7
    return axes.set_title(
        "\n".join(lines) + sign, fontsize=size, pad=3, loc="left", linespacing=1.0, **text
    )


def spread(wanted, apart, low, high):
    """Ascending heights moved as little as needed to lie `apart`, and inside the panel."""
    heights = list(wanted)
    for _ in range(200):
        moved = False
        for i in range(len(heights) - 1):
            overlap = apart - (heights[i + 1] - heights[i])
            if overlap > 1e-9 * apart:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
                moved = True
        if not moved:
            break
    if heights and heights[0] < low:
        heights = [h + low - heights[0] for h in heights]
    if heights and heights[-1] > high:
        heights = [h - (heights[-1] - high) for h in heights]
    return heights


def ink_on(face) -> str:
    """The colour of text on a face of any colour that matplotlib knows."""
    return colours.ink_on(to_hex(face), INK)


def ordered_colours(count):
    """Dark to light, for values with an order; safe for all colour visions."""
    low, high = _DARK_TO_LIGHT
    scale = ScalarMappable(cmap="viridis").get_cmap()
    return [scale(low + (high - low) * i / max(count - 1, 1)) for i in range(count)]
