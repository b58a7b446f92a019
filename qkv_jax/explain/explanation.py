"""All that is told of some walks: what the terminal and the page both show."""

from collections.abc import Sequence
from typing import NamedTuple

from qkv_jax.explain.remarks import answers, compared, remarks_on
from qkv_jax.explain.sources import Walks
from qkv_jax.explain.steps import Step, steps_of
from qkv_jax.explain.walk import Trace

QUESTION = "Are Q, K and V copies of X here?"


class Explanation(NamedTuple):
    """What `remarks` and `steps` make of walks.

    Attributes:
      about: what is walked.
      comparison: a heading and one row per walk.
      remarks: sentences on each walk.
      answers: to `QUESTION`, one line per walk.
      checked: how far the numbers lie from the model's own.
    """

    about: str
    walks: Sequence[Trace]
    steps: Sequence[Step]
    comparison: Sequence[Sequence[str]]
    remarks: Sequence[Sequence[str]]
    answers: Sequence[str]
    checked: str


def explain(walked: Walks) -> Explanation:
    """The explanation of some walks of one example."""
    about, walks, start = walked
    error = max(walk.error for walk in walks)
    return Explanation(
        about=about,
        walks=walks,
        steps=steps_of(walks),
        comparison=compared(walks, start),
        remarks=remarks_on(walks, start),
        answers=answers(walks),
        checked="Checked: weights and output, multiplied out from the numbers above, differ from "
        f"what the model itself computed by at most {error:.0e}.",
    )
