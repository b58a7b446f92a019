"""What does taking the own value from the output (XSA) do for Q=K, and why?

    python -m experiments.ablate --config=configs/exclusive.py --workdir=runs/exclusive

On directed relation Q=K fails: its score of a pair is the same from both ends, and a token's score
with itself, |k|², is hard to beat. XSA (`qkv_jax/model/schemes/exclusive.py`) leaves the scores as
they are and takes from each output its part along the token's own value. If what it repairs is the
weight that a token gives itself, then a mask that forbids that weight does as much.

Measured on two busy CPU cores: 12.5 minutes, 222 runs; on a GPU about a minute, by the
arithmetic in the README. Result: XSA repairs two thirds of what Q=K lacks with 64 names (0.464,
with it 0.809, of 1.000) and an eighth with 1024; the mask does about as much (0.736; with 1024
names more). docs/results.md has the table.
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import tree

XSA, MASK = {"scheme": "exclusive"}, {"diagonal_mask": True}
ARMS = {
    "separate": {},
    "Q=K": {"model": {"tie": "Q=K"}},
    "Q=K, XSA": {"model": {"tie": "Q=K", **XSA}, "against": "Q=K"},
    "Q=K, no diagonal": {"model": {"tie": "Q=K", **MASK}, "against": "Q=K, XSA"},
    "XSA": {"model": XSA},
    "no diagonal": {"model": MASK},
}


def get_config() -> ConfigDict:
    return tree(
        {
            "name": "exclusive",
            "question": "Does taking the own value from the output repair Q=K?",
            "arms": ARMS,
            "model": {"layers": 1, "width": 32, "heads": 2},
            "tasks": {
                "relation": {
                    "kind": "relation",
                    "options": {"length": 16, "outcome_kind": "mean", "margin": 0.02},
                    "axes": {"options": {"names": (64, 1024)}},
                    "learning_rates": (3e-3, 1e-2, 3e-2),
                    "train": {"steps": 400, "report_every": 50},
                },
            },
        }
    )
