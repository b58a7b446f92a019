"""English verses into Spanish, by an encoder-decoder; docs/tasks.md says where they come from.

    python -m experiments.train --config=configs/translation.py --workdir=runs/verses
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree


def get_config() -> ConfigDict:
    return tree(
        {
            "task": {
                "kind": "translation",
                "options": {"pairs": "data/verses.tsv", "vocabulary": 2048, "length": 48},
            },
            "model": {"layers": 2, "width": 128, "heads": 4, "tie": "separate", "cross_tie": ""},
            "train": {
                "steps": 500,
                "report_every": 100,
                "batch_size": 32,
                "learning_rate": 3e-3,
            },
        }
    )
