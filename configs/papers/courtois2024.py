"""Courtois et al. 2024 (arXiv 2406.06366): symmetric and pairwise attention, masked language model.

    python -m experiments.ablate --config=configs/papers/courtois2024.py --workdir=runs/courtois
    python -m experiments.ablate --config=configs/papers/courtois2024.py:small --workdir=runs/bert

They trained BERT small (4 layers, width 512) and base (12, 768) on 30 million documents for 200,000
steps, one seed each, all arms at one learning rate; "symmetric" is Q=K, "pairwise" Q=K with a
matrix per head, drawn from a standard normal distribution. Here: two layers of width 64 on
masked bytes of Shakespeare, every arm tuned. Their losses, in nats per masked token, stand beside
ours in nats per masked byte: compare the differences' signs and order, not the numbers.

`small` (one layer, 32 bytes, 1000 steps), measured on two busy CPU cores: 6.0 minutes, 80 runs.
Not run whole: 33 minutes by `--plan`, 90 runs. On a GPU, by the arithmetic in the README, half a
minute and a minute.

Result of `small`, nats per byte, `separate` 1.917: symmetric +0.224 [0.208, 0.239], worse, as
published. Pairwise as published, from a standard normal, +0.732 [0.519, 0.945], worse: at heads of
width 16 it is far too large a start. From the identity it costs +0.023 [-0.004, 0.049], undecided
(about 36 seeds would decide), where the paper has -0.005 and +0.024. The placebo stands at +0.078.
Verdicts here are by the rule before the present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree

ARMS = {
    "separate": {},
    "symmetric (Q=K)": {"tie": "Q=K"},
    "pairwise": {"tie": "Q=K", "adapters": {"query": "head:1.0"}},
    "pairwise, identity at first": {"preset": "courtois"},
}
PUBLISHED = {
    "BERT base, nats/token": {"separate": 1.684, "pairwise": 1.679, "symmetric (Q=K)": 1.788},
    "BERT small, nats/token": {"separate": 2.196, "pairwise": 2.220, "symmetric (Q=K)": 2.348},
}
SIZES = {
    "full": {"layers": 2, "length": 64, "steps": 1500, "tune_seeds": 3},
    "small": {"layers": 1, "length": 32, "steps": 1000, "tune_seeds": 2},
}


def get_config(size: str = "full") -> ConfigDict:
    sizes = choose(SIZES, size)
    return tree(
        {
            "name": "courtois2024" if size == "full" else f"courtois2024-{size}",
            "question": "What do symmetric scores cost, and does a matrix per head repair it?",
            "arms": {name: {"model": model} for name, model in ARMS.items()},
            "model": {"layers": sizes["layers"]},
            "train": {"steps": sizes["steps"]},
            "tasks": {
                "shakespeare": {
                    "kind": "masked_bytes",
                    "options": {"length": sizes["length"]},
                    "published": PUBLISHED,
                }
            },
            "study": {"protocol": "fixed", "tune_seeds": sizes["tune_seeds"]},
        }
    )
