"""Karpathy 2022, nanoGPT: Shakespeare by characters, its settings for a CPU, with the classic ties.

    python -m experiments.ablate --config=configs/papers/karpathy2022.py --workdir=runs/nanogpt
    python -m experiments.ablate --config=configs/papers/karpathy2022.py --workdir=runs/tiny \\
        --config.tasks.characters.options.files="('input.txt',)"

Published: 1.88 nats a character after 2000 steps, of tiny-shakespeare. Four layers, four heads,
width 128, 64 characters, batches of 12, no dropout, no biases in attention, tied embedding. Without
a file the text is that of the package `shakespeare`, another edition and five times as long: the
two numbers are then of two texts. The second command reads nanoGPT's own file, of which the
training text is then the same. Deviations: MLPs and layer norms have biases; matrices start by
their fan-in instead of at 0.02; the rate falls to zero instead of a tenth; the score is that of the
last step on the last 5 % of each file, theirs the best of several on the last 10 %.

Measured on two CPU cores, other work beside: 143 minutes (69 by `--plan`), 38 runs; a minute on a
GPU, by the arithmetic in the README. Result on our text: `separate` 1.767 nats a character, K=V
0.013 [-0.031, 0.058] behind, undecided after four seeds; Q=K costs 0.169 and Q=K=V 0.326, both
worse. docs/results.md has a table. nanoGPT's own file was not to be had, and not run.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "karpathy2022",
            "question": "What do the ties cost nanoGPT on characters?",
            "arms": tie_arms("separate", "Q=K", "K=V", "Q=K=V"),
            "model": {
                "layers": 4, "width": 128, "mlp": "gelu_exact", "norm_epsilon": 1e-5,
                "tied_embedding": True,
            },
            "train": {
                "batch_size": 12, "steps": 2000, "report_every": 200, "decay": "cosine",
                "warmup": 0.05, "weight_decay": 0.1, "beta2": 0.99,
            },
            "tasks": {
                "characters": {
                    "kind": "causal_characters",
                    "learning_rates": (1e-3, 3e-3),
                    "published": {"nanoGPT, tiny-shakespeare": {"separate": 1.88}},
                }
            },
            "study": {"max_seeds": 4},
        }
    )  # fmt: skip
