"""What only a GPU can show. Everything else of the same code is tested on the CPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainings import STEPS, TRAIN, VALID, Interrupted, assert_same_bits, params

from vae.compute import batches, devices
from vae.training import loop
from vae.training.loop import Trained

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"train.ema": 0.9},
    "PI": {"kl.target_kl": 2.0},
    "GECO": {"kl.reconstruction_target": 0.1, "objective.sigma": 0.1},
    "flip": {"data.augment": "flip"},
    "binarise": {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
    "importance-weighted": {"objective.importance_samples_train": 2, "objective.sigma": 0.1},
    "bf16": {"train.precision": "bf16"},
    "no clipping": {"train.gradient_clip": None},
    "learned sigma": {"objective.sigma": "learned"},
}
AGGRESSIVE = {"train.aggressive_encoder": True, "train.epochs": 6}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.cuda.set_sync_debug_mode("default")


def train(changes: dict[str, Any], path: Path | None = None, **more: Any) -> Trained:
    p = params({"train.device": "cuda", **changes})
    return loop.train(p, TRAIN, VALID, devices.choose(p.train), path, **more)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("changes", [*CASES.values(), AGGRESSIVE], ids=[*CASES, "aggressive"])
def test_the_same_bits_twice(changes: dict[str, Any], compiled: bool) -> None:
    if compiled and shutil.which("cc") is None:
        pytest.skip("Triton has no compiler here")
    changes = {**changes, "train.compile": compiled}
    assert_same_bits(train(changes), train(changes))


def test_images_that_exceed_the_gpu_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = train({})
    monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)
    assert_same_bits(train({}), resident)
    assert batches.gather(TRAIN, torch.arange(4), torch.device("cuda")).is_pinned()


@pytest.mark.parametrize("name", ["average", "PI"])
def test_an_interrupted_training_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step > 2 * STEPS:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(CASES[name], tmp_path / "state.pt", on_step=interrupt)
    assert_same_bits(train(CASES[name], tmp_path / "state.pt"), train(CASES[name]))


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_gpu(name: str, read_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second epoch on, but for what comes between epochs: PyTorch raises where it sees a wait."""
    if read_ahead:
        monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step > STEPS and step % STEPS else "default")

    train(CASES[name], on_step=on_step)
