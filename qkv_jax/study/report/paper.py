"""What a paper takes from a study, in its folder `tables/`.

    TASK.tex, TASK.csv    the table of a task as the report shows it; LaTeX needs booktabs
    methods.txt           how it was measured, in sentences
    references.bib        what to cite
"""

import pathlib
from collections.abc import Sequence

import pandas as pd

from qkv_jax import __version__
from qkv_jax.runtime.files import write_whole

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "|": r"\textbar{}", "<": r"$<$", ">": r"$>$", "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$",
    "±": r"$\pm$", "×": r"$\times$", "∞": r"$\infty$", "…": r"\ldots{}", "–": "--",
    "“": "``", "”": "''",
    "α": r"$\alpha$", "\u00a0": "~",
})  # fmt: skip
_MARKS = {"better": r"$\uparrow$ ", "worse": r"$\downarrow$ ", "equivalent": "$=$ "}
_REFERENCES = """\
@software{qkv_jax,
  title = {qkv_jax: what does it cost to equate queries, keys, values and input?},
  author = {{The qkv_jax authors}},
  version = {%s},
  year = {2026},
}
@software{jax,
  title = {JAX: composable transformations of Python+NumPy programs},
  author = {James Bradbury and Roy Frostig and Peter Hawkins and Matthew James Johnson and
            Chris Leary and Dougal Maclaurin and George Necula and Adam Paszke and
            Jake VanderPlas and Skye Wanderman-Milne and Qiao Zhang},
  url = {http://github.com/jax-ml/jax},
  version = {%s},
  year = {2018},
}
@software{flax,
  title = {Flax: A neural network library and ecosystem for JAX},
  author = {Jonathan Heek and Anselm Levskaya and Avital Oliver and Marvin Ritter and
            Bertrand Rondepierre and Andreas Steiner and Marc van Zee},
  url = {http://github.com/google/flax},
  version = {%s},
  year = {2024},
}
"""


def latex(text: str) -> str:
    """A text as LaTeX sets it, with true minus signs."""
    return text.translate(_LATEX)


def write_table(folder: pathlib.Path, slug: str, table: dict) -> dict[str, str]:
    """A table of the report as LaTeX and as CSV; the addresses of both in the study's folder.

    Args: table: `head` and `rows`, see `tables.py`.
    """
    head, rows = ["arm", "verdict", *table["head"]], table["rows"]
    plain = [[row["arm"], row["verdict"], *row["cells"]] for row in rows]
    cells = [[latex(cell) for cell in each] for each in plain]
    for row, texts in zip(rows, cells, strict=True):
        texts[1] = _MARKS.get(row["kind"], "") + texts[1]
        if row["group"]:  # controls, placebo, references
            texts[0] = rf"\emph{{{texts[0]}}}"
    frame = pd.DataFrame(cells, columns=[latex(name) for name in head]).style.hide(axis="index")
    made = {
        "tex": frame.to_latex(hrules=True, column_format="ll" + "r" * len(table["head"])),
        "csv": pd.DataFrame(plain, columns=head).to_csv(index=False),
    }
    for kind, text in made.items():
        write_whole(folder / f"{slug}.{kind}", text)
    return {kind: f"{folder.name}/{slug}.{kind}" for kind in made}


def write_words(folder: pathlib.Path, protocol: Sequence[str], packages: dict[str, str]) -> None:
    """How the study was measured, and what to cite.

    Args: packages: their versions, of the study's last start.
    """
    write_whole(folder / "methods.txt", "\n\n".join(protocol) + "\n")
    versions = __version__, *(packages.get(name, "") for name in ("jax", "flax"))
    write_whole(folder / "references.bib", _REFERENCES % versions)
