"""A folder in which commands run, configs and texts beside it, and what refusals say."""

import dataclasses

import pytest

from qkv_jax.model.config import ModelConfig
from qkv_jax.tie import Tie
from tests.support import commands

TEMPLATE = "from qkv_jax.config_files import tree\ndef get_config():\n    return tree({})\n"

STUDY = {
    "name": "tiny",
    "model": {"tie": "separate", "layers": 1, "width": 8, "heads": 2, "kv_heads": 2,
              "positions": "learned", "frozen": (), "dropout": 0.0, "scale": "sqrt"},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8, "decay": "linear"},
    "arms": {"separate": {"model": {"tie": "separate"}}, "shared": {"model": {"tie": "K=V"}}},
    "tasks": {"one": {"kind": "reverse", "options": {"length": 6, "margin": 0.01}}},
    "study": {"protocol": "fixed", "baseline": "separate", "learning_rates": (1e-3, 1e-2),
              "tune_seeds": 1, "eval_seeds": 5, "match": "none"},
}  # fmt: skip
RUN = {
    "task": {"kind": "masked_bytes", "options": {"length": 16, "files": ("text",)}},
    "model": STUDY["model"],
    "train": STUDY["train"] | {"learning_rate": 0.01},
    "seed": 0,
    "checkpoint_steps": (),
}


ABLATE, TRAIN, BENCHMARK = (f"experiments.{name}" for name in ("ablate", "train", "benchmark"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the commands run; configs and texts lie beside it, in `files`."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "here").mkdir()
    files = folder / "files"
    files.mkdir()
    template = TEMPLATE
    (files / "study.py").write_text(template.format(STUDY))
    (files / "run.py").write_text(template.format(RUN))
    texts = {"good": bytes(range(256)) * 40, "empty": b"", "short": b"abc", "middling": b"ab" * 50}
    for name, content in texts.items():
        (files / name).write_bytes(content)
        options = {"length": 16, "files": (str(files / name),)}
        tasks = {
            "fine": STUDY["tasks"]["one"],
            "text": {"kind": "masked_bytes", "options": options},
        }
        (files / f"{name}_study.py").write_text(template.format({**STUDY, "tasks": tasks}))
    broken = {
        "syntax": "\ndef get_config(:\n",
        "raises": "def get_config():\n    return {}['lost']\n",
        "divides": "def get_config():\n    return 1 / 0\n",
        "imports": "import no_such_package\n",
        "empty": "",
        "mapping": "def get_config():\n    return {'name': 'x'}\n",
        "tie": "from qkv_jax.study.plan import tie_arms\ndef get_config():\n    tie_arms('K=Z')\n",
    }
    for name, content in broken.items():
        (files / f"broken_{name}.py").write_text(content)
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(module, *arguments)` gives exit code, stdout and stderr."""
    with commands.server(place / "here") as run:
        yield run


@pytest.fixture
def refused(command, place):
    """The one line that a command says; all else about a refusal is checked here."""

    def line(module, *arguments):
        before = contents(place)
        code, out, err = command(module, *arguments)
        assert code == 2, err
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert out == ""
        assert contents(place) == before
        return err.removeprefix("error: ").rstrip("\n")

    return line


def contents(folder):
    """Every file with its bytes and the moment it was last written; every folder."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def arguments_of(place, module, flags):
    config = {ABLATE: "study.py", TRAIN: "run.py"}[module]
    return [f"--config={place / 'files' / config}", "--workdir=results", *flags]


FIELDS = ", ".join(field.name for field in dataclasses.fields(ModelConfig))
TIES = ", ".join(repr(str(tie)) for tie in Tie.all())
