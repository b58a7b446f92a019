"""What is measured of a model before and after surgery, example by example, so that each number has
an interval: examples are the sample, and two models are compared on the same ones."""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float


class Metric(NamedTuple):
    """What is measured, as it is printed.

    Attributes:
      perfect: what the original has by definition, None for what has to be measured of it.
      root: whether the square root of the scores' ratio is meant.
    """

    name: str
    higher_is_better: bool
    perfect: float | None = None
    root: bool = False

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


class Scores(NamedTuple):
    """A metric is a ratio of sums over examples: of losses over tokens, of cosines over texts."""

    sums: Float[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"]

    @classmethod
    def means(cls, values: Float[np.ndarray, " N"]) -> "Scores":
        """Of a metric that is a mean over the examples."""
        return cls(values.astype(np.float64), np.ones(len(values)))


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def value(metric: Metric, scores: Scores) -> float:
    """The metric of all examples."""
    ratio = scores.sums.sum() / scores.weights.sum()
    return float(np.sqrt(ratio) if metric.root else ratio)


def estimate(metric: Metric, scores: Scores) -> Estimate:
    """The same with its interval."""
    return _around(value(metric, scores), _influence(metric, scores))


def difference(metric: Metric, scores: Scores, other: Scores) -> Estimate:
    """The metric less that of another model on the same examples, paired."""
    pulls = _influence(metric, scores) - _influence(metric, other)
    return _around(value(metric, scores) - value(metric, other), pulls)


def _influence(metric: Metric, scores: Scores) -> np.ndarray:
    """How much each example pulls the metric, to first order (the linearised variance of a ratio:
    Cochran 1977, chapter 6)."""
    ratio = scores.sums.sum() / scores.weights.sum()
    pulls = (scores.sums - ratio * scores.weights) / scores.weights.mean()
    if metric.root and ratio > 0:
        pulls = pulls / (2 * np.sqrt(ratio))
    return pulls


def _around(middle: float, pulls: np.ndarray) -> Estimate:
    if len(pulls) < 2:
        return Estimate(middle, float("nan"), float("nan"))
    error = float(scipy.stats.sem(pulls))
    half = error * float(scipy.stats.t.ppf(0.975, len(pulls) - 1))  # texts may be few
    return Estimate(middle, middle - half, middle + half)
