"""Ties, adapters, configs, training and runs: right calls, and values that are wrong."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax import tie
from qkv_jax.config import ConfigError
from qkv_jax.model import adapters
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime import distributed
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from qkv_jax.training import loop, mesh, population, state, step
from qkv_jax.training.checkpoint import load_run
from tests.support.arguments.layer_cases import SMALL
from tests.support.arguments.values import NO_COUNT, NO_FLAG, NO_SEED, NO_WORD, Case, traced, zeros

NO_TIE = [3, None, ["K=V"], b"K=V", "", "K=Z", "K==V", "Q-K", object()]
KV = Tie.parse("K=V")


def tie_cases():
    yield Case(Tie, {"groups": KV.groups},
               {"groups": [(), None, "K=V", (("K", "V"),), [["Q", "K", "V", "X"]],
                           (("Q", "K", "V", "Z"),), (("V", "K"), ("X",), ("Q",))]})  # fmt: skip
    yield Case(Tie.parse, {"text": "v = k"}, {"text": NO_TIE}, also=("is not a tie",))
    yield Case(KV.source, {"role": "K"}, {"role": ["X", "key", "", None, 3, ["K"]]})
    yield Case(lambda elements: KV.equates(*elements), {"elements": ("K", "V")},
               {"elements": [(), ("K",), ("K", "Z"), ("K", None), (["K"], "V")]})  # fmt: skip
    yield Case(
        tie.parse_schedule,
        {"text": "K=V*2|separate", "num_layers": 3},
        {"text": [*NO_TIE, "K=V*2", "K=V|", "K=V*0|separate*3", "K=V*-1|separate*4",
                  f"K=V*{10**9}", "K=V*" + "9" * 5000, "|", "*"],
         "num_layers": [-1, 2, 3.0, True, "3", None]},
        also=("is not a tie", "layers", "must be a positive"),
    )  # fmt: skip


NO_ADAPTER = ["hed", "head:", ":", 3, None, True, ["head"], b"head"]


def adapter_cases():
    pair = adapters.Adapters(query="head", key="lowrank:2")
    yield Case(adapters.Adapters, {"query": "head", "key": "", "value": "diag"},
               dict.fromkeys(("query", "key", "value"), NO_ADAPTER))  # fmt: skip
    yield Case(pair.where_shared, {"tie": "Q=K"}, {"tie": NO_TIE}, also=("is not a tie",))
    yield Case(pair.check, {"tie": "Q=K", "head_dim": 4},
               {"tie": [*NO_TIE, "separate"], "head_dim": [*NO_COUNT, 1]},
               also=("is not a tie", "the rank"))  # fmt: skip
    yield Case(pair.make, {"role": "key"}, {"role": ["value", "K", "", None, 3]})


def fields_of(cls, right, wrong, **more):
    """A case of a dataclass: things that no field can be are added to each."""
    strange = [object(), [object()], b"x", np.ones(2), lambda: None]
    return Case(cls, right, {name: [*strange, *values] for name, values in wrong.items()}, **more)


def config_cases():
    count, word, flag = NO_COUNT[:5], ["x", "", 3, True, None], NO_FLAG
    maybe = [0, -1, 2.5, True, "2"]  # None is the default
    yield fields_of(
        ModelConfig,
        {"width": 16, "heads": 2},
        {
            "tie": NO_TIE, "cross_tie": ["K=Z", "K=V*3", 3, None],
            "preset": ["goa", 3, None], "adapters": [3, "head", None, {"k": "head"}],
            "layers": count, "width": [*count, 15], "heads": [*count, 3], "kv_heads": [*maybe, 3],
            "head_dim": maybe, "latent_dim": maybe, "positions": NO_WORD, "positions_2d": flag,
            "qk_norm": flag, "diagonal_mask": flag,
            "scale": ["sqroot", 0, -1.0, float("inf"), "nan", None, True],
            "frozen": ["key", ("kee",), (3,), None], "output_projection": flag, "use_bias": flag,
            "mlp": word, "mlp_width": maybe, "norm": word, "norm_position": word,
            "norm_epsilon": [0, -1e-6, float("nan"), "1e-6", None, True], "embedding_norm": flag,
            "tied_embedding": flag, "value_residual": flag, "window": maybe,
            "rotary_dims": [*maybe[1:], 3, 64],
            "latent_kind": [*NO_WORD, "slice"],
            "rotary_base": [0, -1.0, float("nan"), float("inf"), "1e4", None, True],
            "dropout": [-0.1, 1.0, 1, float("nan"), "0.1", None, True],
            "dtype": [*word, "float16", jnp.float32], "implementation": [*NO_WORD, "cudnn"],
            "remat": word, "scan_layers": flag,
            "scheme": ["tide", "", "no.such", "math.sqrt", 3, None],
        },
    )  # fmt: skip
    share = [-0.1, 1.0, float("nan"), "0.1", None, True]
    above = [0, -1.0, float("nan"), float("inf"), "1", None, True]
    yield fields_of(
        state.TrainConfig,
        {"steps": 100, "report_every": 10},
        {
            "steps": [*count, 15], "report_every": [*count, 7], "batch_size": count,
            "accumulate": [*count, 3], "learning_rate": above, "warmup": share, "decay": word,
            "cooldown": share,
            "weight_decay": [-0.1, float("nan"), float("inf"), "0", None], "clip_norm": above,
            "beta1": share, "beta2": share,
        },
    )  # fmt: skip
    axis = [0, -2, 2.5, True, "2"]
    yield Case(
        mesh.MeshConfig,
        {"data": 1},
        {"data": axis, "fsdp": axis, "tensor": axis, "rules": ["x", [], None, 3], "by": word},
    )
    yield fields_of(
        loop.CheckpointPolicy,
        {},
        {"steps": [3, "3", (1.5,), None], "every": [-1, 1.5, "2"], "last": count},
    )
    yield fields_of(
        distributed.Processes,
        {"coordinator": "host:99", "count": 2, "index": 1},
        {"coordinator": ["host", ":1", "host:0", "host:70000", "host:x", 3, None],
         "count": [0, -1, 1.5, "2", None], "index": [-1, 2, 0.5, "1", None]},
        also=("process",),
    )  # fmt: skip
    yield fields_of(
        population.RunSpec,
        {"learning_rate": 0.1, "seed": 3, "salt": 1},
        {"learning_rate": above, "seed": NO_SEED, "salt": NO_SEED},
    )


TASK = make_task("reverse", {"length": 4})
TRAIN = state.TrainConfig(steps=2, report_every=1, batch_size=2)
TRAINER = step.Trainer(SMALL, TASK, TRAIN)


@functools.cache
def begun():
    data = zeros(TASK.load)
    entry = zeros(lambda: jax.tree.map(lambda a: a[0], TRAINER.schedule(0, 0, None)))
    return zeros(lambda: TRAINER.init(0, 0.1)), zeros(TASK.batch, None, entry), data


def trainer_cases():
    yield fields_of(
        step.Trainer,
        {"model_config": SMALL, "task": TASK, "train_config": TRAIN},
        {"model_config": [None, "small"], "task": [None, "reverse"],
         "train_config": [None, {"step": 3}], "moments": ["joint", "", None, 3]},
    )  # fmt: skip
    now, batch, data = begun()
    seeds = [*NO_SEED, np.zeros(2, int), np.float32(1)]
    rates = ["x", True, None, np.ones(2), object()]
    yield Case(traced(TRAINER.init), {"seed": 0, "learning_rate": 0.1, "salt": 0},
               {"seed": seeds, "learning_rate": rates, "salt": seeds}, of=TRAINER.init)  # fmt: skip
    yield Case(traced(TRAINER.init_params), {"seed": 0, "salt": 0},
               {"seed": seeds, "salt": seeds}, of=TRAINER.init_params)  # fmt: skip
    no_batch = [None, 3, [batch], {}, {"inputs": batch["inputs"]}]
    yield Case(traced(TRAINER.train_step), {"state": now, "batch": batch},
               {"state": [None, {}, now.params], "batch": no_batch},
               of=TRAINER.train_step, free=("axis_name",))  # fmt: skip
    yield Case(traced(TRAINER.gradients),
               {"params": now.params, "batch": batch, "key": jax.random.key(0)},
               {"batch": no_batch}, of=TRAINER.gradients, free=("params", "key"))  # fmt: skip
    yield Case(traced(TRAINER.schedule), {"seed": 0, "step": 0, "train": None},
               {"seed": seeds, "step": seeds}, of=TRAINER.schedule, free=("train",))  # fmt: skip
    yield Case(traced(TRAINER.evaluate), {"params": now.params, "batch": batch},
               {"batch": no_batch}, of=TRAINER.evaluate, free=("params",))  # fmt: skip


def population_cases():
    _, batch, data = begun()
    devices = jax.local_devices()[:1]
    on_devices = population.DeviceData(data, devices)
    yield Case(population.wave_shape, {"packing": 2, "devices": devices},
               {"packing": NO_COUNT[:5], "devices": [[], ["cpu"]]})  # fmt: skip
    yield Case(
        population.DeviceData,
        {"data": data, "devices": devices},
        {"data": [None, {}, [1], {"validation": batch}, data._replace(test={})],
         "devices": [[], [0], ["cpu"]]},
    )  # fmt: skip
    yield Case(
        population.Population,
        {"trainer": TRAINER, "data": on_devices, "packing": 1},
        {"trainer": [None, SMALL], "data": [None, data], "packing": NO_COUNT[:5]},
    )
    one, known = population.RunSpec(0.1, 0), population.Population(TRAINER, on_devices, 1)
    known._init_cache[one.seed, one.salt] = begun()[0]
    yield Case(
        known.start,
        {"wave": [one]},
        {"wave": [[], [one, one], [None], [(0.1, 0)]]},
    )


def run_cases():
    here = str(pathlib.Path(__file__).parent)
    yield Case(
        lambda workdir, step: pytest.raises(ConfigError, load_run, here, step),
        {"workdir": here, "step": 0},
        {},
        of=load_run,
        free=("workdir", "step"),  # see test_damaged_runs.py
    )
