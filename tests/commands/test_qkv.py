"""`qkv COMMAND`: every command by one name, and `--config=NAME` from any folder.

The wheel itself, in an empty environment: `make test-python`.
"""

import pytest

from experiments.cli import config_file, place
from qkv_jax.config import ConfigError
from qkv_jax.study.config import StudyFile
from tests.support import commands
from tests.support.warm_python import ROOT

MINE = """
from ml_collections import ConfigDict
def get_config(*_):
    return ConfigDict({"name": "mine"})
"""


@pytest.fixture(scope="module")
def qkv(tmp_path_factory):
    """`qkv(*words)`, in an empty folder: exit code, stdout and stderr."""
    with commands.server(tmp_path_factory.mktemp("empty")) as run:
        yield lambda *words: run("experiments", *words)


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_all_commands_are_listed_with_what_they_do(words, qkv):
    code, out, err = qkv(*words)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(commands.FILES)
    assert dict(lines)["train"] == "Trains one model"
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_command_that_is_not_there_is_refused(qkv):
    assert qkv("ablat", "--plan") == [
        2, "", f"error: command: given 'ablat'; did you mean 'ablate'? allowed: "
        f"{', '.join(commands.FILES)}\n",
    ]  # fmt: skip


def test_a_command_runs_with_the_words_after_its_name(qkv):
    code, out, err = qkv("explain", "--text=the cat", "--width=4")
    assert (code, err) == (0, "") and "width 4" in out
    assert qkv("benchmark", "populaton")[2].startswith("error: benchmark: given 'populaton'; ")


def test_a_shipped_config_goes_by_its_name(qkv):
    code, out, err = qkv("ablate", "--config=smoke", "--plan")
    assert (code, err) == (0, "") and "mnist5k" in out
    code, out, err = qkv("ablate", "smoke")
    assert (code, out) == (2, "") and "did you mean --config=smoke?" in err


@pytest.mark.parametrize("name", ["quick", "papers/kayyam2026:small"])
def test_a_name_is_the_file_of_that_name(name, monkeypatch, tmp_path):
    """A file of one's own has an ending: it cannot stand in the way, and is read by its path."""
    path, colon, size = name.partition(":")
    shipped = config_file.read(str(ROOT / "configs" / f"{path}.py") + colon + size, StudyFile)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / f"{path}.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text(MINE)
    own.with_suffix("").touch()
    assert config_file.read(name, StudyFile).to_dict() == shipped.to_dict()
    assert config_file.read(f"{path}.py{colon}{size}", StudyFile).name == "mine"
    own.with_suffix("").rename("notes")
    with pytest.raises(ConfigError, match="is no Python file: its name ends in .py"):
        config_file.read("notes", StudyFile)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("quik", "quick"), ("configs/quick.py", "quick"), ("papers/kayam2026", "papers/kayyam2026")],
)
def test_the_config_that_may_have_been_meant_is_named(given, meant, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no such file; did you mean '{meant}'. allowed: adap"):
        config_file.read(given, StudyFile)


def test_every_config_file_is_shipped():
    files = {file for file in (ROOT / "configs").rglob("*.py") if file.name != "__init__.py"}
    assert {place.CONFIGS / f"{name}.py" for name in place.shipped()} == files


def test_an_installed_command_shows_what_is_typed_there(monkeypatch):
    text = "Runs a study: `python -m experiments.ablate --config=configs/quick.py`."
    assert place.as_typed(text) == text
    monkeypatch.setattr(place, "PACKAGE", "qkv_jax.experiments")
    assert place.as_typed(text) == "Runs a study: `qkv ablate --config=quick`."
    assert place.typed("train") == ["qkv", "train"]
