"""Devices. CPU cores as devices must be asked for before JAX starts its backend."""

import collections
import os
import pathlib

import jax

_NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")  # a folder for each that the driver has found


def use_cpu_cores(count: int | None = None) -> int:
    """Makes `count` CPU devices (all cores this process may use, by default); returns their number.

    On machines with an accelerator this changes nothing: the CPU is then not the default backend.
    One device per core and one replica per device train small models fastest, because a model of a
    few thousand parameters cannot keep two cores busy (`experiments.benchmark population`).

    Raises:
      RuntimeError: if JAX has already started with another number of CPU devices.
    """
    if count is None:
        # The variable by which JAX itself can be told, so that a user's choice stands.
        forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        count = None if forced else len(os.sched_getaffinity(0))
    if count is not None:
        jax.config.update("jax_num_cpu_devices", count)
    return jax.device_count("cpu")


def devices_in_words() -> str:
    """What is computed on: "2 CPU cores", "8 x NVIDIA H200"; and whether there is an NVIDIA GPU
    that JAX cannot use."""
    if jax.default_backend() != "cpu":
        kinds = collections.Counter(device.device_kind for device in jax.devices())
        return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    cores = len(os.sched_getaffinity(0))
    unused = "; an NVIDIA GPU is here, but this JAX is without CUDA: make setup EXTRAS=gpu"
    return f"{cores} CPU core{'s' * (cores != 1)}" + unused * any(_NVIDIA.glob("*"))


def use_virtual_devices(count: int) -> None:
    """Makes `count` CPU devices, to try a mesh where there is no accelerator; before JAX starts.

    A user's own choice stands (`--xla_force_host_platform_device_count` in XLA_FLAGS).
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # XLA has as many threads as NPROC says, or cores. Each device of a collective waits in one of
    # its own: with fewer of them than devices they wait for ever.
    os.environ.setdefault("NPROC", str(max(16, 2 * count)))
    jax.config.update("jax_num_cpu_devices", count)
