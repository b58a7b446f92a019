"""The encoder: its tree, its refusals, its reference numbers, what it sees and what it reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks import make_task
from qkv_jax.tie import Tie, parse_schedule
from qkv_jax.training.state import TrainConfig, decay_mask
from qkv_jax.training.step import Trainer
from tests.support.untied import TIES, assert_close, assert_described, describe, leaves

SMALL = ModelConfig(width=16, heads=2, layers=2)
TRAIN = TrainConfig(steps=10, report_every=1, batch_size=8, learning_rate=1e-2)
TOKENS = jax.random.randint(jax.random.key(0), (2, 5), 0, 7)
CLASSES = 3


def make_trainer(task="reverse", config=TRAIN, length=6, **model):
    options = {"length": length} if task == "reverse" else {}
    return Trainer(dataclasses.replace(SMALL, **model), make_task(task, options), config)


def encoder(readout="token", length=5, **model):
    config = dataclasses.replace(SMALL, **model)
    return Encoder(config, TokenStem((7,), config.width), CLASSES, length, readout)


@functools.cache
def initialised(module):
    return module.init(jax.random.key(0), TOKENS)


def shapes_of(module):
    """{path: shape} of the parameters, without drawing them."""
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS))["params"]
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in path): leaf.shape for path, leaf in paths}


def train_some(trainer, steps, seed=0):
    """Losses and the state after a few steps from a seed."""
    state, losses = trainer.init(seed, trainer.train_config.learning_rate), []
    run = jax.jit(trainer.train)
    for _ in range(steps):
        state, metrics = run(state, trainer.schedule(state.seed, state.step, None), None)
        losses.append(float(metrics["loss"]))
    return np.asarray(losses), state


# --- numbers that must not move unnoticed


def test_the_tree_of_the_encoder(golden):
    """Every leaf's name, shape, dtype and spread, for a schedule of two ties and all the extras."""
    model = {"tie": "K=V|V=X,Q=K", "scale": "learned_per_head", "positions": "learned"}
    actual = describe(make_trainer(**model).init_params(0))
    assert_described(actual, golden("encoder", actual))


def test_the_tree_of_the_image_encoder(golden):
    actual = describe(make_trainer("mnist5k", layers=1, positions="sinusoidal").init_params(0))
    assert_described(actual, golden("image_encoder", actual))


WHAT_A_CHANGE_MEANS = (
    "training on `reverse` no longer gives the reference numbers, so results of earlier studies "
    "cannot be continued with this code. If initialisation, data, model or optimiser was changed "
    "on purpose, rewrite the file with UPDATE_GOLDEN=1 and raise the version."
)


def test_the_first_steps_on_reverse_give_the_reference_numbers(golden):
    """Three steps of width 16: data, initial values, model, loss and optimiser in four numbers,
    the loss before each update and the sum of squared parameters in the end."""
    numbers = {}
    for tie in ("separate", "K=V", "copies"):
        losses, state = train_some(make_trainer(tie=tie, layers=1), 3)
        arrays = [leaf.astype(np.float64) for leaf in leaves(state.params).values()]
        numbers[tie] = [*losses, sum((array**2).sum() for array in arrays)]
    expected = golden("reference_steps", numbers)
    for tie in numbers:
        assert numbers[tie] == pytest.approx(expected[tie], rel=1e-5), WHAT_A_CHANGE_MEANS


# --- initial values


@pytest.mark.parametrize("tie", TIES[1:])
def test_encoders_of_two_ties_start_from_the_same_values(tie):
    """All leaves that the model shares with `separate`, embeddings to readout, equal to the bit."""
    separate, tied = (leaves(initialised(encoder(tie=t))["params"]) for t in ("separate", tie))
    assert set(tied) <= set(separate)
    for path, leaf in tied.items():
        np.testing.assert_array_equal(leaf, separate[path], err_msg=path)
    gone = {path.split("/")[-2] for path in set(separate) - set(tied)}
    assert gone == {"query", "key", "value"} - set(Tie.parse(tie).sources)


def test_the_salt_redraws_everything_random_and_only_the_salt():
    trainer = make_trainer(layers=1)
    plain, zero, salted = (leaves(trainer.init_params(3, *salt)) for salt in ((), (0,), (1,)))
    for path, leaf in plain.items():
        np.testing.assert_array_equal(leaf, zero[path], err_msg=path)
        assert np.array_equal(leaf, salted[path]) == (leaf.std() == 0), path


# --- frozen sources


def test_frozen_sources_stay_as_initialised_through_training():
    """No gradient and no weight decay: equal to the bit after three steps; all else moves."""
    config = dataclasses.replace(TRAIN, weight_decay=0.5)
    trainer = make_trainer(tie="K=V", frozen=("key",), config=config, layers=1)
    before = leaves(trainer.init_params(0))
    _, state = train_some(trainer, 3)
    for path, leaf in leaves(state.params).items():
        assert np.array_equal(leaf, before[path]) == ("attention/key" in path), path


def test_only_kernels_decay():
    mask = leaves(decay_mask(make_trainer(scale="learned_per_head").init_params(0), ("query",)))
    for path, decays in mask.items():
        assert decays == (path.endswith("kernel") and "attention/query" not in path), path
    assert mask["layer_0/attention/out/kernel"] and mask["readout/kernel"]


# --- dropout


def test_dropout_is_off_at_evaluation_and_on_in_training():
    module = encoder(dropout=0.5)
    variables = initialised(module)
    run = functools.partial(module.apply, variables, TOKENS)
    np.testing.assert_array_equal(run(), encoder().apply(variables, TOKENS))
    one, again, other = (run(train=True, rngs={"dropout": jax.random.key(s)}) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, run())


def test_dropout_depends_on_the_seed_and_the_step():
    """The very same parameters and batch: another mask at another step or seed, else none."""
    trainer = make_trainer(dropout=0.5, layers=1)
    batch = trainer.task.generate(jax.random.key(0), 8, "train")
    step = jax.jit(lambda state: trainer.train_step(state, batch)[1]["loss"])
    state = trainer.init(0, 1e-2)
    base = step(state)
    assert step(state) == base
    assert step(state.replace(step=jnp.int32(1))) != base
    assert step(state.replace(seed=jnp.uint32(1))) != base
    assert step(state.replace(learning_rate=jnp.float32(0.5))) == base


# --- schedules


def test_each_layer_follows_its_own_tie():
    """Bottom up, in the tree and in what the layers compute."""
    config = {"tie": "K=V*2|separate|copies", "layers": 4}
    module = encoder(**config)
    params = initialised(module)["params"]
    ties = parse_schedule(config["tie"], 4)
    assert module.config.ties == ties
    for i, tie in enumerate(ties):
        assert set(params[f"layer_{i}"]["attention"]) == {*tie.sources, "out"}
    _, sown = module.apply({"params": params}, TOKENS, mutable="intermediates")
    for i, tie in enumerate(ties):
        seen = sown["intermediates"][f"layer_{i}"]["attention"]["probes"]
        same = np.array_equal(seen["key"][0], seen["value"][0])
        assert same == tie.equates("K", "V")
    assert len(ties) == 4


def test_a_schedule_of_one_tie_is_that_tie():
    one, many = encoder(tie="Q=K"), encoder(tie="Q=K*1|Q=K")
    np.testing.assert_array_equal(
        one.apply(initialised(one), TOKENS), many.apply(initialised(one), TOKENS)
    )


# --- what is seen and what is read


def test_padded_tokens_are_seen_by_nobody_else():
    """Outputs at real tokens do not depend on what stands at padded ones, in any layer."""
    module = encoder(positions="sinusoidal")
    variables = initialised(module)
    valid = jnp.asarray([[True, True, True, False, False]] * 2)
    changed = TOKENS.at[:, 3:].set((TOKENS[:, 3:] + 1) % 7)
    run = functools.partial(module.apply, variables)
    one, other = run(TOKENS, valid), run(changed, valid)
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    assert not np.allclose(run(TOKENS, None)[:, :3], run(changed, None)[:, :3])
    short = module.apply(variables, TOKENS[:, :3])
    np.testing.assert_allclose(one[:, :3], short, atol=1e-5)


def test_read_names_the_places_whose_logits_are_wanted():
    """Equal to the whole output at those places, in their order, each row its own."""
    module, read = encoder(), jnp.asarray([[4, 0], [2, 2]])
    whole = module.apply(initialised(module), TOKENS)
    part = module.apply(initialised(module), TOKENS, read=read)
    expected = jnp.stack([whole[0, read[0]], whole[1, read[1]]])
    np.testing.assert_allclose(part, expected, atol=1e-6)


def test_the_class_readout_reads_the_first_token():
    token, first = encoder(), encoder(readout="class")
    whole = token.apply(initialised(token), TOKENS)
    out = first.apply(initialised(token), TOKENS)
    assert out.shape == (2, CLASSES)
    np.testing.assert_allclose(out, whole[:, 0], atol=1e-6)


@pytest.mark.parametrize("tie", TIES)
def test_without_positions_the_encoder_is_equivariant(tie):
    """Attention is a set operation: permuted tokens give permuted outputs; with positions not."""
    order = jnp.asarray([3, 1, 4, 0, 2])
    for positions, equal in (("none", True), ("rotary", False)):
        module = encoder(tie=tie, layers=1, positions=positions)
        run = functools.partial(module.apply, initialised(module))
        same = np.allclose(run(TOKENS[:, order]), run(TOKENS)[:, order], atol=1e-5)
        assert same == equal


def test_the_numbers_of_the_config_reach_the_layers():
    """Each field changes what the encoder computes or holds."""
    base = encoder(layers=1)
    tree, out = shapes_of(base), base.apply(initialised(base), TOKENS)
    attention = "layer_0/attention/"
    shapes = {
        "kv_heads": (1, attention + "key/kernel", (16, 1, 8)),
        "head_dim": (6, attention + "query/kernel", (16, 2, 6)),
        "mlp_width": (5, "layer_0/mlp/up/kernel", (16, 5)),
        "heads": (4, attention + "query/kernel", (16, 4, 4)),
    }
    for field, (value, path, shape) in shapes.items():
        changed = shapes_of(encoder(layers=1, **{field: value}))
        assert changed[path] == shape != tree[path]
    assert tree["layer_0/mlp/up/kernel"] == (16, 64)
    without = shapes_of(encoder(layers=1, output_projection=False))
    assert set(tree) - set(without) == {attention + "out/kernel"}
    for field, value in {"scale": 2.0, "positions": "rotary"}.items():
        other = encoder(layers=1, **{field: value}).apply(initialised(base), TOKENS)
        assert not np.allclose(other, out, atol=1e-4), field
    for implementation in ("einsum", "xla"):
        other = encoder(layers=1, implementation=implementation)
        assert_close(other.apply(initialised(base), TOKENS), out)


# --- refusals

REFUSALS = [
    ({"layers": 0}, "layers: given 0; must be a whole number above 0"),
    ({"width": -4}, "width: given -4"),
    ({"heads": 0}, "heads: given 0"),
    ({"kv_heads": 0}, "kv_heads: given 0"),
    ({"head_dim": 0}, "head_dim: given 0"),
    ({"mlp_width": 0}, "mlp_width: given 0"),
    ({"dropout": 1.0}, "dropout: given 1.0; must be at least 0.0 and below 1.0"),
    ({"dropout": -0.1}, "dropout: given -0.1"),
    ({"dropout": float("nan")}, "dropout: given nan"),
    ({"positions": "rotery"}, "positions: given 'rotery'; did you mean 'rotary'?"),
    ({"implementation": "flash"}, "implementation: given 'flash'; allowed: auto, einsum, xla"),
    ({"scale": "sqroot"}, "scale: given 'sqroot'; did you mean 'sqrt'?"),
    ({"scale": 0.0}, "scale: given 0.0; must be a finite number above 0"),
    ({"scale": "-1"}, "scale: given -1.0"),
    ({"scale": float("inf")}, "scale: given inf"),
    ({"tie": "K=Z"}, "'K=Z' is not a tie; write one of 'separate', 'K=V'"),
    ({"tie": "K=V*3"}, "names 3 layers, but the model has 2"),
    ({"tie": "K=V*0|separate"}, "must be a positive whole number"),
    ({"width": 15}, "width: given 15; must be divisible by heads = 2"),
    ({"tie": "separate|V=X", "head_dim": 4}, "=X needs width 16 = heads x head width"),
    ({"output_projection": False, "head_dim": 4}, "needs width = heads x head width"),
    ({"positions": "rotary", "head_dim": 5}, "needs an even head width, not 5"),
    ({"frozen": ("out",)}, "frozen: given 'out'; allowed: query, key, value"),
    ({"frozen": ("value",), "tie": "K=V"}, "layer 0: frozen source 'value': tie K=V has"),
    ({"frozen": ("value",), "tie": "separate|K=V"}, "layer 1: frozen source 'value'"),
    ({"kv_heads": 3, "heads": 4}, "3 key/value heads do not divide 4 query heads"),
    ({"kv_heads": 1, "tie": "separate|Q=K"}, "layer 1: tie Q=K asks for Q=K"),
    ({"kv_heads": 1, "tie": "copies"}, "which needs as many key/value heads as query heads"),
]


@pytest.mark.parametrize("overrides, message", REFUSALS)
def test_configs_that_cannot_be_are_refused_with_the_reason(overrides, message, unchecked):
    """One line: the field, what was given, what is allowed."""
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SMALL, **overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.field in {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
    "overrides",
    [
        {"scale": "0.5"}, {"scale": "learned_per_head"}, {"kv_heads": 1, "tie": "Q=X,K=V"},
        {"frozen": ("key",), "tie": "K=V|separate"}, {"head_dim": 4}, {"dropout": 0.0},
        {"positions": "rotary", "tie": "copies", "output_projection": False},
    ],
)  # fmt: skip
def test_configs_on_the_near_side_of_each_refusal_are_taken(overrides):
    config = dataclasses.replace(SMALL, **overrides)
    assert config.scale == {"0.5": 0.5}.get(overrides.get("scale"), config.scale)


@pytest.mark.parametrize("overrides", [case[0] for case in REFUSALS if "tie" in case[0]])
def test_what_the_config_takes_the_layers_take(overrides):
    """The same fields without the tie at fault build and run."""
    fine = {name: value for name, value in overrides.items() if name != "tie"}
    module = encoder(**fine)
    assert jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS))
