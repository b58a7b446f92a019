"""How far apart the losses of one run are by way of running it; prints a table.

    python tests/stress/equality.py        # minutes: eight virtual devices, then two processes

The table of docs/parallelism.md. What test_mesh.py and test_distributed.py bound,
here as numbers: the largest relative difference of any loss from those of one device.
"""

import json
import pathlib
import sys
import tempfile

import pandas as pd
from test_distributed import MESH, ended, one_process, two_processes, write_place
from test_mesh import ALONE, largest_difference, run_alone


def of_one_process(folder):
    """[(way, losses compared, difference)], of tests/support/mesh_worker.py."""
    found = json.loads(run_alone(["tests/support/mesh_worker.py", str(folder)], 1500))
    losses, restored = found["losses"], found["restored"]
    rows = [
        (name, len(own), largest_difference(own, losses[ALONE]))
        for name, own in losses.items()
        if name != ALONE
    ]
    saved = losses[ALONE][4:7]
    for name, own in restored.items():
        rows.append((f"from step 4, {name}", len(own), largest_difference(own, saved)))
    return rows


def of_several_processes(folder):
    """Likewise, of the commands that tests/training/test_distributed.py runs."""
    write_place(folder)
    config = folder / "short.py"
    one_process(config, folder / "alone")
    one_process(config, folder / "one", *MESH)
    with two_processes(config, folder / "two") as both:
        outcomes = ended(both)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    losses = {
        name: pd.read_csv(folder / name / "curve.csv")["train_loss"]
        for name in ("alone", "one", "two")
    }
    ways = {"one": "1 process of 4 devices", "two": "2 processes of 2 devices"}
    return [
        (
            f"{way}, data 2 x fsdp 2",
            len(losses[name]),
            largest_difference(losses[name], losses["alone"]),
        )
        for name, way in ways.items()
    ]


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "several").mkdir()
        rows = of_one_process(folder / "one") + of_several_processes(folder / "several")
    print("| way | losses | largest relative difference |\n|---|---:|---:|")
    for way, count, difference in rows:
        print(f"| {way} | {count} | {f'{difference:.1e}' if difference else '0'} |")


if __name__ == "__main__":
    sys.exit(main())
