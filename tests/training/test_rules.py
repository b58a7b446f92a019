"""Sharding rules: first match wins, nothing is left uncovered, what does not fit is one line."""

import ast
import functools
import pathlib
import re
import struct
import typing

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from configs import train
from configs.options import OPTIONS
from qkv_jax.config import ConfigError, build
from qkv_jax.model.adapters import ADAPTERS, PRESETS
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import REGISTRY, make_task
from qkv_jax.tie import Tie
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.rules import RULE_SETS, parse_rules, partition
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer
from tests.support.folders.image_sets import image_set, saved

TREE = {
    "layer_0": {
        "attention": {
            "key": {"kernel": jax.ShapeDtypeStruct((8, 2, 4), "float32")},
            "out": {"kernel": jax.ShapeDtypeStruct((2, 4, 8), "float32")},
        },
        "mlp_norm": {"scale": jax.ShapeDtypeStruct((8,), "float32")},
    }
}
SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


def specs(rules):
    return partition(parse_rules(rules), TREE, SIZES)["layer_0"]


def test_the_rules_in_the_docs_cover_the_default_model():
    """docs/parallelism.md, as they stand there."""
    guide = (pathlib.Path(__file__).parents[2] / "docs" / "parallelism.md").read_text()
    source = re.search(r"config\.mesh\.rules = (\(.*?\n\))", guide, re.DOTALL)[1]
    config = train.get_config()
    config.mesh.update(data=2, fsdp=2, tensor=2, rules=ast.literal_eval(source))
    values = config.to_dict()
    params = jax.eval_shape(functools.partial(trainer_of(values).init_params, 0))
    mesh = build(MeshConfig, values["mesh"])
    found = partition(parse_rules(mesh.rules), params, mesh.sizes(8))
    kernel = found["layer_0"]["attention"]["key"]["kernel"]
    assert kernel == PartitionSpec("fsdp", "tensor", None)


def test_the_first_rule_that_matches_the_whole_path_counts():
    """A later rule does not, nor one that matches a part of the path."""
    found = specs(
        [
            ["attention", [None]],  # a part of the path: no match, or the length would be refused
            [".*/key/kernel", ["fsdp", None, None]],
            [".*/attention/.*", [None, None, ["fsdp", "tensor"]]],
            [".*", "whole"],
        ]
    )
    assert found["attention"]["key"]["kernel"] == PartitionSpec("fsdp", None, None)
    assert found["attention"]["out"]["kernel"] == PartitionSpec(None, None, ("fsdp", "tensor"))
    assert found["mlp_norm"]["scale"] == PartitionSpec()


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        (
            [[".*/kernel", "whole"]],
            "rules: given '1 rules'; no rule covers layer_0/mlp_norm/scale; "
            "add one ([pattern, 'whole'] keeps it whole everywhere)",
        ),
        (
            [[".*/key/kernel", ["fsdp", None]], [".*", "whole"]],
            "rules[0]: given ['fsdp', None]; needs 3 entries for layer_0/attention/key/kernel "
            "[8, 2, 4]",
        ),
        (
            [[".*/key/kernel", [None, "fsdp", None]], [".*", "whole"]],
            "rules[0]: given [None, 'fsdp', None]; fsdp = 4 does not divide "
            "layer_0/attention/key/kernel [8, 2, 4]",
        ),
        (
            [[".*/key/kernel", [None, None, ["fsdp", "tensor"]]], [".*", "whole"]],
            "rules[0]: given [None, None, ('fsdp', 'tensor')]; fsdp = 4 x tensor = 2 does not "
            "divide layer_0/attention/key/kernel [8, 2, 4]",
        ),
        ([["(", "whole"]], "rules[0]: given '('; is no regular expression: "),
        ([[3, "whole"]], "rules[0]: given 3; is no regular expression: "),
        (
            [[".*", ["fsdq"]]],
            "rules[0]: given 'fsdq'; no such axis; allowed: data, fsdp, tensor",
        ),
        ([[".*", ["fsdp", "fsdp"]]], "rules[0]: given 'fsdp'; an axis can cut one dimension only"),
        ([[".*", "all"]], "rules[0]: given 'all'; must be a list of axes or none"),
        ([".*"], "rules[0]: given '.*'; must be a pair [pattern, spec]"),
        ([], "rules: given []; must be a list of [pattern, spec], or a set's name"),
        ("megaton", "rules: given 'megaton'; allowed: megatron, inner, replicated, or a list of"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules, line):
    """One line each: which rule, what was given, what is allowed, and for which parameter."""
    with pytest.raises(ConfigError) as refusal:
        specs(rules)
    assert str(refusal.value).startswith(line)


def option_sets():
    """What tells a model's parameters apart: every shipped option; and by itself every word of
    every field that has a list of words, so that none is forgotten when one is added."""
    words = {"scale": ("sqrt", "learned_per_head"), "preset": PRESETS}
    words["implementation"] = ("auto", "einsum", "xla")  # cudnn needs another number format
    for name, hint in typing.get_type_hints(ModelConfig).items():
        if typing.get_origin(hint) is typing.Literal:
            words.setdefault(name, typing.get_args(hint))
        if hint is bool:
            words[name] = (False, True)
    yield from ({}, *OPTIONS.values())
    needs = {"latent_kind": {"latent_dim": 4}, "value_residual": {"layers": 2}}
    yield from ({name: word, **needs.get(name, {})} for name in words for word in words[name])
    yield from ({"tie": "Q=K", "adapters": {"query": f"{name}:1" if name == "lowrank" else name}}
                for name in ADAPTERS)  # fmt: skip
    yield {"latent_dim": 4, "use_bias": True}


def registered_tasks(folder):
    """One of each kind that is registered, files of its own where it needs some."""
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60))
    (folder / "table.csv").write_text(f"text,label\n{rows}")
    (folder / "pairs.tsv").write_text("text\ttext\n")
    (folder / "text").write_text("the cat sat on the mat. " * 80)
    for split, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">IIII", 0x803, count, 8, 8) + bytes(64 * count)
        labels = struct.pack(">II", 0x801, count) + bytes(i % 2 for i in range(count))
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    options = {
        "text_classification": {"files": (str(folder / "table.csv"),), "length": 8},
        "translation": {"pairs": str(folder / "pairs.tsv"), "tokenizer": "bytes", "length": 8},
        "masked_bytes": {"files": (str(folder / "text"),), "length": 16},
        "idx": {"folder": str(folder), "patch": 4, "validation_examples": 5},
    }
    parts = {name: image_set(count)[0] for name, count in (("train", 20), ("test", 10))}
    options["images"] = saved(folder / "images", **parts)
    yield from (make_task(kind, options.get(kind, {})) for kind in REGISTRY)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The parameters of every task, and of every option of the encoder, as shapes."""
    small = {"layers": 1, "width": 16, "heads": 2, "mlp_width": 48}
    tasks = registered_tasks(tmp_path_factory.mktemp("data"))
    reverse = make_task("reverse", {"length": 8})
    cases = [({}, task) for task in tasks] + [(option, reverse) for option in option_sets()]
    trainers = [Trainer(build(ModelConfig, small | o), t, TrainConfig()) for o, t in cases]
    return [jax.eval_shape(functools.partial(r.init_params, 0)) for r in trainers]


@pytest.mark.parametrize("rules", RULE_SETS)
def test_every_set_covers_every_task_and_option(rules, trees):
    """No parameter is forgotten, whether one goes on with one device or cuts in two; and no rule of
    a set is there for nothing."""
    used, parsed = set(), parse_rules(rules)
    for params in trees:
        for fsdp in (1, 2):
            partition(parsed, params, {"data": 1, "fsdp": fsdp, "tensor": 1})
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            name = "/".join(entry.key for entry in path)
            matches = (place for place, (p, _) in enumerate(parsed) if re.fullmatch(p, name))
            used.add(next(matches))
    assert used == set(range(len(parsed)))


@pytest.mark.parametrize("rules", RULE_SETS)
def test_a_tied_projection_has_one_spec(rules):
    """Under each of the 15 ties the leaves of attention are the tie's sources and the output, each
    with a spec of its own: of roles that share a projection there is nothing else to cut. The sets
    that cut anything cut every one of them."""
    task = make_task("reverse", {"length": 8})
    for tie in Tie.all():
        model = ModelConfig(tie=str(tie), layers=1, width=16, heads=2)
        trainer = Trainer(model, task, TrainConfig())
        params = jax.eval_shape(lambda trainer=trainer: trainer.init_params(0))
        found = partition(parse_rules(rules), params, {"data": 1, "fsdp": 2, "tensor": 2})
        attention = found["layer_0"]["attention"]
        assert attention.keys() == {*tie.sources, "out"}
        specs = jax.tree.leaves(attention, is_leaf=lambda x: isinstance(x, PartitionSpec))
        assert len(specs) == len(attention)
        assert all(("tensor" in spec) == (rules != "replicated") for spec in specs)


@given(
    data=st.integers(1, 5), fsdp=st.integers(1, 5), tensor=st.integers(1, 5), n=st.integers(1, 60)
)
def test_the_sizes_of_a_mesh_multiply_to_the_devices(data, fsdp, tensor, n):
    """Or are refused; and -1 is whatever the others leave, or refused."""
    product = data * fsdp * tensor
    config = MeshConfig(data, fsdp, tensor)
    if product == n:
        assert config.sizes(n) == {"data": data, "fsdp": fsdp, "tensor": tensor}
    else:
        with pytest.raises(ConfigError, match=f"must be equal to the number of devices, {n}"):
            config.sizes(n)
    rest = MeshConfig(-1, fsdp, tensor)
    if n % (fsdp * tensor):
        with pytest.raises(ConfigError, match=f"must be a divisor of the number of devices, {n}"):
            rest.sizes(n)
    else:
        assert rest.sizes(n)["data"] * fsdp * tensor == n


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"data": -1, "fsdp": -1}, "fsdp: given -1; only one axis can take what is left: data"),
        ({"tensor": 0}, "tensor: given 0; must be a whole number above 0"),
        ({"data": 2, "tensor": 2, "by": "pmap"}, "by: given 'pmap'; has the axis data alone"),
        ({"by": "pmap"}, "by: given 'pmap'; needs the axis data: how many devices, or -1 for all"),
        ({"by": "pmpa"}, "by: given 'pmpa'; did you mean 'pmap'? allowed: jit, pmap"),
    ],
)
def test_meshes_that_cannot_be_are_refused(fields, line, unchecked):
    with pytest.raises(ConfigError) as refusal:
        MeshConfig(**fields)
    assert str(refusal.value).startswith(line)
