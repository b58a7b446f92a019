"""The race: every run tunes and compares, and seeds go where nothing is decided.

A cell is an arm at a learning rate. Its runs have a validation score, by which rates are chosen,
and a test score, by which arms are compared; both count as losses here. The verdict on an arm is
about its best rate, so it must hold for every rate that is still alive (intersection-union, Berger
1982); the baseline's score at a seed is taken at the rate that the other seeds chose.

    pilot     two seeds of all cells of the declared grid
    bracket   an arm whose best rate is at an end of its own gets one more there, two at most; so it
              does when another rate comes to lead later
    looks     at 4, 6, 8, 12, ... seeds the leading cells of undecided arms are tested, each look
              with its share of alpha; other live cells follow where a verdict waits for them

A `Race` goes through these events on the runs that there are. What it lacks it asks for; whoever
runs that makes the race anew. Nothing is kept but the runs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from qkv_jax.study.config import PILOT
from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.margins import is_narrow
from qkv_jax.study.protocol.race_rules import (
    DOUBLED_FROM,
    DROP_ERRORS,
    DROP_SHARE,
    PLANNED_ERRORS,
    PRIOR_DF,
    Arm,
    Rules,
    chosen,
    looks,
)
from qkv_jax.study.protocol.selection import MAX_EXTENSIONS

Cell = tuple[int, int]  # arm, 0 the baseline; place of a rate, 0 the first of the declared grid
# (arm, place) -> [2, S] validation and test losses of its runs by seed. Where runs solve a task or
# do not, the test loss is 1 for one that does not.
Runs = Callable[[int, int], np.ndarray]


class Contrast(NamedTuple):
    """How an arm stands to another than the baseline, by a look that both have reached.

    Attributes:
      seeds, share: of the look, and what of alpha it may spend.
      worse, better, equal: one-sided p's that hold whichever live rate is an arm's best.
    """

    seeds: int
    share: float
    worse: float
    better: float
    equal: float


class Race:
    """A race on the runs that there are.

    Attributes:
      event: what it is at: `pilot`, `bracket`, or `look` and the number of seeds.
      wanted: {cell: seeds} that it cannot go on without; empty at its end.
      used: {cell: seeds} that have had a part in it.
      arms: the baseline's first. What they say is final once nothing is wanted.
      correlation, least: with the baseline at the same seed, and the variance that none is taken to
        be below, at the last look.
    """

    def __init__(self, rules: Rules, runs: Runs):
        self.rules, self._runs = rules, runs
        self.event = "pilot"
        self.wanted: dict[Cell, int] = {}
        self.used: dict[Cell, int] = {}
        self.arms: list[Arm] = []
        self.correlation, self.least = 0.0, 0.0
        self._advance()

    # --- runs

    def _take(self, arm: int, place: int, seeds: int) -> bool:
        """Whether the first `seeds` runs of a cell are there, and used from now on."""
        if self.used.get((arm, place), 0) >= seeds:
            return True
        if self._runs(arm, place).shape[1] < seeds:
            self.wanted[arm, place] = max(self.wanted.get((arm, place), 0), seeds)
            return False
        self.used[arm, place] = seeds
        return True

    def losses(self, arm: int, place: int, seeds: int | None = None) -> np.ndarray:
        """[2, S] validation and test losses of a cell's runs that are used."""
        return self._runs(arm, place)[:, : seeds or self.used[arm, place]]

    # --- events

    def _advance(self) -> None:
        everyone = range(self.rules.arms + 1)
        self.arms = [Arm(list(range(self.rules.rates))) for _ in everyone]
        for arm, verdict in self.rules.settled.items():
            self.arms[arm].verdict = verdict
        for arm, place in itertools.product(everyone, range(self.rules.rates)):
            self._take(arm, place, PILOT)
        if self.wanted:
            return
        self.event = "bracket"
        for arm in everyone:
            if arm in self.rules.settled:
                self.arms[arm].lead = int(np.argmin(self._means(arm)))
            else:
                self._bracket(arm)
        if self.wanted:
            return
        self._settle_edges()
        doubled = 0
        for place, (seeds, share) in enumerate(looks()):
            waiting = [a for a in everyone[1:] if self.arms[a].verdict == verdicts.PENDING]
            if not waiting or seeds > self.rules.max_seeds:
                break
            if place >= DOUBLED_FROM and len(waiting) > 1:
                doubled = 2 * seeds
            doubled = max(doubled, seeds)
            self.event = f"look{seeds}"
            self._look(place, seeds, share, waiting, doubled)
            if self.wanted:
                return

    def _bracket(self, arm: int) -> bool:
        """Widens an arm's own grid while the rate that leads is at an end of all that were tried;
        where none may be added there, its best rate is not known. Whether it lies inside now."""
        state, ends = self.arms[arm], (-MAX_EXTENSIONS, self.rules.rates - 1 + MAX_EXTENSIONS)
        while True:
            means = self._means(arm)
            lead = state.lead = state.live[int(np.argmin(means))]
            tried = sorted(place for a, place in self.used if a == arm)
            # A plateau that reaches into the grid does not point beyond its end.
            if len(tried) < 2 or lead not in (tried[0], tried[-1]) or means.count(min(means)) > 1:
                return True
            beyond = lead - 1 if lead == tried[0] else lead + 1
            closed = self.rules.closed and self._runs(arm, beyond).shape[1] < PILOT
            if lead in ends or closed:
                state.verdict = verdicts.EDGE
                return False
            if not self._take(arm, beyond, PILOT):
                return False
            state.live = sorted([*state.live, beyond])

    def _settle_edges(self) -> None:
        """How good the baseline can be is not known where its best rate is not: then nothing is."""
        for arm in self.arms if self.arms[0].verdict == verdicts.EDGE else ():
            if arm.verdict == verdicts.PENDING:
                arm.verdict = verdicts.EDGE

    def _means(self, arm: int) -> list[float]:
        """Validation means of the live rates, over the seeds that all of them have."""
        live = self.arms[arm].live
        common = min(self.used[arm, place] for place in live)
        return [self.losses(arm, place, common)[0].mean() for place in live]

    def _drop(self, arm: int) -> int:
        """Lets the rates go that cannot be an arm's best; returns the one that leads."""
        state = self.arms[arm]
        tried = [place for a, place in self.used if a == arm]
        spread = {}
        for place in tried:
            values = self.losses(arm, place)[0]
            spread[place] = values.var(ddof=1), len(values) - 1.0
        # Two scores of a share of right answers may well be equal: that is no spread to lend.
        variance, df = np.array(list(spread.values())).T
        variance, df = variance[variance > 0], df[variance > 0]
        logs = np.log(variance) - special.digamma(df / 2) + np.log(df / 2)
        lent = math.exp(logs.mean()) if len(logs) else 0.0
        lead = state.live[int(np.argmin(self._means(arm)))]
        allowed = DROP_SHARE * self.rules.margin

        def squared_error(place):
            variance, df = spread[place]
            return (PRIOR_DF * lent + df * variance) / (PRIOR_DF + df) / (df + 1)

        def stays(place):
            behind = self.losses(arm, place)[0].mean() - self.losses(arm, lead)[0].mean()
            error = math.sqrt(squared_error(place) + squared_error(lead))
            if not lent and behind == 0:  # nothing is known of how far runs scatter
                return True
            return place == lead or behind + allowed <= DROP_ERRORS * error

        state.live = [place for place in state.live if stays(place)]
        state.lead = lead
        return lead

    def _scores(self, arm: int, seeds: int) -> np.ndarray:
        """Test losses [S] of an arm, each at the rate that the other seeds chose by validation; of
        seeds that the leading rate alone has, at the rate that the common ones chose."""
        cells = [self.losses(arm, place)[:, :seeds] for place in self.arms[arm].live]
        rates = chosen([losses[0] for losses in cells])
        return np.array([cells[rate][1, seed] for seed, rate in enumerate(rates)])

    def _look(self, place: int, seeds: int, share: float, waiting: Sequence[int], base: int):
        """One look: the baseline and the leading cells first, then what their verdicts wait for."""
        for arm in (0, *waiting):
            self._drop(arm)
            self._bracket(arm)
            self._drop(arm)
        self._settle_edges()
        waiting = [arm for arm in waiting if self.arms[arm].verdict == verdicts.PENDING]
        if not waiting:
            return
        base_there = [self._take(0, rate, base) for rate in self.arms[0].live]
        there = [arm for arm in waiting if self._take(arm, self.arms[arm].lead, seeds)]
        if not all(base_there) or len(there) < (1 if self.rules.closed else len(waiting)):
            return
        waiting = there
        reference = self._scores(0, base)
        leading = {arm: self.losses(arm, self.arms[arm].lead, seeds)[1] for arm in waiting}
        # Arms that were given up for their noise stay among those that say how noisy arms are: else
        # the few that are left, in which no run has collapsed yet, would seem quiet.
        noisy = [self.losses(each, state.lead, state.seeds)[1]
                 for each, state in enumerate(self.arms) if state.verdict == verdicts.POWER]
        rows = np.full((len(waiting) + len(noisy) + 1, base), np.nan)
        for row, values in zip(rows, [reference, *leading.values(), *noisy], strict=True):
            row[: len(values)] = values
        self.least = inference.common_variance(rows)
        self.correlation = self._correlation(leading, reference)
        for arm in waiting:
            self._judge(arm, place, seeds, share, reference)

    def _correlation(self, leading: dict[int, np.ndarray], reference: np.ndarray) -> float:
        """Over all arms, those that are decided at the look that decided them."""
        rows = np.full((self.rules.arms, len(reference)), np.nan)
        for row, (arm, state) in zip(rows, enumerate(self.arms[1:], 1), strict=True):
            if arm not in leading and not state.seeds:
                continue
            own = leading[arm] if arm in leading else self.losses(arm, state.lead, state.seeds)[1]
            row[: len(own)] = own
        return inference.pooled_correlation(rows, reference)

    def contrast(self, arm: int, other: int) -> Contrast | None:
        """How an arm stands to another at the last look that both have reached; None before the
        first. Nothing is known of what two arms share at a seed: they count as independent."""
        lead = lambda each: self.used.get((each, self.arms[each].lead), 0)
        there = min(lead(arm), lead(other))
        taken = [*itertools.takewhile(lambda look: look[0] <= there, looks())]
        if not taken:
            return None
        seeds, share = taken[-1]
        of_arm, of_other = (
            [self.losses(each, rate)[1][:seeds] for rate in self.arms[each].live]
            for each in (arm, other)
        )
        own, reference = self._scores(arm, seeds), self._scores(other, seeds)
        p = functools.partial(self._p, correlation=0.0)
        highest = lambda pairs, bound=0.0: max(p(one, two, bound) for one, two in pairs)
        to_reference = [(losses, reference) for losses in of_arm]
        to_own = [(losses, own) for losses in of_other]
        margin = self.rules.margin
        equal = max(highest(to_reference, -margin), highest(to_own, -margin))
        return Contrast(seeds, share, highest(to_reference), highest(to_own), equal)

    def compare(
        self, one: np.ndarray, other: np.ndarray, correlation: float | None = None
    ) -> inference.Difference:
        """The difference of two samples of test losses, by the variance and the correlation of the
        last look."""
        pair, common = [(1, one), (-1, other)], self.correlation
        common = common if correlation is None else correlation
        effect = inference.difference(pair, correlation=common, least=self.least)
        if effect.alike and self.least:  # these scores do not vary, but those of others do
            error = math.sqrt(self.least / len(one) + self.least / len(other))
            effect = effect._replace(error=error, df=min(len(one), len(other)) - 1)
        return effect

    def _p(self, one: np.ndarray, other: np.ndarray, bound: float, correlation=None) -> float:
        """One-sided p that the mean loss of one is above that of another by more than a bound."""
        if self.rules.solving:
            counts = (int((other == 0).sum()), int((one == 0).sum()), len(other), len(one))
            return 1.0 if bound else inference.solved_p(*counts, side="greater")
        effect = self.compare(one, other, correlation)
        if not effect.error:
            above = effect.delta > bound and not math.isnan(effect.exact)
            return 0.5 * effect.exact if above else 1.0
        return float(special.stdtr(effect.df, -(effect.delta - bound) / effect.error))

    def _test(self, arm: int, rate: int, number: int, seeds: int, reference: np.ndarray) -> None:
        """Tests a cell against the baseline, once for each look."""
        state, share = self.arms[arm], next(itertools.islice(looks(), number, None))[1]
        own = self.losses(arm, rate, seeds)[1]
        for found, bound in ((state.worse, 0.0), (state.apart, -self.rules.margin)):
            found[rate] = min(found.get(rate, 1.0), self._p(own, reference, bound) / share)
        state.tested[rate] = number + 1

    def _bound(self, arm: int, share: float, reference: np.ndarray, against: Sequence) -> None:
        """The interval of an arm at a look: a verdict is where it lies to 0 and to the margin.

        Of that look alone: what those of all looks have in common would keep what the first seeds
        said of arms in which single runs collapse.
        """
        state, tail = self.arms[arm], 1 - share * self.rules.level / 2
        if self.rules.solving:
            return

        def half(effect):  # no spread among seeds is no knowledge of the spread
            return float(special.stdtrit(effect.df, tail)) * effect.error or math.inf

        lows = [self.compare(self.losses(arm, rate)[1], reference) for rate in state.live]
        state.low = min(effect.delta - half(effect) for effect in lows)
        state.high = max(effect.delta + half(effect) for effect in against)

    def _judge(self, arm: int, number: int, seeds: int, share: float, reference: np.ndarray):
        """The verdict on an arm at a look, if it can be given."""
        state, level, margin = self.arms[arm], self.rules.level, self.rules.margin
        lead = self._drop(arm)
        if not self._take(arm, lead, seeds):
            return
        state.seeds = seeds
        self._test(arm, lead, number, seeds, reference)
        own = self._scores(arm, seeds)
        of_base = [self.losses(0, rate, len(reference))[1] for rate in self.arms[0].live]
        effects = [self.compare(own, losses) for losses in of_base]
        state.delta = float(own.mean() - reference.mean())
        # Below a bound is the other way round above its negative.
        better = max(self._p(losses, own, 0.0) for losses in of_base)
        within = max(self._p(losses, own, -margin) for losses in of_base)
        state.better = min(state.better, better / share)
        state.within = min(state.within, within / share)
        equal = state.within <= level and state.apart[lead] <= level
        equal = equal and not is_narrow(margin, self.least)
        alike = self.compare(self.losses(arm, lead, seeds)[1], reference).alike
        if alike and number and not self.least:  # nobody's scores vary, nor will they
            state.verdict = alike
        elif equal or 2 * state.worse[lead] <= level:
            self._wait_for_cells(arm, number, equal, reference)
        self._bound(arm, share, reference, effects)
        if state.verdict == verdicts.PENDING and 2 * state.better <= level:
            state.verdict = verdicts.BETTER
        if state.verdict == verdicts.PENDING and number:
            state.needed = self._needed(self.losses(arm, lead, seeds)[1], reference)
            if state.needed > self.rules.hopeless:
                state.verdict = verdicts.POWER

    def _needed(self, own: np.ndarray, reference: np.ndarray) -> float:
        """Seeds that would decide if what was seen were so; infinite where none would.

        With the variances that were seen, not those of noisier arms, which may be decided sooner.
        """
        if self.rules.solving:
            solved = [int((losses == 0).sum()) for losses in (own, reference)]
            level, sizes = self.rules.level, (len(own), len(reference))
            seeds = inference.solved_seeds_needed(*solved, *sizes, level)
            return math.inf if math.isnan(seeds) else seeds
        effect = inference.difference([(1, own), (-1, reference)], correlation=self.correlation)
        gap = max(abs(effect.delta), self.rules.margin - abs(effect.delta))
        return len(own) * (PLANNED_ERRORS * effect.error / gap) ** 2

    def collapsed(self, arm: int, place: int) -> int:
        """How many runs of a cell ended past halfway from the baseline's median to failing."""
        usual = float(np.median(self.losses(0, self.arms[0].lead)[1]))
        if self.rules.solving or not usual < self.rules.failure < math.inf:
            return 0
        return int((self.losses(arm, place)[1] > (usual + self.rules.failure) / 2).sum())

    def _any_collapsed(self, arm: int) -> bool:
        cells = [(each, place) for each in (0, arm) for place in self.arms[each].live]
        return any(self.collapsed(*cell) for cell in cells)

    def _wait_for_cells(self, arm: int, number: int, equal: bool, reference: np.ndarray) -> None:
        """Runs the live cells that a verdict waits for, look by look, until all agree or leave."""
        state, level = self.arms[arm], self.rules.level
        led = state.lead
        p, needed = (state.apart, level) if equal else (state.worse, level / 2)
        sizes = [seeds for seeds, _ in itertools.islice(looks(), number + 1)]
        while True:
            against = [rate for rate in state.live if p.get(rate, 1.0) > needed]
            if not against:
                before = state.live
                if not self._bracket(arm):
                    return
                if state.live is not before:  # another rate has come to lead
                    self._drop(arm)
                    continue
                state.verdict = verdicts.EQUIVALENT if equal else verdicts.WORSE
                if equal and self._any_collapsed(arm):
                    state.verdict = verdicts.COLLAPSES  # no seeds would make up for them
                if led in state.live:  # what is said of the arm are the runs that said it
                    state.lead = led
                return
            open_ = [rate for rate in against if state.tested.get(rate, 0) <= number]
            for rate in open_:
                turn = state.tested.get(rate, 0)
                if self.used[arm, rate] > sizes[turn]:  # it is tested with what it has
                    turn = max(i for i, size in enumerate(sizes) if size <= self.used[arm, rate])
                if not self._take(arm, rate, sizes[turn]):
                    return
                self._drop(arm)
                if rate in state.live:
                    self._test(arm, rate, turn, sizes[turn], reference)
            if not open_:
                return
