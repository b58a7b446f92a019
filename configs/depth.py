"""Tie only some layers: does it matter where in the depth a tie sits?

    python -m experiments.ablate --config=configs/depth.py --workdir=runs/depth
    python -m experiments.ablate --config=configs/depth.py:small --workdir=runs/depth-small

Four layers on masked bytes; Q=K, K=V and Q=K=V in all of them, in the lower or the upper half, in
every other one, and (as Gemma 4 does with K=V in its global layers) in one of four.

`small` (fewer ties and places, width 32, 32 bytes, 500 steps), measured on two CPU cores, not idle:
6.9 minutes, 112 runs. Not run whole: 2.9 hours by `--plan`, 374 runs, 1 PFLOP of matrix products.
On a GPU, by the arithmetic in the README, under a minute and about 4 minutes.

Result of `small`, nats per byte, `separate` 2.739 (far from converged at width 32 and 500 steps):
K=V costs +0.153 [0.083, 0.224] everywhere and +0.206 [0.116, 0.297] in the lower half alone, both
worse, and -0.018 [-0.076, 0.041] in the upper half, undecided: here the lower layers want values of
their own. Q=K is undecided wherever it is (-0.042 [-0.073, -0.010] everywhere).
Verdicts here are by the rule before the present one (docs/results.md).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree

WHERE = {
    "everywhere": "{tie}*4",
    "lower half": "{tie}*2|separate*2",
    "upper half": "separate*2|{tie}*2",
    "every other": "{tie}|separate|{tie}|separate",
    "last": "separate*3|{tie}",
}
SIZES = {
    "full": {
        "ties": ("Q=K", "K=V", "Q=K=V"), "where": tuple(WHERE), "width": 64, "heads": 4,
        "length": 64, "steps": 1000, "tune_seeds": 4,
    },
    "small": {
        "ties": ("Q=K", "K=V"), "where": ("everywhere", "lower half", "upper half"), "width": 32,
        "heads": 2, "length": 32, "steps": 500, "tune_seeds": 2,
    },
}  # fmt: skip


def get_config(size: str = "full") -> ConfigDict:
    sizes = choose(SIZES, size)
    arms: dict[str, dict] = {"separate": {}}
    for tie in sizes["ties"]:
        for where in sizes["where"]:
            arms[f"{tie}, {where}"] = {"model": {"tie": WHERE[where].format(tie=tie)}}
    model = {"layers": 4, "width": sizes["width"], "heads": sizes["heads"]}
    options = {"length": sizes["length"]}
    return tree(
        {
            "name": "depth" if size == "full" else f"depth-{size}",
            "question": "Does it matter which layers are tied?",
            "arms": arms,
            "model": model,
            "train": {"steps": sizes["steps"]},
            "tasks": {"shakespeare": {"kind": "masked_bytes", "options": options}},
            "study": {"protocol": "fixed", "tune_seeds": sizes["tune_seeds"]},
        }
    )
