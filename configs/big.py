"""Encoders that fill a slice of accelerators, on masked bytes: about 100 million, 1 billion and
7 billion parameters.

    python -m experiments.train --config=configs/big.py:1b --compile_only=v5e:8x8
    python -m experiments.train --config=configs/big.py:7b --workdir=runs/7b --distributed

Not trained: no accelerator was at hand. docs/compile_only.md says where each fits, and what its
compiler makes of it.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree

# Layers, width, heads (64 or 128 wide), and what the backward pass computes again: the products of
# the larger ones do not fit on one host's chips.
SIZES = {
    "100m": (14, 768, 12, "dots"),
    "1b": (20, 2048, 16, "block"),
    "7b": (34, 4096, 32, "block"),
}
MESHES = {
    "100m": {"data": -1, "fsdp": 1, "tensor": 1},
    "1b": {"data": -1, "fsdp": 8, "tensor": 1},
    "7b": {"data": 1, "fsdp": -1, "tensor": 1},
}


def get_config(size: str = "100m") -> ConfigDict:
    layers, width, heads, remat = choose(SIZES, size)
    return tree(
        {
            "task": {"kind": "masked_bytes", "options": {"length": 1024}},
            "model": {
                "layers": layers,
                "width": width,
                "heads": heads,
                "dtype": "bfloat16",
                "positions": "rotary",
                "remat": remat,
                "scan_layers": True,
            },
            "train": {
                "steps": 100_000,
                "batch_size": 256,
                "learning_rate": 3e-4,
                "warmup": 0.02,
            },
            "mesh": MESHES[size],
        }
    )
