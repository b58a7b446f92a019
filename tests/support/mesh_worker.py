"""Runs one small model in every parallel way on 8 virtual CPU devices; prints JSON.

A process of its own for test_mesh.py, since collectives over virtual devices want settings
that must be made before JAX starts: `NPROC=16 timeout -s KILL 900 python mesh_worker.py DIR`.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training.checkpoint import Checkpoints
from qkv_jax.training.mesh import MeshConfig, MeshProgram
from qkv_jax.training.pmap import PmapProgram
from qkv_jax.training.single import LoneProgram
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

jax.config.update("jax_num_cpu_devices", 8)

STEPS = 10
SEED = 3
MODEL = ModelConfig(tie="K=V", layers=1, width=16, heads=4, use_bias=True)
TASK = make_task("reverse", {"length": 6, "symbols": 8, "test_examples": 100,
                             "validation_examples": 20})  # fmt: skip
CONFIG = TrainConfig(steps=STEPS, report_every=1, batch_size=16, learning_rate=1e-2)
TRAINER = Trainer(MODEL, TASK, CONFIG)
DATA = TASK.load()

# The layouts that are compared with one device.
LAYOUTS = {
    "mesh, data 8": MeshConfig(data=8),
    "mesh, fsdp 8": MeshConfig(fsdp=8),
    "mesh, data 2 x fsdp 2 x tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "mesh, fsdp 2 x tensor 4, rules inner": MeshConfig(fsdp=2, tensor=4, rules="inner"),
}
BIG = dataclasses.replace(
    TRAINER,
    model_config=dataclasses.replace(MODEL, remat="dots", scan_layers=True),
    train_config=dataclasses.replace(CONFIG, accumulate=2),
)


def run(program, state, steps=STEPS):
    """Losses of the first steps, and the state after them."""
    losses = []
    for _ in range(steps):
        state, metrics = program.advance(state, None)
        losses.append(float(metrics["loss"]))
    return losses, state


def described(state):
    """How the shared projection and its moments lie: specs, and the shape of a device's part."""
    kernels = {
        "params": state.params,
        "first": state.opt_state[0][1].mu,
        "second": state.opt_state[0][1].nu,
    }
    found = {}
    for name, tree in kernels.items():
        kernel = tree["layer_0"]["attention"]["key"]["kernel"]
        part = kernel.addressable_shards[0].data.shape
        found[name] = [str(kernel.sharding.spec), list(kernel.shape), list(part)]
    attention = sorted(state.params["layer_0"]["attention"])
    return found | {"projections": attention}


def is_used_up(program, state):
    """Whether a step takes the memory of the state that it is given."""
    program.advance(state, None)
    return all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))


def side_by_side():
    """Losses of the seed as one of two replicas, under vmap and under pmap over seeds."""
    state = TRAINER.init(SEED, CONFIG.learning_rate)
    other = TRAINER.init(SEED + 1, CONFIG.learning_rate)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), state, other)
    schedule = jax.jit(jax.vmap(TRAINER.schedule, in_axes=(0, 0, None)))
    vmapped = jax.vmap(TRAINER.train, in_axes=(0, 0, None))
    ways = {"vmap": jax.jit(vmapped), "pmap": jax.pmap(TRAINER.train, in_axes=(0, 0, None))}
    found = {}
    for name, train in ways.items():
        states, losses = both, []
        for _ in range(STEPS):
            entries = schedule(states.seed, states.step, {})
            states, metrics = jax.block_until_ready(train(states, entries, {}))
            losses.append(float(metrics["loss"][0]))
        found[name] = losses
    return {f"{name} over two seeds": x for name, x in found.items()}


def restored(folder, programs, start):
    """A state saved on one mesh after 4 steps: its next losses there, on others, and on none."""
    saved = programs["mesh, fsdp 2 x tensor 4, rules inner"]
    _, state = run(saved, jax.device_put(start, saved.shardings), 4)
    checkpoints = Checkpoints(folder)
    checkpoints.save(state)
    found = {"where it was saved": run(saved, state, 3)[0]}
    for name in ("mesh, data 2 x fsdp 2 x tensor 2", "mesh, fsdp 8", "jit, moments by leaf"):
        state = checkpoints.restore(programs[name].abstract(), 4)
        found[name] = run(programs[name], state, 3)[0]
    checkpoints.close()
    return found


def main(folder):
    by_leaf = dataclasses.replace(TRAINER, moments="by_leaf")
    programs = {"jit, one device": LoneProgram(TRAINER, DATA)}
    programs["jit, moments by leaf"] = LoneProgram(by_leaf, DATA)
    programs["pmap, data 8"] = PmapProgram(by_leaf, DATA)
    for name, config in LAYOUTS.items():
        programs[name] = MeshProgram(TRAINER, DATA, config)
    name = "mesh, data 2 x fsdp 4, remat, scan, accumulate"
    programs[name] = MeshProgram(BIG, DATA, MeshConfig(data=2, fsdp=4))
    losses, scores, layouts, joined = side_by_side(), {}, {}, TRAINER.init(SEED, 1e-2)
    start = jax.device_get(by_leaf.init(SEED, CONFIG.learning_rate))
    for name, program in programs.items():
        if isinstance(program, MeshProgram):
            state = jax.device_put(start, program.shardings)  # compiling `start` takes long
        else:
            state = joined if program.trainer.moments == "joined" else start
        losses[name], state = run(program, state)
        if name in LAYOUTS:
            layouts[name] = described(state)
        if name in ("jit, one device", "mesh, fsdp 8"):
            scores[name] = program.scores(state, "test").tolist()
    own = programs["mesh, fsdp 8"].start(SEED)
    difference = lambda a, b: float(np.abs(np.asarray(a) - b).max())
    differ = jax.tree.map(difference, own.params, start.params)
    found = {
        "losses": losses,
        "layouts": layouts,
        "scores": scores,
        "start": max(jax.tree.leaves(differ)),
        "donated": is_used_up(programs["mesh, fsdp 8"], own),
        "restored": restored(pathlib.Path(folder) / "checkpoints", programs, start),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
