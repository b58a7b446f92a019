"""One big run: every way of spreading it over devices gives the losses of one device.

What needs collectives runs once, in tests/support/mesh_worker.py: a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]


def run_alone(command, timeout, **environment):
    """The output of a Python command in a process that is killed if it hangs.

    NPROC gives XLA more threads than devices: with fewer, collectives wait for ever.
    """
    own = os.environ | {"NPROC": "16", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    own.pop("XLA_FLAGS", None)
    command = ["timeout", "-s", "KILL", str(timeout), sys.executable, *command]
    done = subprocess.run(command, cwd=ROOT, env=own | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    return json.loads(run_alone(["tests/support/mesh_worker.py", str(folder)], 900))


THREADS = """
import os
del os.environ["NPROC"]
import jax
from qkv_jax.runtime.devices import use_virtual_devices
use_virtual_devices(8)
count = jax.device_count()
tasks = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(count, sum(name.startswith("tf_XLA") for name in tasks))
"""


def test_virtual_devices_get_two_threads_each():
    """Where nobody set NPROC, the command does, early enough for XLA to heed it: with fewer threads
    than devices collectives wait for ever."""
    count, threads = map(int, run_alone(["-c", THREADS], 120).split())
    assert count == 8 and threads >= 16


ALONE = "jit, one device"


def largest_difference(losses, others):
    return float(np.max(np.abs(np.array(losses) / np.array(others) - 1)))


def test_every_way_gives_the_losses_of_one_device(found):
    """vmap and pmap over seeds, pmap and mesh over data, fsdp, tensor, all of them together, with
    rematerialisation, scanned layers and microbatches: ten losses equal to 1e-6, which is what
    another order of float32 sums leaves. The losses do move."""
    losses = found["losses"]
    assert len(losses) == 10 and len(losses[ALONE]) == 10
    for name, own in losses.items():
        assert largest_difference(own, losses[ALONE]) < 1e-6, name
    assert max(losses[ALONE]) / min(losses[ALONE]) > 1.1


def test_parameters_and_their_moments_are_cut_as_the_rules_say(found):
    """The shared projection is one leaf, cut once, its two moments likewise: by specs and by the
    shape of what one device holds."""
    expected = {
        "mesh, data 8": ("P('fsdp', 'tensor', None)", [16, 4, 4]),
        "mesh, fsdp 8": ("P('fsdp', 'tensor', None)", [2, 4, 4]),
        "mesh, data 2 x fsdp 2 x tensor 2": ("P('fsdp', 'tensor', None)", [8, 2, 4]),
        "mesh, fsdp 2 x tensor 4, rules inner": ("P(None, 'tensor', 'fsdp')", [16, 1, 2]),
    }
    assert found["layouts"].keys() == expected.keys()
    for name, (spec, part) in expected.items():
        layout = found["layouts"][name]
        for tree in ("params", "first", "second"):
            assert layout[tree] == [spec, [16, 4, 4], part], (name, tree)
        assert layout["projections"] == ["key", "out", "query"]


def test_scores_and_initial_values_are_those_of_one_device(found):
    """One score per example, though 100 examples are no multiple of the mesh; parameters that are
    born cut have the values of the lone run."""
    scores = found["scores"]
    assert len(scores["mesh, fsdp 8"]) == 100
    np.testing.assert_allclose(scores["mesh, fsdp 8"], scores[ALONE], atol=1e-6)
    assert found["start"] < 1e-6


def test_a_step_takes_the_memory_of_the_state_that_it_is_given(found):
    """Parameters and moments of before are gone: a second copy would not fit a large model."""
    assert found["donated"]


def test_a_checkpoint_goes_on_on_another_mesh_or_none(found):
    """Saved on fsdp 2 x tensor 4: the next three losses on two other meshes and on one device are
    those of where it was saved, and of the run that was never interrupted."""
    restored = dict(found["restored"])
    own = restored.pop("where it was saved")
    assert len(restored) == 3
    for name, losses in restored.items():
        assert largest_difference(losses, own) < 1e-6, name
    assert largest_difference(own, found["losses"][ALONE][4:7]) < 1e-6
