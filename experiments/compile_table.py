"""The tables of docs/compile_only.md: sizes x topologies x ties, and rules and meshes compared.

    python -m experiments.compile_table            # or: make compile-table

Every cell is a compilation of minutes; it is written to docs/compile_only.jsonl as soon as it is
there, and a second start goes on with the cells that are missing.
"""

import itertools
import json
import pathlib
from typing import Any

from absl import flags

from configs import big
from experiments.cli import entry
from experiments.cli.paths import path_flag
from qkv_jax.compile import estimate
from qkv_jax.config import ConfigError, build
from qkv_jax.runtime.files import write_whole
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.training.mesh import MeshConfig

_CELLS = path_flag("cells", "docs/compile_only.jsonl", "What was compiled so far.")
_PAGE = path_flag("page", "docs/compile_only.md", "The page whose tables are rewritten.")
_MOST = flags.DEFINE_integer("most", 1000, "Cells to compile; 0 only rewrites the tables.", 0)

TOPOLOGIES = ("v5e:2x4", "v5e:8x8", "v5e:16x16")
TIES = ("separate", "K=V")
# Of one cell, the meshes and rules from which the defaults of configs/big.py were chosen.
COMPARED = ("1b", "v5e:8x8", "separate")
MESHES = (
    {"data": 64, "rules": "replicated"},
    {"data": 8, "fsdp": 8},
    {"fsdp": 64},
    {"fsdp": 64, "rules": "inner"},
    {"data": 8, "fsdp": 8, "rules": "inner"},
    {"fsdp": 16, "tensor": 4},
)
_CELL = ("size", "topology", "tie", "mesh")  # what tells cells apart
_MARKS = {name: (f"<!-- {name}:begin -->", f"<!-- {name}:end -->") for name in ("sizes", "meshes")}


def cells() -> list[dict[str, Any]]:
    """What is to be compiled: size, topology, tie, and the mesh where it is not the config's."""
    sizes = itertools.product(big.SIZES, TOPOLOGIES, TIES)
    table = [{"size": s, "topology": where, "tie": tie, "mesh": {}} for s, where, tie in sizes]
    size, where, tie = COMPARED
    return table + [{"size": size, "topology": where, "tie": tie, "mesh": m} for m in MESHES]


def compile_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """What the compiler makes of a cell, or why there is nothing to compile.

    Raises:
      ConfigError: if there is no compiler, or it fails for another reason than memory.
    """
    values = big.get_config(cell["size"]).to_dict()
    values["model"]["tie"] = cell["tie"]
    given = cell["mesh"] or values["mesh"]
    try:
        mesh = build(MeshConfig, given, "mesh")
        found = estimate.step_costs(trainer_of(values), mesh, cell["topology"])
    except ConfigError as error:
        if error.field == "--compile_only":  # no compiler, or it broke: says nothing of the cell
            raise
        found = {"refusal": str(error)}
    return cell | {"found": found}


def tables(done: list[dict[str, Any]]) -> dict[str, str]:
    """Both tables, in Markdown."""
    found = lambda cell: next((d["found"] for d in done if same(cell, d)), None)
    heads = {
        "sizes": ("size", "chips", "tie"),
        "meshes": ("mesh", "rules"),
    }
    rows: dict[str, list[str]] = {"sizes": [], "meshes": []}
    for cell in cells():
        result = found(cell)
        if cell["mesh"]:
            sizes = {axis: n for axis, n in cell["mesh"].items() if axis != "rules"}
            mesh = " x ".join(f"{axis} {n}" for axis, n in sizes.items())
            first, table = (mesh, cell["mesh"].get("rules", "megatron")), "meshes"
        else:
            first, table = (cell["size"], cell["topology"], cell["tie"]), "sizes"
        rows[table].append("| " + " | ".join([*first, *_columns(result)]) + " |")
    return {name: "\n".join([*_head(heads[name]), *rows[name]]) for name in rows}


def same(cell: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(cell[key] == other[key] for key in _CELL)


_COLUMNS = (
    "fits", "memory, GB", "TFLOP", "traffic, GB", "gathered, GB", "reduced, GB", "permuted, GB",
    "arithmetic, ms", "memory, ms", "links, ms", "step, ms",
)  # fmt: skip


def _head(first: tuple[str, ...]) -> list[str]:
    line = " | ".join([*first, *_COLUMNS])
    rule = "|".join(["---"] * (len(first) + 1) + ["---:"] * (len(_COLUMNS) - 1))
    return [f"| {line} |", f"|{rule}|"]


def _columns(found: dict[str, Any] | None) -> list[str]:
    empty = [""] * (len(_COLUMNS) - 1)
    if found is None:
        return ["not compiled", *empty]
    if found["refusal"]:
        return [f"no: {found['refusal']}", *empty]
    giga = lambda number: f"{number / 1e9:.2f}"
    moved = lambda *kinds: giga(sum(found["traffic"].get(kind, (0, 0))[1] for kind in kinds))
    times = {what: 1e3 * t for what, t in found["seconds"].items()}
    return [
        "yes",
        giga(found["memory"]),
        f"{found['flops'] / 1e12:.0f}",
        giga(found["touched"]),
        moved("all-gather", "reduce-scatter", "all-to-all"),
        moved("all-reduce"),
        moved("collective-permute"),
        *(f"{times[what]:.0f}" for what in ("arithmetic", "memory", "links")),
        f"{max(times.values()):.0f} to {sum(times.values()):.0f}",
    ]


def _read_cells(file: pathlib.Path) -> list[dict[str, Any]]:
    """What was compiled so far.

    Raises:
      ConfigError: if the file holds anything else.
    """
    if not file.exists():
        return []
    try:
        done = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        cells = [{key: cell[key] for key in (*_CELL, "found")} for cell in done]
    except (ValueError, KeyError, TypeError) as error:
        allowed = f"holds something else than cells ({type(error).__name__}: {error})"
        raise ConfigError("--cells", str(file), allowed) from None
    return cells


def _write_page(page: pathlib.Path, text: str, done: list[dict[str, Any]]) -> None:
    for name, table in tables(done).items():
        begin, end = _MARKS[name]
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    write_whole(page, text)


def _read_page(page: pathlib.Path) -> str:
    """The page, with a place for each table.

    Raises:
      ConfigError: if it has none.
    """
    text = page.read_bytes().decode(errors="replace")
    for mark in itertools.chain(*_MARKS.values()):
        if text.count(mark) != 1:
            raise ConfigError("--page", str(page), f"must hold {mark} once, to be rewritten there")
    return text


def main() -> None:
    file, page = pathlib.Path(_CELLS.value), pathlib.Path(_PAGE.value)
    done, text = _read_cells(file), _read_page(page)
    missing = [cell for cell in cells() if not any(same(cell, d) for d in done)]
    missing.sort(key=lambda cell: cell["tie"] != "separate")  # the baseline and its meshes first
    for cell in missing[: _MOST.value]:
        print(*(str(cell[key]) for key in _CELL), flush=True)
        done.append(compile_cell(cell))
        with file.open("a") as out:
            out.write(json.dumps(done[-1]) + "\n")
    _write_page(page, text, done)


if __name__ == "__main__":
    entry.enter(main)
