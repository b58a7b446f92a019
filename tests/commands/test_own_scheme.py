"""Schemes of one's own, defined here and named in a config by their path: everything follows.

`Halved` has a cache of its own, `Exclusive` (XSA) other heads; the package knows of neither.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.analysis.layers import heads, layer_weights, probe
from qkv_jax.config import ConfigError, build
from qkv_jax.model.attention import MultiHeadAttention
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.projections import Projected
from qkv_jax.model.schemes import Scheme, register_scheme
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.plan import Study
from qkv_jax.study.results import load_study
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.outcomes import write_tables
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.training.checkpoint import load_run, trainer_of
from qkv_jax.training.costs import measure
from qkv_jax.training.loop import CheckpointPolicy, train_run
from tests.support.untied import decoded
from tests.support.walks import drawn_model, walk_through


class Halved(Scheme):
    """Half the coordinates of keys and values are kept; the rest are those times a factor each."""

    def setup(self):
        super().setup()
        self.factor = self.param("factor", jax.nn.initializers.ones, (self.head_dim // 2,))

    def project(self, x, context=None):
        query, kept = super().project(x, context)
        return Projected(query, {name: a[..., : self.head_dim // 2] for name, a in kept.items()})

    def heads(self, projected):
        whole = lambda half: jnp.concatenate([half, half * self.factor[None, None, None]], -1)
        return super().heads(Projected(projected.query, jax.tree.map(whole, projected.kept)))

    def cache_shapes(self):
        return {name: (n, width // 2) for name, (n, width) in super().cache_shapes().items()}


class Exclusive(Scheme):
    """XSA: each head's output less its part along the token's own value."""

    def finish(self, heads, qkv, places, own):
        value = self.own_values(qkv.value, own)
        length = (value**2).sum(-1, keepdims=True)
        return heads - (heads * value).sum(-1, keepdims=True) / (length + 1e-12) * value


@register_scheme("bent")
class Bent(Scheme):
    """No matrix stands for these keys."""

    def heads(self, projected):
        qkv = super().heads(projected)
        return qkv._replace(key=jnp.tanh(qkv.key))


OWN = {f"{__name__}.{cls.__name__}": cls for cls in (Halved, Exclusive)}
EXCLUSIVE = f"{__name__}.Exclusive"
WIDTH, HEADS, LENGTH = 8, 2, 4
MODEL = {"layers": 1, "width": WIDTH, "heads": HEADS, "mlp_width": 4, "positions": "rotary"}
X = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
own_schemes = pytest.mark.parametrize("scheme", OWN)


def drawn(module):
    """The layer and parameters none of which is 0 or 1."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)["params"]
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.float32(0.5 * draw.normal(size=leaf.shape)), shapes)


def encoder_of(scheme, **options):
    config = build(ModelConfig, MODEL | {"scheme": scheme} | options)
    encoder = trainer_of(run_config(scheme)).task.encoder(config)
    return encoder, drawn_model(encoder, jnp.array([[3, 1, 4]]))


def run_config(scheme):
    return {
        "task": {"kind": "reverse", "options": {"length": LENGTH, "test_examples": 16,
                                                "validation_examples": 16}},
        "model": MODEL | {"scheme": scheme},
        "train": {"steps": 20, "report_every": 10, "batch_size": 8, "learning_rate": 0.01},
    }  # fmt: skip


@own_schemes
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"diagonal_mask": True}])
def test_decoding_is_the_causal_pass(scheme, options):
    module = MultiHeadAttention(HEADS, scheme=scheme, positions="rotary", **options)
    params = drawn(module)
    full = module.apply({"params": params}, X, is_causal=True)
    cache = module.init_cache(2, LENGTH + 1, WIDTH)
    np.testing.assert_allclose(decoded(module, params, cache, X, [2, 3]), full, atol=1e-5)


def test_what_xsa_outputs_is_orthogonal_to_the_tokens_own_value():
    """Which the weighted sum of values is not."""
    for scheme, expected in ((EXCLUSIVE, True), ("tied", False)):
        module = MultiHeadAttention(HEADS, scheme=scheme, output_projection=False)
        params = drawn(module)
        out = module.apply({"params": params}, X).reshape(2, LENGTH, HEADS, -1)
        value = jnp.einsum("btd,dnh->btnh", X, params["value"]["kernel"])
        assert np.allclose((out * value).sum(-1), 0, atol=1e-5) == expected


@own_schemes
def test_costs_read_the_cache_and_the_program(scheme):
    own, usual = (measure(trainer_of(run_config(name))) for name in (scheme, "tied"))
    halved = scheme.endswith("Halved")
    assert own.kv_cache_bytes_per_token == usual.kv_cache_bytes_per_token / (1 + halved)
    assert own.params - usual.params == halved * WIDTH / HEADS / 2


@own_schemes
def test_matrices_and_the_worked_example_are_those_of_the_scheme(scheme):
    encoder, variables = encoder_of(scheme)
    inputs = jnp.array([[3, 1, 4]])
    (layer,), (seen,) = layer_weights(encoder, variables), probe(encoder, variables, inputs)
    np.testing.assert_allclose(heads(layer, seen.x).value, seen.value, atol=1e-5)
    walk = walk_through(encoder, variables, inputs, tuple("314"), name="x")
    assert walk.error < 1e-5
    assert (walk.finished is None) == (scheme != EXCLUSIVE)


@own_schemes
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(scheme, tmp_path):
    """And its model, loaded from the folder, is of that scheme."""
    config, stop_signal = run_config(scheme), StopSignal()
    options = {"config": config, "policy": CheckpointPolicy((20,), every=10)}
    whole = train_run(trainer_of(config), 0, tmp_path / "whole", **options)
    folder, stop = tmp_path / "stopped", lambda row: stop_signal.stop("enough")
    with pytest.raises(Interrupted):
        train_run(trainer_of(config), 0, folder, stop_signal=stop_signal, on_report=stop, **options)
    resumed = train_run(trainer_of(config), 0, folder, **options)
    assert resumed["test"] == whole["test"]
    encoder, variables = load_run(folder, 20)
    assert encoder.config.scheme == scheme
    expected = load_run(tmp_path / "whole", 20)[1]
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_study_compares_them(tmp_path):
    """`scheme` is a field of an arm's model as any other."""
    config = run_config("tied")
    arms = {name.rpartition(".")[2]: {"model": {"scheme": name}} for name in OWN}
    values = {
        "name": "own", "arms": {"separate": {}} | arms, "model": MODEL,
        "tasks": {"reverse": config["task"]},
        "train": {"steps": 4, "report_every": 4, "batch_size": 4},
        "study": {"protocol": "fixed", "learning_rates": (1e-3, 1e-2, 1e-1), "tune_seeds": 1,
                  "eval_seeds": 5},
    }  # fmt: skip
    study, workdir = Study(values), Workdir(tmp_path)
    Engine(study, workdir, workdir.open(study.describe()), lambda event: None).run()
    write_tables(workdir)
    summary = load_study(tmp_path).summary.set_index("arm")
    assert set(summary.index) == {"separate", "placebo", *arms}
    cache = summary["kv_cache_bytes_per_token"]
    assert cache["Halved"] == cache["separate"] / 2 == cache["Exclusive"] / 2


def test_a_scheme_that_is_not_affine_is_refused_where_matrices_are_read():
    with pytest.raises(ConfigError, match="scheme: given 'bent'; .*no matrix stands for them"):
        layer_weights(*encoder_of("bent"))


@pytest.mark.parametrize(
    "scheme, message",
    [
        ("tide", "did you mean 'tied'"),
        ("no_such_module.Scheme", "cannot be imported: ModuleNotFoundError: No module named"),
        (f"{__name__}.Nobody", "cannot be imported: AttributeError"),
        ("qkv_jax.model.adapters.Adapter", "must be a subclass of qkv_jax.model.schemes.Scheme"),
    ],
)
def test_a_scheme_that_cannot_be_is_one_line(scheme, message):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(scheme=scheme)
    assert message in str(caught.value) and "\n" not in str(caught.value)
