"""Arora et al. 2023 (Zoology, arXiv 2312.04927): multi-query recall, attention's point of figure 2.

    python -m experiments.ablate --config=configs/papers/arora2023.py --workdir=runs/zoology
    python -m experiments.ablate --config=configs/papers/arora2023.py:small --workdir=runs/recall

Around that point, which is `separate` with one head, stand the classic ties with 1, 2 and 4 heads;
for each number of heads the report draws accuracy against bytes of state a token, the axes that
Zoology's readers know.
As theirs: two layers of width 64 without MLP, learned positions, tied embedding, 8192 tokens, 64
places, 4 pairs, no noise between the queries, 100,000 examples, batches of 512. They choose one of
four rates by the test split, of one seed; here every arm is tuned on validation examples, which are
others. Further deviations: 20 epochs instead of 64, a linear decay instead of a cosine, gradients
clipped at a norm of 1, the optimizer of all studies here (AdamW, weight decay 0.01, beta2 0.98, a
tenth of the steps to warm up), and none of their dropout, 0.1 of the embedding and of attention
weights.

`small`: 64 tokens, 32 places, fresh examples with noise in batches of 64, for two CPU cores: 78
minutes beside other work (34 by `--plan`), 118 runs; the whole, which was not run, takes 41 hours.
On a GPU, by the arithmetic in the README, two minutes and half an hour. Result of `small`, table
in docs/results.md: with four heads of 16 `separate` solves it on one seed of four, K=V, Q=K
and Q=K=V on all; with one head Q=K=V is worse; the other verdicts are open. With the usual MLP and
four heads `separate` still guesses among the four values (0.30) after 4000 steps.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree
from qkv_jax.study.plan import tie_arms

SIZES = {
    "full": {
        "options": {"noise": False},
        "learning_rates": (4.6e-4, 2.2e-3, 1e-2),
        "train": {"batch_size": 512, "steps": 3900, "report_every": 195},
    },
    "small": {
        "options": {"length": 32, "vocabulary": 64, "train_examples": 0},
        "learning_rates": (3e-3, 1e-2),
        "train": {"batch_size": 64, "steps": 2000, "report_every": 200},
    },
}
# Of a public rerun of their code at this point, 20 epochs, one seed, stopped on its test split.
PUBLISHED = {"rerun, 20 epochs, 1 head": {"separate": 0.9917}}


def get_config(size: str = "full") -> ConfigDict:
    of_size = choose(SIZES, size)
    return tree(
        {
            "name": f"arora2023-{size}",
            "question": "Which ties recall what they were shown, and at how many bytes of state?",
            "arms": tie_arms("separate", "Q=K", "K=V", "Q=K=V", "copies"),
            "model": {"mlp": "none", "tied_embedding": True},
            "train": of_size["train"],
            "tasks": {
                "recall": {
                    "kind": "mqar",
                    "options": {"outcome_kind": "mean", **of_size["options"]},
                    "axes": {"model": {"heads": (1, 2, 4)}},
                    "learning_rates": of_size["learning_rates"],
                    "published": PUBLISHED if size == "full" else {},
                }
            },
            "study": {"max_seeds": 4},
        }
    )
