"""stdout and stderr, whatever is at their other end; commands as a whole: test_last_handler.py."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PRINTING = """
import sys
from experiments import outlets
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
