"""Karbevski & Mijoski 2025 (arXiv 2510.23912): is a query projection needed at all?

    python -m experiments.ablate --config=configs/papers/karbevski2025.py --workdir=runs/no-query

Their W_Q is the identity: a head's query is its share of the normed input (Q=X). They trained a
nanoGPT of 12 layers and width 768 on OpenWebText, one run each, and gave the identity arm alone a
scale of its own, 1 / (2 sqrt(H)), and a smaller weight decay. Their controls have a query of their
own and a smaller MLP, or no query and its parameters in the MLP. "Matches" the baseline, and with
those parameters betters it by 0.35 % of the loss. Here every arm has the same tuning and one
decay, and that scale is an arm of its own.

Deviations: two layers of width 64, bytes of Shakespeare, 800 steps, and the optimizer of all
studies here: AdamW, weight decay 0.01, beta2 0.98, a tenth of the steps to warm up.

Measured on two busy CPU cores: 25 minutes (10 by `--plan`), 84 runs; on a GPU, by the arithmetic in
the README, under one. Result in nats per byte, `separate` 2.207: all three arms that lack a
projection are better: Q=X by 0.092 [0.062, 0.122], at half the scale by 0.057, with a wider MLP by
0.043. A smaller MLP costs nothing visible (-0.003 [-0.033, 0.027]). After so few steps that speaks
of speed: Q=X takes 27 % fewer steps, at a learning rate of 0.01 where `separate` bears 0.003.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

WIDTH, HEADS = 64, 4
ARMS = {
    "separate": {},
    "Q=X": {"model": {"tie": "Q=X"}},
    "Q=X, half scale": {"model": {"tie": "Q=X", "scale": 0.5 * (WIDTH // HEADS) ** -0.5}},
    "Q=X, wider MLP": {
        "model": {"tie": "Q=X"}, "match": "params", "note": "has the query's parameters in its MLP",
    },
    # W_Q has as many weights as half a MLP of width d: 2 d (4 d - w) = d^2.
    "separate, smaller MLP": {
        "model": {"mlp_width": 4 * WIDTH - WIDTH // 2}, "role": "control",
        "note": "as many parameters as Q=X",
    },
}  # fmt: skip


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "karbevski2025",
            "question": "Is a query projection needed at all?",
            "arms": ARMS,
            "model": {"tied_embedding": True},
            "train": {"batch_size": 16, "steps": 800, "report_every": 80},
            "tasks": {
                "shakespeare": {
                    "kind": "causal_bytes",
                    "options": {"test_examples": 1024},
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                }
            },
        }
    )
