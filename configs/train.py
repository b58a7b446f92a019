"""One run: a two-layer encoder on masked bytes of Shakespeare.

    python -m experiments.train --config=configs/train.py --workdir=runs/kv --config.model.tie=K=V

Measured on two busy CPU cores: 2.4 minutes; on a GPU some six seconds, by the arithmetic in the
README. Result with the tie `separate`: test loss 1.874 nats per byte.

`python -m experiments.train --help` lists the fields of model, training and mesh, all of which
can be given likewise; another task is `--config.task.kind=relation`.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree


def get_config() -> ConfigDict:
    return tree(
        {
            "task": {"kind": "masked_bytes", "options": {"length": 64}},
            "model": {},
            "train": {"learning_rate": 1e-2},
            "mesh": {},
        }
    )
