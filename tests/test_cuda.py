"""What only a GPU can show. Everything else of the same code is tested on the CPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainings import STEPS, TRAIN, VALID, assert_same_bits, params

from vae.compute import batches, cuda_graph, devices
from vae.training import loop

STEPS_OF: dict[str, dict[str, Any]] = {
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
CASES = {name: params({"train.device": "cuda", **changes}) for name, changes in STEPS_OF.items()}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@GPU
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_twice(name: str, compiled: bool) -> None:
    if compiled and shutil.which("cc") is None:
        pytest.skip("Triton has no compiler here")
    p = CASES[name]
    compute = devices.choose(p.train.model_copy(update={"compile": compiled}))
    first, second = (loop.train(p, TRAIN, VALID, compute) for _ in range(2))
    assert_same_bits(first, second)


@GPU
def test_images_that_exceed_the_gpu_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    p = CASES["plain"]
    compute = devices.choose(p.train)
    resident = loop.train(p, TRAIN, VALID, compute)
    monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)
    assert_same_bits(loop.train(p, TRAIN, VALID, compute), resident)
    assert batches.gather(TRAIN, torch.arange(4), compute.device).is_pinned()


@GPU
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_steps_run_as_a_cuda_graph_and_give_the_bits_that_they_give_without(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and shutil.which("cc") is None:
        pytest.skip("Triton has no compiler here")
    p = CASES[name]
    compute = devices.choose(p.train.model_copy(update={"compile": compiled}))
    said: list[str] = []
    recorded = loop.train(p, TRAIN, VALID, compute, on_message=said.append)
    assert said == []  # no warning: the recording was proven, and used
    monkeypatch.setenv(cuda_graph.SWITCH, "0")
    assert_same_bits(loop.train(p, TRAIN, VALID, compute), recorded)


@GPU
def test_a_step_that_waits_can_not_be_recorded_and_leaves_the_gpu_usable() -> None:
    total = torch.ones(4, device="cuda")

    def waits() -> None:
        total.mul_(float(total.sum()))

    with pytest.raises(RuntimeError):
        cuda_graph.on_gpu(waits, total.device)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert total.sum().item() == 4
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


@GPU
@pytest.mark.parametrize(("first", "second"), [("0", "1"), ("1", "0")])
def test_a_training_goes_on_across_the_switch(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(epoch: Any) -> None:
        if epoch.row["epoch"] == 2:
            raise Stop

    p = CASES["average"]
    compute = devices.choose(p.train)
    whole = loop.train(p, TRAIN, VALID, compute)
    monkeypatch.setenv(cuda_graph.SWITCH, first)
    with pytest.raises(Stop):
        loop.train(p, TRAIN, VALID, compute, tmp_path / "state.pt", on_epoch=stop)
    monkeypatch.setenv(cuda_graph.SWITCH, second)
    said: list[str] = []
    assert_same_bits(
        loop.train(p, TRAIN, VALID, compute, tmp_path / "state.pt", on_message=said.append), whole
    )
    assert not [line for line in said if "CUDA graph" in line]


@GPU
def test_the_aggressive_phase_and_then_a_graph() -> None:
    p = params({"train.device": "cuda", "train.aggressive_encoder": True, "train.epochs": 6})
    compute = devices.choose(p.train)
    first, second = (loop.train(p, TRAIN, VALID, compute) for _ in range(2))
    assert_same_bits(first, second)


@GPU
@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_gpu(
    name: str, read_ahead: bool, graphs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step of an epoch to its last one, of what PyTorch can see: it raises where something waits.

    Not in the first epoch, whose last step is recorded, and its recording proven.
    """
    monkeypatch.setenv(cuda_graph.SWITCH, graphs)
    if read_ahead:
        monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)
    p: Any = CASES[name]

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step > STEPS and step % STEPS else "default")

    loop.train(p, TRAIN, VALID, devices.choose(p.train), on_step=on_step)
