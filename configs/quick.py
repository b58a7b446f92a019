"""The quick study: what does it cost to equate Q, K, V and X, on three tasks?

    make ablation
    python -m experiments.ablate --config=configs/quick.py --workdir=runs/quick

Measured on two shared CPU cores: 538 runs, 6.5 to 10.9 minutes; on a GPU about 3 minutes, by the
arithmetic in the README.

Result: on directed relation (0.93) V=X is equivalent and every other tie worse, by 0.12 to 0.19,
those that equate Q with K by 0.62 to 0.74, Q=X,K=V and K=X,Q=V by 0.59 and 0.49; on masked bytes
(1.98 nats) K=V costs 0.09, Q=K 0.21, Q=K=V and copies 0.33, but at half the steps K=V costs 0.28;
on MNIST-5k (0.90) K=V is equivalent, Q=K costs 0.025, copies 0.035, Q=K=V 0.042. Tables:
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
                    "options": {"length": 32, "margin": 0.05},
                    "arms": few,
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                    # Half the steps as well: is a verdict one of a budget that is too small?
                    "train": {"steps": 1250, "report_every": 125, "decay": "wsd"},
                    "branch": 0.5,
                },
            },
        }
    )
