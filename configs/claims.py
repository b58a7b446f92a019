"""The usual answer, claim by claim: what is learned, and does it matter?

    make claims
    python -m experiments.ablate --config=configs/claims.py --workdir=runs/claims

Seven claims, each with the evidence that tests it and the rules for its verdict (see
`qkv_jax/study/claims.py`), stated here before any run. `:large` has larger models, longer budgets
and ten seeds.

Measured on two CPU cores that had other work as well: 29 minutes, 51 of CPU time, 1702 runs (73
minutes when all other work went first); 23.5 minutes by `--plan` (grids that were extended at an
edge come on top). `large`, not run: 65 hours by `--plan`, 2034 runs, 23 PFLOP of matrix products.
On a GPU, by the arithmetic in the README, 9 minutes and about an hour.

Result. Supported: that separate projections let query and key play different parts, on the one kind
of task that tests it; that dividing by √d_k matters; that distinct projections are worth their
parameters. The first depends on what is asked, the others are undecided, mostly since tasks are at
their ceiling (docs/results.md has the ledger).
"""

from ml_collections import ConfigDict

from qkv_jax.config_files import choose, tree
from qkv_jax.study.plan import tie_arms

ARMS = {
    **tie_arms("separate", "K=V", "Q=K", "V=X", "copies"),
    # What might repair Q=K, and what cannot: these leave its scores symmetric.
    "Q=K + head": {"model": {"preset": "courtois"}},
    "Q=K + diag": {"model": {"tie": "Q=K", "adapters": {"query": "diag"}}, "role": "control"},
    "Q=K, normed": {"model": {"tie": "Q=K", "qk_norm": True}, "role": "control"},
    "Q=K, rotary": {"model": {"tie": "Q=K", "positions": "rotary"}, "role": "control"},
    # What else might keep copies and V=X from doing well.
    "copies, learned scale": {
        "model": {"tie": "copies", "scale": "learned_per_head"},
        "role": "control",
    },
    "copies, no W_O": {"model": {"tie": "copies", "output_projection": False}, "role": "control"},
    "V=X, no W_O": {"model": {"tie": "V=X", "output_projection": False}, "role": "control"},
    # Random projections that never learn.
    "Q frozen": {"model": {"frozen": ("query",)}},
    "K frozen": {"model": {"frozen": ("key",)}},
    "V frozen": {"model": {"frozen": ("value",)}},
    "all frozen": {"model": {"frozen": ("query", "key", "value")}},
    "no scaling": {"model": {"scale": 1.0}},
}
# Widening the MLP of K=V or Q=K to the baseline's parameters gives its FLOPs as well (to 0.2 %).
MATCHED = {
    f"{tie}, {what} matched": {"model": {"tie": tie}, "match": what, "role": "control"}
    for tie, what in (("K=V", "params"), ("Q=K", "params"), ("copies", "params"),
                      ("copies", "flops"))
}  # fmt: skip
FROZEN = ("Q frozen", "K frozen", "V frozen", "all frozen")
CONTROLS = ("copies, learned scale", "copies, no W_O", "V=X, no W_O")
TIED = ("K=V", "Q=K", "copies")
# A claim stands if it is shown to hold on two thirds of the kinds of task that it is tested on and
# to fail on none, and falls the other way round.
ENOUGH = 2 / 3

SIZES = {
    "small": {
        "width": 32,
        "names": (16, 32, 256),
        "scale_heads": (1, 8),
        "budgets": (200, 600),
        "steps": {"relation": 400, "bytes": 500},
        "seeds": 6,
    },
    "large": {
        "width": 128,
        "names": (16, 256, 4096),
        "scale_heads": (1, 4, 16),
        "budgets": (1000, 10_000),
        "steps": {"relation": 4000, "bytes": 10_000},
        "seeds": 10,
    },
}


def get_config(size: str = "small") -> ConfigDict:
    sizes = choose(SIZES, size)
    short, long = sizes["budgets"]
    by_place = {"length": 24, "max_distance": 8, "queries": 8, "outcome_kind": "mean"}
    relation = {"length": 16, "names": 64, "outcome_kind": "mean"}
    grid = {"model": {"layers": (1, 2)}, "train": {"steps": (short, long)}}
    return tree(
        {
            "name": f"claims-{size}",
            "question": "Seven common claims about Q, K and V: which hold?",
            "arms": ARMS | MATCHED,
            "model": {"layers": 1, "width": sizes["width"], "heads": 2},
            "tasks": {
                "place": {
                    "kind": "retrieval",
                    "options": {"by": "place", **by_place},
                    "arms": ("separate", *TIED),
                    "model": {"positions": "rotary"},
                    "axes": grid,
                },
                "either side": {
                    "kind": "retrieval",
                    "options": {"by": "place_either", **by_place},
                    "arms": ("separate", "Q=K"),
                    "model": {"positions": "rotary"},
                    "train": {"steps": long},
                },
                "content": {
                    "kind": "retrieval",
                    "options": {"by": "content", **by_place},
                    "arms": ("separate", *TIED),
                    "axes": grid,
                },
                "recall": {
                    "kind": "recall",
                    "options": {"form": "joint", "values": 16, "outcome_kind": "mean"},
                    "arms": ("separate", *TIED),
                    "train": {"steps": long},
                },
                "directed": {
                    "kind": "relation",
                    "options": relation,
                    "arms": (*[a for a in ARMS if a != "no scaling"], *MATCHED),
                    "train": {"steps": sizes["steps"]["relation"]},
                },
                "undirected": {
                    "kind": "relation",
                    "options": relation | {"ask": "either"},
                    "arms": ("separate", "Q=K", "Q=K + head", "copies"),
                    "train": {"steps": sizes["steps"]["relation"]},
                },
                "names": {
                    "kind": "relation",
                    "options": {"length": 16, "outcome_kind": "mean"},
                    "arms": ("separate", "Q=K", "Q=K + head"),
                    "train": {"steps": sizes["steps"]["relation"]},
                    "axes": {"options": {"names": sizes["names"]}},
                },
                "scaling": {
                    "kind": "relation",
                    "options": relation,
                    "arms": ("separate", "no scaling"),
                    "model": {"width": 64},
                    "train": {"steps": sizes["steps"]["relation"]},
                    "axes": {"model": {"heads": sizes["scale_heads"]}},
                },
                "bytes": {
                    "kind": "masked_bytes",
                    "options": {"length": 32},
                    "arms": ("separate", "K=V", "Q=K", "V=X", "copies", *CONTROLS, *FROZEN,
                             "no scaling", *MATCHED),  # fmt: skip
                    "model": {"width": 2 * sizes["width"], "heads": 4},
                    "train": {"steps": sizes["steps"]["bytes"]},
                },
            },
            "study": {"protocol": "fixed", "eval_seeds": sizes["seeds"]},
            "claims": claims(sizes),
        }
    )


def claims(sizes: dict) -> dict:
    """The seven claims. Evidence is named by what a verdict would depend on; a kind of task is an
    entry of `tasks`, but for relations with other numbers of names or heads, which are one."""
    short, long = sizes["budgets"]
    cell = lambda task, layers, steps: f"{task}, layers={layers}, steps={steps}"
    worse = lambda task, arm, **more: {"task": task, "arm": arm, "expect": "worse", **more}
    solves = lambda task: {
        "task": task, "arm": "separate", "level": 0.9, "expect": "above", "control": True,
    }  # fmt: skip
    model = lambda task, measure, expect, margin, **more: {
        "task": task, "arm": "separate", "measure": measure, "expect": expect, "margin": margin,
        **more,
    }  # fmt: skip
    both = {"directed relation": "directed", "masked bytes": "bytes"}
    distant = {
        f"{kind}, {layers} layer{'s' * (layers > 1)}, {steps} steps": cell(task, layers, steps)
        for kind, task in (("by place", "place"), ("by content", "content"))
        for layers in (1, 2)
        for steps in (short, long)
    }
    named = {f"{n} names": f"names, names={n}" for n in sizes["names"]}
    heads = {f"heads of width {64 // n}": f"scaling, heads={n}" for n in sizes["scale_heads"]}
    found = {
        "1": {
            "text": "Q, K and V are not exact copies of the input.",
            "evidence": {
                **{f"copies do worse: {on}": worse(task, "copies")
                   for on, task in (both | {"undirected relation": "undirected",
                                            "by place": cell("place", 1, long),
                                            "by content": cell("content", 1, long),
                                            "recall": "recall"}).items()},
                **{f"{arm} do worse: {on}": worse(task, arm)
                   for arm in ("copies, learned scale", "copies, no W_O")
                   for on, task in both.items()},
                # Random projections are no copies either: do those that learn leave X behind?
                **{f"trained roles are less like X than random ones: {on}":
                   model(task, "nearest copy", "below", 0.1, against="all frozen")
                   for on, task in both.items()},
            },
        },
        "2": {
            "text": "They are learned projections: weights start random and are optimised in "
            "training to capture the task.",
            "evidence": {
                # A control: weights that never move refute the claim, but any that are trained do,
                # and the null that somebody holds is that frozen ones are as good.
                **{f"control: all three weights move: {on}":
                   model(task, "least movement", "above", 0.1, null=0.0, control=True)
                   for on, task in both.items()},
                **{f"{arm} does worse: {on}": worse(task, arm)
                   for arm in FROZEN for on, task in both.items()},
            },
        },
        "3": {
            "text": "Separate projections let a token's query and key play different parts "
            "(subject and object).",
            "evidence": {
                "separate solves directed relation": solves("directed"),
                "separate solves undirected relation": solves("undirected"),
                **{f"control: {arm} stays worse": worse("directed", arm, control=True)
                   for arm in ("Q=K + diag", "Q=K, normed", "Q=K, rotary")},
                "Q=K does worse: 64 names": worse("directed", "Q=K"),
                **{f"Q=K does worse: {on}": worse(task, "Q=K", kind="directed")
                   for on, task in named.items()},
                "it costs more with direction than without":
                    worse("directed", "Q=K", minus_task="undirected"),
                "a matrix a head repairs it: 64 names":
                    worse("directed", "Q=K", against="Q=K + head"),
                "a matrix a head repairs it: most names":
                    worse(list(named.values())[-1], "Q=K", against="Q=K + head", kind="directed"),
                # Controls: an untrained circuit is not symmetric either, so that this must hold if
                # the claim does, but is no evidence for it.
                **{f"control: the trained QK circuit is not symmetric: {on}":
                   model(task, "antisymmetry", "above", 0.05, null=0.0, control=True)
                   for on, task in both.items()},
            },
        },
        "4": {
            "text": "The value carries the information that is aggregated, and is distinct from "
            "the key.",
            "evidence": {
                **{f"K=V does worse: {on}": worse(task, "K=V")
                   for on, task in (both | {"by place": cell("place", 1, long),
                                            "by content": cell("content", 1, long),
                                            "recall": "recall"}).items()},
                **{f"{arm} does worse: {on}": worse(task, arm)
                   for arm in ("V=X", "V=X, no W_O") for on, task in both.items()},
                # Of random projections as well, keys are unlike values.
                **{f"trained values are less like keys than random ones: {on}":
                   model(task, "key-value similarity", "below", 0.1, against="all frozen")
                   for on, task in both.items()},
                **{f"training takes key and value weights apart: {on}":
                   model(task, "key-value overlap", "below", 0.02)
                   for on, task in both.items()},
            },
        },
        "5": {
            "text": "Dividing by √d_k matters.",
            "evidence": {
                **{f"relation, {on}": worse(task, "no scaling", kind="directed")
                   for on, task in heads.items()},
                "masked bytes, heads of width 16": worse("bytes", "no scaling"),
            },
        },
        "6": {
            "text": "Without distinct projections the model loses complex relationships, "
            "dependencies between distant tokens above all.",
            "evidence": {
                "separate retrieves by place": solves(cell("place", 1, long)),
                "separate retrieves by content": solves(cell("content", 1, long)),
                "separate recalls": solves("recall"),
                **{f"{arm} does worse: {on}": worse(task, arm)
                   for arm in TIED for on, task in distant.items()},
                **{f"{arm} does worse: recall": worse("recall", arm) for arm in TIED},
                **{f"{arm} loses more at distances 7 and 8 than at 1 and 2: {on}":
                   worse(cell(task, 1, long), arm, near=2, far=7)
                   for arm in TIED for on, task in (("by place", "place"),
                                                    ("by content", "content"))},
                "Q=K loses more to the left than at either side":
                    worse(cell("place", 1, long), "Q=K", minus_task="either side"),
            },
        },
        "7": {
            "text": "Distinct projections allow flexibility that is worth its parameters.",
            "evidence": {
                f"{arm} does worse: {on}": worse(task, arm)
                for arm in MATCHED for on, task in both.items()
            },
        },
    }  # fmt: skip
    return {key: claim | {"enough": ENOUGH} for key, claim in found.items()}
