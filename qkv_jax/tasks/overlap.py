"""Which held-out examples are in training as well, and the sentences that say so.

Generated splits are disjoint by construction, but for those of `mqar`; files are as disjoint as
whoever made them took care.
"""

from collections.abc import Collection, Iterable

import numpy as np

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, hence with an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_SHIFT = np.uint64(64 - 20)
_BLOCK = 2**22  # places looked at together


def sentence(split: str, what: str, found: int, total: int) -> tuple[str, ...]:
    """What is to be said where `found` of a split's `total` examples are in training; else
    nothing."""
    if not found:
        return ()
    share = f"{100 * found / total:.3g} %"
    return (f"{found} of {total} {split} {what} ({share}) are in the training split as well.",)


def count(train: Iterable, held_out: Collection) -> int:
    """How many of `held_out` are among `train`; both of values that can be hashed."""
    wanted = set(held_out)
    found = {value for value in train if value in wanted}
    return sum(value in found for value in held_out)


def occurring(windows: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Which windows [M, T] stand somewhere in a text [L]: bool [M].

    By a rolling hash of 64 bits (Karp & Rabin 1987), in one pass over the text.
    """
    length = windows.shape[1]
    block = max(length, min(_BLOCK, len(text)))
    powers = np.cumprod(np.full(block + length, _BASE))
    inverses = np.cumprod(np.full(block, _INVERSE))
    wanted = (windows.astype(np.uint64) * powers[:length]).sum(axis=1)
    found = np.zeros(len(wanted), bool)
    likely = np.zeros(2**20, bool)  # by the first 20 bits: few places need a closer look
    likely[wanted >> _SHIFT] = True
    for start in range(0, len(text) - length + 1, block):
        part = text[start : start + block + length - 1].astype(np.uint64)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(part * powers[: len(part)])])
        here = sums[length:] - sums[:-length]
        here *= np.concatenate([[np.uint64(1)], inverses])[: len(here)]
        found |= np.isin(wanted, here[likely[here >> _SHIFT]])
    return found
