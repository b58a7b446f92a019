"""Gao & Xu 2026 (Keyless attention, arXiv 2606.21848) and the collapse of its heads on recall.

    python -m experiments.ablate --config=configs/papers/gao2026.py --workdir=runs/keyless

Keyless attention has no key: softmax(X W_Q W_R (X W_V)^T) X W_V, that is K=V with a matrix W_R a
head. Kayyam et al.'s repository reports that on associative recall (two layers, width 128) it stays
at 0.34 to 0.37 with four heads, over three seeds, where it has 1.000 with one head and `separate`
0.9995; W_R was drawn with a deviation of 0.02, at one learning rate. Is that what the function can
express, or where it starts? Here W_R starts at that deviation, at 1/sqrt(H), which is another for
one head of 64 than for four of 16, and at the identity, every arm at rates of its own, beside plain
K=V, which was not run there.

Deviations: width 64, multi-query recall with fresh examples, learned positions, no MLP, and the
optimizer of all studies here: AdamW, weight decay 0.01, beta2 0.98, a tenth of the steps as warmup.

Measured on two CPU cores, other work beside: 59 minutes for 154 runs, stopped in its last look; on
a GPU, by the arithmetic in the README, two minutes. Result: with one head all arms solve it, as
published. With four, seeds that reach 0.99 at the rate in front, 0.003: keyless from 0.02 three of
six, from 1/sqrt(H) five, from the identity six, K=V six, `separate` six of 16. So the function can
do it, also from 0.02; that the other starts do it more often (+0.458 and +0.469 of accuracy) is
undecided. docs/results.md has a table.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

COLLAPSED = "keyless, 0.02"


def keyless(deviation: float) -> dict:
    """Plain K=V with a matrix a head on the keys, drawn with that deviation."""
    return {"tie": "K=V", "adapters": {"key": f"head:{deviation:g}"}}


ARMS = {
    "separate": {},
    "K=V": {"model": {"tie": "K=V"}},
    COLLAPSED: {"model": keyless(0.02)},
    "keyless, 0.125": {"model": keyless(0.125), "against": COLLAPSED},
    "keyless, 0.25": {"model": keyless(0.25), "against": COLLAPSED},
    "keyless, identity": {"model": {"preset": "gao"}, "against": COLLAPSED},
}
SCALED = {"1": "keyless, 0.125", "4": "keyless, 0.25"}  # 1/sqrt(H) of so many heads
PUBLISHED = {
    "1": {"separate": 0.9995, COLLAPSED: 1.0},
    "4": {"separate": 0.9995, COLLAPSED: 0.355},  # 0.34 to 0.37
}


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "gao2026",
            "question": "Keyless heads at recall: do they fail by function or by where they start?",
            "arms": ARMS,
            "model": {"mlp": "none", "tied_embedding": True},
            "train": {"batch_size": 64, "steps": 2000, "report_every": 200},
            "tasks": {
                f"{heads} heads": {
                    "kind": "mqar",
                    "options": {
                        "length": 32, "vocabulary": 64, "train_examples": 0, "outcome_kind": "mean",
                    },
                    "model": {"heads": int(heads)},
                    "arms": tuple(
                        name for name in ARMS
                        if name == SCALED[heads] or name not in SCALED.values()
                    ),
                    "learning_rates": (3e-3, 1e-2),
                    "published": {"Kayyam et al.'s repository": numbers},
                }
                for heads, numbers in PUBLISHED.items()
            },
            "study": {"max_seeds": 8},
        }
    )  # fmt: skip
