"""docs/tutorial.ipynb: it runs from top to bottom as a reader would run it, and what its text says
is what comes out."""

import os
import sys

import nbformat
from nbclient import NotebookClient

from tests.support.warm_python import ROOT

PAGE = ROOT / "docs" / "tutorial.ipynb"
# What the prose says, in the names of the notebook itself.
CLAIMS = """
assert all(row["largest |layer - by hand|"] < 1e-5 for row in rows.values())
assert rows["Q=K"]["largest |S - Sᵀ|"] < 1e-6 and rows["copies"]["largest |S - Sᵀ|"] < 1e-6
assert rows["separate"]["largest |S - Sᵀ|"] > 0.1
final = {tie: curve["accuracy"].iloc[-1] for tie, (_, _, curve) in runs.items()}
assert final["separate"] > 0.8 and final["Q=K"] < 0.5
looks = table["on the token that it names"].groupby("tie").min()
assert looks["separate"] > 3 * looks["Q=K"]
assert alike["trained"]["Q and K"] < 0.5 * alike["untrained"]["Q and K"]
assert abs(alike["trained"]["V and X"] - alike["untrained"]["V and X"]) < 0.15
found = study.summary.set_index("arm")
assert (found.loc[["Q=K", "Q=K, quarter turn"], "verdict"] == "worse").all()
assert found["verdict"]["V=X"] in ("equivalent", "undecided (power)")
assert study.contrasts["verdict"].item() == "better"
assert found["attention_params"]["Q=K"] == found["attention_params"]["Q=K, quarter turn"]
row = study.runs.query("arm == 'Q=K, quarter turn' and seed == 0").set_index("learning_rate")
expected = row["test"][found["learning_rate"]["Q=K, quarter turn"]]
assert abs(float((answers == batch["targets"]).mean()) - expected) < 0.05  # 1000 test examples
"""


def test_the_tutorial_runs_and_shows_what_it_says(tmp_path):
    notebook = nbformat.read(PAGE, as_version=4)
    committed = [cell.copy() for cell in notebook.cells]
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS, id="claims"))
    where = {"metadata": {"path": tmp_path}}
    client = NotebookClient(notebook, timeout=900, startup_timeout=300, resources=where)
    client.execute(env=reader())
    for before, after in zip(committed, notebook.cells, strict=False):
        assert kinds(before) == kinds(after), before.source


def reader() -> dict[str, str]:
    """The environment of somebody who opens a notebook: what tests set for JAX is not there."""
    ours = ("JAX_", "XLA_", "PYTHONWARNINGS", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu"}


def kinds(cell) -> list:
    """What a cell shows, by kind: text, tables, pictures; no errors, no warnings."""
    if cell.cell_type != "code":
        return []
    assert all(output.output_type in ("display_data", "execute_result") for output in cell.outputs)
    return [sorted(output.data) for output in cell.outputs]


def test_the_committed_outputs_are_of_one_run_in_order_and_small():
    notebook = nbformat.read(PAGE, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    assert PAGE.stat().st_size < 300_000
    assert str(ROOT) not in PAGE.read_text() and sys.prefix not in PAGE.read_text()
