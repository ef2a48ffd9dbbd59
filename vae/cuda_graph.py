"""A training step, recorded once as a CUDA graph and then replayed: no kernel waits for Python to launch it.

A recording holds fixed addresses and fixed numbers. So a step that is to be recorded changes its tensors in place,
and reads what varies (images, noise, KL weight, learning rate) from tensors. (PyTorch, "CUDA semantics", CUDA graphs.)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3  # steps before the recording, in which the libraries choose their kernels and the optimiser makes its state
SWITCH = "VAE_CUDA_GRAPHS"  # "0": do without

Run = Callable[[], None]


class Replayed:
    """Calls `step(*inputs)`: the first times as it is, then by a recording of it, which gives the same bits.

    Before a recording is relied on, one step is made both ways from the same state. Where one bit differs, or no
    recording can be made, training goes on without, and says so. (Not proven where `train.deterministic` is off: there
    two steps may differ by themselves.)

    Args:
        step: changes tensors in place; its inputs have the same shapes at every call.
        changed: all tensors that it changes, those of an optimiser among them.
        record: makes a replay of what a function does; None: there is no recording.
    """

    def __init__(
        self,
        step: Callable[..., None],
        changed: Callable[[], list[Tensor]],
        device: torch.device,
        record: Callable[[Run, torch.device], Run] | None,
        on_message: Callable[[str], None],
    ) -> None:
        self.step, self.changed, self.device = step, changed, device
        self.record, self.on_message = record, on_message
        self.warm_up = WARM_UP
        self.inputs: list[Tensor] = []
        self.replay: Run | None = None

    def __call__(self, *inputs: Tensor) -> None:
        if self.replay is not None:
            for fixed, given in zip(self.inputs, inputs, strict=True):
                fixed.copy_(given)
            self.replay()
        elif self.record is None:
            self.step(*inputs)
        elif self.warm_up > 0:
            self.warm_up -= 1
            with _beside(self.device):
                self.step(*inputs)
        else:
            self._step_and_record(self.record, inputs)

    def _step_and_record(self, record: Callable[[Run, torch.device], Run], inputs: Sequence[Tensor]) -> None:
        fixed = [x.clone() for x in inputs]
        before: list[Tensor] = []
        try:
            replay = record(lambda: self.step(*fixed), self.device)
            before = _copies(self.changed())
            if torch.are_deterministic_algorithms_enabled():
                self.step(*inputs)
                expected = _copies(self.changed())
                _put_back(self.changed(), before)
                replay()
                if not all(map(_same, self.changed(), expected)):
                    raise RuntimeError("its replay gives other bits")
            else:
                replay()
            self.inputs, self.replay = fixed, replay
        except RuntimeError as error:  # too little memory is one
            self.record = None
            self.on_message(
                f"warning: the training step is not run as a CUDA graph: {str(error).splitlines()[0]}. "
                "The same bits come without, more slowly"
            )
            _put_back(self.changed(), before)
            self.step(*inputs)


def recorder(device: torch.device) -> Callable[[Run, torch.device], Run] | None:
    """How steps are recorded on this device, if at all."""
    return on_gpu if device.type == "cuda" and os.environ.get(SWITCH) != "0" else None


def on_gpu(run: Run, device: torch.device) -> Run:
    """Records the kernels that `run` would launch, without running them; the result launches them.

    Raises:
        RuntimeError: it waits for the GPU, or asks for more memory than there is.
    """
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    # The outer context leaves the recording's stream also where recording fails. A thread that reads batches ahead
    # may allocate memory meanwhile: hence "thread_local".
    with torch.cuda.device(device), torch.cuda.stream(here):
        stream = torch.cuda.Stream(device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    return graph.replay


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as PyTorch asks for the steps before a recording."""
    if device.type != "cuda":
        yield
        return
    here, beside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        yield
    here.wait_stream(beside)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for tensor, copy in zip(tensors, copies, strict=False):  # no copies: nothing was changed yet
        tensor.copy_(copy)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
