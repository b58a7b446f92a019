"""A few of the faults of `make faults`: kills at points where files change, inside checkpoints and
at any time; two processes on one folder. It must end equal to what was not disturbed."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_killed_commands_end_as_if_nothing_had_been():
    """Run and study, in a process that forks before JAX starts; see faults.py."""
    script = pathlib.Path(__file__).parents[1] / "stress" / "faults.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--few"], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    refused, kills, verdict = ended.stdout.splitlines()
    assert refused == "4 second processes refused" and kills.startswith("8 kills: ")
    assert "nothing lost, nothing doubled" in verdict
