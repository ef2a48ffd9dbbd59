"""The rules that choose precision and compilation, on machines that are not here."""

import ctypes
from typing import Any

import pytest
import torch

from vae.compute import devices
from vae.compute.devices import Compute
from vae.config.sections import Train

LONG, SHORT = 1_000_000, 10  # images of an epoch
LARGE, SMALL = 1e9, 1e6  # floating-point operations of an image


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def machine(bf16: bool, matrix_units: bool, compiler: bool = True) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix_units)
        monkeypatch.setattr("shutil.which", lambda name: name if compiler else None)

    return machine


@pytest.mark.parametrize(
    ("has", "work", "chosen"),  # bf16, matrix units, a compiler; of an image, of an epoch; precision, compiled
    [
        ((False, False, True), (LARGE, LONG), ("fp32", False)),
        ((True, False, True), (LARGE, LONG), ("bf16", False)),
        ((True, True, True), (LARGE, LONG), ("bf16", True)),
        ((True, True, False), (LARGE, LONG), ("bf16", False)),
        ((True, True, True), (LARGE, SHORT), ("bf16", False)),
        ((True, True, True), (SMALL, LONG * 1000), ("fp32", False)),
    ],
)
def test_a_cpu_takes_what_pays_on_it(machine: Any, has: tuple, work: tuple, chosen: tuple) -> None:
    machine(*has)
    found = devices.choose(Train(device="cpu"), *work)
    assert (found.precision, found.compiled) == chosen


def test_what_is_asked_for_is_taken(machine: Any) -> None:
    machine(bf16=False, matrix_units=False, compiler=False)
    found = devices.choose(Train(device="cpu", precision="bf16", compile=True), SMALL, SHORT)
    assert (found.precision, found.compiled) == ("bf16", True)


def test_a_step_has_as_many_threads_as_its_work_repays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MOST_THREADS", 16)
    one = devices.ONE_THREAD_STEP_FLOPS
    assert [devices.threads_of(flops) for flops in (0, 0.9 * one, 2 * one, 8 * one, 32 * one, 1000 * one)] == [
        1, 1, 2, 4, 8, 16
    ]  # fmt: skip
    assert devices.choose(Train(device="cpu", batch_size=32), one).threads == 8
    monkeypatch.setattr(devices, "MOST_THREADS", 3)  # OMP_NUM_THREADS=3, or three cores
    assert devices.threads_of(1000 * one) == 3


def test_threads_are_set_for_the_process_and_described() -> None:
    before = torch.get_num_threads()
    try:
        compute = Compute(torch.device("cpu"), "fp32", threads=2)
        devices.set_up(compute, deterministic=True)
        assert torch.get_num_threads() == 2
        devices.set_up(Compute(torch.device("cpu"), "fp32"), deterministic=True)
        assert torch.get_num_threads() == 2, "left as they are"
        assert compute.describe()["threads"] == "2"
    finally:
        torch.set_num_threads(before)


def test_a_cpus_process_keeps_freed_memory_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class C:
        def __init__(self, name: str) -> None:
            self.mallopt = lambda option, value: asked.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", C)
    devices.set_up(Compute(torch.device("cpu"), "fp32"), deterministic=True)
    assert dict(asked) == {devices.M_MMAP_MAX: 0, devices.M_TRIM_THRESHOLD: -1, devices.M_TOP_PAD: 2**26}

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    devices.keep_freed_memory()
