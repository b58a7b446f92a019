"""Effects that claims are about, from the runs of a study: what `ledger.py` tests."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from qkv_jax.study.claims import Evidence
from qkv_jax.study.protocol import inference, verdicts
from qkv_jax.study.protocol.comparison import Tuning
from qkv_jax.study.protocol.evaluated import evaluations
from qkv_jax.study.protocol.inference import Doubt
from qkv_jax.study.protocol.verdicts import Note, What
from qkv_jax.study.record import StudyRecord

# (task, arm, rate, seeds) -> test scores [seeds, examples], or None.
Examples = Callable[[str, str, float, Sequence[int]], np.ndarray | None]
# (task, arm, measure) -> [seeds, 2]: of the trained models and of the untrained ones.
Measured = Callable[[str, str, str], np.ndarray]


@dataclasses.dataclass
class Effect:
    """One effect: the sum of the means of samples [S], each with its sign and of other runs."""

    samples: list[tuple[int, np.ndarray]]
    margin: float
    unit: str
    notes: list[Note]
    control: bool
    level: float | None = None  # to be reached: seeds are counted
    doubt: Doubt = Doubt()
    error: float = 0.0  # squared standard error that the test set leaves
    failed: bool = False
    edge: bool = False
    # Why no test could tell, by task; None where one can.
    untestable: list[verdicts.Verdict | None] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where effects come from."""

    record: StudyRecord
    runs: pd.DataFrame
    examples: Examples
    groups: Mapping[str, Sequence[int]]
    measured: Measured

    def __post_init__(self):
        object.__setattr__(self, "tables", evaluations(self.record, self.runs))


def effect_of(entry: Evidence, sources: Sources) -> Effect:
    outcome = sources.record.tasks[entry.task].outcome
    margin = entry.margin or outcome.margin
    effect = Effect([], margin, outcome.unit, [], entry.control)
    for task, sign in zip(entry.tasks, (1, -1), strict=False):
        if entry.measure:
            _add_measure(effect, entry, task, sign, sources)
        elif entry.level is not None:
            _add_level(effect, entry, sources)
        else:
            _add_difference(effect, entry, task, sign, sources)
    return effect


def _add_measure(effect: Effect, entry: Evidence, task: str, sign: int, sources) -> None:
    trained, untrained = sources.measured(task, entry.arm, entry.measure).T
    if entry.against:
        rival = sources.measured(task, entry.against, entry.measure)[:, 0]
        effect.samples += [(sign, trained), (-sign, rival)]
    else:
        null = untrained if entry.null is None else entry.null
        effect.samples.append((sign, trained - null))
    effect.unit = ""
    if (entry.against or entry.null is not None) and not np.isnan(untrained).all():
        # A reader must see whether training has any part in it.
        values = np.nanmean(trained), task, np.nanmean(untrained)
        effect.notes.append(Note(What.BEFORE_TRAINING, values))
    _note_failures(effect, task, entry.measured_arms, sources)


def _add_level(effect: Effect, entry: Evidence, sources) -> None:
    run = sources.tables[entry.task, entry.arm]
    better = 1 if sources.record.tasks[entry.task].higher_is_better else -1
    effect.samples.append((better, run.values - entry.level))
    effect.level = entry.level


def _add_difference(effect: Effect, entry: Evidence, name: str, sign: int, sources) -> None:
    """The cost of the arm over its rival on one task, added or taken off."""
    record, task = sources.record, sources.record.tasks[name]
    pair = entry.arm, entry.against or record.baseline
    arm, rival = (sources.tables[name, each] for each in pair)
    scores = [sources.examples(name, each, run.rate, run.seeds)
              for each, run in zip(pair, (arm, rival), strict=True)]  # fmt: skip
    if entry.near is None:
        parts, values = [scores], [run.values for run in (arm, rival)]
    else:
        groups = np.asarray(sources.groups[name])
        far, near = groups >= entry.far, groups <= entry.near
        parts = [[None if s is None else s[:, some] for s in scores] for some in (far, near)]
        values = [_mean(run, s_far) - _mean(run, s_near)
                  for run, s_far, s_near in zip((arm, rival), *parts, strict=True)]  # fmt: skip
    better = sign * (1 if task.higher_is_better else -1)
    effect.samples += [(-better, values[0]), (better, values[1])]
    _note_failures(effect, name, pair, sources)
    twins = len({task.program_of(each) for each in pair}) == 1
    lost_both = verdicts.ALL_FAILED if arm.lost and rival.lost else None
    effect.untestable.append(verdicts.SAME_PROGRAM if twins else lost_both)
    effect.error += sum(np.nan_to_num(inference.sampling_error(*part)) ** 2 for part in parts)
    of_task = np.stack([sources.tables[name, each].values for each in task.arms])
    least = inference.common_variance(of_task)
    lost = [Tuning(run.lead, run.tuned).regret(run.values, least) for run in (arm, rival)]
    down, up = lost if sign > 0 else lost[::-1]
    effect.doubt = Doubt(effect.doubt.down + down, effect.doubt.up + up)


def _mean(run, scores: np.ndarray | None) -> np.ndarray:
    """Mean scores [S] of a run's seeds over some test examples. A run that failed counts with the
    failure value everywhere."""
    if scores is None:
        return np.full_like(run.values, np.nan)
    means = np.full_like(run.values, np.nan)
    means[: len(scores)] = scores.mean(1)
    return np.where(run.status == "done", means, run.values)


def _note_failures(effect: Effect, task: str, arms: Sequence[str], sources) -> None:
    placebo = sources.record.placebo
    involved = [*arms, *[placebo] * ((task, placebo) in sources.tables)]
    if any(np.isin(sources.tables[task, arm].status, ("diverged", "failed")).any()
           for arm in involved):  # fmt: skip
        effect.failed = True
    if any(sources.tables[task, arm].edge for arm in arms):
        effect.edge = True
    for arm in arms:
        if lost := sources.tables[task, arm].lost:
            effect.notes.append(Note(What.LOST, (arm, lost, lost)))
