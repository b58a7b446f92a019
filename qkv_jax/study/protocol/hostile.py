"""Is the race honest? Simulated tasks that are made to mislead it.

A `Case` says what the runs of one task are like: what arms lose at each rate, how far runs scatter,
whether they share the luck of a seed, collapse, or have two modes. Losses are in units of the noise
of a run. `simulate` runs whole races on it and counts what they say against the truth, which is
what each arm loses at its best rate, collapses included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from qkv_jax.study.config import ProtocolName
from qkv_jax.study.protocol.comparison import DECIDED
from qkv_jax.study.protocol.race import Race
from qkv_jax.study.protocol.race_rules import Rules
from qkv_jax.study.protocol.rounds import rounds
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.rates import rate_at
from qkv_jax.study.record import RUN_COLUMNS, ArmRecord, StudyRecord, TaskRecord
from qkv_jax.tasks.base import Outcome

DECLARED = 4  # rates, with two more on each side
_GRID = (1e-3, 1e-2)  # two of them, for their spacing
_RATES = np.arange(-2, DECLARED + 2)
_SEEDS = 64  # twice the last look
_RAREST = 0.08  # error that is allowed where single runs collapse in one arm, see docs/studies.md


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of task. A tuple gives a value for each arm, the baseline first.

    Attributes:
      effect: loss over the baseline at the best rate.
      curve: loss one rate away from the best, in noises; it grows with the square.
      best: place of the best rate.
      noise: of a run, all of its test score included.
      shared, own: shares of the variance that all arms, and all rates of an arm, have at a seed.
      measured: noise of a score over that of the run it is of; validation and test have their own.
      shape: of the noise.
      collapse: share of the runs that end `jump` worse.
      fails: place of a rate at which every run fails, with one loss for all.
      steps: what scores are rounded to, as shares of right answers are.
      at_most: family error that is allowed.
    """

    name: str
    arms: int = 5
    effect: Any = 0.0
    curve: float = 2.0
    best: Any = 1
    noise: Any = 1.0
    margin: float = 0.3
    shared: float = 0.3
    own: float = 0.1
    measured: float = 0.2
    shape: Literal["normal", "t3", "skewed"] = "normal"
    collapse: Any = 0.0
    jump: float = 20.0
    fails: int | None = None
    steps: float = 0.0
    at_most: float = 0.05

    def of_arms(self, value: Any) -> np.ndarray:
        """[1 + arms] a value for each; the last of several stands for all that follow."""
        values = list(value) if isinstance(value, tuple) else [value]
        return np.array(values + values[-1:] * (1 + self.arms - len(values)), float)

    def means(self) -> np.ndarray:
        """[1 + arms, rates] mean losses without collapses."""
        away = (_RATES - self.of_arms(self.best)[:, None]) ** 2
        means = self.of_arms(self.effect)[:, None] + self.curve * away
        if self.fails is not None:
            means[:, self.fails - _RATES[0]] = self.jump
        return means

    def truth(self) -> np.ndarray:
        """[arms] what each loses over the baseline, both at their best."""
        best = self.means().min(1) + self.of_arms(self.collapse) * self.jump
        return best[1:] - best[0]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """[2, 1 + arms, rates, seeds] validation and test losses."""
        shape = (1 + self.arms, len(_RATES), _SEEDS)
        luck = [self._noise(rng, size) for size in (_SEEDS, (shape[0], 1, _SEEDS), shape)]
        shares = self.shared, self.own, 1 - self.shared - self.own
        run = sum(math.sqrt(share) * part for share, part in zip(shares, luck, strict=True))
        scale = self.of_arms(self.noise)[:, None, None] / math.sqrt(1 + self.measured**2)
        losses = self.means()[..., None] + scale * run
        fallen = rng.random(shape) < self.of_arms(self.collapse)[:, None, None]
        scores = np.stack([self._noise(rng, shape) for _ in range(2)])
        losses = losses + self.jump * fallen + self.measured * scale * scores
        if self.fails is not None:
            losses[:, :, self.fails - _RATES[0]] = self.jump
        return np.round(losses / self.steps) * self.steps if self.steps else losses

    def _noise(self, rng: np.random.Generator, size: Any) -> np.ndarray:
        """Of variance 1."""
        if self.shape == "t3":
            return rng.standard_t(3, size) / math.sqrt(3)
        if self.shape == "skewed":  # a lognormal, its skewness about 2
            spread = math.exp(0.25) * math.expm1(0.25)
            return (np.exp(0.5 * rng.standard_normal(size)) - math.exp(0.125)) / math.sqrt(spread)
        return rng.standard_normal(size)


_AT_MARGIN = {"effect": (0.0, 1.0), "margin": 1.0}
_ALONE = {"shared": 0.0}
_TWO_MODES = {"noise": 0.2, "collapse": 0.3, "jump": 2.2}
_FALLEN = (0.0, 0.1)  # in arms only
CASES = [
    Case("nothing differs"),
    Case("nothing differs, seeds alike", shared=0.8),
    Case("nothing differs, 16 arms", arms=16),
    Case("all at the margin", **_AT_MARGIN),
    Case("half alike, half at the margin", effect=(0.0, 0.0, 0.0, 1.0), margin=1.0),
    Case("noise differs", noise=(1.0, 0.3, 0.3, 1.0, 3.0), **_ALONE),
    Case("noise differs, all at the margin", noise=(1.0, 0.3, 0.3, 1.0, 3.0), shared=0.0,
         **_AT_MARGIN),
    Case("one noisy arm", noise=(1.0, 1.0, 1.0, 1.0, 1.0, 3.0), **_ALONE),
    Case("one noisy arm, at the margin", noise=(1.0, 1.0, 1.0, 1.0, 1.0, 3.0),
         effect=(0.0, 0.0, 0.0, 0.0, 0.0, 2.0), margin=2.0, **_ALONE),
    Case("noisy baseline", noise=(3.0, 1.0), **_ALONE),
    Case("quiet baseline", noise=(0.05, 1.0), **_ALONE),
    Case("heavy tails", shape="t3"),
    Case("heavy tails, all at the margin", shape="t3", **_AT_MARGIN),
    Case("skewed", shape="skewed"),
    Case("skewed, all at the margin", shape="skewed", **_AT_MARGIN),
    Case("skewed, all better by the margin", shape="skewed", effect=(0.0, -1.0), margin=1.0),
    Case("two modes", **_TWO_MODES),
    Case("two modes, all at the margin", **_TWO_MODES, **_AT_MARGIN),
    Case("collapses everywhere", collapse=0.1),
    Case("collapses in all arms, two margins", collapse=_FALLEN, margin=1.0),
    Case("collapses in one arm, two margins", collapse=(0.0, 0.0, 0.0, 0.0, 0.0, 0.1), margin=1.0,
         at_most=_RAREST),
    Case("optima apart", best=(1, 2), curve=0.5, shared=0.8, own=0.0),
    Case("optima apart, flat", best=(1, 2), curve=0.25, shared=0.8, own=0.0),
    Case("flat curve", curve=0.05),
    Case("optimum off the grid", best=(1, -1.5), curve=1.0),
    Case("a rate fails", curve=0.5, fails=3),
    Case("scores in steps of a noise", curve=0.5, steps=1.0),
]  # fmt: skip


class Counts(NamedTuple):
    """What races on one task came to: events and shares, of one study each."""

    wrong: bool  # any false verdict
    missed: bool  # any interval without the truth
    decided: float  # share of the arms
    runs: int


def race_once(case: Case, rng: np.random.Generator) -> Counts:
    """One simulated race."""
    losses = case.draw(rng)
    nothing = np.empty((2, 0))

    def runs(arm: int, place: int) -> np.ndarray:
        known = _RATES[0] <= place <= _RATES[-1]
        return losses[:, arm, place - _RATES[0]] if known else nothing

    race = Race(Rules(case.arms, DECLARED, case.margin), runs)
    given = [arm.verdict.kind for arm in race.arms[1:]]
    arms = zip(race.arms[1:], case.truth(), strict=True)
    missed = [not arm.low <= cost <= arm.high for arm, cost in arms if arm.seeds]
    return Counts(_is_wrong(case, given), any(missed), _decided(given), sum(race.used.values()))


def _is_wrong(case: Case, given: Sequence[str]) -> bool:
    """Whether a verdict on any arm is false."""
    truth = case.truth()
    near = np.abs(truth) < case.margin - 1e-9
    right = {"equivalent": near, "worse": truth > 1e-9, "better": truth < -1e-9}
    return any(kind in right and not right[kind][i] for i, kind in enumerate(given))


def _decided(given: Sequence[str]) -> float:
    return float(np.mean([kind in DECIDED for kind in given]))


def simulate(case: Case, studies: int, seed: Any = 0) -> np.ndarray:
    """[studies, 4] `Counts` of independent races."""
    rng = np.random.default_rng(seed)
    return np.array([race_once(case, rng) for _ in range(studies)], float)


# --- whole studies, of either protocol


def record_of(case: Case, protocol: ProtocolName) -> StudyRecord:
    """The record of a study of one task that is such a case; of a fixed one with two tuning seeds
    and six of evaluation."""
    names = ["separate", *(f"arm{number}" for number in range(1, 1 + case.arms)), "placebo"]
    roles = {"separate": "baseline", "placebo": "placebo"}
    task = TaskRecord(
        title=case.name, description="", family="task", family_title=case.name, steps=1,
        outcome=Outcome("mean", "loss", "loss", case.margin, failure_value=math.inf),
        arms=tuple(names), learning_rates=tuple(rate_at(_GRID, place) for place in range(DECLARED)),
    )  # fmt: skip
    race = protocol == "race"
    return StudyRecord(
        name="case", baseline="separate", placebo="placebo", alpha=0.05, protocol=protocol,
        tune_seeds=() if race else (_SEEDS - 2, _SEEDS - 1),
        eval_seeds=tuple(range(_SEEDS // 2 if race else 6)), looks=(_SEEDS // 2 if race else 6,),
        arms={name: ArmRecord("separate", roles.get(name, "arm")) for name in names},
        tasks={"task": task}, wave={"size": 1}, claims={}, config={},
    )  # fmt: skip


def run_study(
    record: StudyRecord,
    losses: np.ndarray,
    runs: pd.DataFrame | None = None,
    status: Callable[[str, float, int], str] = lambda arm, rate, seed: "done",
) -> tuple[pd.DataFrame, list[str]]:
    """runs.csv of a study of one task at its end, and the names of its rounds.

    Args:
      losses: [2, arms, rates, seeds] validation and test, from two rates below the grid on.
      runs: those that there are.
      status: of a run.
    """
    ((name, task),) = record.tasks.items()
    last = len(task.learning_rates) - 1 - _RATES[0]
    places = {f"{rate_at(task.learning_rates, place):g}": place - int(_RATES[0])
              for place in range(int(_RATES[0]), int(last) + 1)}  # fmt: skip
    runs = pd.DataFrame(columns=RUN_COLUMNS) if runs is None else runs
    names = []
    for found in rounds(record, name, lambda: runs):  # noqa: B023  (as it is then)
        names.append(found.name)
        keys = [(part.arm, *run) for part in found.missing for run in part.runs]
        at = [(task.arms.index(arm), places[f"{rate:g}"], seed) for arm, rate, seed in keys]
        scores = losses[:, *np.array(at, int).reshape(-1, 3).T]
        new = pd.DataFrame(keys, columns=["arm", "learning_rate", "seed"]).assign(
            task=name, round=found.name, status=[status(*key) for key in keys], metric="loss",
            steps=1, seconds=1.0, steps_to_solve=math.nan, validation=scores[0], test=scores[1],
        )[list(RUN_COLUMNS)]  # fmt: skip
        runs = pd.concat([runs, new], ignore_index=True) if len(runs) else new
    return runs, names


def study_once(case: Case, protocol: ProtocolName, rng: np.random.Generator) -> Counts:
    """One simulated study, through the functions that run real ones and write their tables."""
    losses = case.draw(rng)
    if protocol == "fixed":  # its placebo has runs of its own
        losses = np.concatenate([losses, case.draw(rng)[:, :1]], 1)
    record = record_of(case, protocol)
    runs, _ = run_study(record, losses)
    table = summarise(record, runs)[1:-1]
    given = [verdict.kind for verdict in table["verdict"]]
    low, high = (table[f"delta_{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
    outside = (case.truth() < low) | (case.truth() > high)  # where there is none, nothing is
    return Counts(_is_wrong(case, given), bool(outside.any()), _decided(given), len(runs))


def compare(case: Case, studies: int, seed: Any = 0) -> np.ndarray:
    """[studies, 8] `Counts` of the fixed protocol, then of the race, on cases of the same kind."""
    rng = np.random.default_rng(seed)
    return np.array([
        [*study_once(case, "fixed", rng), *study_once(case, "race", rng)] for _ in range(studies)
    ], float)  # fmt: skip
