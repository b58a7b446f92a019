"""Compiled programs: kept from one start to the next, and what compiling takes."""

import hashlib
import os
import pathlib
import platform
import warnings
from typing import Any

import jax

_CPUINFO = pathlib.Path("/proc/cpuinfo")
_COMPILING = "/jax/core/compile/backend_compile_duration"
_seconds = 0.0


def keep_compiled(folder: pathlib.Path) -> None:
    """Lets later processes find what this one compiles, in `folder/.compiled`; a user's own
    JAX_COMPILATION_CACHE_DIR stands, and where nothing can be written nothing is kept.

    Processes may share it: JAX takes an entry that is not whole for one that is not there, and
    warns, as it does where the disk is full; nobody can make any use of that. What was compiled for
    one kind of CPU may not run on another, so that each has a folder of its own: the nodes of a
    cluster often differ and share their files.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    is_place = there.is_dir() and os.access(there, os.W_OK)
    if jax.config.jax_compilation_cache_dir or not is_place:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / ".compiled" / _kind_of_cpu()))
    # The small ones too: initial values are drawn op by op, by a hundred programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.filterwarnings("ignore", "Error (read|writ)ing persistent compilation cache entry")


def seconds_compiling() -> float:
    """How long this process has waited for the compiler so far."""
    return _seconds


def _count(event: str, seconds: float, **_details: Any) -> None:
    global _seconds
    if event == _COMPILING:
        _seconds += seconds


def _kind_of_cpu() -> str:
    """The machine and what its CPU can do, as a short name."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else [platform.processor()]
    known = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    digest = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"


jax.monitoring.register_event_duration_secs_listener(_count)
