"""Ties x positions: which kinds of position does each tie need, and which can it not use?

    python -m experiments.ablate --config=configs/positions.py --workdir=runs/positions

Three tasks: retrieval by place ("the symbol d places to the left", d given with the input), its
control without direction (the symbol stands at both sides), and masked bytes.

Measured on two CPU cores, other work beside: 30 minutes, 1152 runs (22 by `--plan`). On a GPU about
7 minutes, by the README's arithmetic.

Result. To the left, accuracy: only rotary positions solve it with `separate` (1.000; learned 0.960,
sinusoidal 0.587, the others 0.2 to 0.3: a bias on scores cannot know which d is asked for). Under
rotary ones Q=K falls to 0.679 and the 2D term does not help (0.532), Courtois's matrix does
(1.000); K=V (1.000) and, under learned ones, Q=K (0.972) were not seen to lose anything, both
undecided. At either side Q=K loses as well under rotary positions, but half as much (0.842). Masked
bytes: with learned positions K=V costs 0.378 nats, with rotary ones 0.040 (undecided); Q=K costs
0.20 with both. Verdicts here are by the rule before the present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.model.positions import POSITIONS
from qkv_jax.study.plan import tie_arms

TIES = ("separate", "K=V", "Q=K", "Q=K=V")
# What is said to repair the symmetry of Q=K.
REPAIRS = {
    "Q=K + head (Courtois)": {"preset": "courtois"},
    "Q=K + 2D term": {"tie": "Q=K", "positions_2d": True},
}
BY_PLACE = {"length": 24, "max_distance": 8, "queries": 8, "outcome_kind": "mean"}


def get_config() -> ConfigDict:
    directed = (*TIES, *REPAIRS)
    return tree(
        {
            "name": "positions",
            "question": "Which kinds of position does each tie need?",
            "study": {"protocol": "fixed"},
            "arms": tie_arms(*TIES) | {name: {"model": model} for name, model in REPAIRS.items()},
            "model": {"layers": 1, "width": 32, "heads": 2},
            "tasks": {
                "left": {
                    "kind": "retrieval",
                    "options": {"by": "place", **BY_PLACE},
                    "arms": directed,
                    "train": {"steps": 600},
                    "axes": {"model": {"positions": POSITIONS}},
                },
                "either side": {
                    "kind": "retrieval",
                    "options": {"by": "place_either", **BY_PLACE},
                    "arms": ("separate", "Q=K", "Q=K + head (Courtois)"),
                    "train": {"steps": 600},
                    "axes": {"model": {"positions": ("learned", "rotary")}},
                },
                "shakespeare": {
                    "kind": "masked_bytes",
                    "options": {"length": 32},
                    "arms": TIES,
                    "model": {"width": 64, "heads": 4},
                    "train": {"steps": 500},
                    "axes": {
                        "model": {"positions": ("none", "learned", "rotary", "relative", "alibi")}
                    },
                },
            },
        }
    )
