"""Is a movie review good or bad? The classic ties on real sentences, beside a bag of words.

    make reviews
    make ablation CONFIG=configs/reviews.py
    python -m experiments.ablate --config=configs/reviews.py --workdir=runs/reviews

10,568 snippets rated by people (Hutto & Gilbert 2014), labelled by the sign of the mean rating and
split 70/10/20 by a fixed seed; byte pairs learned from the training split. Bytes instead, six times
as long: --config.tasks.reviews.options.tokenizer=bytes --config.tasks.reviews.options.length=192.

Estimated: 12 minutes on two CPU cores (`--plan`), 84 runs; by the arithmetic in the README a minute
on a GPU. Result: not run yet; the bag of words (TF-IDF and logistic regression) reaches 0.780 on
the same test split, the larger class 0.504.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "reviews",
            "question": "What do ties cost on real sentences?",
            "arms": tie_arms("separate", "K=V", "Q=K", "Q=K=V", "copies"),
            "model": {"dropout": 0.1},
            "train": {"steps": 600},
            "tasks": {
                "reviews": {
                    "kind": "text_classification",
                    "options": {
                        "files": ("data/reviews.tsv",),
                        "tokenizer": "bpe",
                        "vocabulary": 2048,
                        "length": 64,
                        "margin": 0.025,  # 2114 test texts: a paired error of about 0.01
                    },
                },
            },
            "study": {"protocol": "fixed", "learning_rates": (3e-4, 1e-3, 3e-3, 1e-2)},
        }
    )
