"""Compiling for hardware that is not there: what is read off a program, and what is refused."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.compile import estimate
from qkv_jax.compile.estimate import describe
from qkv_jax.compile.hlo import Traffic, collectives, memory_bytes
from qkv_jax.compile.topology import CHIPS, Compiled, _refusal, chip_of, seconds, tpu_devices
from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training.costs import matrix_flops
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

HLO = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%inner_condition (s: (s32[], bf16[64,4])) -> pred[] {
  %s = (s32[], bf16[64,4]) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (s: (s32[], bf16[64,4])) -> (s32[], bf16[64,4]) {
  %s = (s32[], bf16[64,4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[64,4]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %part = bf16[8,4]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%cut
  %gathered = bf16[64,4]{1,0:T(8,128)} all-gather(%part), channel_id=3, dimensions={0}
  ROOT %t = (s32[], bf16[64,4]) tuple(%i, %gathered)
}

%cut (p: bf16[64,4]) -> bf16[8,4] {
  %p = bf16[64,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[8,4]{1,0:T(8,128)} dynamic-slice(%p, %zero, %zero), dynamic_slice_sizes={8,4}
}

%condition (s: (s32[], bf16[64,4])) -> pred[] {
  %s = (s32[], bf16[64,4]) parameter(0)
  ROOT %p = pred[] constant(false)
}

%body (s: (s32[], bf16[64,4])) -> (s32[], bf16[64,4]) {
  %s = (s32[], bf16[64,4]) parameter(0)
  ROOT %w = (s32[], bf16[64,4]) while(%s), condition=%inner_condition, body=%inner
}

ENTRY %main (x: bf16[64,4], g: f32[10]) -> f32[10] {
  %x = bf16[64,4]{1,0:T(8,128)} parameter(0)
  %g = f32[10]{0} parameter(1)
  %zero = s32[] constant(0)
  %s = (s32[], bf16[64,4]) tuple(%zero, %x)
  %w = (s32[], bf16[64,4]) while(%s), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %sent = (bf16[64,4]{1,0}, bf16[64,4]{1,0}, u32[], u32[]) \
collective-permute-start(%x), channel_id=9
  %came = bf16[64,4]{1,0} collective-permute-done(%sent)
  %near = bf16[64,4]{1,0:T(8,128)S(1)} copy(%came)
  ROOT %r = f32[10]{0} all-reduce(%g), channel_id=4, to_apply=%sum
}
"""


def test_collectives_in_loops_count_as_often_as_the_loops_turn():
    """Seven turns, said by XLA, of five, read off the condition; a gather counts its result, a
    reduction its operand, a permutation once though it is two operations."""
    assert collectives(HLO) == {
        "all-gather": Traffic(35, 35 * 64 * 4 * 2),
        "all-reduce": Traffic(1, 40),
        "collective-permute": Traffic(1, 64 * 4 * 2 + 8),
    }


def test_a_piece_of_a_collective_is_no_collective_of_its_own():
    """XLA may fuse one with arithmetic piece by piece: one channel is one collective."""
    again = HLO.replace(
        "  ROOT %t =", "  %more = bf16[64,4]{1,0} all-gather(%part), channel_id=3\n  ROOT %t ="
    )
    assert collectives(again) == collectives(HLO)


def test_a_loop_without_an_end_is_not_guessed():
    unknown = HLO.replace("constant(5)", "parameter(1)")
    with pytest.raises(ValueError, match="the turns of a loop cannot be read"):
        collectives(unknown)


def test_memory_traffic_leaves_out_what_stays_near():
    """Of the fusion only the slice that it cuts and what it writes, 64 + 64 bytes; the gather's
    operand and result, 64 + 512; both 35 times. Permutation: 2 x 512 + 512 + 8. The copy writes to
    another memory (S(1)) and reads 512. The reduction reads and writes 40."""
    expected = 35 * (64 + 64 + 64 + 512) + (1024 + 8 + 512) + 512 + 80
    assert memory_bytes(HLO) == expected


def test_bytes_and_flops_of_a_loop_are_those_of_its_turns():
    """Against XLA's own analysis of the same work without a loop, which it counts right; of the
    loop it counts one turn. FLOPs are counted on the traced program."""
    weights = jnp.ones((6, 32, 32))
    step = lambda x, w: (jnp.tanh(x @ w), None)
    looped = jax.jit(lambda x, w: jax.lax.scan(step, x, w)[0])

    def straight(x, weights):
        for w in weights:
            x = jnp.tanh(x @ w)
        return x

    x = jnp.ones((64, 32))
    own = jax.jit(straight).lower(x, weights).compile().cost_analysis()
    once = looped.lower(x, weights).compile()
    assert once.cost_analysis()["flops"] < own["flops"] / 3
    traced = matrix_flops(jax.make_jaxpr(looped)(x, weights).jaxpr)
    assert traced == 6 * 2 * 64 * 32 * 32
    np.testing.assert_allclose(traced, own["flops"], rtol=0.05)
    touched = memory_bytes(once.as_text())
    assert 0.5 < touched / own["bytes accessed"] < 2


def test_times_are_arithmetic_on_the_chip_s_numbers():
    """One second's worth of each on a v5e."""
    chip = CHIPS["TPU v5 lite"]
    compiled = Compiled(
        touched=int(chip.bandwidth),
        traffic={"all-gather": Traffic(1, int(2 * chip.link)), "all-reduce": Traffic(1, 0)},
    )
    expected = {"arithmetic": 1.0, "memory": 1.0, "links": 1.0}
    assert seconds(chip, chip.flops, compiled) == pytest.approx(expected)


FOUND = {
    "topology": "v5e:2x4", "chips": 8, "kind": "TPU v5 lite",
    "mesh": {"data": 2, "fsdp": 4, "tensor": 1}, "params": 100e6, "tokens": 1000, "flops": 8e12,
    "model_flops": 6e12, "rule_of_thumb": 6e11, "compile_seconds": 10.0, "refusal": "",
    "memory": 10e9, "arguments": 1e9, "temporaries": 9e9, "touched": 1e9,
    "traffic": {"all-gather": (3.0, 2e9)},
}  # fmt: skip


def test_an_unknown_chip_gets_no_estimate():
    """Rather than a guess; and what does not fit gets nothing but the reason."""
    lines = describe(FOUND | {"kind": "TPU v99"})
    assert lines[-1] == "step time       not estimated: no numbers for 'TPU v99'"
    times = {"arithmetic": 0.2, "memory": 0.1, "links": 0.05}
    lines = describe(FOUND | {"hbm": 16e9, "seconds": times})
    assert "memory per chip 10.00 GB of 16.00 GB: fits" in lines[2]
    assert lines[-3] == "step time       200.0 ms if all overlap, 350.0 ms if nothing does;"
    assert lines[-1] == " " * 16 + "at best 75% of the peak does useful arithmetic"
    assert max(map(len, lines)) <= 80
    assert describe(FOUND | {"refusal": "Used 20G of 16G hbm"})[2:] == [
        "does not fit: Used 20G of 16G hbm"
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (32.57G) exceeds available HBM (15.75G).\nMore",
            "total memory required for HLO temporaries (32.57G) exceeds available HBM (15.75G)",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.22G of 15.75G hbm. Exceeded hbm capacity by 4.47G.",
            "Used 20.22G of 15.75G hbm",
        ),
        ("RESOURCE_EXHAUSTED: vmem\nmore", "RESOURCE_EXHAUSTED: vmem"),
    ],
)
def test_what_does_not_fit_says_how_much_of_how_much(error, reason):
    """In the compiler's own words, of which it has several; unknown ones are its first line."""
    assert _refusal(error) == reason


SMALL = Trainer(
    ModelConfig(tie="K=V", layers=1, width=32, heads=2),
    make_task("reverse", {"length": 8, "validation_examples": 8, "test_examples": 8}),
    TrainConfig(steps=6, report_every=3, batch_size=16),
    "by_leaf",
)


def test_a_step_is_looked_at_as_it_would_run(monkeypatch):
    """For this machine's two CPU devices in place of a TPU's: FLOPs are three times the forward
    pass's; what data parallelism sends in a step is the gradient of every parameter, once, beside
    losses and norms; state and moments fit in the arguments; nothing is estimated."""
    monkeypatch.setattr(estimate, "tpu_devices", lambda topology: jax.devices("cpu")[:2])
    found = estimate.step_costs(SMALL, MeshConfig(data=2), "v5e:2x1")
    assert found["flops"] == pytest.approx(found["model_flops"], rel=0.1)
    gradients = 4 * found["params"]
    assert list(found["traffic"]) == ["all-reduce"]
    assert gradients <= found["traffic"]["all-reduce"][1] < 1.1 * gradients
    assert 12 * found["params"] < found["arguments"] < 13 * found["params"]
    lines = describe(found)
    assert lines[0] == "v5e:2x1: 2 x cpu, mesh data 2 x fsdp 1 x tensor 1"
    assert lines[-1] == "step time       not estimated: no numbers for 'cpu'"


def test_data_parallelism_by_pmap_is_not_what_is_compiled():
    with pytest.raises(ConfigError, match="mesh.by: given 'pmap'; what is compiled here"):
        estimate.step_costs(SMALL, MeshConfig(data=16, by="pmap"), "v5e:4x4")


try:
    import libtpu  # noqa: F401
except ImportError:
    libtpu = None


@pytest.mark.skipif(libtpu is not None, reason="libtpu is installed here")
def test_without_the_compiler_it_is_one_line():
    with pytest.raises(ConfigError) as refusal:
        tpu_devices("v5e:4x4")
    assert str(refusal.value) == (
        "compile_only: given 'v5e:4x4'; needs the compiler for TPUs: pip install -e '.[tpu]'"
    )


@pytest.mark.skipif(libtpu is None, reason="needs libtpu: pip install -e '.[tpu]'")
def test_a_topology_is_known_or_refused():
    """In a process of its own, since libtpu prints and keeps what it finds."""
    program = (
        "from qkv_jax.compile.topology import *\n"
        "devices = tpu_devices('v5e:4x4')\n"
        "print(len(devices), chip_of(devices).name)\n"
        "for bad in ('v5e:3x3', 'nonsense'):\n"
        "    try: tpu_devices(bad)\n"
        "    except ConfigError as error: print(error)\n"
    )
    command = ["timeout", "-s", "KILL", "120", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "16 v5e", done.stderr
    assert "given 'v5e:3x3'; no topology that libtpu knows" in lines[1]
    assert "given 'nonsense'; no topology that libtpu knows" in lines[2]


def test_chips_are_known_by_kind():
    class Device:
        device_kind = "TPU v6 lite"

    assert chip_of([Device()]).name == "v6e"
    Device.device_kind = "another"
    assert chip_of([Device()]) is None
