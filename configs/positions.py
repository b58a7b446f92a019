"""Ties x positions: which kinds of position does each tie need, and which can it not use?

    python -m experiments.ablate --config=configs/positions.py --workdir=runs/positions

Three tasks: retrieval by place ("the symbol d places to the left", d given with the input), its
control without direction (the symbol stands at both sides), and masked bytes.

TIMES
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import tree
from qkv_jax.positions import POSITIONS
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
            "arms": tie_arms(*TIES) | {name: {"model": model} for name, model in REPAIRS.items()},
            "model": {"layers": 1, "width": 32, "heads": 2},
            "train": {"batch_size": 32, "report_every": 100},
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
            "study": {
                "baseline": "separate",
                "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
                "tune_seeds": 2,
                "eval_seeds": 6,
                "match": "none",
                "packing": placeholder(int),
            },
        }
    )
