"""Meshes, rules, processes and topologies that cannot be: one line, exit code 2."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SERVER = ROOT / "tests" / "support" / "cli_server.py"

REFUSED = {
    ("--config.mesh.data=3",): "mesh: given 'data 3 x fsdp 1 x tensor 1'; the product must be "
    "equal to the number of devices, 8",
    ("--config.mesh.data=-1", "--config.mesh.tensor=3"): "mesh: given 'data -1 x fsdp 1 x tensor "
    "3'; the product must be a divisor of the number of devices, 8",
    ("--config.mesh.data=8", "--config.train.batch_size=20"): "train.batch_size: given 20; must be "
    "divisible by data x fsdp = 8",
    ("--config.mesh.data=8", "--config.train.accumulate=4", "--config.train.batch_size=16"):
    "train.batch_size: given 16; must be divisible by data x fsdp = 8 times accumulate = 4",
    ("--config.mesh.data=8", "--config.mesh.by=pmap", "--config.train.batch_size=20"):
    "train.batch_size: given 20; must be divisible by data x accumulate = 8",
    ("--config.mesh.tensor=8",): "mesh.rules[4]: given ['fsdp', 'tensor', None]; tensor = 8 does "
    "not divide layer_0/attention/",
    ("--config.mesh.fsdp=8", "--config.mesh.rules=megaton"): "mesh.rules: given 'megaton'; "
    "allowed: megatron, inner, replicated, or a list of [pattern, spec]",
    ("--config.mesh.fsdp=eight",): "mesh.fsdp: given 'eight'; must be a whole number",
    ("--processes=2",): "--processes: given 2; needs --coordinator=HOST:PORT",
    ("--coordinator=127.0.0.1:80",): "mesh: given None; several processes train on one mesh",
    ("--coordinator=nowhere", "--config.mesh.data=8"): "--coordinator: given 'nowhere'; must be",
    ("--distributed", "--config.mesh.data=8"): "--distributed: given 'auto'; processes cannot be "
    "joined: ",
    ("--compile_only=v5e:4x4",): "--compile_only: given 'v5e:4x4'; ",
    ("--compile_only=v5e:4x4", "--config.mesh.data=16", "--config.mesh.by=pmap"): "mesh.by: given "
    "'pmap'; what is compiled here is sharded by 'jit'",
    ("--config.mesh.by=pmap",): "mesh.by: given 'pmap'; needs the axis data",
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What every command of REFUSED says, in an empty folder; and what is in it afterwards."""
    folder = tmp_path_factory.mktemp("commands")
    options = {"length": 8, "validation_examples": 8, "test_examples": 8}
    config = folder / "run.py"
    config.write_text(
        "from configs import train\nfrom qkv_jax.config_files import tree\n"
        "def get_config():\n    config = train.get_config()\n"
        f"    config.task = tree({{'kind': 'reverse', 'options': {options}}})\n"
        "    config.model.update(layers=1, width=16, heads=2)\n    return config\n"
    )
    (folder / "here").mkdir()
    flags = "--xla_force_host_platform_device_count=8"
    own = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "NPROC": "16"}
    own = {name: x for name, x in own.items() if not name.startswith(("SLURM", "JAX_COORD"))}
    commands = [
        json.dumps(["experiments.train", f"--config={config}", "--workdir=out", *given])
        for given in REFUSED
    ]
    done = subprocess.run(
        ["timeout", "-s", "KILL", "400", sys.executable, SERVER],
        cwd=folder / "here", env=own, input="\n".join(commands), capture_output=True, text=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(REFUSED), done.stderr
    return dict(zip(REFUSED, answers, strict=True)), list((folder / "here").iterdir())


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_it_is_refused_in_one_line(given, answers):
    code, out, errors = answers[0][given]
    assert (code, out) == (2, ""), errors
    assert len(errors.splitlines()) == 1
    if given == ("--compile_only=v5e:4x4",) and "needs the compiler" not in errors:
        assert "mesh" in errors  # libtpu is here: no mesh was given
    else:
        assert errors.startswith(f"error: {REFUSED[given]}")


def test_nothing_was_written(answers):
    assert answers[1] == []
