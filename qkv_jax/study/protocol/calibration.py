"""Is the protocol honest? Whole simulated studies through the functions that write the report.

A `Scenario` fixes how scores are distributed, how strongly arms share the luck of a seed, and
what the arms really do. `simulate` draws studies from it (tuning runs on a grid of rates with its
extensions, then evaluation runs at the rates chosen), sent through `rounds` and `summarise` as
those of real studies are; `estimate` turns the outcomes into error rates with Monte
Carlo intervals. `experiments/calibrate.py` prints them.

Scores are losses (lower is better) in units of the noise of one run. Every arm is best at the
second of the four declared rates, and loses `rate_gap` one step away from it, four times that two
steps away: tuning on two seeds therefore errs at times, as it does in life. What follows is
counted in two ways: against what the arms are at their best rate ("family_error"), and against
what they are at the rates that were chosen ("..._at_rate"), to which intervals are conditional.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from qkv_jax.study.protocol.rounds import rounds
from qkv_jax.study.protocol.selection import RUN_COLUMNS
from qkv_jax.study.protocol.summary import summarise
from qkv_jax.study.record import ArmRecord, StudyRecord, TaskRecord
from qkv_jax.tasks.base import Outcome

OUTCOMES = ("normal", "heavy", "bimodal", "rare", "diverging", "solve")
EFFECTS = ("none", "planted", "margin")
RATES = 1e-3 * 2.0 ** np.arange(-2, 6)  # four declared, two on each side for extensions
DECLARED = slice(2, 6)
BEST = 3
JUMP = 20.0  # cost of the bad mode of "rare" and "diverging", in units of the noise
EVENTS = (
    "family_error", "family_error_at_rate", "placebo", "false_equivalence",
    "false_equivalence_at_rate", "simultaneous_miss",
)  # fmt: skip
SHARES = ("coverage", "arm_coverage", "power", "equivalence_power", "edge")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One kind of study.

    outcome: "normal"; "heavy" (Student t with 3 degrees of freedom); "bimodal" (30 % of runs land
      in a second mode, an effect moves both); "rare" (10 % of runs end `JUMP` worse, and an effect
      is more of them); "diverging" (the same, but marked as diverged); "solve" (a seed is solved
      or not, half of them by the baseline).
    effect: "none"; "planted" (half of the arms are worse by `planted`); "margin" (all arms but the
      placebo are worse by exactly the equivalence margin).
    correlation: between two arms at the same seed.
    """

    outcome: str = "normal"
    effect: str = "none"
    correlation: float = 0.0
    arms: int = 7  # compared with the baseline; the first is the placebo
    eval_seeds: int = 6
    tune_seeds: int = 2
    rate_gap: float = 1.0
    margin: float = 3.0
    planted: float = 5.0
    elsewhere: int = 0  # this many arms, the last ones, are best one rate higher than the others
    analyses: tuple[int, ...] = ()  # evaluation seeds at each; by default one analysis of all

    def __post_init__(self):
        if self.outcome not in OUTCOMES or self.effect not in EFFECTS:
            raise ValueError(f"outcome is one of {OUTCOMES}, effect one of {EFFECTS}: {self}")

    def effects(self) -> np.ndarray:
        """[1 + arms] true loss of each arm over the baseline at its best rate; baseline first."""
        effect = np.zeros(1 + self.arms)
        if self.effect == "planted":
            effect[2 + (self.arms - 1) // 2 :] = self.planted
        elif self.effect == "margin":
            effect[2:] = self.margin
        return effect

    def optimum(self) -> np.ndarray:
        """[1 + arms] place in `RATES` of each arm's best rate."""
        return BEST + (np.arange(1 + self.arms) > self.arms - self.elsewhere)

    def record(self) -> StudyRecord:
        """The record of one simulated study."""
        names = ["separate", "placebo"] + [f"arm{i}" for i in range(2, 1 + self.arms)]
        roles = ["baseline", "placebo"] + ["arm"] * (self.arms - 1)
        task = TaskRecord(
            title="task", description="", family="task", family_title="task",
            outcome=Outcome(
                kind="solve" if self.outcome == "solve" else "mean", metric="loss", unit="loss",
                margin=self.margin, failure_value=JUMP,
                threshold=0.5 if self.outcome == "solve" else None,
            ),
            steps=100, arms=tuple(names), learning_rates=tuple(RATES[DECLARED].tolist()),
        )  # fmt: skip
        return StudyRecord(
            name="calibration", baseline="separate", placebo="placebo", alpha=0.05,
            looks=self.analyses or (self.eval_seeds,), tune_seeds=tuple(range(self.tune_seeds)),
            eval_seeds=tuple(range(100, 100 + self.eval_seeds)),
            arms={n: ArmRecord("separate", r) for n, r in zip(names, roles, strict=True)},
            tasks={"task": task}, wave={}, claims={}, config={},
        )  # fmt: skip


def _bad_rate(scenario: Scenario) -> np.ndarray:
    """[1 + arms] probability of the bad mode."""
    effect = scenario.effects()
    if scenario.outcome in ("rare", "diverging"):
        return 0.1 + effect / JUMP
    if scenario.outcome == "solve":
        return np.where(effect > 0, 0.98, 0.5)
    return np.full(len(effect), 0.3 if scenario.outcome == "bimodal" else 0.0)


def _true_mean(scenario: Scenario, rate: np.ndarray) -> np.ndarray:
    """True mean loss of arms [1 + arms] at the places `rate` in `RATES`."""
    bad, effect = _bad_rate(scenario), scenario.effects()
    away = scenario.rate_gap * (rate - scenario.optimum()) ** 2.0
    if scenario.outcome == "diverging":
        return bad * JUMP + (1 - bad) * away
    if scenario.outcome == "rare":
        return bad * JUMP + away
    return effect + away  # "bimodal" is centred; for "solve" the verdict is not about the mean


def _draw(rng, scenario: Scenario, rate: np.ndarray, seeds: int):
    """Losses and failures [1 + arms, rates, seeds] at the places `rate` [1 + arms, rates]."""
    shape = (*rate.shape, seeds)
    rho = scenario.correlation
    heavy = scenario.outcome == "heavy"

    def noise(size):
        return rng.standard_t(3, size) / np.sqrt(3) if heavy else rng.standard_normal(size)

    luck = np.sqrt(rho) * noise(seeds) + np.sqrt(1 - rho) * noise(shape)
    # A run follows the seed's coin with probability sqrt(rho), so that two arms agree with rho.
    shared = rng.random(shape) < np.sqrt(rho)
    coin = np.where(shared, rng.random(seeds), rng.random(shape))
    bad = coin < _bad_rate(scenario)[:, None, None]
    away = scenario.rate_gap * (rate[..., None] - scenario.optimum()[:, None, None]) ** 2.0
    effect = scenario.effects()[:, None, None]
    if scenario.outcome == "bimodal":  # variance 1: 0.21 * 2.17**2 + 0.1**2
        return effect + away + 2.17 * (bad - 0.3) + 0.1 * luck, np.zeros(shape, bool)
    if scenario.outcome == "rare":
        return away + JUMP * bad + luck, np.zeros(shape, bool)
    if scenario.outcome == "diverging":
        return np.where(bad, JUMP, away + luck), bad
    if scenario.outcome == "solve":
        return np.where(bad, 1.0, 0.0) + 0.01 * away, np.zeros(shape, bool)
    return effect + away + luck, np.zeros(shape, bool)


def _table(names, rate, seeds, loss, failed) -> pd.DataFrame:
    """runs.csv of arms x rates x seeds; `rate` [arms, rates] are places in `RATES`."""
    arms, rates, count = loss.shape
    return pd.DataFrame(
        {
            "task": ["task"] * loss.size,
            "arm": [name for name in names for _ in range(rates * count)],
            "learning_rate": np.repeat(RATES[rate].ravel(), count),
            "seed": list(seeds) * (arms * rates),
            "status": np.where(failed.ravel(), "diverged", "done").tolist(),
            "validation": loss.ravel(),
            "test": loss.ravel(),
            "steps_to_solve": np.full(loss.size, np.nan),
        }
    )


class SimulatedStudy(NamedTuple):
    """One simulated study, its summary, and the truth [1 + arms] at the chosen rates."""

    record: StudyRecord
    runs: pd.DataFrame
    summary: pd.DataFrame
    true_mean: np.ndarray


def simulate_study(rng: np.random.Generator, scenario: Scenario) -> SimulatedStudy:
    """Tune, extend, evaluate and summarise one study."""
    record = scenario.record()
    names = list(record.arms)
    everywhere = np.tile(np.arange(len(RATES)), (len(names), 1))
    tuning = _draw(rng, scenario, everywhere, scenario.tune_seeds)
    done = [pd.DataFrame(columns=RUN_COLUMNS)]
    for found in rounds(record, "task", lambda: pd.concat(done[1:] or done)):
        rates = np.array([[rate for rate, *_ in part.cells] for part in found.parts])
        places = np.abs(np.log(RATES) - np.log(rates)[..., None]).argmin(-1)  # [1 + arms, rates]
        ((first, end),) = {cell[1:] for part in found.parts for cell in part.cells}
        seeds = range(first, end)
        if found.parts[0].kind.compares:
            drawn = _draw(rng, scenario, places, len(seeds))
        else:
            drawn = [np.take_along_axis(a, places[..., None], 1) for a in tuning]
        done.append(_table(names, places, seeds, *drawn))
    runs = pd.concat(done[1:])
    return SimulatedStudy(record, runs, summarise(record, runs), _true_mean(scenario, places[:, 0]))


def _judge(scenario: Scenario, simulated: SimulatedStudy) -> list[float | bool]:
    """What went right and wrong in one study: EVENTS then SHARES, NaN where there is no case."""
    summary, true_mean = simulated.summary, simulated.true_mean
    arm = {name: summary[name].to_numpy()[1:] for name in summary.columns}
    best = scenario.effects()[1:]
    at_rate = true_mean[1:] - true_mean[0]
    kinds = np.array([verdict.kind for verdict in arm["verdict"]])
    claim = (kinds == "worse") * 1 - (kinds == "better") * 1
    equivalent = kinds == "equivalent"
    null, apart = best == 0, np.abs(best) >= scenario.margin - 1e-9
    apart_at_rate = np.abs(at_rate) >= scenario.margin - 1e-9
    low, high = arm["delta_low"].astype(float), arm["delta_high"].astype(float)
    inside = (low <= at_rate) & (at_rate <= high)
    wide = (arm["delta_low_simultaneous"] <= at_rate) & (at_rate <= arm["delta_high_simultaneous"])
    known = ~np.isnan(low)
    mean_known = ~np.isnan(summary["ci_low"].to_numpy(float))
    inside_arm = summary["ci_low"].le(true_mean) & summary["ci_high"].ge(true_mean)

    def share(hits, cases):
        return float(np.mean(hits[cases])) if cases.any() else np.nan

    solve = scenario.outcome == "solve"
    judged = [
        bool((claim[null] != 0).any()) if null.any() else np.nan,
        np.nan if solve else bool((claim * at_rate < 0).any() or claim[at_rate == 0].any()),
        bool(claim[0] != 0),
        bool(equivalent[apart].any()) if apart.any() else np.nan,
        bool(equivalent[apart_at_rate].any()) if apart.any() else np.nan,
        np.nan if solve else bool((~wide & known).any()),
        np.nan if solve else share(inside, known),
        np.nan if solve else share(inside_arm.to_numpy(), mean_known),
        share(claim == np.sign(best), ~null),
        share(equivalent, null),
        np.mean(summary["edge"].to_numpy() != ""),
    ]
    return [float(value) for value in judged]


def simulate(scenario: Scenario, studies: int, seed: int = 0) -> np.ndarray:
    """[studies, len(EVENTS) + len(SHARES)] outcomes of independent studies."""
    rng = np.random.default_rng(seed)
    judged = (_judge(scenario, simulate_study(rng, scenario)) for _ in range(studies))
    return np.array(list(judged), float)


class Estimate(NamedTuple):
    """A rate with its 95 % Monte Carlo interval; NaN where the scenario has no such case."""

    value: float
    low: float
    high: float


def estimate(outcomes: np.ndarray) -> dict[str, Estimate]:
    """Rates over studies. Events: Clopper-Pearson; shares of arms: normal, studies as clusters."""
    result = {}
    for name, column in zip(EVENTS + SHARES, outcomes.T, strict=True):
        column = column[~np.isnan(column)]
        if not len(column):
            result[name] = Estimate(np.nan, np.nan, np.nan)
        elif name in EVENTS:
            interval = proportion_confint(column.sum(), len(column), method="beta")
            result[name] = Estimate(float(column.mean()), *map(float, interval))
        else:
            half = stats.norm.ppf(0.975) * column.std() / np.sqrt(len(column))
            result[name] = Estimate(column.mean(), column.mean() - half, column.mean() + half)
    return result


def scenarios() -> list[Scenario]:
    """What the experiment measures: every outcome, effect and correlation; and, harder, studies
    whose margin is too small to call anything equivalent, with optima alike and apart, and with
    more seeds and more analyses."""
    plain = [
        Scenario(outcome, effect, correlation)
        for outcome in OUTCOMES
        for effect in EFFECTS
        for correlation in (0.0, 0.5)
        if not (outcome == "solve" and effect == "margin")
    ]
    harder = [
        Scenario("normal", effect, correlation, margin=0.5, planted=4.0, elsewhere=elsewhere)
        for effect in ("none", "planted")
        for elsewhere in (0, 3)
        for correlation in (0.0, 0.5)
    ]
    # More seeds make tests bolder, and what a wrong learning rate cost stays as it was.
    longer = [
        Scenario("normal", "none", correlation, margin=0.5, rate_gap=1.5, elsewhere=3,
                 eval_seeds=analyses[-1], analyses=analyses)
        for analyses in ((12,), (20,), (6, 12, 20))
        for correlation in (0.0, 0.9)
    ]  # fmt: skip
    return plain + harder + longer
