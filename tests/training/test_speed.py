"""What a machine is measured to take is what it takes."""

import types

import pytest

from qkv_jax.training import speed

STEP, RATE, COMPILING = 2e-3, 1e9, 3.0


@pytest.mark.parametrize("packing", [1, 8])
def test_the_speed_of_a_machine_is_read_off_two_sizes(monkeypatch, packing):
    """Of one whose steps are a fixed part and their arithmetic, both come out exactly."""
    clock = [0.0]

    class Machine:
        wave_size = packing

        def __init__(self, trainer, data, given):
            assert given == packing and data == "on devices"
            arithmetic = speed.costs.step_flops(speed.shared.program_of(trainer)) / RATE
            self.seconds = trainer.train_config.steps * (STEP + packing * arithmetic)

        def start(self, wave):
            assert len({run.seed for run in wave}) == packing
            return {}

        def advance(self, state):
            clock[0] += self.seconds
            return state, None

        def train(self, wave):
            clock[0] += COMPILING + 2 * self.seconds

    monkeypatch.setattr(speed, "Population", Machine)
    monkeypatch.setattr(speed, "DeviceData", lambda data: "on devices")
    monkeypatch.setattr(speed, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    found = speed.measure(packing)
    assert found.step == pytest.approx(STEP) and found.flops == pytest.approx(RATE)
    assert found.compilation == pytest.approx(COMPILING)


@pytest.mark.slow
def test_this_machine_has_a_speed():
    found = speed.measure(1)
    assert 0 <= found.step < 1 and 1e7 < found.flops < 1e16 and 0.01 < found.compilation < 1000
