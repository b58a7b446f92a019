"""An atlas: all 15 ties on the generated tasks. Where does each equality cost something?

    python -m experiments.ablate --config=configs/atlas.py --workdir=runs/atlas
    python -m experiments.ablate --config=configs/atlas.py:part --workdir=runs/atlas-part

Two layers, widths 32 and 64, 500 steps, and at half of them by copies of the same runs that cool
down there. `part`: the tasks for which one layer is enough, at width 32, 300 steps.

Neither was run whole yet. On a GPU, by the arithmetic in the README, the part is a matter of
minutes.
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
        "axes": {"axes": {"model": {"width": (32, 64)}}},
        "train": {"steps": 500, "report_every": 50},
    },
    "part": {
        "tasks": ONE_LAYER,
        "model": {"layers": 1, "width": 32, "heads": 2},
        "axes": {},
        "train": {"steps": 300, "report_every": 30},
    },
}


def get_config(size: str = "full") -> ConfigDict:
    of_size = choose(SIZES, size)
    entry = lambda task: task | of_size["axes"] | {
        "options": task["options"] | MEAN,
        "learning_rates": (3e-3, 1e-2, 3e-2),
        "branch": 0.5,
    }  # fmt: skip
    ties = [str(tie) for tie in Tie.all()][:-1]
    return tree(
        {
            "name": f"atlas-{size}",
            "question": "Where does each way of equating X, Q, K and V cost something?",
            "arms": tie_arms(*ties, "copies"),
            "model": of_size["model"],
            "train": {"decay": "wsd", "batch_size": 32, **of_size["train"]},
            "tasks": {name: entry(task) for name, task in of_size["tasks"].items()},
            "study": {"max_seeds": 8},
        }
    )
