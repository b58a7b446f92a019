"""What a command says that it runs on."""

import os

import pytest

from qkv_jax.runtime import devices


class Gpu:
    device_kind = "NVIDIA H200"


@pytest.mark.parametrize("cores, words", [({0}, "1 CPU core"), ({0, 3}, "2 CPU cores")])
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, cores, words):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(devices, "_NVIDIA", tmp_path)
    assert devices.devices_in_words() == words
    (tmp_path / "0000:01:00.0").mkdir()
    assert devices.devices_in_words().startswith(f"{words}; an NVIDIA GPU is here, but this JAX")


def test_accelerators_are_counted_by_kind(monkeypatch):
    monkeypatch.setattr(devices.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices.jax, "devices", lambda: [Gpu(), Gpu()])
    assert devices.devices_in_words() == "2 x NVIDIA H200"
