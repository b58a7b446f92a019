"""Every figure of a model: geometry, circuits and attention of each layer and head, each beside
what chance gives."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import threadpoolctl
from jaxtyping import Float

from qkv_jax import arguments
from qkv_jax.analysis import circuits, geometry, movement, nulls
from qkv_jax.analysis.layers import Layer
from qkv_jax.config import ConfigError
from qkv_jax.survey.activations import Activations
from qkv_jax.survey.quantities import PAIRS, QUANTITIES

ALL = "all"  # in place of a head: a layer as a whole
# Whole layers are as wide as the model, so that fewer tokens and draws have to do for them.
_FEW_TOKENS, _FEW_DRAWS = 1000, 5
KEYS = ["layer", "head", "quantity", "roles"]
_NULLS = [f"null_{kind}_{end}" for kind in ("rotation", "random") for end in nulls.Band._fields]
COLUMNS = [*KEYS, "value", "chance", *_NULLS, "null_untrained", "invariant_to"]


# Linear algebra on small matrices: a BLAS of several threads, and NumPy and SciPy have one each,
# would mostly wait for itself.
_one_thread = threadpoolctl.threadpool_limits.wrap(limits=1)


class Figure(NamedTuple):
    """One number of a layer and what to hold it against.

    Attributes:
      chance: what it is by chance where that can be calculated; of attention: for equal weights.
      rotation: with the basis within the head of one of the two turned at random.
      random: for random projections, and circuits of such, of the same layer inputs.
    """

    head: str
    quantity: str
    roles: str
    value: float
    chance: float = float("nan")
    rotation: nulls.Band | None = None
    random: nulls.Band | None = None


@_one_thread
def measure(
    layers: Sequence[Layer], flows: Sequence[Activations], rng: np.random.Generator, draws: int = 40
) -> pd.DataFrame:
    """One row per figure, with the columns `COLUMNS`; `null_untrained` is left empty, see `beside`.

    Args:
      draws: of each null; 0 leaves them out.
    """
    layers, flows = _listed("layers", layers, Layer), _listed("flows", flows, Activations)
    if len(layers) != len(flows):
        raise ConfigError("flows", len(flows), f"must be one for each of the {len(layers)} layers")
    arguments.instance("rng", rng, np.random.Generator)
    arguments.whole("draws", draws)
    numbers = range(len(layers))
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        each = rng.spawn(len(layers))
        found = pool.map(_rows, numbers, layers, flows, each, itertools.repeat(draws))
        return pd.DataFrame(itertools.chain.from_iterable(found)).reindex(columns=COLUMNS)


def beside(found: pd.DataFrame, untrained: pd.DataFrame | None) -> pd.DataFrame:
    """The figures with those of the untrained model beside them, layer by layer, head by head."""
    arguments.instance("found", found, pd.DataFrame)
    if untrained is None:
        return found
    arguments.instance("untrained", untrained, pd.DataFrame)
    start = untrained[[*KEYS, "value"]].rename(columns={"value": "null_untrained"})
    return found.drop(columns="null_untrained").merge(start, "left", KEYS)[COLUMNS]


@_one_thread
def spectra(layers: Sequence[Layer]) -> pd.DataFrame:
    """Singular values and eigenvalues of the circuits of each head: layer, head, circuit, index,
    singular_value, eigenvalue_real, eigenvalue_imaginary."""
    rows = []
    for number, layer in enumerate(_listed("layers", layers, Layer)):
        for head, circuit, factors in _circuits(layer):
            singular, own = circuits.singular_values(*factors), circuits.eigenvalues(*factors)
            for index, (s, e) in enumerate(itertools.zip_longest(singular, own, fillvalue=0.0)):
                rows.append((number, head, circuit, index + 1, s, e.real, e.imag))
    names = ["layer", "head", "circuit", "index", "singular_value", "eigenvalue_real"]
    return pd.DataFrame(rows, columns=[*names, "eigenvalue_imaginary"])


@_one_thread
def movements(past: dict[int, Sequence[Layer]]) -> pd.DataFrame:
    """Projections and circuits over training: step, layer, head, quantity, roles, value, chance.

    Args:
      past: the layers by step; the first step is where they started.
    """
    if not isinstance(past, Mapping) or not past:
        raise ConfigError("past", past, "must be layers by their steps")
    for step, layers in past.items():
        arguments.whole("past", step)
        _listed("past", layers, Layer)
    rows, steps = [], sorted(past)
    for step, number in itertools.product(steps, range(len(past[steps[0]]))):
        start, now = past[steps[0]][number], past[step][number]
        for role, before, after in _matrices(start, now):
            moved = movement.relative_movement(before, after)
            fresh = movement.INDEPENDENT
            rows.append((step, number, ALL, "movement", role, moved, fresh))
            width, size = before.shape[0], before.shape[2]
            for head in range(before.shape[1]):
                shared = geometry.subspace_overlap(before[:, head], after[:, head])
                row = (step, number, str(head), "overlap_with_start", role, shared, size / width)
                rows.append(row)
        for head, circuit, factors in _circuits(now):
            if circuit == "QK":
                quantity, value = "antisymmetric_share", circuits.antisymmetric_share(*factors)
                chance = (1 - 1 / len(factors[0])) / 2
            else:
                quantity = "copying"
                value, chance = circuits.copying_score(factors[0], factors[1].T), 0.0
            rows.append((step, number, head, quantity, circuit, value, chance))
    names = ["step", "layer", "head", "quantity", "roles", "value", "chance"]
    return pd.DataFrame(rows, columns=names)


def _listed(name: str, values: Any, kind: type) -> list:
    """At least one of that kind."""
    if not isinstance(values, list | tuple) or hasattr(values, "_fields") or not values:
        raise ConfigError(name, values, f"must be a list of {kind.__name__}")
    return [arguments.instance(name, value, kind) for value in values]


def _rows(
    number: int, layer: Layer, flow: Activations, rng: np.random.Generator, draws: int
) -> list[dict]:
    """The rows of one layer."""
    rows = []
    for figure in _layer(layer, flow, rng, draws, _chance(layer, flow.x, rng, draws)):
        row = figure._asdict()
        for kind in ("rotation", "random"):
            band = row.pop(kind) or nulls.Band(np.nan, np.nan, np.nan)
            row |= {f"null_{kind}_{end}": value for end, value in band._asdict().items()}
        rows.append({"layer": number, **row, "invariant_to": QUANTITIES[figure.quantity].invariant})
    return rows


def _layer(
    layer: Layer,
    flow: Activations,
    rng: np.random.Generator,
    draws: int,
    chance: dict[str, nulls.Band],
) -> Iterator[Figure]:
    width, heads, size = layer.query.shape
    x = geometry.cloud(flow.x)
    kernels = {"Q": layer.query, "K": layer.key, "V": layer.value}
    biases = {"Q": layer.query_bias, "K": layer.key_bias, "V": layer.value_bias}
    flat = {role: kernel.reshape(width, -1) for role, kernel in kernels.items()}
    tokens = {
        role: (np.float64(flow.x) @ flat[role]).reshape(-1, heads, size) + biases[role]
        for role in kernels
    }
    if width == heads * size:
        tokens["X"] = np.float64(flow.x).reshape(-1, heads, size)
    turns = [nulls.rotation(rng, size) for _ in range(draws)]
    leading = geometry.leading_directions(flow.x, size)
    yield Figure(ALL, "effective_rank", "X", geometry.effective_rank(x.centred))
    wholes = {role: geometry.cloud(_few(tokens[role]).reshape(-1, heads * size)) for role in "QKV"}
    wholes["X"] = geometry.cloud(_few(flow.x))
    for one, other in PAIRS:
        band = chance.get("whole cka_with_x") if one == "X" else None
        yield Figure(ALL, "cka", one + other, geometry.cka(wholes[one], wholes[other]), random=band)
    for head in range(heads):
        name = str(head)
        vectors = {role: cloud[:, head] for role, cloud in tokens.items()}
        weights = {role: kernel[:, head] for role, kernel in kernels.items()}
        clouds = {role: geometry.cloud(vectors[role]) for role in "QKV"} | {"X": x}
        for role in "QKV":
            rank = geometry.effective_rank(clouds[role].centred)
            yield Figure(name, "effective_rank", role, rank, random=chance.get("effective_rank"))
        for one, other in PAIRS:
            pair, with_x = one + other, one == "X"
            similarity = geometry.cka(clouds[one], clouds[other])
            band = chance.get("cka_with_x" if with_x else "cka")
            yield Figure(name, "cka", pair, similarity, random=band)
            ratio = geometry.rms_ratio(vectors[other], flow.x if with_x else vectors[one])
            yield Figure(name, "norm_ratio", pair, ratio)
            if one in vectors:
                yield _turned("cosine", geometry.mean_cosines(vectors[one], vectors[other]),
                              name, pair, turns)  # fmt: skip
            angles = geometry.principal_angles(leading if with_x else weights[one], weights[other])
            shared = float(np.mean(np.cos(angles) ** 2)) if len(angles) else np.nan
            smallest = float(np.degrees(angles[0])) if len(angles) else np.nan
            yield Figure(name, "overlap", pair, shared, size / width, random=chance.get("overlap"))
            band = chance.get("smallest_angle")
            yield Figure(name, "smallest_angle", pair, smallest, random=band)
            if not with_x:
                crossed = geometry.cosines(weights[one], weights[other])
                yield _turned("weight_cosine", crossed, name, pair, turns)
                aligned = geometry.aligned_cosine(weights[one], weights[other])
                band = chance.get("aligned_weight_cosine")
                yield Figure(name, "aligned_weight_cosine", pair, aligned, random=band)
        for quantity, found in flow.attention.items():
            yield Figure(name, quantity, "QK", float(found[head]), flow.uniform[quantity])
    for name, circuit, factors in _circuits(layer):
        yield from _circuit(name, circuit, factors, chance)
    for quantity, value in _symmetries(flat["Q"], flat["K"]).items():
        known = {"antisymmetric_share": (1 - 1 / width) / 2, "symmetry": 1 / width}
        yield Figure(ALL, quantity, "QK", value, known.get(quantity, 0.0),
                     random=chance.get(f"whole {quantity}"))  # fmt: skip


def _few(tokens: np.ndarray) -> np.ndarray:
    """Some of the tokens, evenly spaced."""
    return tokens[:: -(-len(tokens) // _FEW_TOKENS)]


def _circuit(name, circuit, factors, chance) -> Iterator[Figure]:
    width = len(factors[0])
    rank = circuits.effective_rank(*factors)
    yield Figure(name, "circuit_rank", circuit, rank, random=chance.get("circuit_rank"))
    if circuit == "QK":
        found = {"matching": circuits.matching_score(*factors), **_symmetries(*factors)}
    else:
        found = {"copying": circuits.copying_score(factors[0], factors[1].T)}
    known = {"antisymmetric_share": (1 - 1 / width) / 2, "symmetry": 1 / width}
    for quantity, value in found.items():
        expected = known.get(quantity, 0.0)
        yield Figure(name, quantity, circuit, value, expected, random=chance.get(quantity))


def _chance(
    layer: Layer, x: Float[np.ndarray, "M D"], rng: np.random.Generator, draws: int
) -> dict[str, nulls.Band]:
    """What random projections of the same inputs give, and random circuits of the same shape."""
    width, heads, size = layer.query.shape
    whole = geometry.cloud(x)
    leading = geometry.leading_directions(x, size)
    few = geometry.cloud(_few(x))
    found: dict[str, list[float]] = {}
    for draw in range(draws):
        first, second = rng.standard_normal((2, width, size))
        one, other = (geometry.cloud(whole.centred @ kernel) for kernel in (first, second))
        values = {
            "cka": geometry.cka(one, other),
            "cka_with_x": geometry.cka(whole, one),
            "effective_rank": geometry.effective_rank(one.centred),
            "overlap": geometry.subspace_overlap(leading, first),
            "smallest_angle": float(np.degrees(geometry.principal_angles(first, second)[0])),
            "aligned_weight_cosine": geometry.aligned_cosine(first, second),
            "circuit_rank": circuits.effective_rank(first, second),
            "matching": circuits.matching_score(first, second),
            **_symmetries(first, second),
        }
        values["copying"] = values["matching"]
        wide = rng.standard_normal((2, width, heads * size))
        values |= {f"whole {name}": value for name, value in _symmetries(*wide).items()}
        if draw < _FEW_DRAWS:
            values["whole cka_with_x"] = geometry.cka(few, geometry.cloud(few.centred @ wide[0]))
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: nulls.band(np.array(values)) for name, values in found.items()}


def _symmetries(query, key) -> dict[str, float]:
    return {
        "antisymmetric_share": (share := circuits.antisymmetric_share(query, key)),
        "symmetry": 1 - 2 * share,
        "directionality": circuits.directionality_score(query, key),
    }


def _turned(quantity, cosines, head, pair, turns) -> Figure:
    """A cosine beside what it would be with the second of the two turned at random."""
    drawn = np.array([np.sum(cosines * turn.T) for turn in turns])
    band = nulls.band(drawn) if turns else None
    return Figure(head, quantity, pair, float(np.trace(cosines)), 0.0, rotation=band)


def _circuits(layer: Layer) -> Iterator[tuple[str, str, tuple]]:
    for head in range(layer.query.shape[1]):
        yield str(head), "QK", (layer.query[:, head], layer.key[:, head])
        yield str(head), "OV", (layer.value[:, head], layer.out[head].T)


def _matrices(start: Layer, now: Layer) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The matrices of a layer as [D, N, H]; one that is X itself never moves."""
    for role, field in {"Q": "query", "K": "key", "V": "value"}.items():
        yield f"W_{role}", getattr(start, field), getattr(now, field)
    yield "W_O", np.moveaxis(start.out, -1, 0), np.moveaxis(now.out, -1, 0)
