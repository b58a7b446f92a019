"""Costs: against the real tree, the real cache and the compiler's own count of FLOPs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.adapters import Adapters
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie
from qkv_jax.training import costs
from qkv_jax.training.state import TrainConfig, model_inputs
from qkv_jax.training.step import Trainer
from tests.support.untied import TIES

WIDTH, LENGTH = 64, 8


@functools.cache
def make_trainer(tie="separate", kind="reverse", **model):
    options = {"reverse": {"length": LENGTH}, "masked_bytes": {"length": 40}}.get(kind, {})
    config = ModelConfig(**{"tie": tie, "layers": 2, "width": WIDTH, "heads": 2} | model)
    return Trainer(config, make_task(kind, options), TrainConfig())


def size(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "model", [{}, {"kv_heads": 1, "tie": "K=V|Q=X", "scale": "learned_per_head"}]
)
def test_parameters_are_those_of_the_real_tree(model):
    trainer = make_trainer(width=16, **model)
    tree, measured = trainer.init_params(0), costs.measure(trainer)
    layers = [tree["layer_0"], tree["layer_1"]]
    assert measured.params == size(tree)
    assert measured.attention_params == sum(size(layer["attention"]) for layer in layers)
    assert costs.non_embedding_params(trainer) == sum(size(layer) for layer in layers)


@pytest.mark.parametrize("tie", TIES)
def test_a_tie_saves_a_square_matrix_a_layer_for_every_source(tie):
    """Attention holds (sources + 1) D^2 per layer, and does 2 FLOPs per token for each of them."""
    measured, separate = (costs.measure(make_trainer(t)) for t in (tie, "separate"))
    sources = len(Tie.parse(tie).sources)
    assert measured.attention_params == 2 * (sources + 1) * WIDTH**2
    saved = separate.params - measured.params
    assert saved == 2 * (3 - sources) * WIDTH**2
    assert separate.flops_per_token - measured.flops_per_token == 2 * saved


@pytest.mark.parametrize("tie", TIES)
def test_the_cache_costs_what_init_cache_allocates(tie):
    for kv_heads in (2, 1) if tie in ("separate", "K=V", "Q=X", "Q=X,K=V") else (2,):
        trainer = make_trainer(tie, kv_heads=kv_heads)
        layer = MultiHeadAttention(2, tie, num_kv_heads=kv_heads)
        cache = layer.init_cache(1, LENGTH, WIDTH).sources
        allocated = trainer.model_config.layers * sum(array.nbytes for array in cache.values())
        assert costs.measure(trainer).kv_cache_bytes_per_token * LENGTH == allocated


def test_a_latent_source_and_half_precision_shrink_the_cache():
    """One latent vector per token and layer, and two bytes per number."""
    costs_of = lambda **model: costs.measure(make_trainer("K=V", **model)).kv_cache_bytes_per_token
    assert costs_of() == 2 * WIDTH * 4
    assert costs_of(latent_dim=5) == 2 * 5 * 4
    assert costs_of(dtype="bfloat16") == 2 * WIDTH * 2


def test_products_in_loops_and_branches_are_counted():
    """A scan counts once a turn, whatever is called inside it."""
    matrix = jnp.ones((3, 5))
    double = lambda x: jax.checkpoint(lambda x: x @ matrix @ matrix.T)(x)
    looped = lambda x: jax.lax.scan(lambda x, _: (double(x), None), x, None, length=7)[0]
    program = jax.make_jaxpr(jax.jit(looped))(jnp.ones((2, 3))).jaxpr
    assert costs.matrix_flops(program) == 7 * 2 * (2 * 3 * 5 + 2 * 5 * 3)


COMPILED = {
    "separate": {},
    "K=V": {"kv_heads": 1},
    "Q=X": {"output_projection": False},
    "copies": {},
    "adapters": {"tie": "Q=K=V", "adapters": Adapters("diag", "head", "lowrank:8")},
    "swiglu": {"tie": "Q=K", "mlp": "swiglu", "norm": "rms"},
    "latent": {"tie": "separate", "latent_dim": 64, "norm_position": "post"},
    "masked_bytes": {"kind": "masked_bytes", "tie": "Q=K=V"},
    "mnist5k": {"kind": "mnist5k", "tie": "separate"},
    "causal": {"kind": "causal_bytes", "tie": "K=V", "tied_embedding": True},
}


@pytest.mark.parametrize("case", COMPILED)
def test_flops_are_those_the_compiler_counts(case):
    """Within 3 % at width 256. The compiler adds what is no matrix product: norms, softmax, GELU,
    additions and the embedding's gather, of order 1 / D of the whole."""
    options = {"tie": case, "width": 256, "mlp_width": 512, "layers": 1} | COMPILED[case]
    trainer = make_trainer(**options)
    example = model_inputs(trainer.task.example())
    params = jax.eval_shape(lambda: trainer.init_params(0))
    forward = jax.jit(lambda params, example: trainer.model.apply({"params": params}, **example))
    counted = forward.lower(params, example).compile().cost_analysis()["flops"]
    ours = costs.measure(trainer).flops_per_token * trainer.task.max_length
    assert ours == pytest.approx(counted, rel=0.03)
    assert ours <= counted


@pytest.mark.parametrize("what", ["params", "flops"])
@pytest.mark.parametrize("tie", TIES)
def test_matching_widens_the_mlp_alone_and_reports_what_is_left(tie, what):
    """Within 0.5 % of the baseline, everything else as it was; the residual is the real one."""
    trainer, baseline = make_trainer(tie), make_trainer()
    matched, residual = costs.match(trainer, baseline, what)
    narrow = dataclasses.replace(matched.model_config, mlp_width=None)
    assert narrow == trainer.model_config and matched.task == trainer.task
    assert abs(residual) <= 0.005
    if what == "params":
        actual = costs.non_embedding_params(matched) / costs.non_embedding_params(baseline)
    else:  # the readout, the same in both, taken out
        readout = 2 * WIDTH * trainer.task.classes
        of_layers = lambda r: costs.measure(r).flops_per_token - readout
        actual = of_layers(matched) / of_layers(baseline)
    assert residual == pytest.approx(actual - 1, abs=1e-9)
    widened = (matched.model_config.mlp_width or 4 * WIDTH) - 4 * WIDTH
    # A source less is D^2 parameters, a unit more is 2 D (+ 1): half a source's width each.
    assert widened == pytest.approx((3 - len(Tie.parse(tie).sources)) * WIDTH / 2, abs=1)


def test_an_arm_as_dear_as_the_baseline_is_left_alone():
    baseline, dearer = make_trainer(), make_trainer(mlp_width=5 * WIDTH)
    for what in ("params", "flops"):
        same, residual = costs.match(baseline, baseline, what)
        assert same is baseline and residual == 0
        unchanged, residual = costs.match(dearer, baseline, what)
        assert unchanged is dearer and residual > 0.005
