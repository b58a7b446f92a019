"""An atlas: all 15 ties on the generated tasks. Where does each equality cost something?

    python -m experiments.ablate --config=configs/atlas.py --workdir=runs/atlas
    python -m experiments.ablate --config=configs/atlas.py:part --workdir=runs/atlas-part

Two layers, widths 32 and 64, 200 and 600 steps. `part`: the tasks for which one layer is enough,
100 and 300 steps; the smaller budgets are such that `separate` is far from the ceiling at most of
them, by its own learning curve.

Measured on two CPU cores, other work beside, the part took 56 minutes (44 by `--plan`), 5208 runs;
on a GPU it takes minutes, by the arithmetic in the README. The whole was not run.

Result of the part: after 100 steps every tie that equates Q with K lags behind on every task; after
300 they are far behind on directed relation (by 0.61 to 0.81), and most of the gap elsewhere has
closed, how much of it eight seeds do not say. V=X is worse in no cell, and better by 0.001 to 0.002
on sort. Lattices: docs/results.md.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree
from qkv_jax.study.plan import tie_arms
from qkv_jax.tie import Tie

MEAN = {"outcome_kind": "mean", "margin": 0.02}
ONE_LAYER = {
    "relation": {"kind": "relation", "options": {"length": 16, "names": 256}},
    "undirected": {"kind": "relation", "options": {"length": 16, "names": 256, "ask": "either"}},
    "place": {"kind": "retrieval", "options": {"length": 16, "max_distance": 4}},
    "content": {"kind": "retrieval", "options": {"length": 16, "by": "content", "queries": 4}},
    "reverse": {"kind": "reverse", "options": {"length": 16}},
    "sort": {"kind": "sort", "options": {"length": 16}},
}
TWO_LAYERS = {
    "copy": {"kind": "copy", "options": {"length": 16}},
    "swap": {"kind": "swap", "options": {"length": 16}},
    "sub": {"kind": "sub", "options": {"length": 16}},
    "recall": {"kind": "recall", "options": {"pairs": 4, "queries": 4}},
    "induction": {"kind": "induction", "options": {}},
    "mqar": {"kind": "mqar", "options": {"length": 32, "vocabulary": 64, "train_examples": 0}},
    "listops": {"kind": "listops", "options": {"length": 32}},
}
SIZES = {
    "full": {
        "tasks": ONE_LAYER | TWO_LAYERS,
        "model": {"layers": 2, "heads": 2},
        "steps": (200, 600),
    },
    "part": {
        "tasks": ONE_LAYER,
        "model": {"layers": 1, "heads": 2},
        "steps": (100, 300),
    },
}


def get_config(size: str = "full") -> ConfigDict:
    of_size = choose(SIZES, size)
    entry = lambda task: task | {
        "options": task["options"] | MEAN,
        "learning_rates": (3e-3, 1e-2, 3e-2),
        "axes": {"model": {"width": (32, 64)}, "train": {"steps": of_size["steps"]}},
    }  # fmt: skip
    ties = [str(tie) for tie in Tie.all()][:-1]
    return tree(
        {
            "name": f"atlas-{size}",
            "question": "Where does each way of equating X, Q, K and V cost something?",
            "arms": tie_arms(*ties, "copies"),
            "model": of_size["model"],
            "train": {"batch_size": 32},
            "tasks": {name: entry(task) for name, task in of_size["tasks"].items()},
            "study": {"max_seeds": 8},
        }
    )
