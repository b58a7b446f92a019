"""How much of a claim holds, from one-sided p-values: partial conjunctions on plain arrays.

A claim is tested on several kinds of task, and its verdict is about how many of them it holds on
(Benjamini & Heller 2008). The tests of one kind, cells of a grid for the most part, are `combined`
into one p; `at_least` turns those of m kinds into the p's of "at least u of m hold"; `family`
adjusts what is asked of several claims in both directions. A test that could not be made, or that
a guard forbids, has p = 1 and is counted all the same: it was planned.

Each of the three is valid however the p-values depend on one another, as they do: cells are alike,
and tests on one task share the baseline's runs.
"""

import numpy as np

from qkv_jax.study.protocol import inference


def combined(p) -> float:
    """The p of "at least one of these tests holds": the smallest, times their number.

    Bonferroni's and not Cauchy's combination (Liu & Xie 2020), although under dependence the latter
    rejects more where all tests of a kind show a little: a p of 1, which is what guards and
    ceilings give, is minus infinity to it and outweighs any other, and one-sided p's near 1, where
    the effect goes the other way, nearly so. A test holds the two side by side.
    """
    p = _known(p)
    return float(min(p.min() * len(p), 1.0))


def at_least(p) -> np.ndarray:
    """[m]: the p of "at least u of these m hold", u = 1 to m; it never falls with u.

    At least u hold if and only if no m - u + 1 of them, nor more, are null together. So the p is
    the largest Bonferroni p, |S| min p, of all sets S of that size or larger (Goeman & Solari
    2011), which is the largest (m - v + 1) p_(v) up to v = u: Holm's p of the u-th smallest. The
    last term alone, which is Benjamini and Heller's, is a valid p as well, but may be below that of
    a smaller u.
    """
    return np.sort(inference.holm(_known(p)))


def family(some, enough) -> tuple[np.ndarray, np.ndarray]:
    """Adjusts, over K claims and directions, the p's of "at least one kind holds" and of "at least
    as many as are asked for": of both together, alpha bounds the chance of any false one.

    The two are tested in turn, at alpha / K, and what a pair of them had to spend goes to the
    others once both are shown (Bretz et al. 2009): `enough` are Holm's p's.

    Args:
      some, enough: [K], of `at_least`: `some` is not above `enough`.
    """
    some, enough = np.asarray(some, float), np.asarray(enough, float)
    adjusted = inference.holm(enough)
    # Once `shown` pairs are out of the way, which takes an alpha of `free`, K - shown share it.
    free = np.concatenate([[0.0], np.sort(adjusted)])[: len(some)]
    left = np.arange(len(some), 0, -1)
    first = np.maximum(some[:, None] * left, free).min(1, initial=1.0)
    return np.minimum(first, adjusted), adjusted


def _known(p) -> np.ndarray:
    p = np.asarray(p, float)
    return np.where(np.isnan(p), 1.0, p)
