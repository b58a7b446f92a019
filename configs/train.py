"""One run: a two-layer encoder on masked bytes of Shakespeare.

    python -m experiments.train --config=configs/train.py --workdir=runs/one --config.model.tie=K=V

Measured on two busy CPU cores: 2.4 minutes; on a GPU some six seconds, by the arithmetic in the
README. Result with the tie `separate`: test loss 1.874 nats per byte.

Every option of the encoder is a field below. Another task has other options: copy this file.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from configs import tree


def get_config() -> ConfigDict:
    return tree(
        {
            "task": {"kind": "masked_bytes", "options": {"length": 64, "files": ()}},
            "model": {
                "tie": "separate",
                "preset": "",
                "adapters": {"query": "", "key": "", "value": ""},
                "layers": 2,
                "width": 64,
                "heads": 4,
                "kv_heads": placeholder(int),
                "head_dim": placeholder(int),
                "mlp_width": placeholder(int),
                "latent_dim": placeholder(int),
                "positions": "learned",
                "positions_2d": False,
                "qk_norm": False,
                "diagonal_mask": False,
                "scale": "sqrt",
                "frozen": (),
                "output_projection": True,
                "use_bias": False,
                "mlp": "gelu",
                "norm": "layer",
                "norm_position": "pre",
                "dropout": 0.0,
                "dtype": "float32",
                "implementation": "auto",
                "remat": "none",
                "scan_layers": False,
            },
            "train": {
                "steps": 1000,
                "report_every": 100,
                "batch_size": 32,
                "accumulate": 1,
                "learning_rate": 1e-2,
                "warmup": 0.1,
                "decay": "linear",
                "weight_decay": 0.01,
            },
            # Devices along each axis; with none given, one device.
            "mesh": {
                "data": placeholder(int),
                "fsdp": placeholder(int),
                "tensor": placeholder(int),
                # A name, or pairs (pattern, spec), see qkv_jax/training/rules.py.
                "rules": FieldReference("megatron", field_type=object),
                "by": "jit",
            },
            "seed": 0,
            "checkpoint_steps": (),
            "checkpoint_every": 0,
            "checkpoints_kept": 3,
        }
    )
