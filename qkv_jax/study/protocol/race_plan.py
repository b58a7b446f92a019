"""How many seeds an open arm of a race would take, if what was seen of it were so."""

import itertools
import math
from collections.abc import Sequence

from scipy import special

from qkv_jax.study.protocol.inference import Difference
from qkv_jax.study.protocol.margins import is_narrow
from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_rules import looks

_MOST = 10_000  # seeds that anybody would think of


def seeds_to_decide(race: Race, arm: int) -> int | None:
    """The look at which an arm would be decided if all cells kept their means, and errors fell with
    the root of the seeds; None where no look would.

    As the verdict itself this has to hold for every live rate, the baseline's too, with the
    variance that the tests take and at the level of that look.
    """
    state, base, rules = race.arms[arm], race.arms[0], race.rules
    of = lambda number, rate: race.losses(number, rate)[1]
    arms = [race.compare(of(arm, rate), of(0, base.lead)) for rate in state.live]
    bases = [race.compare(of(arm, state.lead), of(0, rate)) for rate in base.live]
    margin = -math.inf if is_narrow(rules.margin, race.least) else rules.margin
    least = state.seeds + 1 if math.isnan(state.needed) else max(state.needed, state.seeds + 1)
    for seeds, share in itertools.takewhile(lambda look: look[0] <= _MOST, looks()):
        level = share * rules.level
        if seeds < least:
            continue
        if rules.solving:
            return seeds
        if _clear(arms, 1, 0.0, seeds, level / 2) or _clear(bases, -1, 0.0, seeds, level / 2):
            return seeds
        if _clear(arms, 1, margin, seeds, level) and _clear(bases, -1, margin, seeds, level):
            return seeds
    return None


def _clear(
    effects: Sequence[Difference], side: int, bound: float, seeds: int, level: float
) -> bool:
    """Whether so many seeds would show at a level that all effects lie on one side of a bound."""
    least = -special.ndtri(level)
    return all(
        side * effect.delta + bound > least * effect.error * math.sqrt(min(effect.n / seeds, 1.0))
        for effect in effects
    )
