"""Kayyam, Madan Gopal and Lewis 2026 (arXiv 2606.04032), table 1: five synthetic tasks, encoder.

    python -m experiments.ablate --config=configs/papers/kayyam2026.py --workdir=runs/kayyam
    python -m experiments.ablate --config=configs/papers/kayyam2026.py:small --workdir=runs/kayyam

Their grid of sizes (width 32, 64, 256; 2 or 4 layers; 2 or 4 heads; 16, 64 or 128 digits), with our
protocol: every arm tuned in every cell, six seeds, a placebo. They trained all arms at one
learning rate, 1e-3, for two epochs, three seeds. Their numbers and those of their later rerun
(3,240 runs, from their repository) stand beside ours; they are means over the whole grid. `small`
is one width, one depth and one length of it, for two CPU cores.

Measured, `small`, two CPU cores, other work beside: 30 minutes, 1078 runs; on a GPU 6, by the
arithmetic in the README. The whole grid, estimated (`--plan`): 17,640 runs, 15 days on two cores;
by that arithmetic 5 hours on a GPU.

Result of `small`, 2 and 4 heads together: only sort tells the arms apart. Reverse, swap, sub and
copy are solved by all of them (0.999 or more), at learning rates three to thirty times the
published one, under which reverse and swap stay between 0.4 and 0.7. Sort, accuracy 0.994: Q=K
-0.023, with the 2D term -0.049, K=V -0.001, Q=K=V -0.162, with the term -0.105 (worse in both
sizes: Q=K=V; worse with 2 heads, undecided with 4: both arms with the term; undecided: Q=K; placebo
0.000). The rerun's order, but not its finding that the term helps Q=K.
Verdicts here are by the rule before the present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree

ARMS = {
    "separate": {"tie": "separate"},
    "Q=K": {"tie": "Q=K"},
    "Q=K + 2D term": {"tie": "Q=K", "positions_2d": True},
    "K=V": {"tie": "K=V"},
    "Q=K=V": {"tie": "Q=K=V"},
    "Q=K=V + 2D term": {"tie": "Q=K=V", "positions_2d": True},
}
# Of each task, in the order of the arms: as published, and in the authors' rerun.
PUBLISHED = {
    "reverse": (
        (0.698, 0.705, 0.718, 0.701, 0.514, 0.581),
        (0.529, 0.475, 0.522, 0.510, 0.295, 0.370),
    ),
    "sort": (
        (0.971, 0.967, 0.963, 0.958, 0.939, 0.957),
        (0.753, 0.691, 0.770, 0.747, 0.671, 0.770),
    ),
    "sub": ((1.0,) * 6, (0.992, 0.991, 0.993, 0.992, 0.991, 0.990)),
    "swap": (
        (0.588, 0.597, 0.671, 0.590, 0.446, 0.576),
        (0.524, 0.471, 0.530, 0.511, 0.307, 0.382),
    ),
    "copy": ((1.0,) * 6, (0.991, 0.994, 0.991, 0.994, 0.992, 0.990)),
}
SIZES = {
    "full": {
        "model": {"width": (32, 64, 256), "layers": (2, 4), "heads": (2, 4)},
        "options": {"length": (16, 64, 128)},
    },
    "small": {
        "model": {"width": (32,), "layers": (2,), "heads": (2, 4)},
        "options": {"length": (16,)},
    },
}


def get_config(size: str = "full") -> ConfigDict:
    return tree(
        {
            "name": f"kayyam2026-{size}",
            "question": "What do ties cost on five synthetic tasks?",
            "study": {"protocol": "fixed"},
            "arms": {name: {"model": model} for name, model in ARMS.items()},
            # Two epochs of ten thousand sequences, as in the rerun.
            "train": {"batch_size": 128, "steps": 160, "report_every": 20, "decay": "cosine"},
            "tasks": {
                task: {
                    "kind": task,
                    "options": {"outcome_kind": "mean"},
                    "axes": choose(SIZES, size),
                    "published": {
                        "Kayyam et al. 2026, table 1": dict(zip(ARMS, paper, strict=True)),
                        "authors' rerun": dict(zip(ARMS, rerun, strict=True)),
                    },
                }
                for task, (paper, rerun) in PUBLISHED.items()
            },
        }
    )
