"""Ties x width x steps: how does the gap to `separate` move with size and with the budget?

    python -m experiments.ablate --config=configs/scaling.py --workdir=runs/scaling
    python -m experiments.ablate --config=configs/scaling.py:small --workdir=runs/scaling-small

A gap that closes with more steps is one of speed; one that stays is one of ability. On directed
relation the number of names, 64, lies well above the width of a head, 8 to 32, so that names can
hardly be learned by heart. The report draws the curves.

`small` (two widths, two budgets), measured on two CPU cores: 5.2 minutes, 408 runs. Not run whole:
21 minutes by `--plan`, 756 runs. On a GPU, by the arithmetic in the README, 2 and 6 minutes.

Result of `small`, accuracy (`separate` 0.999 or more in every cell), from 200 to 1600 steps: what
K=V lacks at width 16 (-0.194, undecided) is gone, a gap of speed. Q=K goes from -0.712 to -0.430 at
width 16 and from -0.662 to -0.161 at width 32, copies from -0.765 to -0.492 and from -0.753 to
-0.244, Q=K=V from -0.774 to -0.585 and from -0.805 to -0.489, all worse: partly speed, and what is
left is larger where heads are narrower. Verdicts here are by the rule before the
present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree
from qkv_jax.study.plan import tie_arms

SIZES = {
    "full": {"steps": (200, 800, 3200), "width": (16, 32, 64)},
    "small": {"steps": (200, 1600), "width": (16, 32)},
}


def get_config(size: str = "full") -> ConfigDict:
    sizes = choose(SIZES, size)
    return tree(
        {
            "name": "scaling" if size == "full" else f"scaling-{size}",
            "question": "How does the cost of a tie move with size and budget?",
            "study": {"protocol": "fixed"},
            "arms": tie_arms("separate", "K=V", "Q=K", "Q=K=V", "copies"),
            "model": {"layers": 1, "heads": 2},
            "tasks": {
                "relation": {
                    "kind": "relation",
                    "options": {"length": 16, "names": 64, "outcome_kind": "mean"},
                    "axes": {
                        "train": {"steps": sizes["steps"]},
                        "model": {"width": sizes["width"]},
                    },
                },
            },
        }
    )
