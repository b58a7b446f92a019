"""The full study: every arm on every task, 10 evaluation seeds, models of the usual small size (two
layers, width 64, four heads).

    python -m experiments.ablate --config=configs/full.py --workdir=runs/full

Not run, and without a result: 2392 runs, for an accelerator; `--plan` estimates 63 hours for two
CPU cores, and the arithmetic in the README a good hour on a GPU. Four tuning seeds instead of two:
with two, a rate chosen by luck costs power (`experiments.calibrate`).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms
from qkv_jax.tie import Tie


def controls() -> dict[str, dict]:
    """Arms that are no partition: learned scales, no output projection, frozen projections."""
    scale, bare = {"scale": "learned_per_head"}, {"output_projection": False}
    entries = {
        "copies, learned scale": {"tie": "copies", **scale},
        "Q=K=X, learned scale": {"tie": "Q=K=X", **scale},
        "copies, no output": {"tie": "copies", **bare},
        "V=X, no output": {"tie": "V=X", **bare},
        "frozen Q, K": {"tie": "separate", "frozen": ("query", "key")},
        "frozen V": {"tie": "separate", "frozen": ("value",)},
        "frozen Q, K, V": {"tie": "separate", "frozen": ("query", "key", "value")},
    }
    return {name: {"model": model, "role": "control"} for name, model in entries.items()}


def get_config() -> ConfigDict:
    ties = [str(tie) for tie in Tie.all()][:-1]
    return tree(
        {
            "name": "full",
            "arms": tie_arms(*ties, "copies") | controls(),
            "train": {"report_every": 200},
            "tasks": {
                "reverse": {
                    "kind": "reverse",
                    "options": {"length": 48},
                    "train": {"steps": 2000},
                },
                "relation": {
                    "kind": "relation",
                    "options": {"length": 32, "names": 256, "outcome_kind": "mean"},
                    "train": {"steps": 4000},
                },
                "mnist5k": {"kind": "mnist5k", "options": {"patch": 4}, "train": {"steps": 3000}},
                "shakespeare": {
                    "kind": "masked_bytes",
                    "options": {"length": 128, "test_examples": 1900},
                    "train": {"steps": 10000, "report_every": 1000},
                },
            },
            "study": {"protocol": "fixed", "tune_seeds": 4, "eval_seeds": 10},
        }
    )
