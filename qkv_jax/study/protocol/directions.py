"""One-sided p-values of a test for and against its claim."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy import special

from qkv_jax.study.claims import Expect
from qkv_jax.study.protocol.inference import MIN_SEEDS, Difference, Doubt


class Directions(NamedTuple):
    """p-values that a test speaks for its claim, and that it speaks against it; 1 where it may
    not."""

    supporting: float = 1.0
    opposing: float = 1.0


def p_above(effect: Difference, bound: float = 0.0) -> float:
    """That an effect is above a bound; 1 where nothing can be told."""
    if effect.n < MIN_SEEDS or effect.alike:
        return 1.0
    if not effect.error:  # an exact test, of the sign alone
        return effect.exact / 2 if effect.delta > max(bound, 0.0) else 1.0
    return float(special.stdtr(effect.df, (bound - effect.delta) / effect.error))


def p_below(effect: Difference, bound: float = 0.0) -> float:
    """That an effect is below a bound; 1 where nothing can be told."""
    return p_above(effect._replace(delta=-effect.delta), -bound)


def directions(
    expect: Expect, effect: Difference, margin: float | None, doubt: Doubt, alpha: float
) -> Directions:
    """Whether a test speaks for its claim or against it, beyond doubt about tuning.

    For a claim that expects an effect of one sign speaks such an effect, unless it is shown at
    `alpha` to be within the margin, where it does not matter; against it one that is not as large
    as the margin: equivalent, or of the other sign. For a claim that expects equivalence speaks an
    effect within the margin, against it any other that is not shown to be that.

    Args:
      margin: None where equivalence may not be shown; then an effect of the other sign alone speaks
        against a claim that expects one.
    """
    positive, negative = p_above(effect, doubt.down), p_below(effect, -doubt.up)
    no_more, no_less, within = negative, positive, 1.0
    if margin is not None and not math.isnan(effect.delta):
        no_more = p_below(effect, margin - doubt.up)
        no_less = p_above(effect, doubt.down - margin)
        within = max(no_more, no_less)
    if expect == "equivalent":
        differs = min(2 * min(positive, negative), 1.0)
        return Directions(within, 1.0 if within <= alpha else differs)
    shown, opposed = (
        (positive, no_more) if expect in ("worse", "above") else (negative, no_less)
    )  # fmt: skip
    return Directions(1.0 if within <= alpha else shown, opposed)
