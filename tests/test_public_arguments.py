"""Every argument and attribute of the public functions, wrong: one line, with the types unchecked.

Annotations are checked in all other tests, but in no user's program. Each entry of `CASES` is a
call that is right and, by name, values that make it wrong; that no argument is left out is a test
of its own, which reads signatures and fields.
"""

import collections
import dataclasses
import functools
import inspect
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import qkv_jax
from qkv_jax import tie
from qkv_jax.analysis import attention_maps, circuits, geometry, layers, nulls
from qkv_jax.config import ConfigError, shown
from qkv_jax.model import adapters, attention, dot_product, encoder, masks, positions, stems
from qkv_jax.model.config import ModelConfig
from qkv_jax.runtime import distributed
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from qkv_jax.training import loop, mesh, population, state, step
from qkv_jax.training.checkpoint import load_run

pytestmark = pytest.mark.usefixtures("unchecked")

RNG = np.random.default_rng(0)
B, T, S, N, K, H, D = 3, 4, 5, 2, 1, 4, 8


def drawn(*shape):
    return RNG.standard_normal(shape, np.float32)


def traced(function):
    """Runs nothing, since what is refused is refused while a program is traced."""
    return lambda **arguments: jax.eval_shape(lambda: function(**arguments))


def zeros(function, *arguments):
    """What a function would give, all zeros."""
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


# Values that are wrong for what the name says.
NO_ARRAY = [None, "x", 3, [1.0, 2.0], object()]
NO_FLAG = ["no", 1, 0, None, np.ones(2, bool)]
NO_COUNT = [0, -1, 2.0, True, "2", None, [2]]
NO_WORD = ["rotery", "", 3, ["none"], None, True]
NO_NUMBER = ["x", True, [1.0], float("nan"), object()]
NO_SEED = [-1, 2**32, 1.5, "0", True, None]


class Case(NamedTuple):
    """`call(**right)` is right; `wrong` has the values that are not, by argument. `also` are words
    that a line may have instead of the argument's name; `free` may be anything."""

    call: Any
    right: dict
    wrong: dict
    of: Any = None  # what has the signature or the fields, if not `call`
    also: tuple = ()
    free: tuple = ()


QUERY, KEY, VALUE = drawn(B, T, N, H), drawn(B, S, K, H), drawn(B, S, K, H)
PLACES, KEY_PLACES = np.arange(T)[None], np.arange(S)[None]
WRONG_PLACES = [None, "x", 3, [1, 2], np.arange(T) / 2, np.arange(T), np.ones((1, 1, T), int),
                np.ones((1, T)), np.ones((1, T), bool)]  # fmt: skip
BIAS, MASK = drawn(B, N, T, S), np.ones((B, 1, T, S), bool)
X, CONTEXT = drawn(B, T, D), drawn(B, S, D)

WRONG_KEYS = [*NO_ARRAY, KEY[0], KEY[:2], KEY[..., :2], KEY[:, :0], np.ones((B, S, 3, H)),
              KEY.astype(jnp.bfloat16), KEY.astype(jnp.float16), KEY > 0,
              KEY.astype(int)]  # fmt: skip
WRONG_QUERIES = [*NO_ARRAY, QUERY[0], QUERY[:2], QUERY[:, :, :0], QUERY[..., :2],
                 QUERY.astype(jnp.bfloat16), QUERY.astype(jnp.float16), QUERY.astype(int),
                 QUERY.astype(complex)]  # fmt: skip
WRONG_MASKS = [  # among them the four of an additive mask, of padding, and of one mask per example
    *NO_ARRAY[1:], np.where(MASK, 0.0, -1e9), MASK.astype(int), MASK[:, 0, 0], MASK[:, 0],
    MASK[0, 0], np.ones((T, S), bool), np.ones((B, 3, T, S), bool), np.ones((2, 1, T, S), bool),
    np.ones((B, 1, T, S + 1), bool), np.ones((1, B, 1, T, S), bool),
]  # fmt: skip
WRONG_BIASES = [*NO_ARRAY[1:], MASK, BIAS.astype(int), BIAS[0], BIAS[:2], BIAS[:, :, :, :2],
                np.ones((B, 3, T, S)), BIAS.astype(complex)]  # fmt: skip
WRONG_SCALES = [*NO_NUMBER, float("inf"), "sqrt", drawn(N, 1), drawn(N + 1), np.ones(N, int),
                np.ones((), bool)]  # fmt: skip
SCORES = {"bias": WRONG_BIASES, "mask": WRONG_MASKS, "is_causal": NO_FLAG, "scale": WRONG_SCALES}


def attention_cases():
    heads = {"query": QUERY, "key": KEY}
    some = {"bias": BIAS, "mask": MASK, "is_causal": True, "scale": 0.5}
    yield Case(
        traced(dot_product.attend),
        {**heads, "value": VALUE, **some, "implementation": "xla"},
        {
            "query": WRONG_QUERIES, "key": WRONG_KEYS, **SCORES, "implementation": NO_WORD,
            "value": [*WRONG_KEYS, VALUE[:, :2], drawn(B, S, N, H)],
        },
        of=dot_product.attend,
    )  # fmt: skip
    yield Case(
        traced(dot_product.attention_weights),
        {**heads, **some},
        {"query": WRONG_QUERIES, "key": WRONG_KEYS, **SCORES},
        of=dot_product.attention_weights,
    )
    weights = drawn(B, N, T, S)
    yield Case(
        traced(dot_product.aggregate),
        {"weights": weights, "value": VALUE},
        {
            "weights": [*NO_ARRAY, weights[0], weights[:2], weights > 0, weights[..., :2]],
            "value": [*NO_ARRAY, VALUE[0], VALUE[:, :2], VALUE > 0, drawn(B, S, 3, H)],
        },
        of=dot_product.aggregate,
    )
    yield Case(
        traced(masks.visible),
        {"queries": PLACES, "keys": KEY_PLACES, "is_causal": False, "window": 2,
         "valid": np.ones((B, S), bool), "documents": (PLACES, KEY_PLACES), "hide_self": False,
         "mask": MASK},
        {
            "queries": WRONG_PLACES, "keys": WRONG_PLACES,
            "is_causal": NO_FLAG, "window": [*NO_COUNT[:5], [2]],
            "valid": [*NO_ARRAY[1:], np.ones((B, S)), np.ones(S, bool), np.ones((B, T), bool)],
            "documents": [(PLACES, PLACES), (PLACES / 2, KEY_PLACES), (PLACES, None)],
            "hide_self": NO_FLAG,
            "mask": [*WRONG_MASKS[:5], MASK[0, 0], np.ones((B, 1, T, S + 1), bool)],
        },
        of=masks.visible,
    )  # fmt: skip


@functools.cache
def layer():
    module = attention.MultiHeadAttention(N)
    return module, zeros(module.init, jax.random.key(0), X, CONTEXT)


def started(cls, inputs):
    """What makes a module of its fields, and its parameters."""
    return traced(lambda **fields: cls(**fields).init(jax.random.key(0), inputs))


def module_cases():
    yield Case(
        started(attention.MultiHeadAttention, X),
        {
            "num_heads": N, "tie": "K=V", "num_kv_heads": 1, "head_dim": 4,
            "adapters": {"key": "head"}, "latent_dim": None, "positions": "rotary",
            "positions_2d": True, "qk_norm": True, "diagonal_mask": True, "scale": 0.3,
            "frozen": ("key",), "output_projection": True, "use_bias": True,
            "implementation": "xla", "scheme": "tied",
        },
        {
            "num_heads": NO_COUNT, "tie": ["K=Z", "", 3, None, ["K=V"], "K=V*2"],
            "num_kv_heads": [*NO_COUNT[:5], 3], "head_dim": [*NO_COUNT[:5], 3],
            "adapters": ["head", 3, None, {"keys": "head"}, {"key": "hed"}, {"key": 3},
                         {"query": "head"}],
            "latent_dim": NO_COUNT[:5], "positions": NO_WORD, "positions_2d": NO_FLAG,
            "qk_norm": NO_FLAG, "diagonal_mask": NO_FLAG,
            "scale": ["sqroot", "0.5", 0, -1.0, *NO_NUMBER, float("inf"), None],
            "frozen": ["key", ("kee",), 3, None, ("value",), (3,)],
            "output_projection": NO_FLAG, "use_bias": NO_FLAG,
            "implementation": [*NO_WORD, "cudnn"],
            "scheme": [*NO_WORD, "no.such", int],
        },
        of=attention.MultiHeadAttention,
        also=("key/value heads", "not a tie", "cuDNN", "heads x head", "rotary", "width"),
    )  # fmt: skip
    module, variables = layer()
    mask, bias = np.ones((B, 1, T, S), bool), drawn(1, N, T, S)
    yield Case(
        traced(functools.partial(module.apply, variables)),
        {"x": X, "context": CONTEXT, "bias": bias, "mask": mask, "is_causal": False,
         "decode": False, "places": PLACES, "key_places": KEY_PLACES},
        {
            "x": [*NO_ARRAY, X[0], X[:2], X.astype(int), X.astype(jnp.float16),
                  X.astype(jnp.bfloat16), X[:, None]],
            "context": [*NO_ARRAY[1:], CONTEXT[0], CONTEXT[:2], CONTEXT.astype(jnp.bfloat16),
                        CONTEXT.astype(int), CONTEXT[:, :0]],
            "bias": WRONG_BIASES, "mask": WRONG_MASKS, "is_causal": NO_FLAG,
            "decode": [*NO_FLAG, True], "places": [*WRONG_PLACES[1:], np.ones((2, T), int)],
            "key_places": [*WRONG_PLACES[1:], PLACES],
        },
        of=module.__call__,
        also=("key", "places"),  # made of the context; with decode
    )  # fmt: skip
    yield Case(
        module.init_cache,
        {"batch": B, "length": T, "width": D, "dtype": jnp.bfloat16},
        {"batch": NO_COUNT, "length": NO_COUNT, "width": [*NO_COUNT, 5],
         "dtype": [jnp.float16, int, "int8"]},
    )  # fmt: skip


TOKENS = np.arange(B * T).reshape(B, T) % 7
SMALL = ModelConfig(layers=1, width=D, heads=N)


@functools.cache
def small_encoder():
    module = encoder.Encoder(SMALL, stems.TokenStem((7,), D), 5, T)
    return module, zeros(module.init, jax.random.key(0), TOKENS)


def encoder_cases():
    stem = stems.TokenStem((7,), D)
    yield Case(
        started(encoder.Encoder, TOKENS),
        {"config": SMALL, "stem": stem, "classes": 5, "max_length": T, "readout": "class"},
        {
            "config": [None, {"width": D}, "small"], "stem": [None, "tokens", 3],
            "classes": [-1, 2.0, True, "5", None], "max_length": [*NO_COUNT, T - 1],
            "readout": ["tokens", "", 3, None],
        },
        of=encoder.Encoder,
        also=("learned positions",),
    )  # fmt: skip
    module, variables = small_encoder()
    yield Case(
        traced(functools.partial(module.apply, variables)),
        {"inputs": TOKENS, "valid": np.ones((B, T), bool), "read": TOKENS[:, :2] % T,
         "places": PLACES, "train": False},
        {
            "inputs": [*NO_ARRAY, TOKENS[0], TOKENS / 2, TOKENS > 0, TOKENS - 1, TOKENS + 1,
                       np.stack([TOKENS] * 2, -1), TOKENS[:, :0]],
            "valid": [*NO_ARRAY[1:], np.ones((B, T)), np.ones((B, T + 1), bool),
                        np.ones((B, 1, 1, T), bool), np.ones(T, bool)],
            "read": [*NO_ARRAY[1:], TOKENS / 7, np.full((B, 1), T), np.full((B, 1), -1),
                     np.zeros((2, 1), int), np.zeros(B, int)],
            "places": [*WRONG_PLACES[1:], PLACES + 1, PLACES - 1], "train": NO_FLAG,
        },
        of=module.__call__,
    )  # fmt: skip
    yield Case(
        started(stems.TokenStem, TOKENS),
        {"vocabulary": (7,), "width": D},
        {"vocabulary": [(), (0,), (-1,), 7, None, ("7",), (7, 7), (3,)], "width": NO_COUNT},
        of=stems.TokenStem,
        also=("inputs",),
    )
    yield Case(
        started(stems.PatchStem, drawn(B, 4, 8, 1)),
        {"patch": 4, "width": D},
        {"patch": [*NO_COUNT, 3], "width": NO_COUNT},
        of=stems.PatchStem,
        also=("inputs",),
    )
    yield Case(
        traced(lambda images: stems.PatchStem(4, D).init(jax.random.key(0), images)),
        {"images": drawn(B, 4, 8, 1)},
        {"images": [*NO_ARRAY, drawn(B, 4, 8), drawn(B, 4, 6, 1), np.ones((B, 4, 8, 1), int)]},
        of=stems.PatchStem(4, D).__call__,
        also=("inputs",),
    )


def position_cases():
    places = np.arange(T)
    yield Case(traced(positions.sinusoidal), {"length": T, "width": D},
               {"length": [-1, *NO_COUNT[2:]], "width": NO_COUNT},
               of=positions.sinusoidal)  # fmt: skip
    yield Case(
        traced(positions.rotate),
        {"x": QUERY, "places": PLACES},
        {"x": [*NO_ARRAY, QUERY[0, 0], QUERY[..., :3]],
         "places": [*WRONG_PLACES[1:], PLACES[:, :2]]},
        of=positions.rotate,
    )  # fmt: skip
    yield Case(traced(positions.relative_buckets), {"offsets": np.ones((T, S), int)},
               {"offsets": [*NO_ARRAY, np.ones((T, S)), places]},
               of=positions.relative_buckets)  # fmt: skip
    yield Case(positions.alibi_slopes, {"num_heads": 3}, {"num_heads": NO_COUNT})
    yield Case(
        traced(positions.alibi_bias),
        {"num_heads": N, "queries": PLACES, "keys": PLACES},
        {"num_heads": NO_COUNT, "queries": WRONG_PLACES, "keys": WRONG_PLACES},
        of=positions.alibi_bias,
    )  # fmt: skip
    yield Case(
        started(positions.AddPositions, X),
        {"kind": "learned", "max_length": T},
        {"kind": NO_WORD, "max_length": [*NO_COUNT, 1]},
        of=positions.AddPositions,
        also=("learned positions",),
    )


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
            "tie": NO_TIE, "preset": ["goa", 3, None], "adapters": [3, "head", None, {"k": "head"}],
            "layers": count, "width": [*count, 15], "heads": [*count, 3], "kv_heads": [*maybe, 3],
            "head_dim": maybe, "latent_dim": maybe, "positions": NO_WORD, "positions_2d": flag,
            "qk_norm": flag, "diagonal_mask": flag,
            "scale": ["sqroot", 0, -1.0, float("inf"), "nan", None, True],
            "frozen": ["key", ("kee",), (3,), None], "output_projection": flag, "use_bias": flag,
            "mlp": word, "mlp_width": maybe, "norm": word, "norm_position": word,
            "norm_epsilon": [0, -1e-6, float("nan"), "1e-6", None, True], "embedding_norm": flag,
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


CLOUD, OTHER = drawn(6, 3), drawn(6, 2)
NO_MATRIX = [*NO_ARRAY, CLOUD[0], CLOUD[None], CLOUD[:0], CLOUD[:, :0], CLOUD > 0,
             CLOUD.astype(complex), np.full((6, 3), "x")]  # fmt: skip
ROWS = [*NO_MATRIX, drawn(5, 3)]  # of two clouds of the same tokens
ALIKE = [*ROWS, OTHER]  # of two clouds of the same width as well


def geometry_cases():
    for function in (geometry.unbiased_hsic, geometry.linear_cka, geometry.mean_cosines,
                     geometry.rms_ratio):  # fmt: skip
        yield Case(function, {"x": CLOUD, "y": OTHER}, {"x": ROWS, "y": ROWS})
    for function in (geometry.cosines, geometry.principal_angles, geometry.subspace_overlap):
        yield Case(function, {"a": CLOUD, "b": OTHER}, {"a": ROWS, "b": ROWS})
    yield Case(geometry.mean_cosine, {"x": CLOUD, "y": CLOUD}, {"x": ALIKE, "y": ALIKE})
    for function in (geometry.cosine, geometry.aligned_cosine):
        yield Case(function, {"a": CLOUD, "b": CLOUD}, {"a": ALIKE, "b": ALIKE})
    for function in (geometry.cloud, geometry.effective_rank):
        yield Case(function, {"x": CLOUD}, {"x": NO_MATRIX})
    clouds = geometry.cloud(CLOUD), geometry.cloud(OTHER)
    no_cloud = [None, CLOUD, geometry.cloud(CLOUD[:5])]
    pair = dict(zip("xy", clouds, strict=True))
    yield Case(geometry.cka, pair, {"x": no_cloud, "y": no_cloud})
    yield Case(geometry.spectrum_rank, {"singular_values": np.arange(3.0)},
               {"singular_values": [*NO_ARRAY, CLOUD, np.array([1.0, -1.0]),
                                    np.ones(0)]})  # fmt: skip
    yield Case(geometry.leading_directions, {"x": CLOUD, "count": 2},
               {"x": NO_MATRIX, "count": [*NO_COUNT, 4]})  # fmt: skip


def circuit_cases():
    pair = dict.fromkeys(("left", "right"), CLOUD)
    for function in (circuits.singular_values, circuits.eigenvalues, circuits.effective_rank):
        yield Case(function, pair, dict.fromkeys(pair, ALIKE))
    pair = dict.fromkeys(("query_kernel", "key_kernel"), CLOUD)
    for function in (circuits.antisymmetric_share, circuits.matching_score):
        yield Case(function, pair, dict.fromkeys(pair, ALIKE))
    yield Case(
        circuits.directionality_score,
        {**pair, "deviations": 2.0},
        {**dict.fromkeys(pair, ALIKE), "deviations": [*NO_NUMBER, float("inf"), None]},
    )
    yield Case(
        circuits.copying_score,
        {"value_kernel": CLOUD, "out_kernel": CLOUD.T},
        {"value_kernel": ALIKE, "out_kernel": [*NO_MATRIX, CLOUD, OTHER.T]},
    )


def map_cases():
    weights, valid = RNG.dirichlet(np.ones(T), (B, N, T)), np.ones((B, T), bool)
    wrong = [*NO_ARRAY, weights[0], -weights, weights > 0, weights.astype(complex)]
    for function in (attention_maps.entropy, attention_maps.distance):
        yield Case(function, {"weights": weights}, {"weights": wrong})
    yield Case(attention_maps.diagonal, {"weights": weights},
               {"weights": [*wrong, weights[..., 1:]]})  # fmt: skip
    no_valid = [*NO_ARRAY, np.ones((B, T)), valid[0], valid[:, None, None]]
    yield Case(attention_maps.uniform, {"valid": valid}, {"valid": no_valid})
    rows = drawn(B, N, T)
    yield Case(
        attention_maps.real_queries,
        {"rows": rows, "valid": valid},
        {"rows": [*NO_ARRAY, rows[0], rows > 0],
         "valid": [*no_valid, np.ones((B, T + 1), bool), np.ones((1, T), bool)]},
    )  # fmt: skip


def layer_cases():
    module, variables = small_encoder()
    no_variables = [None, 3, {}, variables["params"], {"params": {}}, {"params": None}]
    here = {"encoder": module, "variables": variables}
    wrong = {"encoder": [None, SMALL, module.stem], "variables": no_variables}
    yield Case(layers.layer_weights, here, wrong)
    yield Case(layers.require_variables, here, wrong)
    yield Case(
        traced(layers.probe),
        {**here, "inputs": TOKENS, "valid": None, "read": None},
        {**wrong, "inputs": [*NO_ARRAY, TOKENS / 2, TOKENS[0]], "valid": ["x", np.ones((B, T))],
         "read": ["x", TOKENS / 7]},
        of=layers.probe,
    )  # fmt: skip
    (found,) = layers.layer_weights(module, variables)
    yield Case(layers.heads, {"layer": found, "x": X},
               {"layer": [None, tuple(found)],
                "x": [*NO_ARRAY, X[0], X[..., :3], X > 0]})  # fmt: skip


def null_cases():
    rng = np.random.default_rng(0)
    no_rng = [None, 0, np.random, jax.random.key(0)]
    yield Case(nulls.band, {"values": np.arange(9.0)},
               {"values": [*NO_ARRAY, CLOUD, np.ones(0), np.ones(3, bool)]})  # fmt: skip
    yield Case(nulls.rotation, {"rng": rng, "size": 3}, {"rng": no_rng, "size": NO_COUNT})


def run_cases():
    here = str(pathlib.Path(__file__).parent)
    yield Case(
        lambda workdir, step: pytest.raises(ConfigError, load_run, here, step),
        {"workdir": here, "step": 0},
        {},
        of=load_run,
        free=("workdir", "step"),  # see test_damaged_runs.py
    )


GROUPS = (
    attention_cases, module_cases, encoder_cases, position_cases, tie_cases, adapter_cases,
    config_cases, trainer_cases, population_cases, geometry_cases, circuit_cases, map_cases,
    layer_cases, null_cases, run_cases,
)  # fmt: skip


def arguments_of(thing):
    if inspect.isclass(thing) and issubclass(thing, nn.Module):
        return {field.name for field in dataclasses.fields(thing)} - {"parent", "name"}
    if inspect.ismethod(thing) and thing.__name__ == "__call__":
        thing = thing.__wrapped__ if hasattr(thing, "__wrapped__") else thing
    return set(inspect.signature(thing).parameters) - {"self"}


def refusal(call, arguments):
    """The exception; those of other packages count as none."""
    try:
        call(**arguments)
    except (ValueError, TypeError) as error:
        frame = error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        own = pathlib.Path(qkv_jax.__file__).parent in pathlib.Path(
            frame.tb_frame.f_code.co_filename
        ).parents
        return error if own else f"not the package's own: {type(error).__name__}: {error}"
    except Exception as error:  # what nobody has named
        return f"{type(error).__name__}: {error}"
    return "is taken"


def test_the_types_are_unchecked_here():
    """A mapping that is no dict passes the annotation `dict`, which it does not elsewhere."""
    assert state.model_inputs(collections.UserDict()) == {}
    jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(jaxtyping.TypeCheckError):
        state.model_inputs(collections.UserDict())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_what_is_wrong_is_refused_in_one_line(group):
    """By the package itself, with the argument's name; what is right beside it is taken."""
    left = []
    for case in group():
        thing = case.of or case.call
        name = getattr(thing, "__qualname__", type(thing).__name__)
        assert arguments_of(thing) == {*case.wrong, *case.free}, name
        case.call(**case.right)
        for argument, values in case.wrong.items():
            for value in values:
                found = refusal(case.call, case.right | {argument: value})
                line = str(found)
                words = (*case.wrong, *case.also)  # of two that differ, either may be named
                if isinstance(found, str) or "\n" in line or not any(w in line for w in words):
                    left.append(f"{name}: {argument} = {shown(value)}: {line}")
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "module",
    [attention_maps, circuits, geometry, layers, masks, nulls, positions],
    ids=lambda module: module.__name__,
)
def test_no_public_function_is_left_out(module):
    covered = {case.of or case.call for group in GROUPS for case in group()}
    names = {getattr(inspect.unwrap(thing), "__name__", "") for thing in covered}
    public = {
        name
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and name[0] != "_"
    }
    assert public <= names
