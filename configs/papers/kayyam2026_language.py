"""Kayyam, Madan Gopal and Lewis 2026 (arXiv 2606.04032): the language models, scaled down.

    python -m experiments.ablate --config=configs/papers/kayyam2026_language.py --workdir=runs/gpt

Their table of perplexities, whose logarithms stand beside our losses: 300 million parameters (20
layers, width 1024, 16 heads, learned positions, dropout 0.1) on SlimPajama, one seed, all arms at
one rate, padding counted among the tokens. Deviations: nats per byte of Shakespeare, two layers of
width 64, eight heads, so that GQA has two heads of keys and values, a quarter of them, as theirs
has; no dropout, since a run reads a quarter of the text; weight decay 0.01 (theirs 0.1), beta2 0.98
(0.95), a rate that falls to zero (to a tenth). Theirs are nats per token of several letters:
compare signs, and K=V with MQA: which is the cheaper way to less cache?

On two busy CPU cores 63 minutes for 116 runs, at which it was stopped, with eight seeds of most
arms; on a GPU, by the arithmetic in the README, one. Decided are Q=K=V and MQA with K=V: worse. All
means have the published sign: K=V +0.046 nats per byte, MQA +0.112, and of what takes 128 bytes of
state a token GQA with K=V has the lower mean, +0.064. docs/results.md has a table.

A first version read byte pairs, with dropout, for 800 steps. No model of it came below the loss of
bigrams (3.54 nats per pair; `separate` 3.91), and every arm was better than `separate`, which says
how soon pairs are learned and nothing of attention; the budget was chosen anew, by `separate`
alone.
"""

import math

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

ARMS = {
    "separate": {},
    "K=V": {"tie": "K=V"},
    "Q=K": {"tie": "Q=K"},
    "Q=K=V": {"tie": "Q=K=V"},
    "GQA": {"kv_heads": 2},
    "MQA": {"kv_heads": 1},
    "GQA, K=V": {"tie": "K=V", "kv_heads": 2},
    "MQA, K=V": {"tie": "K=V", "kv_heads": 1},
}
PERPLEXITY = (5.11, 5.27, 5.36, 6.41, 5.15, 5.19, 5.32, 5.36)
LOSS = {name: round(math.log(value), 3) for name, value in zip(ARMS, PERPLEXITY, strict=True)}


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "kayyam2026-language",
            "question": "Which costs less for a smaller cache: K=V, or fewer heads?",
            "arms": {name: {"model": model} for name, model in ARMS.items()},
            "model": {"heads": 8, "tied_embedding": True},
            "train": {"batch_size": 16, "steps": 1200, "report_every": 120, "decay": "cosine"},
            "tasks": {
                "shakespeare": {
                    "kind": "causal_bytes",
                    "options": {"test_examples": 1024},
                    "learning_rates": (3e-3, 1e-2),
                    "published": {"Kayyam et al. 2026, 300M, other text": LOSS},
                }
            },
            "study": {"max_seeds": 12},
        }
    )
