"""One tie imposed on one model in every way that is asked for: what it loses, and gets back."""

from collections.abc import Callable, Sequence

import pandas as pd

from qkv_jax import arguments
from qkv_jax.model.encoder import Encoder
from qkv_jax.surgery.damage import EditedModel, Variables
from qkv_jax.surgery.scores import Scores, difference, estimate
from qkv_jax.tie import Tie

ALL, ORIGINAL = "all", "original"
# Of a metric's columns, after its name: its interval, and its change with its interval.
OWN, CHANGE = ("", " low", " high"), (" change", " change low", " change high")


def operate(
    edited: EditedModel,
    tie: Tie,
    methods: Sequence[str],
    layers: Sequence[int],
    steps: int,
    keep: Callable[[str, Encoder, Variables], None] = lambda *tied: None,
    say: Callable[[str], None] = lambda what: None,
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Ties each layer alone and all together, and trains what is tied in all of them.

    Args:
      steps: of further training.
      keep: is given method, encoder and variables of each model that is tied in all layers.
      say: is told what is being done.

    Returns:
      a row per model: method, layers, trained (steps), and of each metric the value with the ends
      of its 95 % interval and, where the original has to be measured, the change with its own: to
      the original, for a model trained on to the original trained on as long if it can be;
      and the learning rate of what was trained, by method.
    """
    arguments.whole("steps", steps)
    rows, rates = [], {}

    def note(method: str, where, trained: int, scores: tuple[Scores, ...], beside=None) -> None:
        row = {"method": method, "layers": where, "trained": trained}
        for place, metric in enumerate(edited.metrics):
            found = dict(zip(OWN, estimate(metric, scores[place]), strict=True))
            if metric.perfect is None and beside is not None:
                change = difference(metric, scores[place], beside[place])
                found |= dict(zip(CHANGE, change, strict=True))
            row |= {metric.name + column: number for column, number in found.items()}
        rows.append(row)

    say("measuring the original")
    original = control = edited.score_edited({})
    note(ORIGINAL, "", 0, original)
    if steps and edited.has_control:
        say(f"training the original on, {steps} steps")
        control = edited.score(*edited.recover({}, steps))
        note(ORIGINAL, "", steps, control, original)
    for method in methods:
        say(f"{tie} by {method}")
        edits = edited.edits(tie, method, layers)
        for number in layers if len(layers) > 1 else ():
            note(method, number, 0, edited.score_edited({number: edits[number]}), original)
        note(method, ALL, 0, edited.score_edited(edits), original)
        if steps:
            say(f"training {tie} by {method}, {steps} steps")
        encoder, variables, rates[method] = edited.recover_at_rate(edits, steps)
        if steps:
            note(method, ALL, steps, edited.score(encoder, variables), control)
        keep(method, encoder, variables)
    return pd.DataFrame(rows), rates
