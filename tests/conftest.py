"""What all tests share: two CPU devices, compiled programs, exact products, golden files.

Nothing of qkv_jax may be imported here: pytest loads this file before the hook that checks array
shapes at run time (`--jaxtyping-packages` in setup.cfg) is in place.
"""

import json
import os
import pathlib

GOLDEN = pathlib.Path(__file__).parent / "golden"
# What one process has compiled no other compiles again, also those that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(GOLDEN.parent.parent / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# An entry that is being written, or never was to the end, is said and compiled: processes that
# tests start need not say it.
os.environ.setdefault(
    "PYTHONWARNINGS", "ignore:Error reading persistent compilation cache entry:UserWarning"
)
# Programs so small take longer to compile well than to run; 0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402  (it reads the environment)
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)  # before the backend starts
jax.config.update("jax_default_matmul_precision", "highest")  # accelerators round products else
# What is broadcast, and what becomes another number format, is said where it happens.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same examples every time; no deadline, since the first example of a shape compiles.
settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("house")

# Minutes each: begun first, so that at the end no process waits for another's.
LONG = (
    "test_engine", "test_engine_interruptions", "test_engine_failures", "test_resume",
    "test_resume_waves", "test_faults", "test_mesh", "test_distributed", "test_surgery",
    "test_surgery_command", "test_docs",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        if item.path.parent.name == "commands":
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def golden():
    """`golden(name, actual)` is what tests/golden/<name>.json holds, for comparison with `actual`.

    With UPDATE_GOLDEN=1 in the environment the file is written anew from `actual`; read the diff
    before committing it.
    """

    def stored(name, actual):
        path = GOLDEN / f"{name}.json"
        if os.environ.get("UPDATE_GOLDEN") == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(actual, indent=1) + "\n")
        assert path.exists(), f"{path.name} is missing; UPDATE_GOLDEN=1 writes it"
        return json.loads(path.read_text())

    return stored


@pytest.fixture
def unchecked():
    """Turns the type checker off, for tests of what the package itself says to wrong arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
