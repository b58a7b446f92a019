"""The package as others get it: a wheel, in an empty environment, used from an empty folder.

    python tests/stress/wheel.py python3.11 python3.12

For each interpreter that is here: every command that writes a page, a study that is recorded with a
command that goes on with it, modules beside a config, and a folder whose own `experiments` and
`configs` stay its own. One that is not here is named; some must be. Minutes each:
`make test-python`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
FEW = ("--config.train.steps=20", "--config.train.report_every=10")
COMMANDS = (
    ("--help",),
    ("explain", "--tie=separate|Q=K", "--html=explain.html"),
    ("ablate", "--config=smoke", "--workdir=runs/smoke", "--config.study.max_seeds=4", *FEW),
    ("report", "--workdir=runs/smoke"),
    ("train", "--workdir=runs/one", "--config.task.kind=reverse", "--config.model.width=16", *FEW),
    ("analyze", "--study=runs/smoke", "--task=reverse", "--arm=Q=K", "--workdir=runs/analysis"),
    ("surgery", "--run=runs/one", "--workdir=runs/surgery"),
    ("ablate", "--config=papers/kayyam2026:small", "--plan"),
)
STUDY = """
import mine
from qkv_jax.configs import smoke

def get_config():
    config = smoke.get_config()
    config.name = mine.NAME
    return config
"""
PAGES = ("explain.html", "runs/smoke/report.html", "runs/analysis/report.html",
         "runs/surgery/report.html")  # fmt: skip


def main() -> int:
    found = {name: path for name in sys.argv[1:] if (path := working(name))}
    for name in sys.argv[1:]:
        print(f"{name}: {found.get(name, 'not found here, and not tried')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, python in enumerate(found.values()):
            check(python, pathlib.Path(folder) / str(number))
    return 0 if found else 2


def working(name: str) -> str | None:
    """Where an interpreter is; None if it is not here, or is a name without anything behind it."""
    path = shutil.which(name)
    runs = path and not subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode
    return path if runs else None


def check(python: str, folder: pathlib.Path) -> None:
    """Builds, installs and uses the wheel in a folder of its own.

    Raises:
      subprocess.CalledProcessError: if a command fails, whose words are printed then.
      AssertionError: if one leaves out what it should have written.
    """
    here, tools = folder / "empty", folder / "venv" / "bin"
    here.mkdir(parents=True)
    pip = [tools / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # the build leaves its own files in it
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "data", "build"))
    run(here, python, "-m", "venv", folder / "venv")
    run(here, *pip, "wheel", "--no-deps", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    run(here, *pip, "install", "-c", ROOT / "constraints.txt", wheel)
    for words in COMMANDS:
        run(here, tools / "qkv", *words)
    assert all("</html>" in (here / page).read_text() for page in PAGES)

    again = json.loads((here / "runs/smoke/study.json").read_text())["command"]
    assert again.startswith("qkv ablate --config=smoke"), again
    rows = (here / "runs/smoke/runs.csv").read_bytes()
    run(here, "sh", "-c", f"PATH={tools}:$PATH; {again}")
    assert (here / "runs/smoke/runs.csv").read_bytes() == rows

    (here / "mine.py").write_text("NAME = 'mine'\n")
    (here / "study.py").write_text(STUDY)
    run(here, tools / "qkv", "ablate", "--config=study.py", "--plan")

    for name in ("experiments", "configs"):
        (here / f"{name}.py").write_text("MINE = True\n")
    run(here, tools / "python", "-c", "import experiments, configs\n"
        "assert experiments.MINE and configs.MINE")  # fmt: skip
    run(here, tools / "qkv", "explain")


def run(folder: pathlib.Path, *command: object) -> None:
    words = [str(word) for word in command]
    print("  $", *(word.removeprefix(f"{folder.parent}/") for word in words), flush=True)
    # Nothing of this clone, and no choice of whoever runs this.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
        done.check_returncode()


if __name__ == "__main__":
    sys.exit(main())
