"""What each step shows of a walk: its arrays, and a line or two with a sum written out."""

import numpy as np

from qkv_jax.explain.panels import (
    TERMS,
    Panel,
    counted,
    head_columns,
    is_input,
    named,
    number,
    pairs,
    products,
    shown,
    signed,
    subscripted,
    token_rows,
)
from qkv_jax.explain.walk import Trace
from qkv_jax.output import formats

Shown = tuple[list[Panel], list[str]]
_SMALL = 12  # tokens up to which their weights are shown whole everywhere


def of_input(walk: Trace) -> Shown:
    """Embeddings, positions, and X."""
    rows, columns = token_rows(walk), counted(walk.x.shape[1])
    panels = []
    if walk.embedded is not None and not np.array_equal(walk.embedded, walk.x):
        places = not np.array_equal(walk.embedded, walk.placed)
        scale = "E and P" if places else "E"
        panels.append(Panel("E embeddings", walk.embedded, rows, columns, scale=scale))
        if places:
            panels.append(
                Panel("P positions", walk.placed - walk.embedded, rows, columns, scale="E and P")
            )
    return [*panels, Panel("X", walk.x, rows, columns, scale="X")], [
        f"Tokens: {'  '.join(walk.tokens)}"
    ]


def of_matrices(walk: Trace) -> Shown:
    """The matrices that the tie leaves, each once."""
    width = walk.x.shape[1]
    names = {"W_Q": walk.layer.query, "W_K": walk.layer.key, "W_V": walk.layer.value}
    panels, lines, joined = [], [], {}
    for name, matrix in names.items():
        if is_input(walk, name[-1]):
            lines.append(f"No {name}: {name[-1]} is X itself, cut into heads.")
        else:
            twin = next((k for k, (_, m) in joined.items() if np.array_equal(m, matrix)), name)
            joined[twin] = (joined.get(twin, ([], None))[0] + [name], matrix)
    rows = counted(width)
    for shared, matrix in joined.values():
        flat = matrix.reshape(width, -1)
        title = f"{' = '.join(shared)} [{width} × {flat.shape[1]}]"
        panels.append(Panel(title, flat, rows, head_columns(*matrix.shape[1:])))
    lines += _made_of(walk)
    biases = [walk.layer.query_bias, walk.layer.key_bias, walk.layer.value_bias]
    if any(bias.any() for bias in biases):
        lines.append("A bias is added to each projection as well.")
    return panels, lines


def _made_of(walk: Trace) -> list[str]:
    """What the matrices shown are products or repetitions of."""
    config, lines = walk.config, []
    if walk.adapters:
        given = " and ".join(f"{spec} on the {role}" for role, spec in walk.adapters.items())
        lines.append(f"Multiplied in: the adapter{'s' * (len(walk.adapters) > 1)} {given}.")
    if config.latent_dim:
        lines.append(f"W_K and W_V lead through {config.latent_dim} numbers that they share.")
    if config.kv_heads and config.kv_heads < config.heads:
        lines.append(
            f"Keys and values have {config.kv_heads} head{'s' * (config.kv_heads > 1)}, repeated "
            f"here for the {config.heads} heads of the queries."
        )
    return lines


def usual_scale(walk: Trace) -> bool:
    """Whether every head divides by the root of its width."""
    return bool(np.allclose(walk.scale, walk.query.shape[2] ** -0.5))


def seen_by_scores(walk: Trace) -> tuple[str, str]:
    """What a query and a key are called once norm or rotation has changed them."""
    return ("q̃", "k̃") if walk.between else ("q", "k")


def of_projections(walk: Trace) -> Shown:
    """Q, K and V of every head."""
    rows, columns = token_rows(walk), counted(walk.query.shape[2])
    panels = [
        Panel(f"{role} (head {head + 1})", array[:, head], rows, columns, head=head)
        for head in range(walk.query.shape[1])
        for role, array in zip("QKV", walk.projected, strict=True)
    ]
    i = shown(walk)
    if is_input(walk, "Q"):
        return panels, [f"{subscripted('q', i)} = {subscripted('x', i)}, cut into heads"]
    name, column = subscripted("q", i), walk.layer.query[:, 0, 0]
    total = walk.projected.query[i, 0, 0]
    bias = walk.layer.query_bias[0, 0]
    return panels, [f"{name}[1] = {products(walk.x[i], column, bias)} = {number(total)}  (head 1)"]


def of_turned(walk: Trace) -> Shown:
    """Queries and keys after norm and rotation."""
    rows, columns = token_rows(walk), counted(walk.query.shape[2])
    if not walk.between:
        return [], ["Nothing between: the scores see Q and K as they are."]
    panels = [
        Panel(f"{role} (head {head + 1})", array[:, head], rows, columns, head=head)
        for head in range(walk.query.shape[1])
        for role, array in (("Q̃", walk.query), ("K̃", walk.key))
    ]
    return panels, []


def of_scores(walk: Trace) -> Shown:
    """q_i . k_j."""
    i, (q, k) = shown(walk), seen_by_scores(walk)
    written = products(walk.query[i, 0], walk.key[0, 0])
    line = (
        f"{subscripted(q, i)}·{subscripted(k, 0)} = {written} = "
        f"{number(walk.scores[0, i, 0])}  (head 1: {named(walk, i)} looks at {named(walk, 0)})"
    )
    return pairs(walk, "S", walk.scores), [line]


def of_scaled(walk: Trace) -> Shown:
    """Scaled scores, and the bias that is in them."""
    i, panels = shown(walk), []
    for head in range(len(walk.scaled)):
        for title, array in (("bias", walk.bias), ("scaled", walk.scaled)):
            if array is not None:
                panels += pairs(walk, title, array[head : head + 1], first=head)
    width = walk.query.shape[2]
    line = f"{number(walk.scores[0, i, 0])} × {walk.scale[0]:.3f}"
    if usual_scale(walk):
        line = f"{number(walk.scores[0, i, 0])} / √{width}"
    if walk.bias is not None:
        line += f" {signed(walk.bias[0, i, 0])}"
    lines = [f"{line} = {number(walk.scaled[0, i, 0])}  (head 1)"]
    if not usual_scale(walk):
        lines.append(f"Scale by head: {', '.join(f'{factor:.3f}' for factor in walk.scale)}")
    if walk.hidden is not None:
        lines.append(f"Then hidden from each token: {_hidden(walk)}.")
    return panels, lines


def _hidden(walk: Trace) -> str:
    """Which tokens a token cannot see."""
    config, n = walk.config, len(walk.tokens)
    places, rest, found = np.arange(n), walk.hidden.copy(), []
    apart = places[None] - places[:, None]
    reasons = {
        "itself": (apart == 0) & config.diagonal_mask,
        "those after it": (apart > 0) & walk.hidden[apart > 0].all(),
        f"those {config.window} places away or more": np.abs(apart) >= (config.window or n),
    }
    for what, some in reasons.items():
        if (rest & some).any():
            found.append(what)
            rest &= ~some
    return formats.join([*found, *["those of other texts"] * bool(rest.any())])


def of_weights(walk: Trace) -> Shown:
    """The rows of the softmax."""
    i = shown(walk)
    open_ = [j for j in range(len(walk.tokens)) if walk.hidden is None or not walk.hidden[i, j]]
    powers = [f"e^{number(walk.scaled[0, i, j])}" for j in open_[:TERMS]]
    more = " + …" if len(open_) > TERMS else ""
    line = (
        f"{powers[0]} / ({' + '.join(powers)}{more}) = {number(walk.weights[0, i, open_[0]])}  "
        f"(head 1: {named(walk, i)} takes so much of {named(walk, open_[0])})"
    )
    lines = [line] if len(walk.tokens) <= _SMALL else [line, _favourites(walk)]
    return pairs(walk, "A", walk.weights, "weights"), lines


def _favourites(walk: Trace) -> str:
    """Where some tokens look most, for arrays of which a terminal shows a corner."""
    some = [
        f"{token}→{walk.tokens[row.argmax()]} {number(row.max())}"
        for token, row in zip(walk.tokens[:_SMALL], walk.weights[0], strict=False)
    ]
    return f"Where the first {_SMALL} tokens look most (head 1): {'   '.join(some)}"


def of_mixed(walk: Trace) -> Shown:
    """The weighted sums of values, with those where they are not read as they were projected."""
    panels, i = _heads(walk, "Z", walk.mixed), shown(walk)
    lines = []
    if not np.allclose(walk.value, walk.projected.value, atol=1e-5):
        panels = _heads(walk, "V as read", walk.value) + panels
        mixed = walk.config.value_residual
        how = "mixed with those of the first layer" if mixed else "as the scheme makes them"
        lines = [f"Values are read {how}."]
    parts = [f"{number(w)}·{subscripted('v', j)}" for j, w in enumerate(walk.weights[0, i][:TERMS])]
    more = " + …" if len(walk.tokens) > TERMS else ""
    return panels, [*lines, f"{subscripted('z', i)} = {' + '.join(parts)}{more}  (head 1)"]


def of_finished(walk: Trace) -> Shown:
    """What the scheme makes of them."""
    return _heads(walk, "Z̃", walk.heads), []


def _heads(walk: Trace, title: str, heads: np.ndarray) -> list[Panel]:
    rows, columns = token_rows(walk), counted(heads.shape[2])
    return [
        Panel(f"{title} (head {head + 1})", heads[:, head], rows, columns, head=head)
        for head in range(heads.shape[1])
    ]


def of_output(walk: Trace) -> Shown:
    """The heads side by side, W_O, and what the layer returns."""
    rows, shape, i = token_rows(walk), walk.layer.out.shape, shown(walk)
    joined, width = walk.heads.reshape(len(rows), -1), shape[2]
    panels = [Panel("Z, heads side by side", joined, rows, head_columns(*shape[:2]))]
    flat = walk.layer.out.reshape(-1, width)
    if flat.shape[0] == width and np.array_equal(flat, np.eye(width)):
        lines = ["No W_O: the heads side by side are the output."]
    else:
        title = f"W_O [{flat.shape[0]} × {width}]"
        panels.append(Panel(title, flat, head_columns(*shape[:2]), counted(width)))
        total = walk.output[i, 0]
        total_of = products(joined[i], flat[:, 0], walk.layer.out_bias[0])
        lines = [f"{subscripted('o', i)}[1] = {total_of} = {number(total)}"]
    panels.append(Panel("output", walk.output, rows, counted(width)))
    return panels, lines
