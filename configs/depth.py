"""Tie only some layers: does it matter where in the depth a tie sits?

    python -m experiments.ablate --config=configs/depth.py --workdir=runs/depth

Four layers on masked bytes; Q=K, K=V and Q=K=V in all of them, in the lower or the upper half, in
every other one, and (as Gemma 4 does with K=V in its global layers) in one of four.

Not run yet. Estimated: 2.9 hours on two CPU cores (`--plan`), 374 runs, 1 PFLOP of matrix products;
by the arithmetic in the README about 5 minutes on a GPU.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import tree

WHERE = {
    "everywhere": "{tie}*4",
    "lower half": "{tie}*2|separate*2",
    "upper half": "separate*2|{tie}*2",
    "every other": "{tie}|separate|{tie}|separate",
    "last": "separate*3|{tie}",
}


def get_config() -> ConfigDict:
    arms: dict[str, dict] = {"separate": {}}
    for tie in ("Q=K", "K=V", "Q=K=V"):
        for where, schedule in WHERE.items():
            arms[f"{tie}, {where}"] = {"model": {"tie": schedule.format(tie=tie)}}
    return tree(
        {
            "name": "depth",
            "arms": arms,
            "model": {"layers": 4, "width": 64, "heads": 4, "positions": "learned"},
            "train": {"batch_size": 32, "report_every": 100, "steps": 1000},
            "tasks": {"shakespeare": {"kind": "masked_bytes", "options": {"length": 64}}},
            "study": {
                "baseline": "separate",
                "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
                "tune_seeds": 4,
                "eval_seeds": 6,
                "match": "none",
                "packing": placeholder(int),
            },
        }
    )
