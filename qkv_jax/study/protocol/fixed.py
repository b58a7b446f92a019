"""The protocol with numbers of seeds that are fixed beforehand.

A task goes through `STAGES`: it is tuned on its grid, then on each extension of it, then evaluated
on seeds of its own. Each time a stage is due there is a round, of a part for every arm.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import pandas as pd

from qkv_jax.study.protocol import selection
from qkv_jax.study.protocol.due import Due, Kind, Protocol
from qkv_jax.study.record import StudyRecord

Rates = dict[str, tuple[float, ...]]  # by arm


@dataclasses.dataclass(frozen=True)
class Stage(Kind):
    """A kind of round of this protocol.

    Attributes:
      rates: (record of one task, rows of all rounds before, whole) -> learning rates of every arm;
        none where the stage is not due, or not any more. Without rows, NaN stands for a rate.
      seeds: record -> seeds, ascending without a gap, for each analysis. No wave has runs of two,
        so that seeds that are added later make the waves that they would have made then.
      repeats: whether it is asked again and again until it is not due.
    """

    rates: Callable[[StudyRecord, pd.DataFrame], Rates]
    seeds: Callable[[StudyRecord], Sequence[Sequence[int]]]
    repeats: bool = False


def _of_all(record: StudyRecord, rates: Sequence[float]) -> Rates:
    ((_, task),) = record.tasks.items()
    return dict.fromkeys(task.arms, tuple(rates)) if rates else {}


def declared(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """The grid of the task."""
    ((_, task),) = record.tasks.items()
    return _of_all(record, task.learning_rates)


def beyond(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """What a grid is extended by where some arm's best rate is at its edge."""
    (name,) = record.tasks
    return _of_all(record, selection.extension_needed(record, rows, name))


def chosen(record: StudyRecord, rows: pd.DataFrame) -> Rates:
    """Each arm's best."""
    ((name, task),) = record.tasks.items()
    if rows.empty:
        return _of_all(record, (math.nan,))
    rates = selection.choose_rates(record, rows)["learning_rate"]
    return {arm: (float(rates[name, arm]),) for arm in task.arms}


def tuning_seeds(record: StudyRecord) -> Sequence[Sequence[int]]:
    return [record.tune_seeds]


def seeds_by_look(record: StudyRecord) -> Sequence[Sequence[int]]:
    """The evaluation seeds that each analysis has added."""
    ends = (0, *record.analyses)
    return [record.eval_seeds[start:end] for start, end in itertools.pairwise(ends)]


# A stage that repeats is asked again at most so often: for each side of a grid, every extension.
MAX_REPEATS = 2 * selection.MAX_EXTENSIONS
STAGES = [
    Stage("tune", "tuning", False, False, declared, tuning_seeds),
    Stage("extend", "tuning", False, False, beyond, tuning_seeds, repeats=True),
    Stage("evaluate", "evaluating", True, True, chosen, seeds_by_look),
]


def protocol(record: StudyRecord) -> Protocol:
    """What is due of the one task of a record.

    Raises:
      RuntimeError: if a stage repeats without an end.
    """
    (task,) = record.tasks
    whole = pd.DataFrame(columns=selection.RUN_COLUMNS)
    for analysis, stage in itertools.product(range(record.analysis), STAGES):
        for number in itertools.count(1):
            due = _due(stage, record, whole, analysis, number)
            if due is None:
                break
            if number > MAX_REPEATS:
                raise RuntimeError(f"{task}: {stage.name} goes on without an end, now {due.cells}")
            whole = yield due
            if not stage.repeats:
                break


def surely(record: StudyRecord) -> list[Due]:
    """What is due whatever comes out."""
    none = pd.DataFrame(columns=selection.RUN_COLUMNS)
    found = (
        _due(stage, record, none, analysis)
        for analysis, stage in itertools.product(range(record.analysis), STAGES)
        if not stage.repeats
    )
    return [due for due in found if due is not None]


def _due(
    stage: Stage, record: StudyRecord, rows: pd.DataFrame, analysis: int, number: int = 1
) -> Due | None:
    blocks = stage.seeds(record)
    rates = stage.rates(record, rows) if analysis < len(blocks) else {}
    if not rates:
        return None
    seeds = blocks[analysis]
    cells = {
        arm: tuple((rate, seeds[0], seeds[-1] + 1) for rate in own) for arm, own in rates.items()
    }
    count = f"{number}" if stage.repeats else f"{analysis + 1}" if analysis else ""
    return Due(stage.name + count, cells, analysis)
