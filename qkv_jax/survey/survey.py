"""The survey of a model: X, Q, K and V compared on real inputs, the circuits of its heads, and
where they look, beside what chance and the untrained model give.

    found = survey(subject, seed=0)
    found.figures        # one row per figure: layer, head, quantity, roles, value, nulls
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from qkv_jax import arguments
from qkv_jax.analysis.layers import layer_weights, left_out, require_circuits
from qkv_jax.survey.activations import gather
from qkv_jax.survey.measure import beside, measure, movements, spectra
from qkv_jax.survey.subjects import Subject

MOST_TOKENS = 20_000  # of which the clouds are made
DRAWS = 40  # of each null


class Survey(NamedTuple):
    """What was found.

    Attributes:
      figures: see `measures.measure`.
      spectra: of the circuits, see `measures.spectra`.
      movements: over training, see `measures.movements`; empty without checkpoints.
      tokens: how many made the clouds.
      left_out: what the circuits do not show of this model, in a sentence.
    """

    figures: pd.DataFrame
    spectra: pd.DataFrame
    movements: pd.DataFrame
    tokens: int
    left_out: str = ""


def survey(subject: Subject, seed: int, draws: int = DRAWS) -> Survey:
    """Measures everything; the same seed draws the same nulls."""
    arguments.instance("subject", subject, Subject)
    arguments.whole("draws", draws, 1)
    rng = np.random.default_rng(arguments.whole("seed", seed))
    require_circuits(subject.encoder.config)
    layers = layer_weights(subject.encoder, subject.variables)
    flows = gather(subject.encoder, subject.variables, subject.batches, rng, MOST_TOKENS)
    found, untrained = measure(layers, flows, rng, draws), None
    if subject.untrained is not None:
        start = layer_weights(subject.encoder, subject.untrained)
        before = gather(subject.encoder, subject.untrained, subject.batches, rng, MOST_TOKENS)
        untrained = measure(start, before, rng, draws=0)
    moved = movements(subject.past) if subject.past else pd.DataFrame()
    leaves = left_out(subject.encoder.config)
    return Survey(beside(found, untrained), spectra(layers), moved, len(flows[0].x), leaves)
