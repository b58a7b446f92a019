"""`experiments.benchmark gpu`, as it is on a CPU: what it measures, and what it leaves behind."""

import csv
import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from configs import big
from experiments.benchmark import agreement, gpu, packing, utilisation
from experiments.benchmark.budget import Budget
from experiments.benchmark.publish import Findings
from experiments.benchmark.sides import Spread
from experiments.benchmark.sizes import Size
from experiments.benchmark.workers import WorkerError, started
from qkv_jax.training import costs
from tests.support import commands
from tests.support.folders.command_place import BENCHMARK
from tests.support.stand_ins import stand_in

QUICK = ("--steps=10", "--repeats=3")
TABLES = ("gpu_checks", "gpu_packing", "gpu_mfu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def run(place):
    """The command once, beside a PyTorch that trains another model."""
    torch = stand_in(place, "other", '{"losses": [9.0] * 5}')
    with commands.server(place) as command:
        code, out, err = command(BENCHMARK, "gpu", *QUICK, torch, "--out=found")
    assert code == 0, err
    return out, err


@pytest.fixture(scope="module")
def tables(run):
    """The rows of each table, of the last line."""
    return json.loads(run[0].splitlines()[-1])["tables"]


# --- time


class Clock:
    """Says the time that it is set to."""

    now = 100.0

    def __call__(self):
        return self.now


def test_nothing_is_begun_that_would_take_longer_than_what_is_left():
    clock = Clock()
    budget = Budget(10, clock)
    assert budget.left == 10 and budget.allows_another
    with budget.spending():
        clock.now += 4
    assert budget.left == 6 and budget.allows_another
    with pytest.raises(ValueError), budget.spending():  # counts, however it ends
        clock.now += 2
        raise ValueError
    assert budget.left == 4 and not budget.allows_another
    clock.now += 5
    assert budget.left == 0


def test_a_worker_that_takes_too_long_is_ended(tmp_path):
    """What is asked of it then, and later, is an error; one that answers in time lives on."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys, time\nfor line in sys.stdin:\n"
        "    time.sleep(float(line))\n    print(0, flush=True)\n"
    )
    with started(sys.executable, str(script), "") as worker:
        with worker.limited(60):
            assert worker.ask(0) == 0
        with pytest.raises(WorkerError, match="took longer than the 1 s"), worker.limited(1):
            worker.ask(60)
        with pytest.raises(WorkerError, match="its process has ended"):
            worker.ask(0)


def test_every_other_packing_comes_first():
    sizes = Size(64, 16, 32), Size(32, 16, 32)
    order = list(packing.order(sizes, (1, 2, 4, 8)))
    assert [found for found, _ in order] == [1, 1, 4, 4, 2, 2, 8, 8]
    assert [size for _, size in order] == [*sizes] * 4


def test_without_time_nothing_is_measured_and_all_is_said(monkeypatch):
    for flag in ("REPEATS", "STEPS"):
        monkeypatch.setattr(packing.options, flag, types.SimpleNamespace(value=10))
    found = packing.measure(Budget(0), (Size(8, 6, 4),), (1, 2))
    assert not found.rows
    assert found.caption.endswith("Left out for want of time: packing 1 of 8/6/4, 2 of 8/6/4.")
    assert "No packing was measured at all sizes." in found.caption


# --- what is reckoned


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
    ],
)
def test_the_peak_is_that_of_the_chip(kind, teraflops):
    assert utilisation.peak(kind) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind",
    ["cpu", "NVIDIA L40", "NVIDIA H20", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)
def test_what_has_no_published_peak_has_none(kind):
    """A part of a chip has a part of its peak."""
    assert utilisation.peak(kind) is None


def test_the_best_packing_is_near_the_best_of_each_size():
    """By hand: 2 reaches 1 and 1/2, 4 reaches 3/4 and 1, of which the geometric mean is larger; 8
    is not known of all."""
    small, large = Size(8, 6, 4), Size(16, 6, 4)
    rates = {small: {2: 4.0, 4: 3.0, 8: 3.9}, large: {2: 5.0, 4: 10.0}}
    chosen, reached = packing.best(rates)
    assert chosen == 4 and reached == pytest.approx(0.75**0.5)
    assert packing.best({small: {2: 1.0, 4: 1.0}}) == (2, 1.0)
    assert packing.best({}) is packing.best({small: {2: 1.0}, large: {4: 1.0}}) is None


def test_the_large_encoders_are_those_of_the_config():
    """A hundred million and a billion parameters. FLOPs of a token by the rule of thumb: 6 for each
    of them, and 12 D for each pair of tokens in each layer."""
    for shape, name, params in zip(utilisation.shapes(), ("100m", "1b"), (1e8, 1e9), strict=True):
        trainer = shape.trainer("separate", 3)
        assert (shape.layers, shape.width, shape.heads) == big.SIZES[name][:3]
        assert costs.measure(trainer).params == pytest.approx(params, rel=0.03)
        assert trainer.model_config.dtype == "bfloat16" and trainer.model_config.scan_layers
        rule = 6 * params + 12 * shape.layers * shape.width * shape.length
        assert costs.step_flops(trainer) == pytest.approx(shape.tokens * rule, rel=0.03)


# --- checks


def test_a_check_that_does_not_hold_is_told_from_one_that_does():
    for worst, passes in ((0.1, True), (0.3, False), (float("nan"), False)):
        row = agreement.checked(agreement.Check("some", 0.2, lambda worst=worst: worst))
        assert row["passes"] is passes and not row["reason"]

    def refuse():
        raise ValueError("has no kernel\nand more")

    row = agreement.checked(agreement.Check("some", 0.2, refuse))
    assert not row["passes"] and row["reason"] == "ValueError: has no kernel"


def test_attention_that_is_wrong_fails(monkeypatch):
    """The check sees a causal mask that is forgotten, and a value in each thousand that is off."""
    right = agreement.attend
    checks = agreement.checks(16, Size(8, 6, 4))
    check = next(c for c in checks if c.name == "attend by xla, float32: causal")
    wrongs = {
        "mask": lambda *, is_causal, **options: right(**options),
        "value": lambda *, value, **options: right(value=value * 1.001, **options),
    }
    for wrong in wrongs.values():
        choose = lambda *, implementation, wrong=wrong, **options: (
            wrong if implementation == "xla" else right
        )(implementation=implementation, **options)
        monkeypatch.setattr(agreement, "attend", choose)
        agreement._both_ways.clear_cache()
        assert check.worst() > 10 * check.allowed
    monkeypatch.undo()
    agreement._both_ways.clear_cache()
    assert check.worst() <= check.allowed


def test_a_population_of_other_runs_fails(monkeypatch):
    """One of the four with the seed of another."""
    spec = agreement.RunSpec
    monkeypatch.setattr(agreement, "RunSpec", lambda rate, seed: spec(rate, min(seed, 2)))
    *_, check = agreement.checks(16, Size(8, 6, 4, layers=1))
    assert check.name == "population of 4 runs, K=V"
    assert check.worst() > 10 * check.allowed


def test_differences_are_of_the_largest_number():
    found, expected = jnp.asarray([1.0, 1e-3]), jnp.asarray([2.0, 0.0])
    assert agreement._difference(found, expected) == 0.5


def test_encoders_without_room_are_said_and_the_others_measured(monkeypatch):
    """As JAX says it of a GPU: K=V alone has room, and there is nothing to set PyTorch beside."""
    compiled = utilisation._compiled

    def full(trainer):
        if trainer.model_config.tie == "separate":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return compiled(trainer)

    monkeypatch.setattr(utilisation, "_compiled", full)
    monkeypatch.setattr(utilisation.options, "REPEATS", types.SimpleNamespace(value=3))
    rows, left_out = utilisation._measured(Budget(600), utilisation.TINY[0], 16, object(), 0.5)
    assert [row["side"] for row in rows] == ["ours, K=V"]
    assert left_out == ["ours, separate, 13.8 k parameters (out of memory)"]


def test_a_packing_without_room_ends_its_size_alone(monkeypatch):
    def measured(size, packing, *_):
        if packing * size.width > 32:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        asked.append((size.width, packing))
        row = table._row(size, packing, 10)
        return row | dict.fromkeys(("rate", "alone", "ratio"), Spread(2.0 * packing, 1.0, 9.0))

    asked, table = [], packing
    for flag in ("REPEATS", "STEPS"):
        monkeypatch.setattr(table.options, flag, types.SimpleNamespace(value=10))
    monkeypatch.setattr(table, "_measured", measured)
    monkeypatch.setattr(table.ours, "alone", lambda trainer: None)
    sizes = Size(8, 6, 4), Size(16, 6, 4)
    found = table.measure(Budget(600), sizes, (1, 2, 4, 8))
    assert asked == [(8, 1), (16, 1), (8, 4), (8, 2), (16, 2)]
    notes = {(row["width"], row["packing"]): row["note"] for row in found.rows}
    assert {place for place, note in notes.items() if note} == {(16, 4), (8, 8), (16, 8)}
    assert found.cells[3] == ["4", "8\nx 8.0", "out of memory"]
    assert "one for all of them is 2, with 71 % of the best" in found.caption


# --- what is left behind


def test_a_part_that_fails_takes_no_other_with_it(monkeypatch, tmp_path, capsys):
    """Its error is raised when all else is measured and written; without an error, a check that
    does not pass is the exit code."""
    monkeypatch.setattr(gpu.publish.options, "OUT", types.SimpleNamespace(value=tmp_path))
    row = {"check": "some", "worst": 1.0, "passes": False}
    parts = {
        "packing": gpu.Part(60, lambda budget: 1 / 0),
        "large encoders": gpu.Part(0, lambda budget: None),
        "checks": gpu.Part(60, lambda budget: Findings("checks", "T", [row], "a", ["b"], "Said.")),
    }
    monkeypatch.setattr(gpu, "_parts", lambda tiny: parts)
    with pytest.raises(ZeroDivisionError):
        gpu.main()
    page = (tmp_path / "gpu.md").read_text()
    assert "## Packing\n\nLeft out: it failed, ZeroDivisionError: division by zero." in page
    assert "## Large encoders\n\nLeft out: no time is left." in page
    assert "## T\n\n| a |\n| --- |\n| b |\n\nTried on a CPU at tiny sizes" in page
    assert (tmp_path / "checks.csv").read_text() == "check,worst,passes\nsome,1.0,False\n"
    parts.pop("packing")
    assert gpu.main() == 1
    assert "1 of 1 checks fail: some" in capsys.readouterr().err


def test_every_table_is_printed_and_written(run, tables, place):
    out, err = run
    *shown, last = out.splitlines()
    assert max(map(len, shown)) <= 100
    found = json.loads(last)
    assert found["benchmark"] == "gpu" and tuple(found["tables"]) == TABLES
    assert found["seconds"] < 180
    assert {"device", "runtime", "cpu", "jax", "torch", "date"} < set(found["machine"])
    for name, rows in tables.items():
        with (place / "found" / f"{name}.csv").open() as file:
            written = list(csv.DictReader(file))
        assert written == [
            {column: "" if x is None else str(x) for column, x in row.items()} for row in rows
        ]
    page = (place / "found" / "gpu.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert titles == [
        "# What a GPU gives", "## Checks", "## Packing: run-steps a second",
        "## Large encoders in bfloat16",
    ]  # fmt: skip
    assert page.count("Tried on a CPU at tiny sizes: the numbers mean nothing.") == len(TABLES)
    suffixes = {path.name for path in (place / "found").iterdir()}
    assert {"gpu_packing.svg", "gpu_packing.png", "gpu_mfu.svg", "gpu_mfu.png"} < suffixes


def test_all_checks_pass_here(tables):
    """Of what this machine has: cuDNN is none of it."""
    rows = tables["gpu_checks"]
    names = {row["check"] for row in rows}
    assert {"attend by xla, float32: causal", "attend by einsum, bfloat16: mask",
            "population of 4 runs, separate", "population of 4 runs, K=V"} < names  # fmt: skip
    assert len(rows) == 3 * 3 + 2 and not any("cudnn" in name for name in names)
    for row in rows:
        assert row["passes"] and 0 <= row["worst"] <= row["allowed"] and not row["reason"]
    assert any(row["worst"] > 0 for row in rows)


def test_packing_is_set_beside_one_run_at_a_time(tables):
    rows = tables["gpu_packing"]
    assert [(row["width"], row["packing"]) for row in rows] == [
        (width, packing) for width in (8, 16) for packing in (1, 4)
    ]
    for row in rows:
        for name in ("run_steps_per_second", "alone_per_second", "ratio"):
            assert 0 < row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        low, high = row["run_steps_per_second_low"], row["run_steps_per_second_high"]
        lone = row["alone_per_second_low"], row["alone_per_second_high"]
        assert low / lone[1] * 0.999 <= row["ratio"] <= high / lone[0] * 1.001


def test_encoders_have_their_share_of_the_product(tables):
    """On a CPU, whose peak is not in the table, that is the peak."""
    rows = tables["gpu_mfu"]
    assert [row["side"] for row in rows] == ["ours, separate", "ours, K=V"] * 2
    for row in rows:
        assert 0 < row["share_of_product_low"] <= row["share_of_product"]
        assert row["mfu"] == pytest.approx(row["tflops"] / row["product_tflops"], rel=1e-3)
        assert row["tokens_per_second"] > 0 and row["torch_time_over_this"] is None
    (separate, tied), (large, _) = rows[:2], rows[2:]
    assert tied["params"] < separate["params"] < large["params"]


def test_a_peer_that_trains_another_model_is_left_out(run):
    _, err = run
    lines = err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("PyTorch is left out: ")
        assert "given '9.000000'; must be ours, 2." in line


def test_sizes_and_packing_are_those_that_are_given(place):
    with commands.server(place) as command:
        code, out, err = command(
            BENCHMARK, "gpu", *QUICK, "--sizes=12/6/4", "--packing=3", "--torch=nowhere/python",
            "--out=given",
        )  # fmt: skip
    assert code == 0, err
    (row,) = json.loads(out.splitlines()[-1])["tables"]["gpu_packing"]
    assert (row["width"], row["length"], row["batch"], row["packing"]) == (12, 6, 4, 3)
