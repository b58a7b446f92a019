"""`experiments.train --compile_only=v5e:4x4`: what the train step would be on that topology."""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from qkv_jax.compile.topology import chip_of, compile_program, seconds, tpu_devices
from qkv_jax.config import ConfigError
from qkv_jax.model.dot_product import resolved
from qkv_jax.training.costs import matrix_flops, measure
from qkv_jax.training.mesh import MeshConfig, MeshProgram
from qkv_jax.training.step import Trainer


def step_costs(trainer: Trainer, mesh: MeshConfig, topology: str) -> dict[str, Any]:
    """Compiles a trainer's steps for a topology; returns what there is to say of one step.

    Raises:
      ConfigError: if topology, mesh and trainer do not fit together.
    """
    if mesh.by == "pmap":
        raise ConfigError("mesh.by", mesh.by, "what is compiled here is sharded by 'jit'")
    # `auto` may stand for another one there than here.
    implementation = resolved(trainer.model_config.implementation, "tpu")
    model = dataclasses.replace(trainer.model_config, implementation=implementation)
    trainer = dataclasses.replace(trainer, model_config=model)
    with _quiet():
        devices = tpu_devices(topology)
    program = MeshProgram(trainer, trainer.task.load(), mesh, devices)
    steps, chips = trainer.train_config.report_every, len(devices)
    started = time.perf_counter()
    with _quiet():
        flops = matrix_flops(program.train.trace(*program.shapes()).jaxpr.jaxpr) / steps
        compiled = compile_program(program)
    costs, chip = measure(trainer), chip_of(devices)
    tokens = trainer.train_config.batch_size * trainer.task.max_length
    found: dict[str, Any] = {
        "topology": topology,
        "chips": chips,
        "kind": devices[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "params": costs.params,
        "tokens": tokens,
        "flops": flops,
        "model_flops": 3 * costs.flops_per_token * tokens,
        "rule_of_thumb": 6 * costs.params * tokens,
        "compile_seconds": time.perf_counter() - started,
        "refusal": compiled.refusal,
    }
    if not compiled.refusal:
        found |= {
            "memory": compiled.memory,
            "arguments": compiled.arguments,
            "temporaries": compiled.temporaries,
            "touched": compiled.touched / steps,
            "traffic": {
                kind: (moved.count / steps, moved.bytes / steps)
                for kind, moved in compiled.traffic.items()
            },
        }
    if chip and not compiled.refusal:
        times = seconds(chip, flops * steps / chips, compiled)
        found |= {"hbm": chip.memory, "seconds": {k: t / steps for k, t in times.items()}}
    return found


def describe(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal."""
    giga = lambda number: f"{number / 1e9:.2f} GB"
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    lines = [
        f"{found['topology']}: {found['chips']} x {found['kind']}, mesh {mesh}",
        f"{found['params'] / 1e6:.1f} million parameters, {found['tokens']} tokens per step, "
        f"compiled in {found['compile_seconds']:.0f} s",
    ]
    if found["refusal"]:
        return [*lines, f"does not fit: {found['refusal']}"]
    lines += [
        f"memory per chip {giga(found['memory'])}"
        + (f" of {giga(found['hbm'])}" if "hbm" in found else "")
        + ": fits",
        f"                state and data {giga(found['arguments'])}, "
        f"temporaries {giga(found['temporaries'])}",
        f"FLOPs per step  {found['flops']:.4g}, with what the backward pass computes again",
        f"                {found['model_flops']:.4g} without; 6 x parameters x tokens is "
        f"{found['rule_of_thumb']:.4g}",
        f"bytes per step  {giga(found['touched'])} from and to each chip's memory",
    ]
    label = "collectives"
    for kind, (count, moved) in found["traffic"].items():
        lines.append(f"{label:16}{kind}: {count:.0f} per step, {giga(moved)} per chip")
        label = ""
    if not found["traffic"]:
        lines.append("collectives     none")
    if "seconds" not in found:
        return [*lines, f"step time       not estimated: no numbers for {found['kind']!r}"]
    times = found["seconds"]
    parts = ", ".join(f"{what} {1e3 * t:.1f} ms" for what, t in times.items())
    low, high = max(times.values()), sum(times.values())
    useful = times["arithmetic"] * found["model_flops"] / found["flops"] / low
    return [
        *lines,
        f"step time       {1e3 * low:.1f} ms if all overlap, {1e3 * high:.1f} ms if nothing does;",
        f"                at peak {parts}",
        f"                at best {useful:.0%} of the peak does useful arithmetic",
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps libtpu's warnings about the machine it is not on off stderr, unless it breaks."""
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except ConfigError:
            raise
        except Exception:
            kept.seek(0)
            os.write(own, kept.read())
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)
