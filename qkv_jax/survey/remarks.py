"""What a survey shows, in sentences and in a table: every number comes from its figures, means over
the heads, each with its null behind it."""

import math

import pandas as pd

from qkv_jax.output import formats
from qkv_jax.survey.measure import ALL
from qkv_jax.survey.survey import Survey

# Of the short table: quantity, roles, heading, null.
_TABLE = (
    ("cka", "XQ", "CKA X·Q", "null_random_mean"),
    ("cka", "XK", "CKA X·K", "null_random_mean"),
    ("cka", "XV", "CKA X·V", "null_random_mean"),
    ("cka", "KV", "CKA K·V", "null_random_mean"),
    ("antisymmetric_share", "QK", "anti- symm. QK", "chance"),
    ("copying", "OV", "copy- ing OV", "chance"),
    ("entropy", "QK", "entropy (nats)", "chance"),
    ("diagonal", "QK", "weight on itself", "chance"),
)
_NEARLY = 0.99  # a CKA of which nobody would say that the two differ
HEADINGS = ("layer", *(heading for _, _, heading, _ in _TABLE))
NULLS = (
    "In brackets: for CKA, random projections of the same inputs; for circuits, chance; for "
    "attention, equal weights on all tokens seen."
)


def select(figures: pd.DataFrame, quantity: str, roles: str) -> pd.DataFrame:
    """The figures of one quantity and pair, one row per layer and head."""
    here = (figures["quantity"] == quantity) & (figures["roles"] == roles)
    return figures[here & (figures["head"] != ALL)]


def table(figures: pd.DataFrame) -> list[tuple[str, ...]]:
    """One row per layer: its number, then mean over the heads and null, as "0.52 (0.50)"."""
    rows = []
    for layer in sorted(figures["layer"].unique()):
        cells = [str(layer)]
        for quantity, roles, _, null in _TABLE:
            here = select(figures, quantity, roles)
            here = here[here["layer"] == layer]
            cells.append(f"{number(here['value'].mean())} ({number(here[null].mean())})")
        rows.append(tuple(cells))
    return rows


def remarks(survey: Survey) -> list[str]:
    """The findings, a sentence or two each; the first says whether Q, K and V are copies of X."""
    figures = survey.figures
    untrained = figures["null_untrained"].notna().any()
    lines = [
        _copies(figures), _closest(figures, untrained), _key_and_value(figures, untrained),
        _symmetry(figures), _copying(figures), survey.left_out, _attention(figures, untrained),
        _moved(survey),
    ]  # fmt: skip
    return [line for line in lines if line]


def number(value: float, digits: int = 2) -> str:
    """Two decimals, with a proper minus; a dash for what is not defined."""
    if not math.isfinite(value):
        return "–"
    # Adding 0 takes the sign off a zero.
    return f"{round(value, digits) + 0:.{digits}f}".replace("-", "−")


def _copies(figures) -> str:
    """Whether any role is X, or another role, by construction or in effect."""
    pairs = {pair: _whole(figures, pair) for pair in ("XQ", "XK", "XV", "QK", "QV", "KV")}
    built = [pair for pair, here in pairs.items() if _is_built(here)]
    copied = [pair[1] for pair in built if pair[0] == "X"]
    if len(copied) == 3:
        return "Q, K and V are three copies of X: the model is built so."
    parts = [f"{formats.join(copied)} {'are' if copied[1:] else 'is'} X, as the model is built"]
    parts *= bool(copied)
    parts += [f"{pair[0]} and {pair[1]} are one, as the model is built" for pair in built
              if "X" not in pair and not {*pair} <= {*copied}]  # fmt: skip
    free = {f"X{role}": pairs[f"X{role}"] for role in "QKV" if role not in copied}
    near = [pair[1] for pair, here in free.items() if here["value"].min() > _NEARLY]
    means = [f"{number(here['value'].mean())} for {pair[1]}" for pair, here in free.items()]
    by_chance = number(pd.concat(free.values())["null_random_mean"].mean())
    verdict = f"nearly: {formats.join(near)}" if near else "none"
    others = "others" if copied else "Q, K and V"
    parts.append(
        f"of {others}, copies of X are {verdict} (linear CKA of all heads to X, of a copy 1: "
        f"{', '.join(means)}; random projections of X: {by_chance})"
    )
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _whole(figures: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The CKA of a pair with all heads side by side, a row for each layer."""
    here = (figures["quantity"] == "cka") & (figures["roles"] == pair) & (figures["head"] == ALL)
    return figures[here]


def _is_built(here: pd.DataFrame) -> bool:
    """Whether two clouds are one before training and after it."""
    columns = [here["value"], here["null_untrained"].dropna()]
    return bool(pd.concat(columns).min() > 1 - 1e-6)


def _closest(figures, untrained) -> str:
    means = {role: select(figures, "cka", f"X{role}")["value"].mean() for role in "QKV"}
    order = sorted(means, key=means.get, reverse=True)
    parts = []
    for role in order:
        here = select(figures, "cka", f"X{role}")
        parts.append(f"{role} {number(means[role])} ({_outside(here)})")
    line = f"Linear CKA to X, where random projections of the same X have {_band(here)}"
    if untrained:
        start = [select(figures, "cka", f"X{role}")["null_untrained"].mean() for role in order]
        start = [f"{role} {number(mean)}" for role, mean in zip(order, start, strict=True)]
        line += f" and the untrained model {', '.join(start)}"
    return f"{line}: {'; '.join(parts)}."


def _key_and_value(figures, untrained) -> str:
    cka, shared = select(figures, "cka", "KV"), select(figures, "overlap", "KV")
    if _is_built(_whole(figures, "KV")):
        return ""
    turned = select(figures, "weight_cosine", "KV")
    line = f"K and V: CKA {number(cka['value'].mean())} (random projections {_band(cka)}"
    if untrained:
        line += f", untrained {number(cka['null_untrained'].mean())}"
    low, high = turned["null_rotation_low"], turned["null_rotation_high"]
    inside = ((turned["value"] >= low) & (turned["value"] <= high)).sum()
    return line + (
        f"); overlap of their subspaces {number(shared['value'].mean())} (chance "
        f"{number(shared['chance'].mean())}), of those of Q and K "
        f"{number(select(figures, 'overlap', 'QK')['value'].mean())}. The cosine of the weights "
        f"W_K and W_V is {number(turned['value'].mean(), 3)}; {inside} of {len(turned)} heads are "
        f"within what random bases give ({number(low.mean(), 3)} to {number(high.mean(), 3)})."
    )


def _symmetry(figures) -> str:
    here = select(figures, "antisymmetric_share", "QK")
    return (
        f"QK circuit, antisymmetric share by layer: {_by_layer(here)} (chance "
        f"{number(here['chance'].mean())}; random heads {_range(here)}): {_outside(here)}."
    )


def _copying(figures) -> str:
    here = select(figures, "copying", "OV")
    return (
        f"OV circuit, copying score by layer: {_by_layer(here)} (chance 0; random heads "
        f"{_range(here)}): {_outside(here)}."
    )


def _attention(figures, untrained) -> str:
    parts = []
    names = {"entropy": "entropy {} nats", "diagonal": "weight on itself {}",
             "distance": "distance {} tokens"}  # fmt: skip
    for quantity, text in names.items():
        here = select(figures, quantity, "QK")
        beside = f"equal weights {number(here['chance'].mean())}"
        if untrained:
            beside += f", untrained {number(here['null_untrained'].mean())}"
        parts.append(f"{text.format(number(here['value'].mean()))} ({beside})")
    return f"Attention: {'; '.join(parts)}."


def _moved(survey) -> str:
    if not len(survey.movements):
        return ""
    moved = survey.movements[survey.movements["quantity"] == "movement"]
    steps = moved["step"].unique()
    last = moved[moved["step"] == steps.max()].groupby("roles")["value"].mean()
    parts = [f"{name} by {number(last[name])}" for name in ("W_Q", "W_K", "W_V", "W_O")]
    return (
        f"From step {steps.min()} to {steps.max()} the projections have moved: {', '.join(parts)} "
        "of their first size (a fresh draw: 1.41), mean over the layers."
    )


def _by_layer(here: pd.DataFrame) -> str:
    return ", ".join(map(number, here.groupby("layer")["value"].mean()))


def _band(here: pd.DataFrame) -> str:
    return f"{number(here['null_random_mean'].mean())} [{_range(here)}]"


def _range(here: pd.DataFrame) -> str:
    low, high = here["null_random_low"].mean(), here["null_random_high"].mean()
    digits = 2 if high - low > 0.02 else 3
    return f"{number(low, digits)} to {number(high, digits)}"


def _outside(here: pd.DataFrame) -> str:
    """How many heads leave the range that was named, of what random projections give."""
    above = (here["value"] > here["null_random_high"]).sum()
    below = (here["value"] < here["null_random_low"]).sum()
    return f"{above} of {len(here)} heads above that range, {below} below"
