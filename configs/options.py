"""Every option of the encoder, one arm each, on one small task: that all of them run. Its numbers
mean little: a task this easy tells few options apart.

    python -m experiments.ablate --config=configs/options.py --workdir=runs/options

Measured on two busy CPU cores: 3.2 minutes (2 by `--plan`); as much on a GPU, which compiles 24
programs no faster. Result: all of them run; in 100 steps none to all of 6 seeds solve the task. The
tests run every option in five arms.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

OPTIONS = {
    "courtois": {"preset": "courtois"},
    "gao": {"preset": "gao"},
    "kowsher": {"preset": "kowsher"},
    "Q=K, low rank": {"tie": "Q=K", "adapters": {"query": "lowrank:2"}},
    "latent": {"latent_dim": 4},
    "latent, K=V": {"tie": "K=V", "latent_dim": 4},
    "latent, frozen": {"latent_dim": 4, "latent_kind": "frozen"},
    "latent, a slice": {"latent_dim": 4, "latent_kind": "slice"},
    "latent, rotary apart": {
        "scheme": "mla", "latent_dim": 4, "positions": "rotary", "rotary_dims": 2,
    },
    "grouped tied": {"tie": "K=V", "scheme": "grouped_tied", "positions": "rotary"},
    "shared, low rank": {"scheme": "low_rank", "kv_heads": 1, "latent_dim": 4},
    "K=V, rotated": {"tie": "K=V", "scheme": "rotated", "positions": "rotary"},
    "Q=K, exclusive": {"tie": "Q=K", "scheme": "exclusive"},
    "grouped": {"kv_heads": 1},
    "sinusoidal": {"positions": "sinusoidal"},
    "rotary": {"positions": "rotary"},
    "rotary, in part": {"positions": "rotary", "rotary_dims": 2, "rotary_base": 100.0},
    "window": {"window": 4},
    "relative": {"positions": "relative"},
    "ALiBi": {"positions": "alibi"},
    "no positions": {"positions": "none"},
    "Q=K, 2D positions": {"tie": "Q=K", "positions_2d": True},
    "query and key norm": {"qk_norm": True},
    "Q=K, diagonal mask": {"tie": "Q=K", "diagonal_mask": True},
    "bias": {"use_bias": True},
    "post-norm": {"norm_position": "post"},
    "RMS norm": {"norm": "rms"},
    "SwiGLU": {"mlp": "swiglu"},
    "value residual": {"layers": 2, "value_residual": True},
    "no MLP": {"mlp": "none"},
    "tied embedding": {"tied_embedding": True},
    "bfloat16": {"dtype": "bfloat16"},
    "learned scale": {"scale": "learned_per_head"},
    "no output projection": {"output_projection": False},
    "frozen Q, K": {"frozen": ("query", "key")},
}  # fmt: skip


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "options",
            "question": "Does every option of the model run?",
            "model": {"layers": 1, "width": 16, "heads": 2},
            "train": {"steps": 100, "report_every": 50, "batch_size": 16},
            "arms": {"separate": {}} | {name: {"model": model} for name, model in OPTIONS.items()},
            "tasks": {"reverse": {"kind": "reverse", "options": {"length": 8}}},
            "study": {"protocol": "fixed", "learning_rates": (3e-3, 1e-2, 3e-2), "tune_seeds": 1},
        }
    )
