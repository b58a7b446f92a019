"""How many seeds an open arm of a race would take: the look at which the race decides where scores
go on as they were seen."""

import itertools
import math

import numpy as np
import pytest

from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_plan import seeds_to_decide
from qkv_jax.study.protocol.race_rules import Rules, looks
from tests.support.studies.raced_study import BELOW, GRID, steep

LOOKS = [seeds for seeds, _ in itertools.islice(looks(), 12)]


def raced(losses, most, margin=1.0, **rules):
    def runs(arm, place):
        inside = -BELOW <= place < losses.shape[2] - BELOW
        return losses[:, arm, place + BELOW] if inside else np.empty((2, 0))

    return Race(Rules(1, len(GRID), margin, max_seeds=most, hopeless=math.inf, **rules), runs)


def going_on(losses, seen):
    """The first `seen` seeds over and over, so that means stay and variances do; each time in
    another order, of each cell its own, so that cells share no luck."""
    blocks = [losses[..., :seen]]
    rng = np.random.default_rng(0)
    for _ in range(80):
        order = rng.permuted(np.broadcast_to(np.arange(seen), blocks[0].shape[1:]), axis=-1)
        blocks.append(np.take_along_axis(blocks[0], order[None], axis=-1))
    return np.concatenate(blocks, -1)


@pytest.mark.parametrize("rng", range(6))
@pytest.mark.parametrize(("effect", "noise"), [(0.35, 0.4), (0.6, 0.6), (0.0, 0.7), (-0.5, 0.5)])
def test_the_race_decides_there_if_scores_go_on_as_they_were(effect, noise, rng):
    losses = steep((0.0, effect), noise=noise, curve=9.0, rng=rng)
    losses = going_on(losses, 4)
    first = raced(losses, 4)
    if first.arms[1].verdict.kind != "pending":
        pytest.skip("decided at once")
    seeds = seeds_to_decide(first, 1)
    assert seeds in LOOKS[1:]
    place = LOOKS.index(seeds)
    there = raced(losses, LOOKS[place + 1]).arms[1]  # Student's t and n - 1: a look later at most
    assert there.verdict.kind in ("worse", "better", "equivalent")
    assert there.seeds >= seeds / 4  # of few seeds the variance is taken for more than it is


def test_another_rate_that_may_be_the_best_has_to_be_worse_as_well():
    """The rate that leads is clearly worse than the baseline, another that has had two seeds is
    not: no look would decide if it went on as it was."""
    losses = going_on(steep((0.0, 0.9), noise=0.2, curve=9.0), 6)
    losses[1, 1, BELOW] = losses[1, 0, BELOW + 1]
    losses[0, 1, BELOW] = losses[0, 1, BELOW + 1] + np.where(np.arange(losses.shape[-1]) % 2, -1, 2)
    found = raced(losses, 6, margin=0.1)
    arm = found.arms[1]
    assert arm.verdict.kind == "pending" and arm.live == [0, 1] and arm.lead == 1
    assert 2 * arm.worse[1] <= 0.05 and seeds_to_decide(found, 1) is None


def test_arms_that_are_one_take_no_number_of_seeds():
    losses = going_on(steep((0.0, 0.0), noise=0.5, curve=9.0), 4)
    losses[:, 1] = losses[:, 0]
    assert seeds_to_decide(raced(losses, 4, margin=1e-3), 1) is None
