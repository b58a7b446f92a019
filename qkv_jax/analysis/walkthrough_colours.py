"""Colours of a number: blue below zero and orange above it, or from pale to dark green for
weights. Both scales change in lightness all the way, so that they are read with any colour vision
and in print."""

import numpy as np

_SIGNED = ("#0b5394", "#6fa8d6", "#f6f6f4", "#f0a35e", "#b34700")
_WEIGHTS = ("#f6f6f4", "#b7dccb", "#5fae93", "#007a5e", "#003d2e")


def colours_of(values: np.ndarray, kind: str, limit: float) -> np.ndarray:
    """Red, green and blue [..., 3] from 0 to 255.

    Args:
      kind: `weights` run from 0 to the limit, `signed` from minus the limit.
    """
    names = _WEIGHTS if kind == "weights" else _SIGNED
    stops = np.array([[int(n[i : i + 2], 16) for i in (1, 3, 5)] for n in names], float)
    shares = values / (limit or 1.0)
    shares = shares if kind == "weights" else (shares + 1) / 2
    places = np.clip(shares, 0, 1) * (len(stops) - 1)
    channels = [np.interp(places, range(len(stops)), stops[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def colour_of(value: float, kind: str, limit: float) -> str:
    """One colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colours_of(np.asarray(value), kind, limit))


def ink_on(colour: str) -> str:
    """The colour of text on it: the one of the two with more contrast."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else "#1f2933"
