"""A survey as files: tables, figures and one self-contained page."""

import pathlib
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from qkv_jax.output import style
from qkv_jax.output.html import write_page
from qkv_jax.runtime.files import json_text, write_whole
from qkv_jax.survey import plots
from qkv_jax.survey.quantities import PAIRS, QUANTITIES
from qkv_jax.survey.remarks import HEADINGS, NULLS, remarks, table
from qkv_jax.survey.subjects import Subject
from qkv_jax.survey.survey import DRAWS, Survey

_TEMPLATE = pathlib.Path(__file__).with_name("survey.html.jinja")


class Section(NamedTuple):
    """A part of the page: a heading, what to know, a figure, and the quantities in it."""

    key: str
    title: str
    caption: str
    figure: Figure
    quantities: tuple[str, ...]


def write_survey(
    folder: pathlib.Path, subject: Subject, survey: Survey, record: dict[str, Any]
) -> pathlib.Path:
    """Writes `figures.csv`, `spectra.csv`, `movement.csv` (of a run), `survey.json`, `figures/` and
    `report.html` into a folder that is empty or new; returns the page.

    Args:
      record: what the survey was made with, for survey.json.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    survey.figures.to_csv(folder / "figures.csv", index=False)
    survey.spectra.to_csv(folder / "spectra.csv", index=False)
    if len(survey.movements):
        survey.movements.to_csv(folder / "movement.csv", index=False)
    remarked = remarks(survey)
    facts = {
        "model": subject.name, "inputs": subject.inputs, "tokens": survey.tokens,
        "note": subject.note,
        "untrained": subject.untrained_is if subject.untrained is not None else None,
        "draws": DRAWS, "remarks": remarked, **record,
    }  # fmt: skip
    write_whole(folder / "survey.json", json_text(facts))
    shown = []
    for section in _sections(survey):
        files = style.save(section.figure, folder / "figures" / section.key)
        shown.append(
            section._asdict()
            | {
                "uri": style.data_uri(files[0]),
                "files": {file.suffix[1:]: f"figures/{file.name}" for file in files},
                "width": round(96 * section.figure.get_figwidth()),
                "meanings": [QUANTITIES[name] for name in section.quantities],
            }
        )
    context = {
        "subject": subject, "tokens": survey.tokens, "remarks": remarked, "headings": HEADINGS,
        "rows": table(survey.figures), "nulls": NULLS, "draws": DRAWS, "sections": shown,
        "moved": len(survey.movements) > 0,
    }  # fmt: skip
    return write_page(folder / "report.html", _TEMPLATE, context)


def _sections(survey: Survey) -> list[Section]:
    figures, strips = survey.figures, plots.strips
    between = lambda quantity, pairs=PAIRS: [
        (quantity, pair, f"{pair[0]} and {pair[1]}") for pair in pairs
    ]
    found = [
        Section(
            "similarity", "X, Q, K and V: how alike?",
            "Linear CKA, one map per layer, mean over the heads: below the diagonal (bold) the "
            "model, above it (italic) random projections of its X. The inputs spread unevenly, so "
            "that even a random projection of X is like X; what counts is the difference between "
            "the two halves of a map.",
            plots.similarity(figures), ("cka",),
        ),
        Section(
            "similarity-heads", "The same, head by head",
            "CKA of each head's queries, keys and values, and of X.",
            strips(figures, between("cka"), 3), (),
        ),
        Section(
            "subspaces", "Do they read the same directions of X?",
            "Column spaces of the projections; no basis within the head plays a part.",
            strips(figures, between("overlap"), 3), ("overlap", "smallest_angle"),
        ),
        Section(
            "size", "Size and dimension",
            "In how many directions the clouds spread, and their size beside that of X.",
            strips(
                figures,
                [("effective_rank", role, role) for role in "XQKV"]
                + [("norm_ratio", f"X{role}", f"{role} over X") for role in "QKV"], 4,
            ), ("effective_rank", "norm_ratio"),
        ),
        Section(
            "cosines", "Cosines, which depend on the basis",
            "Within a head the basis of keys and values is arbitrary, so a cosine means something "
            "only where it leaves the band that random bases give. Queries and keys share theirs, "
            "up to changes that leave their scores alone.",
            strips(
                figures,
                between("cosine") + between("weight_cosine", PAIRS[3:])
                + [("aligned_weight_cosine", p, f"{p[0]} and {p[1]}") for p in PAIRS[3:]], 3,
            ), ("cosine", "weight_cosine", "aligned_weight_cosine"),
        ),
        Section(
            "circuits", "Circuits: what attends to what, and what is moved",
            "The products W_Q W_Kᵀ and W_V W_O of each head.",
            strips(
                figures,
                [("antisymmetric_share", "QK", "QK"), ("symmetry", "QK", "QK"),
                 ("directionality", "QK", "QK"), ("matching", "QK", "QK"),
                 ("copying", "OV", "OV"), ("circuit_rank", "QK", "QK"),
                 ("circuit_rank", "OV", "OV")], 4,
            ),
            ("antisymmetric_share", "symmetry", "directionality", "matching", "copying",
             "circuit_rank"),
        ),
        Section(
            "spectra", "Spectra of the circuits",
            "Singular values, largest first, as shares of the largest, mean over the heads; a "
            "flat line uses all its directions alike. Eigenvalues: spectra.csv.",
            plots.spectra(survey.spectra), (),
        ),
        Section(
            "attention", "Where heads look",
            "Means over all tokens that are no padding. Equal weights on all tokens seen would "
            "give the dotted line.",
            strips(figures, [(name, "QK", QUANTITIES[name].title.partition(" (")[0])
                             for name in ("entropy", "distance", "diagonal")], 3),
            ("entropy", "distance", "diagonal"),
        ),
    ]  # fmt: skip
    if len(survey.movements):
        found += [
            Section(
                "movement", "Movement from the start",
                "Distance of each matrix from its initial value over training, as a share of its "
                "size then (Frobenius norms); two independent draws are √2 apart. A matrix that is "
                "X itself does not move; roles that share a matrix move as one.",
                plots.movement(survey.movements), (),
            ),
            Section(
                "circuits-training", "Circuits over training",
                "Mean over the heads at each checkpoint.",
                plots.circuits_over_training(survey.movements), (),
            ),
        ]  # fmt: skip
    return found
