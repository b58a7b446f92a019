"""Two scales of colour, and the ink that is read on each shade.

Blue below zero and orange above it, or from pale to dark green for weights. Both change in
lightness all the way, so that they are read with any colour vision and in print.
"""

import numpy as np
from jaxtyping import Float, UInt8

SIGNED = ("#0b5394", "#6fa8d6", "#f6f6f4", "#f0a35e", "#b34700")
WEIGHTS = ("#f6f6f4", "#b7dccb", "#5fae93", "#007a5e", "#003d2e")


def colours_of(
    values: Float[np.ndarray, "*R"], kind: str, limit: float
) -> UInt8[np.ndarray, "*R 3"]:
    """Red, green and blue from 0 to 255.

    Args:
      kind: `weights` run from 0 to the limit, `signed` from minus the limit.
    """
    names = WEIGHTS if kind == "weights" else SIGNED
    stops = np.array([[int(n[i : i + 2], 16) for i in (1, 3, 5)] for n in names], float)
    shares = values / (limit or 1.0)
    shares = shares if kind == "weights" else (shares + 1) / 2
    places = np.clip(shares, 0, 1) * (len(stops) - 1)
    channels = [np.interp(places, range(len(stops)), stops[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def colour_of(value: float, kind: str, limit: float) -> str:
    """One colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colours_of(np.asarray(value), kind, limit))


def ink_on(colour: str, dark: str = "#000000") -> str:
    """The colour of text on it: white or the dark one, whichever has more contrast."""
    return max(("#ffffff", dark), key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """From 1, no difference, to 21, black on white; text needs 4.5 (WCAG 2.2, 1.4.3)."""
    levels = []
    for colour in (one, other):
        shares = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ (0.2126, 0.7152, 0.0722)))
    return (max(levels) + 0.05) / (min(levels) + 0.05)
