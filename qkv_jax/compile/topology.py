"""Accelerators that are not there: compiles a sharded program for a TPU topology on any machine.

The compiler is libtpu's own (extra `tpu`), so what it says of memory and collectives is what would
run; what time that takes is arithmetic on the chip's published numbers.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from qkv_jax.compile.hlo import Traffic, collectives, memory_bytes
from qkv_jax.config import ConfigError
from qkv_jax.training.mesh import MeshProgram


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at most.

    Attributes:
      name: as Google Cloud calls it.
      flops: bfloat16 FLOPs per second.
      memory: bytes of its main memory (HBM).
      bandwidth: bytes per second from and to that memory.
      link: bytes per second over one link to a neighbour, one way.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    link: float


# By JAX's `device_kind`. Source: "TPU architecture" of Google Cloud's documentation, the pages v5e,
# v5p and v6e, read in 2026: peak bf16 compute, HBM capacity and bandwidth a chip, and bidirectional
# ICI bandwidth a chip (400, 1200, 800 GB/s), here divided by two ways and by ports (4, 6, 4).
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 50e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 100e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1600e9, 100e9),
}
# How often a collective's bytes, as `Traffic` counts them, cross a link if they go round a ring of
# chips in both directions at once; a permutation goes one way, to a neighbour. An exchange of all
# with all is counted as if all were neighbours, which is too little.
_CROSSINGS = {
    "all-gather": 0.5,
    "reduce-scatter": 0.5,
    "all-reduce": 1.0,
    "all-to-all": 0.25,
    "collective-permute": 1.0,
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program, on one chip, in one run of `report_every` steps.

    Attributes:
      refusal: why it does not fit in memory, in the compiler's words; then the rest is 0 or empty.
      arguments, temporaries, code: bytes of memory: state, schedule and data (state that goes out
        takes the place of state that comes in); what lives for a while; the program.
      traffic: collectives by kind.
      touched: bytes read from and written to main memory.
    """

    refusal: str = ""
    arguments: int = 0
    temporaries: int = 0
    code: int = 0
    traffic: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    touched: int = 0

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.code


def tpu_devices(topology: str) -> Sequence[Any]:
    """The devices of a topology such as `v5e:4x4`, to compile for.

    Raises:
      ConfigError: if libtpu is not there or does not know the topology.
    """
    # Only the compiler is used: no chip is touched, so several processes may.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Looking for the chips of a cloud machine that this is not takes it a minute.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        allowed = "needs the compiler for TPUs: pip install -e '.[tpu]'"
        raise ConfigError("compile_only", topology, allowed) from None
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except Exception as error:  # libtpu's own, or those of JAX around it
        reason = re.sub(r"^[A-Z_]+: ", "", str(error).strip().splitlines()[0])
        allowed = f"no topology that libtpu knows, such as v5e:4x4: {reason}"
        raise ConfigError("compile_only", topology, allowed) from None


def chip_of(devices: Sequence[Any]) -> Chip | None:
    """The numbers of the devices' kind, where they are known."""
    return CHIPS.get(devices[0].device_kind)


def compile_program(program: MeshProgram) -> Compiled:
    """Compiles the very function that would train.

    Raises:
      ConfigError: if the compiler refuses it for another reason than memory.
    """
    try:
        compiled = program.train.lower(*program.shapes()).compile()
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in first and "memory" not in first:
            raise ConfigError("compile_only", str(program.mesh), first) from None
        return Compiled(refusal=_refusal(str(error)))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Compiled(
        arguments=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        traffic=collectives(text),
        touched=memory_bytes(text),
    )


def _refusal(error: str) -> str:
    """How much the compiler would have needed of how much, if it says so."""
    pattern = r"Used [\d.]+\w of [\d.]+\w hbm|total memory required .* available HBM \([\d.]+\w\)"
    found = re.search(pattern, error)
    return found[0] if found else error.strip().splitlines()[0]


def seconds(chip: Chip, flops: float, compiled: Compiled) -> dict[str, float]:
    """What a run takes at least for arithmetic, memory and links, each by itself.

    Args:
      flops: of one chip, in the same run.
    """
    crossings = sum(_CROSSINGS[kind] * moved.bytes for kind, moved in compiled.traffic.items())
    return {
        "arithmetic": flops / chip.flops,
        "memory": compiled.touched / chip.bandwidth,
        "links": crossings / chip.link,
    }
