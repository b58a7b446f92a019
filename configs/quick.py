"""The quick study: what does it cost to equate Q, K, V and X, on three tasks?

    make ablation
    python -m experiments.ablate --config=configs/quick.py --workdir=runs/quick

Measured on two CPU cores: 8.2 minutes (9.0 by `make ablation` from a fresh clone), 502 runs, first
arm after 2.0; on a GPU about 3 minutes, by the arithmetic in the README.

Result: on directed relation every tie that equates Q with K is worse (accuracy 0.36 to 0.46 against
1.00) and every other one is equivalent; on masked bytes (2.22 nats) Q=K costs 0.20, copies 0.33,
Q=K=V 0.36, K=V 0.38; on MNIST-5k copies costs 0.04, the other ties are undecided. Tables:
docs/results.md.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms
from qkv_jax.tie import Tie

CLASSIC = ("separate", "K=V", "Q=K", "Q=K=V", "copies")
# `copies` cannot set its temperature; with a scale learned per head it can.
LEARNED_SCALE = {
    "copies, learned scale": {
        "model": {"tie": "copies", "scale": "learned_per_head"},
        "role": "control",
        "note": "copies that can set the temperature of each head",
    }
}


def get_config() -> ConfigDict:
    others = [str(tie) for tie in Tie.all()[:-1] if str(tie) not in CLASSIC]
    few = (*CLASSIC, *LEARNED_SCALE)
    return tree(
        {
            "name": "quick",
            "arms": tie_arms(*CLASSIC[:-1], *others, "copies") | LEARNED_SCALE,
            "model": {"layers": 1, "width": 32, "heads": 2},
            "tasks": {
                "mnist5k": {
                    "kind": "mnist5k",
                    "arms": few,
                    "learning_rates": (1e-3, 3e-3, 1e-2),
                    "model": {"layers": 2},
                    "train": {"steps": 500},
                },
                "relation": {
                    "kind": "relation",
                    # So many names that in 250 steps `separate` comes to 92 %, not to the ceiling.
                    "options": {
                        "length": 16, "names": 1024, "outcome_kind": "mean", "margin": 0.02,
                    },
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                    "train": {"steps": 250, "report_every": 50},
                },
                "shakespeare": {
                    "kind": "masked_bytes",
                    # Decayed so far that the last tenth of the steps hardly moves the loss.
                    "options": {"length": 32, "margin": 0.05},
                    "arms": few,
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                    "train": {"steps": 1500, "report_every": 150, "decay": "cosine"},
                },
            },
        }
    )
