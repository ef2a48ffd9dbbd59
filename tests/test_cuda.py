"""What only a GPU can show. Everything else of the same code is tested on the CPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.test_training import STEPS, TRAIN, VALID, assert_same_bits, params
from vae import devices, training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_same_bits_twice(precision: str, compiled: bool) -> None:
    p = params({"train.device": "cuda", "train.precision": precision, "train.compile": compiled})
    compute = devices.choose(p.train)
    first, second = (training.train(p, TRAIN, VALID, compute) for _ in range(2))
    assert_same_bits(first, second)


def test_images_that_exceed_the_gpu_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    p = params({"train.device": "cuda"})
    compute = devices.choose(p.train)
    resident = training.train(p, TRAIN, VALID, compute)
    monkeypatch.setattr("vae.training.resident", lambda images, device: images)
    assert_same_bits(training.train(p, TRAIN, VALID, compute), resident)


@pytest.mark.parametrize("control", ["schedule", "pi"])
@pytest.mark.parametrize("read_ahead", [False, True])
def test_no_step_waits_for_the_gpu(control: str, read_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step of an epoch to its last one; PyTorch raises where something waits."""
    p = params(
        {"train.device": "cuda", "kl.control": control, "kl.target_kl": 2.0 if control == "pi" else None}
    )
    if read_ahead:
        monkeypatch.setattr("vae.training.resident", lambda images, device: np.asarray(images))

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step % STEPS else "default")

    training.train(p, TRAIN, VALID, devices.choose(p.train), on_step=on_step)
