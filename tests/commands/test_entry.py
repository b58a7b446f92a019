"""Odd command lines and config files at the door of a command: one line, the right exit code.

Mostly the door alone, in forks of one process (tests/support/cli_server.py); whole commands:
test_cli.py.
"""

import io
import os
import pathlib
import tarfile

import pytest

from tests.support import commands

ROOT = pathlib.Path(__file__).parents[2]
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
COMMAND = """
import sys
from experiments.cli import entry
from qkv_jax.model.config import ModelConfig
config, watch = entry.config_flag("plain.py", ModelConfig), entry.watch_flags()
def main():
    watch()
    print(config().width)
entry.enter(main)
"""
PLAIN = """
from ml_collections import ConfigDict
from tests.support import commands
def get_config():
    return ConfigDict({"width": 8})
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """`door(*arguments, module="command")` gives exit code, stdout and stderr of `python -m`."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "plain.py").write_text(PLAIN)
    (folder / "command.py").write_text(COMMAND)

    with commands.server(folder, folder) as server:
        run = lambda *arguments, module="command": tuple(server(module, *arguments))
        run.folder = folder
        yield run


@pytest.mark.parametrize("given", ["'no data here'", "0", ""])
def test_a_config_file_that_exits_is_refused(given, door):
    """Otherwise a command would do nothing and say by its exit code that all is well."""
    (door.folder / "leaves.py").write_text(f"import sys\nsys.exit({given})\n")
    what = f"SystemExit: {given}".replace("'", "").strip()
    assert door("--config=leaves.py") == (
        2, "", f"error: --config: given 'leaves.py'; line 2: {what}\n"
    )  # fmt: skip


@pytest.mark.parametrize("flag", ["max_hours", "checkpoint_minutes"])
def test_a_flag_that_is_not_a_number_is_refused(flag, door):
    """NaN is below no bound: a run would never be saved, or never stopped."""
    line = f"error: --{flag}: given nan; must be a number\n"
    assert door(f"--{flag}=nan") == (2, "", line)
    assert door(f"--{flag}=inf") == (0, "8\n", "")


def test_a_flagfile_that_is_no_text_is_refused(door):
    (door.folder / "flags").write_bytes(b"\xff\xfe")
    code, out, err = door("--flagfile=flags")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --flagfile: given '--flagfile=flags'; is no text: ")


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--helpfull"])
def test_to_ask_for_help_is_no_failure(flag, door):
    code, out, err = door(flag)
    assert (code, err) == (0, "")
    assert "--max_hours" in out and "width" in out


def test_a_pipe_is_no_page(door):
    """Whether somebody else's page is there is read, and a pipe without a writer has no end."""
    os.mkfifo(door.folder / "pipe")
    assert door("--html=pipe", module="experiments.explain") == (
        2, "", "error: --html: given 'pipe'; is a pipe or a device, no file\n"
    )  # fmt: skip


def test_a_number_of_more_digits_than_python_reads_is_refused(door):
    digits = "9" * 5000
    assert door(f"--steps={digits}", "--run=lost", module="experiments.explain") == (
        2, "", f"error: --steps: given '{digits}'; write whole numbers, as in 0,100\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"1\tnan\tfine", "line 1 of SNIPPETS is no id, rating and text"),
     (b"1\t2\t\xff", "SNIPPETS is no UTF-8: 'utf-8' codec can't decode byte 0xff in position 4: "
                     "invalid start byte")],
)  # fmt: skip
def test_snippets_that_are_damaged_are_refused(line, said, door):
    """A rating that is not a number would be negative."""
    inner = _archive(SNIPPETS, line)
    (door.folder / "sdist.tar.gz").write_bytes(_archive("hutto_ICWSM_2014.tar.gz", inner))
    flags = ("reviews", "--sdist=sdist.tar.gz", "--out=reviews.tsv")
    assert door(*flags, module="experiments.prepare") == (
        2, "", f"error: --sdist: given 'sdist.tar.gz'; {said.replace('SNIPPETS', SNIPPETS)}\n"
    )  # fmt: skip
    assert not (door.folder / "reviews.tsv").exists()


def _archive(name, content):
    """A .tar.gz of one file, in the folder that `prepare` looks for."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as files:
        entry = tarfile.TarInfo(f"a/additional_resources/{name}")
        entry.size = len(content)
        files.addfile(entry, io.BytesIO(content))
    return whole.getvalue()
