"""One run in several processes: joining them, and what they must agree on.

Every process runs the same command. `jax.distributed` makes all their devices one list, over which
the mesh lies; each loads its share of the data, all take part in checkpoints, and process 0 alone
writes curve, events, results and the terminal.

Where processes must act alike (stop at the same step, refuse the same folder) they ask
`any_process`. JAX's own service for preemption is off: it takes SIGTERM for itself, silently
replacing the handler that was there, and with it a process could not be ended by SIGTERM any more.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qkv_jax.config import ConfigError, settle

_FIRST_PORT = 61440  # of those that JAX itself takes under Slurm
_STEP_STRIDE = 97
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_SHUTDOWN = 10  # seconds to wait for the others at the end; by default one that failed holds 300
_LOOPBACK = ("127.", "localhost", "[::1]")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Who takes part.

    Attributes:
      coordinator: `host:port` of process 0; every process can reach it.
      count, index: the number of processes, and which one this is, from 0.

    Raises:
      ConfigError: for what cannot be.
    """

    coordinator: str
    count: int
    index: int

    def __post_init__(self):
        settle(self)
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError("coordinator", self.coordinator, "must be HOST:PORT")
        if self.count < 1:
            raise ConfigError("processes", self.count, "must be a whole number above 0")
        if not 0 <= self.index < self.count:
            allowed = f"must be from 0 to {self.count - 1}, one of {self.count} processes"
            raise ConfigError("process", self.index, allowed)


def join(processes: Processes, timeout: int = 300) -> None:
    """Connects this process with the others; before anything else that JAX does.

    A coordinator on the loopback interface listens there alone, otherwise on all interfaces.

    Raises:
      ConfigError: if the others do not come within `timeout` seconds.
    """
    own = processes.coordinator.startswith(_LOOPBACK)
    _initialize(
        processes.coordinator,
        coordinator_address=processes.coordinator,
        num_processes=processes.count,
        process_id=processes.index,
        coordinator_bind_address=processes.coordinator if own else None,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
    )


def join_detected(timeout: int = 300) -> None:
    """Likewise, with what the environment says: Slurm (under srun), a TPU pod, Open MPI, GKE.

    Raises:
      ConfigError: if the environment says nothing of the kind, or the others do not come.
    """
    for name, value in slurm_settings(os.environ).items():
        os.environ.setdefault(name, value)
    _initialize("auto", initialization_timeout=timeout)


def slurm_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What JAX has to be told where `srun` has started this process, as its environment variables.

    It takes its port from the job's number, which two steps of a job have in common, and gives a
    process the one GPU of its rank, also where there is one process per node for all of them.
    """
    if "SLURM_PROCID" not in environment or "SLURM_JOB_ID" not in environment:
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    port = _FIRST_PORT + (job + _STEP_STRIDE * step) % (2**16 - _FIRST_PORT)
    settings = {"JAX_COORDINATOR_PORT": str(port)}
    nodes = environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES"))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if environment.get("SLURM_NTASKS") == nodes and gpus.isdigit() and int(gpus) > 1:
        settings["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(int(gpus))))
    return settings


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all of them must ask, and get the same answer."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


@contextlib.contextmanager
def raise_together(what: str):
    """A passage in which any process may raise a ConfigError, or an OSError where it writes: then
    all of them raise.

    The others raise a ConfigError that names `what`, instead of waiting for a process that has
    left.
    """
    error: ConfigError | OSError | None = None
    try:
        yield
    except (ConfigError, OSError) as raised:
        error = raised
    if any_process(error is not None):
        raise error or ConfigError(what, "refused", "by another process, which says why")


def leave() -> None:
    """Disconnects, after waiting for the others a little."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _initialize(given: str, **arguments: Any) -> None:
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_SHUTDOWN, **arguments
        )
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        field = "distributed" if given == "auto" else "coordinator"
        if given == "auto" and "coordinator_address" in reason:
            reason = "neither srun nor a TPU pod has started this one; by hand: --coordinator"
        raise ConfigError(field, given, f"processes cannot be joined: {reason}") from None
