"""Does a cheap adapter repair each tie? Ties with no adapter, one vector per head (`diag`), a pair
of thin matrices per head (`lowrank:4`), and a full matrix per head (`head`), each the identity at
first.

    python -m experiments.ablate --config=configs/adapters.py --workdir=runs/adapters

Time: 20 minutes on two idle CPU cores by `--plan`; the measured run took 71 on two busy ones, 672
runs (one rate below the grid was added on each task). On a GPU about 4 minutes, by the README's
arithmetic.

Result. On directed relation, accuracy of `separate` 1.000: a matrix on the query solves what Q=K
cannot (0.462) on 5 of 6 seeds, and fails on the sixth (0.157) at the chosen rate, so that verdict
is undecided; copies with a matrix on every role is equivalent (0.999); diagonals repair nothing but
a part of copies (0.603 against 0.414). On masked bytes, `separate` 1.917 nats: the matrix takes
Q=K from +0.224 to +0.023 (undecided), rank 4 to +0.067; no adapter on the key repairs K=V (+0.137
bare, +0.160 with Gao's); the placebo, which drew another rate, stands at +0.078.
Verdicts here are by the rule before the present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

# Every role that shares but the last is adapted; Kowsher's diagonals are on all three.
ADAPTED = {
    "Q=K": ("query",),
    "K=V": ("key",),
    "Q=K=V": ("query", "key"),
    "copies": ("query", "key", "value"),
}
SPECS = {"Q=K": ("diag", "lowrank:4", "head"), "K=V": ("diag", "lowrank:4", "head")}
NAMES = {
    ("Q=K", "head"): "Q=K + head (Courtois)",
    ("K=V", "head"): "K=V + head (Gao)",
    ("Q=K=V", "diag"): "Q=K=V + diag (Kowsher)",
}


def arms() -> dict[str, dict]:
    """Each tie bare, then with each adapter."""
    found: dict[str, dict] = {"separate": {}}
    for tie, roles in ADAPTED.items():
        found[tie] = {"model": {"tie": tie}}
        for spec in SPECS.get(tie, ("diag", "head")):
            name = NAMES.get((tie, spec), f"{tie} + {spec}")
            adapters = dict.fromkeys((*roles, "value") if "Kowsher" in name else roles, spec)
            found[name] = {"model": {"tie": tie, "adapters": adapters}}
    return found


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "adapters",
            "question": "Does a cheap adapter repair a tie?",
            "arms": arms(),
            "model": {"layers": 1, "width": 32, "heads": 2},
            "tasks": {
                "relation": {
                    "kind": "relation",
                    "options": {"length": 16, "names": 64, "outcome_kind": "mean"},
                    "learning_rates": (3e-3, 1e-2, 3e-2, 1e-1),
                    "train": {"steps": 400, "report_every": 50},
                },
                "shakespeare": {
                    "kind": "masked_bytes",
                    "options": {"length": 32},
                    "model": {"width": 64, "heads": 4},
                    "train": {"steps": 1000},
                },
            },
            "study": {"protocol": "fixed", "tune_seeds": 3},
        }
    )
