"""The whole path in under a minute: two tasks, three arms, a few steps. Its numbers mean nothing.

    python -m experiments.ablate --config=configs/smoke.py --workdir=runs/smoke

Measured on two CPU cores: 44 seconds; on a GPU half a minute, by the arithmetic in the README.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "smoke",
            "model": {"layers": 1, "width": 16, "heads": 2},
            "train": {"steps": 60, "report_every": 20, "batch_size": 16},
            "arms": tie_arms("separate", "Q=K", "copies"),
            "tasks": {
                "reverse": {"kind": "reverse", "options": {"length": 8, "test_examples": 512}},
                "mnist5k": {"kind": "mnist5k", "options": {"patch": 14}},
            },
            "study": {"learning_rates": (3e-3, 1e-2, 3e-2), "max_seeds": 6},
        }
    )
