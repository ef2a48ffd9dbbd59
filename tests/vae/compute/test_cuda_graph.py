"""The recording of a training step, on a CPU: by a recorder that does to PyTorch's operations what a GPU does to
kernels. It keeps every address and every number, and its replay runs nothing of Python.
"""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainings import STEPS, TRAIN, VALID, assert_same_bits, params, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from vae.compute import cuda_graph
from vae.training import loop
from vae.training.loop import Trained

CASES: dict[str, dict[str, Any]] = {
    "ramp": {},
    "reconstruct by mean": {"objective.reduction": "mean"},
    "average": {"train.ema": 0.9},
    "learned sigma": {"objective.sigma": "learned"},
    "learning rate": {"train.learning_rate_schedule": "cosine", "train.weight_decay": 0.01},
    "no clipping": {"train.gradient_clip": None},
    "free bits": {"kl.free_bits": 0.5},
    "capacity": {"kl.capacity": 6.0, "kl.max_weight": 5.0},
    "PI": {"kl.target_kl": 2.0},
    "GECO": {"kl.reconstruction_target": 0.1, "objective.sigma": 0.1},
    "flip": {"data.augment": "flip"},
    "binarise": {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
    "importance-weighted": {"objective.importance_samples_train": 2, "objective.sigma": 0.1},
    "gated": {"model.architecture": "gated_mlp"},
    "batch norm of the means": {"model.mean_batch_norm": 0.5},
    "bf16": {"train.precision": "bf16"},
    "aggressive, then not": {"train.aggressive_encoder": True, "train.epochs": 6},
}

UNDECLARED = ("running_mean", "running_var")  # batch norm changes them, and its schema does not say so


class Recorder(TorchDispatchMode):
    """Keeps each operation with its tensors. Like a GPU's, it refuses to wait, and leaves the state as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.first: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        named = {**dict(zip((a.name for a in operation._schema.arguments), args, strict=False)), **kwargs}
        for argument in operation._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in UNDECLARED:
                for tensor in filter(torch.is_tensor, tree_flatten(named.get(argument.name))[0]):
                    self.first.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        result = operation(*args, **kwargs)
        self.operations.append((operation, args, kwargs, result))
        return result

    def put_back(self) -> None:
        for tensor, value in reversed(self.first.values()):  # two of them may be views of one memory
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, result in self.operations:
            again = operation(*args, **kwargs)
            if all(returned.alias_info is None for returned in operation._schema.returns):
                tree_map(lambda old, new: old.copy_(new) if torch.is_tensor(old) else old, result, again)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    recorder = Recorder()
    try:
        with recorder:
            step()
    finally:
        recorder.put_back()
    return recorder.replay


class Counted:
    """A recorder, and how often its replays ran."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        self.recordings += 1
        replay = record(step, device)

        def counted() -> None:
            self.replays += 1
            replay()

        return counted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr("vae.training.loop.recorder", lambda device: counted)
    return counted


def plain(changes: dict[str, Any], **more: Any) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae.training.loop.recorder", lambda device: None)
        return trained(changes, **more)


def trained(changes: dict[str, Any], path: Path | None = None, **hooks: Any) -> Trained:
    p = params(changes)
    compute = loop.Compute(torch.device("cpu"), "bf16" if p.train.precision == "bf16" else "fp32")
    hooks.setdefault("on_message", lambda line: None)
    return loop.train(p, TRAIN, VALID, compute, path, **hooks)


@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_give_the_bits_of_those_that_python_runs(name: str, counted: Counted) -> None:
    assert_same_bits(trained(CASES[name]), plain(CASES[name]))
    assert counted.recordings == 1
    if "aggressive" not in name:
        assert counted.replays == 4 * STEPS - cuda_graph.WARM_UP
    else:
        assert counted.replays >= STEPS


def test_a_training_goes_on_from_a_checkpoint_with_the_same_bits(counted: Counted, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(epoch: Any) -> None:
        if epoch.row["epoch"] == 2:
            raise Stop

    changes = CASES["PI"] | {"train.ema": 0.9}
    with pytest.raises(Stop):
        trained(changes, tmp_path / "checkpoint.pt", on_epoch=stop)
    # Once more by recordings, once without any.
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    assert_same_bits(trained(changes, tmp_path / "checkpoint.pt"), plain(changes))
    (tmp_path / "checkpoint.pt").write_bytes(kept)
    assert_same_bits(plain(changes, path=tmp_path / "checkpoint.pt"), plain(changes))
    assert counted.recordings == 2


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_where_bits_are_promised_the_recording_is_proven(counted: Counted, deterministic: None) -> None:
    said: list[str] = []
    assert_same_bits(trained({}, on_message=said.append), plain({}))
    assert counted.replays == 4 * STEPS - cuda_graph.WARM_UP
    assert said == []


def nothing(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    return lambda: None


def part(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Without the last operation, as if the GPU had left it out."""
    recorder = Recorder()
    with recorder:
        step()
    recorder.put_back()
    del recorder.operations[-1]
    return recorder.replay


def too_large(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nand much more")


@pytest.mark.parametrize(
    ("bad", "why"),
    [(nothing, "other bits"), (part, "other bits"), (too_large, "out of memory. Tried to allocate 1 GiB.")],
)
def test_a_recording_that_fails_is_told_and_costs_no_bit(
    bad: Any, why: str, monkeypatch: pytest.MonkeyPatch, deterministic: None
) -> None:
    monkeypatch.setattr("vae.training.loop.recorder", lambda device: bad)
    said: list[str] = []
    assert_same_bits(trained({"train.ema": 0.9}, on_message=said.append), plain({"train.ema": 0.9}))
    assert len(said) == 1 and why in said[0] and "and much more" not in said[0]


@pytest.mark.parametrize("when", ["recording", "proof"])
def test_where_memory_is_short_the_plain_step_finds_it_free(when: str, deterministic: None) -> None:
    """What a failed attempt held, its recording and its step's activations, is gone before the plain step begins."""

    class Large:
        pass

    held: list[weakref.ref[Large]] = []
    calls: list[int] = []

    def step(x: Tensor) -> None:
        large = Large()
        held.append(weakref.ref(large))
        calls.append(sum(ref() is not None for ref in held))
        if len(calls) == cuda_graph.WARM_UP + 1 + (when == "proof"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def recording(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        run()
        graph = Large()
        held.append(weakref.ref(graph))

        def replay() -> None:
            assert graph is not None

        return replay

    said: list[str] = []
    stepped = cuda_graph.Replayed(step, list, torch.device("cpu"), recording, said.append)
    for _ in range(cuda_graph.WARM_UP + 2):
        stepped(torch.zeros(2))
    assert len(said) == 1 and "CUDA out of memory" in said[0]
    assert calls[-1] == calls[-2] == 1  # itself


def test_the_cause_of_a_failed_recording_is_told_and_not_its_consequence() -> None:
    def recording(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        try:
            raise RuntimeError("operation not permitted\nmore")
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    said: list[str] = []
    stepped = cuda_graph.Replayed(lambda: None, list, torch.device("cpu"), recording, said.append)
    for _ in range(cuda_graph.WARM_UP + 1):
        stepped()
    assert "operation not permitted. The same" in said[0]


def test_a_sign_of_zero_is_a_bit() -> None:
    assert not cuda_graph._same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert cuda_graph._same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))


def test_a_step_that_waits_is_not_recorded(monkeypatch: pytest.MonkeyPatch, counted: Counted) -> None:
    update = loop.update_average

    def waiting(average: Any, model: Any, decay: float) -> None:
        update(average, model, decay)
        float(next(model.parameters()).detach().sum())

    monkeypatch.setattr(loop, "update_average", waiting)
    said: list[str] = []
    assert_same_bits(trained({"train.ema": 0.9}, on_message=said.append), plain({"train.ema": 0.9}))
    assert counted.replays == 0 and "not permitted when stream is capturing" in said[0]


def test_numbers_of_python_are_frozen_in_a_recording() -> None:
    """What this file's recorder is for: it would find a learning rate or a weight that is no tensor."""
    total, number = torch.zeros(()), [1.0]

    def step() -> None:
        total.add_(number[0])

    replay = record(step, torch.device("cpu"))
    assert total == 0
    number[0] = 5.0
    replay()
    assert total == 1


def test_only_a_gpu_records_and_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_graph.recorder(torch.device("cpu")) is None
    assert cuda_graph.recorder(torch.device("cuda")) is cuda_graph.on_gpu
    monkeypatch.setenv("VAE_CUDA_GRAPHS", "0")
    assert cuda_graph.recorder(torch.device("cuda")) is None


def test_a_training_on_a_cpu_is_the_plain_one() -> None:
    assert_same_bits(run(params()), plain({}))
