"""Benchmarks: what they count, what they refuse, and what they leave behind, at tiny sizes.

That PyTorch trains our model is checked by every benchmark that shows its times; here a stand-in
answers for it, and the real one where `make benchmark` has set it up.
"""

import ast
import contextlib
import csv
import dataclasses
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import decode, peer, plain_flax
from experiments.benchmark.intervals import PARTS, split
from experiments.benchmark.sides import interleaved
from experiments.benchmark.sizes import Size
from qkv_jax.config import ConfigError
from qkv_jax.training import shared
from qkv_jax.training.costs import step_flops
from tests.support import commands
from tests.support.folders.command_place import BENCHMARK
from tests.support.stand_ins import stand_in

READY = commands.ROOT / ".venv-benchmark" / ".ready"
TORCH = READY.with_name("bin") / "python"
TINY = ("--sizes=8/6/4", "--steps=10", "--repeats=3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def command(place):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    with commands.server(place) as run:
        yield lambda *arguments: run(BENCHMARK, *arguments)


# --- what is counted


def test_the_floor_counts_the_matrix_products_of_a_step():
    """By hand: of a token, 8 D^2 for the projections, 16 D^2 for the MLP, 4 T D for scores and
    values in each of two layers, and 2 D C for the readout; thrice, for the backward pass."""
    width, length, batch, classes = 8, 6, 4, 10
    token = 2 * (24 * width**2 + 4 * length * width) + 2 * width * classes
    assert step_flops(Size(width, length, batch).trainer(3, 10)) == 3 * batch * length * token


def test_what_is_timed_of_a_tie_is_its_own_program():
    """However few steps a benchmark takes; short runs of studies share one for all ties."""
    trainer = Size(8, 6, 4).trainer(3, 10, "K=V")
    assert shared.program_of(trainer) is trainer
    short = dataclasses.replace(trainer.train_config, steps=10, report_every=10)
    assert shared.program_of(dataclasses.replace(trainer, train_config=short)) is not trainer


def test_blocks_are_shorter_where_steps_are_long_and_the_rate_lasts_for_all_of_them():
    sizes = Size(8, 6, 4), Size(128, 32, 64)
    small, large = (size.trainer(3, 100).train_config for size in sizes)
    assert small.report_every == 100 and 10 <= large.report_every < 100
    assert large.steps == 5 * large.report_every
    assert small.steps > 5 * small.report_every  # of a run that does not count as a short one


def test_plain_flax_with_our_parameters_gives_our_logits():
    trainer = Size(16, 6, 4).trainer(3, 10)
    params = trainer.init_params(3)
    # Off their initial values, where biases are zero and scales are one.
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), keys)
    params = jax.tree.map(lambda p, k: p + 0.1 * jax.random.normal(k, p.shape), params, keys)
    tokens = jnp.arange(24).reshape(4, 6) % 10
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain = plain_flax.encoder(trainer).apply({"params": plain_flax.mapped(params)}, tokens)
    np.testing.assert_allclose(plain, trainer.model.apply({"params": params}, tokens), atol=1e-5)


def test_every_side_goes_first_as_often_as_the_others():
    order = []
    sides = {name: (lambda name=name: order.append(name) or 1.0) for name in "abc"}
    assert interleaved(sides, 6) == {name: [1.0] * 6 for name in "abc"}
    rounds = np.reshape(order[3:], (6, 3))  # the first block of each warms it up
    assert [str(first) for first in rounds[:, 0]] == [*"abcabc"]
    assert all(sorted(names) == [*"abc"] for names in rounds)


def test_losses_that_differ_are_refused():
    peer.require_equal("PyTorch", [2.0, 1.00009], [2.0, 1.0])
    for wrong in (1.0002, float("nan")):
        with pytest.raises(ConfigError, match="loss of step 2 of PyTorch: .* its times are not"):
            peer.require_equal("PyTorch", [2.0, wrong], [2.0, 1.0])


def test_a_study_s_time_is_cut_into_parts_that_add_up():
    """Traces nest, and what is compiled beside training costs nothing."""
    compiling = [(1.0, 2.0), (4.0, 7.0), (5.0, 6.0), (9.0, 10.0)]
    parts = split(0.0, 20.0, compiling, [(7.0, 11.0), (12.0, 15.0)], 3.0)
    assert parts == dict(zip(PARTS, (2.0, 4.0, 7.0, 7.0), strict=True))
    assert sum(parts.values()) == 20.0
    assert split(0.0, 5.0, [], [], None)["files, report"] == 5.0


# --- what is left behind


def test_population_ends_with_its_table_its_files_and_a_line_of_json(command, place):
    """Without PyTorch, of which one line says that it is left out."""
    code, out, err = command("population", *TINY, "--torch=nowhere/python", "--out=found")
    assert code == 0, err
    assert err == (
        "PyTorch is left out: --torch=nowhere/python is no Python that runs; `make benchmark` "
        "makes one\n"
    )
    *shown, last = out.splitlines()
    assert "milliseconds a run-step" in shown[0] and any("8/6/4" in line for line in shown)
    assert max(map(len, shown)) <= 100
    found = json.loads(last)
    (row,) = found["rows"]
    assert found["benchmark"] == "population" and found["machine"]["torch"] is None
    assert {"cores", "cpu", "platform", "python", "jax", "flax", "date"} < set(found["machine"])
    assert (row["width"], row["length"], row["batch"], row["steps"]) == (8, 6, 4, 10)
    for side in ("ours_ms", "flax_ms", "alone_ms", "share_of_floor"):
        assert 0 < row[f"{side}_low"] <= row[side] <= row[f"{side}_high"]
    assert row["torch_ms"] is None and row["torch_best"] is None
    with (place / "found" / "population.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert written == {name: "" if x is None else str(x) for name, x in row.items()}
    assert sorted(p.suffix for p in (place / "found").iterdir()) == [".csv", ".pdf", ".png", ".svg"]


def test_attention_sets_times_beside_flops(command):
    code, out, err = command("attention", *TINY, "--out=found")
    assert code == 0, err
    rows = {row["arm"]: row for row in json.loads(out.splitlines()[-1])["rows"]}
    assert set(rows) == {"separate", "K=V", "Q=K", "Q=K=V", "V=X", "copies"}
    assert rows["separate"]["flops_ratio"] == rows["separate"]["training_ratio"] == 1
    # A projection of width 8 is 2 * 8^2 FLOPs a layer.
    token = 2 * (24 * 8**2 + 4 * 6 * 8) + 2 * 8 * 10
    for arm, spared in (("K=V", 1), ("Q=K=V", 2), ("copies", 3)):
        assert rows[arm]["flops_ratio"] == pytest.approx(1 - 2 * spared * 2 * 8**2 / token, 1e-4)


def test_study_says_where_its_time_went(command, place):
    study = {
        "name": "tiny", "model": {"layers": 1, "width": 8, "heads": 2},
        "train": {"steps": 20, "report_every": 10, "batch_size": 8},
        "arms": {"separate": {"model": {"tie": "separate"}}},
        "tasks": {"one": {"kind": "reverse", "options": {
            "length": 6, "validation_examples": 8, "test_examples": 8}}},
        "study": {"protocol": "fixed", "learning_rates": (1e-3, 1e-2), "tune_seeds": 1,
                  "eval_seeds": 5},
    }  # fmt: skip
    text = f"from qkv_jax.config_files import tree\ndef get_config():\n    return tree({study})\n"
    (place / "study.py").write_text(text)
    code, out, err = command("study", "--study_config=study.py", "--out=found")
    assert code == 0, err
    first, second = json.loads(out.splitlines()[-1])["rows"]
    assert first["runs"] == second["runs"] > 0
    assert first["training_seconds"] > 0 and second["training_seconds"] == 0
    for row in (first, second):
        parts = ("set_up", "compilation", "training", "files_report")
        total = sum(row[f"{part}_seconds"] for part in parts)
        assert total == pytest.approx(row["whole_seconds"], 1e-3)


# --- what is refused, and what is left out


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--sizes=8/6", "--sizes: given '8/6'; write sizes as WIDTH/LENGTH/BATCH or "
                        "WIDTH/LENGTH/BATCH/LAYERS"),
        ("--sizes=6/6/4", "--sizes: given '6/6/4'; the width must be a multiple of 4, the number "
                          "of heads"),
        ("--sizes=8/1/4", "--sizes: given '8/1/4'; the length must be at least 2"),
        ("--repeats=2", "--repeats: given '2'; allowed: integer >= 3"),
        ("--out=", "--out: given ''; must name a file or folder"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(flag, line, command):
    assert command("population", flag) == [2, "", f"error: {line}\n"]


def test_a_study_that_does_not_run_is_refused_with_its_reason(command):
    code, out, err = command("study", "--study_config=nowhere.py")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: --study_config: given 'nowhere.py'; must be a study that runs: ")


def test_a_peer_that_trains_another_model_is_not_shown(command, place):
    torch = stand_in(place, "other", '{"losses": [9.0] * 10}')
    code, out, err = command("train", *TINY, torch, "--out=other_found")
    assert (code, out) == (2, "")
    assert err.startswith("error: loss of step 1 of PyTorch, eager: given '9.000000'; must be ours")
    assert err.count("\n") == 1 and not (place / "other_found").exists()


def test_variants_that_cannot_run_are_left_out_with_a_line(command, place):
    """As where there is no compiler."""
    torch = stand_in(place, "without", '{"error": "no compiler"}')
    code, out, err = command("train", *TINY, torch, "--out=found")
    assert code == 0
    names = peer.variants(together=False)
    assert err.splitlines() == [f"PyTorch is left out: {name}: no compiler" for name in names]
    assert json.loads(out.splitlines()[-1])["rows"][0]["torch_ms"] is None


@pytest.mark.skipif(not READY.exists(), reason="`make benchmark` installs PyTorch")
def test_pytorch_trains_our_model(command):
    code, out, err = command("population", *TINY, f"--torch={TORCH}", "--out=found")
    assert code == 0, err
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert row["torch_ms"] > 0 and row["torch_best"] in peer.variants(together=True)


def test_the_peer_needs_nothing_of_this_project():
    """It is run by another Python, to which the project is not installed."""
    tree = ast.parse(pathlib.Path(peer.__file__).with_name("torch_worker.py").read_text())
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"torch", "numpy"}


def test_decoding_has_a_row_for_every_way_to_keep_keys_and_values(monkeypatch):
    """Bytes are counted from the arrays: of four heads of 64 and a layer in float32."""
    for flag, value in {"REPEATS": 3, "CONTEXT": 16}.items():
        monkeypatch.setattr(decode.options, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(decode, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(decode, "_TOKENS", (32,))
    monkeypatch.setattr(decode, "doing", lambda _: contextlib.nullcontext())
    found = decode.measure()
    bytes_of = {row["arm"]: row["bytes_per_token"] for row in found.rows}
    assert bytes_of == {
        "separate": 2048, "K=V": 1024, "K=V, rotated": 1024, "GQA": 1024, "GQA, K=V": 512,
        "MQA": 512, "MQA, K=V, rotated": 256, "GTA": 640, "MLA": 640,
    }  # fmt: skip
    for row in found.rows:
        assert row["rows"] == 2 and 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["tokens"] > 0 and row["share"] > 0
    assert len(found.cells) == len(found.rows) and "16 tokens in" in found.caption
