"""Does tying Q, K and V cost a decoder what it costs an encoder, and what does the saved cache buy?

    python -m experiments.ablate --config=configs/decoders.py --workdir=runs/decoders

A small modern decoder (rotary, RMS norm, SwiGLU, tied embedding) reads Shakespeare byte by byte,
and looks up values by keys (multi-query recall, fresh examples). Beside the classic ties stand both
exact ways to keep one tensor for keys and values under rotary positions, fewer key/value heads,
which save cache as K=V does, and XSA, which takes the own value from an output. The report draws
quality against bytes of state a token.

Measured on two busy CPU cores: 44 minutes (26 by `--plan`), 222 runs; on a GPU, by the arithmetic
in the README, two and a half. Result in docs/results.md: on text `Q=K=V`, `copies` and one head of
K=V are worse; K=V is 0.048 nats per byte behind where keys are rotated on reading, and 0.013 ahead
where the rotated key is the value as well, both undecided after six seeds.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

ARMS = {
    "separate": {},
    "K=V": {"tie": "K=V"},
    "K=V, rotated": {"tie": "K=V", "scheme": "rotated"},
    "Q=K": {"tie": "Q=K"},
    "Q=K, XSA": {"tie": "Q=K", "scheme": "exclusive"},
    "Q=K=V": {"tie": "Q=K=V"},
    "copies": {"tie": "copies"},
    "2 heads": {"kv_heads": 2},
    "1 head": {"kv_heads": 1},
    "1 head, K=V": {"tie": "K=V", "kv_heads": 1},
}


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "decoders",
            "question": "Does tying Q, K and V cost a decoder what it costs an encoder?",
            "arms": {name: {"model": model} for name, model in ARMS.items()},
            "model": {
                "positions": "rotary", "norm": "rms",
                "mlp": "swiglu", "tied_embedding": True,
            },
            "tasks": {
                "shakespeare": {
                    "kind": "causal_bytes",
                    "options": {"length": 64, "test_examples": 1024, "margin": 0.02},
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                    "train": {"steps": 800, "report_every": 80, "batch_size": 16},
                },
                "recall": {
                    "kind": "mqar",
                    # Wider heads and no MLP: with four heads of 16, or an MLP, `separate` still
                    # guesses among the values that it sees after these steps.
                    "model": {"heads": 2, "mlp": "none"},
                    "arms": tuple(name for name in ARMS if name != "2 heads"),
                    "options": {
                        "length": 32, "pairs": 4, "vocabulary": 64, "train_examples": 0,
                        "outcome_kind": "mean",
                    },
                    "learning_rates": (3e-3, 1e-2),
                    "train": {"steps": 1500},
                },
            },
            "study": {"max_seeds": 6},
        }
    )  # fmt: skip
