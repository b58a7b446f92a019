"""Heat maps as SVG text: small arrays with their numbers, large ones as an embedded picture."""

import base64
import io
import math
from html import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qkv_jax.explain.panels import Panel, number
from qkv_jax.output.colours import colour_of, colours_of, ink_on

_WRITTEN = 12  # rows and columns up to which numbers are written into the cells
_CELL, _HIGH = 40.0, 25.0  # pixels of a cell with a number
_TEXT, _SMALL = 12.5, 11.5
_SOFT, _WHITE = "#55616b", "#ffffff"
_LETTER, _APART = 7.2, 13.0  # pixels of a letter, at most; between two labels, at least
_NARROW, _WIDE, _LARGE = 2.5, 15.0, 300.0  # of cells without numbers, and of their map


def heat_map(panel: Panel, limit: float, *, plain: bool = False) -> str:
    """An `<svg>` with the array's labels and, in cells that have room, its numbers.

    Args:
      limit: the entry that has the darkest colour.
      plain: cells alone, for a small overview.
    """
    rows, columns = panel.matrix.shape
    written = not plain and rows <= _WRITTEN and columns <= _WRITTEN
    wide, high = (_CELL, _HIGH) if written else (_side(columns), _side(rows))
    if plain:  # of the same width in the overview; not too flat to be seen
        wide = high = _side(max(rows, columns))
        high *= np.clip(0.4 * columns / rows, 1, 3)
    longest = max(map(len, panel.columns)) * _LETTER
    slanted = not plain and panel.of_pairs and longest > wide + 6
    left = 0.0 if plain else 10 + _LETTER * max(map(len, panel.rows))
    top = 0.0 if plain else 14 + 0.75 * longest if slanted else 20.0
    width, height = left + wide * columns + (0.75 * top if slanted else 0.0), top + high * rows
    height += 0.0 if plain or high >= _APART else 4.0  # the last label is higher than its row
    parts = [_cells(panel, limit, left, top, wide, high)]
    if written:
        parts += _numbers(panel, limit, left, top)
    if not plain:
        parts += _labels(panel, left, top, wide, high, slanted)
    alt = f"{panel.title}: {_spoken(panel)}"
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(alt)}</title>{''.join(parts)}</svg>"
    )


def scale_bar(kind: str, limit: float) -> str:
    """The colours with the numbers they stand for."""
    low = 0.0 if kind == "weights" else -limit
    ends = [number(value, limit) for value in (low, (low + limit) / 2, limit)]
    shades = np.linspace(low, limit, 48)
    cells = "".join(
        f'<rect x="{10 + 4 * i}" y="2" width="4.3" height="12" fill="{colour_of(v, kind, limit)}"/>'
        for i, v in enumerate(shades)
    )
    words = "".join(
        _text(10 + 96 * i, 27, end, _SOFT, "middle", _SMALL) for i, end in enumerate(ends)
    )
    return (
        f'<svg role="img" aria-label="Colours from {ends[0]} to {ends[-1]}" viewBox="-12 0 236 32" '
        f'width="236" height="32" xmlns="http://www.w3.org/2000/svg">{cells}{words}</svg>'
    )


def _side(count: int) -> float:
    """Of a cell in a row or column of so many."""
    return max(_NARROW, min(_WIDE, _LARGE / count))


def _cells(panel: Panel, limit: float, left: float, top: float, wide: float, high: float) -> str:
    rows, columns = panel.matrix.shape
    if max(rows, columns) > _WRITTEN:
        uri = base64.b64encode(_png(colours_of(panel.matrix, panel.kind, limit))).decode()
        return (
            f'<image x="{left:.0f}" y="{top:.0f}" width="{wide * columns:.1f}" '
            f'height="{high * rows:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{uri}"/>'
        )
    return "".join(
        f'<rect x="{left + wide * c:.1f}" y="{top + high * r:.1f}" width="{wide:.1f}" '
        f'height="{high:.1f}" fill="{colour_of(panel.matrix[r, c], panel.kind, limit)}" '
        f'stroke="{_WHITE}" stroke-width="1"/>'
        for r in range(rows)
        for c in range(columns)
    )


def _labels(
    panel: Panel, left: float, top: float, wide: float, high: float, slanted: bool
) -> list[str]:
    """Above and to the left; where cells are narrow, of every second, third ... one."""
    parts = []
    apart = _APART if slanted else 6 + max(map(len, panel.columns)) * _LETTER
    for column in range(0, len(panel.columns), max(1, math.ceil(apart / wide))):
        x = left + wide * (column + 0.5)
        turn = f' transform="rotate(-48 {x:.0f} {top - 6:.0f})"' if slanted else ""
        anchor = "start" if slanted else "middle"
        parts.append(_text(x, top - 6, panel.columns[column], _SOFT, anchor, _SMALL, turn))
    for row in range(0, len(panel.rows), max(1, math.ceil(_APART / high))):
        y = top + high * (row + 0.5) + 4
        parts.append(_text(left - 6, y, panel.rows[row], _SOFT, "end", _SMALL))
    return parts


def _numbers(panel: Panel, limit: float, left: float, top: float) -> list[str]:
    largest = float(np.abs(panel.matrix).max())
    return [
        _text(
            left + _CELL * (column + 0.5),
            top + _HIGH * (row + 0.5) + 4.5,
            number(value, largest),
            ink_on(colour_of(value, panel.kind, limit)),
            "middle",
            _TEXT,
        )
        for (row, column), value in np.ndenumerate(panel.matrix)
    ]


def _text(x, y, words, colour, anchor, size, turn="") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-size="{size}"{turn}>{escape(words)}</text>'
    )


def _spoken(panel: Panel) -> str:
    """What a reader who does not see the map gets: all of a small array, the range of another."""
    rows, columns = panel.matrix.shape
    limit = float(np.abs(panel.matrix).max())
    if rows * columns > 36:
        low, high = (number(v, limit) for v in (panel.matrix.min(), panel.matrix.max()))
        return f"{rows} by {columns} numbers from {low} to {high}"
    lines = (
        f"{name}: {' '.join(number(value, limit) for value in row)}"
        for name, row in zip(panel.rows, panel.matrix, strict=True)
    )
    return "; ".join(lines)


def _png(pixels: UInt8[np.ndarray, "R C 3"]) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return file.getvalue()
