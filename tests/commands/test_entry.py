"""Odd command lines and config files at the entry of a command: one line, the right exit code.

Mostly the entry alone, in forks of one process (tests/support/cli_server.py); whole commands:
test_cli.py.
"""

import io
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

from tests.support import commands

ROOT = pathlib.Path(__file__).parents[2]
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
COMMAND = """
import sys
from experiments.cli import entry
from qkv_jax.model.config import ModelConfig
config, stop_signal = entry.config_flag("plain.py", ModelConfig), entry.stop_flags()
def main():
    stop_signal()
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
def run_command(tmp_path_factory):
    """`run_command(*arguments, module="command")`: exit code, stdout, stderr of `python -m`."""
    folder = tmp_path_factory.mktemp("entry")
    (folder / "plain.py").write_text(PLAIN)
    (folder / "command.py").write_text(COMMAND)

    with commands.server(folder, folder) as server:
        run = lambda *arguments, module="command": tuple(server(module, *arguments))
        run.folder = folder
        yield run


@pytest.mark.parametrize("given", ["'no data here'", "0", ""])
def test_a_config_file_that_exits_is_refused(given, run_command):
    """Otherwise a command would do nothing and say by its exit code that all is well."""
    (run_command.folder / "leaves.py").write_text(f"import sys\nsys.exit({given})\n")
    what = f"SystemExit: {given}".replace("'", "").strip()
    assert run_command("--config=leaves.py") == (
        2, "", f"error: --config: given 'leaves.py'; line 2: {what}\n"
    )  # fmt: skip


@pytest.mark.parametrize("flag", ["max_hours", "checkpoint_minutes"])
def test_a_flag_that_is_not_a_number_is_refused(flag, run_command):
    """NaN is below no bound: a run would never be saved, or never stopped."""
    line = f"error: --{flag}: given nan; must be a number\n"
    assert run_command(f"--{flag}=nan") == (2, "", line)
    assert run_command(f"--{flag}=inf") == (0, "8\n", "")


def test_a_flagfile_that_is_no_text_is_refused(run_command):
    (run_command.folder / "flags").write_bytes(b"\xff\xfe")
    code, out, err = run_command("--flagfile=flags")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: --flagfile: given '--flagfile=flags'; is no text: ")


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--helpfull"])
def test_to_ask_for_help_is_no_failure(flag, run_command):
    code, out, err = run_command(flag)
    assert (code, err) == (0, "")
    assert "--max_hours" in out and "width" in out


def test_a_pipe_is_no_page(run_command):
    """Whether somebody else's page is there is read, and a pipe without a writer has no end."""
    os.mkfifo(run_command.folder / "pipe")
    assert run_command("--html=pipe", module="experiments.explain") == (
        2, "", "error: --html: given 'pipe'; is a pipe or a device, no file\n"
    )  # fmt: skip


def test_a_number_of_more_digits_than_python_reads_is_refused(run_command):
    digits = "9" * 5000
    assert run_command(f"--steps={digits}", "--run=lost", module="experiments.explain") == (
        2, "", f"error: --steps: given '{digits}'; write whole numbers, as in 0,100\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"1\tnan\tfine", "line 1 of SNIPPETS is no id, rating and text"),
     (b"1\t2\t\xff", "SNIPPETS is no UTF-8: 'utf-8' codec can't decode byte 0xff in position 4: "
                     "invalid start byte")],
)  # fmt: skip
def test_snippets_that_are_damaged_are_refused(line, message, run_command):
    """A rating that is not a number would be negative."""
    inner = _archive(SNIPPETS, line)
    (run_command.folder / "sdist.tar.gz").write_bytes(_archive("hutto_ICWSM_2014.tar.gz", inner))
    flags = ("reviews", "--sdist=sdist.tar.gz", "--out=reviews.tsv")
    assert run_command(*flags, module="experiments.prepare") == (
        2, "", f"error: --sdist: given 'sdist.tar.gz'; {message.replace('SNIPPETS', SNIPPETS)}\n"
    )  # fmt: skip
    assert not (run_command.folder / "reviews.tsv").exists()


def _archive(name, content):
    """A .tar.gz of one file, in the folder that `prepare` looks for."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as files:
        entry = tarfile.TarInfo(f"a/additional_resources/{name}")
        entry.size = len(content)
        files.addfile(entry, io.BytesIO(content))
    return whole.getvalue()


# --- stdout and stderr, whatever is at their other end

PRINTING = """
import sys
from experiments.cli import outlets
outlets.open_outlets()
if {is_long}:
    outlets.long_work()
for number in range(3000):
    print(number, "x" * 60)
"""


@pytest.mark.parametrize("is_long", [False, True])
def test_a_pipe_that_does_not_block_gets_every_line_of_a_command_that_is_faster(is_long):
    """Terminals of some editors and of remote shells are such; a full one is no error."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    command = [sys.executable, "-c", PRINTING.format(is_long=is_long)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT) as process:
        os.close(theirs)
        time.sleep(1)  # it runs into the full pipe
        with open(ours) as lines:
            numbers = [int(line.split()[0]) for line in lines]
        assert process.stderr.read() == b""
    assert numbers == list(range(3000))
    assert process.returncode == 0
