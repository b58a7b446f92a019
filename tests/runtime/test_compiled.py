"""Compiled programs are kept beside the work folders, and the waiting for them is counted."""

import os
import subprocess
import sys

import jax
import pytest

from qkv_jax.runtime import compiled

PROGRAM = """
import pathlib, sys, warnings
warnings.simplefilter("error")
import jax
from qkv_jax.runtime.compiled import keep_compiled, seconds_compiling
keep_compiled(pathlib.Path(sys.argv[1]))
assert jax.jit(lambda x: x * 2 + 1)(3.0) == 7.0
print(jax.config.jax_compilation_cache_dir, seconds_compiling())
"""


def compile_in(folder, **environment):
    known = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env=known | environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert not done.stderr
    place, seconds = done.stdout.split()
    return place, float(seconds)


def kept(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*-cache")}


@pytest.mark.slow
def test_programs_are_kept_in_a_folder_of_the_machine_and_found_again(tmp_path):
    """In a folder that is not there yet too; one cut off in the writing is no harm."""
    runs = tmp_path / "runs"
    place, seconds = compile_in(runs)
    assert place.startswith(str(runs / ".compiled")) and seconds > 0
    first = kept(runs)
    assert first and compile_in(runs)[0] == place and kept(runs) == first
    for file in (runs / ".compiled").rglob("*-cache"):
        file.write_bytes(file.read_bytes()[:20])
    compile_in(runs)


@pytest.mark.slow
def test_where_nothing_can_be_kept_or_something_else_was_chosen_nothing_is(tmp_path):
    chosen = str(tmp_path / "chosen")
    assert compile_in(tmp_path / "runs", JAX_COMPILATION_CACHE_DIR=chosen)[0] == chosen
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    assert compile_in(tmp_path / "file/runs")[0] == "None"


def test_waiting_for_the_compiler_is_counted():
    before = compiled.seconds_compiling()
    jax.jit(lambda x: x * before + 0.123)(1.0).block_until_ready()
    assert before < compiled.seconds_compiling() < before + 60
