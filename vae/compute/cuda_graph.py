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
        self.beside = torch.cuda.Stream(device) if device.type == "cuda" else None
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
            with _on(self.beside):
                self.step(*inputs)
        else:
            self._step_and_record(inputs)

    def _step_and_record(self, inputs: Sequence[Tensor]) -> None:
        before: list[Tensor] = []
        problem = self._try(inputs, before)
        _give_memory_back(self.device)  # of the steps before, or of what failed: nothing else can use it
        if problem is not None:
            self.record = self.replay = None
            self.on_message(
                f"warning: the training step is not run as a CUDA graph: {problem}. "
                "The same bits come without, more slowly"
            )
            _put_back(self.changed(), before)
            before.clear()
            self.step(*inputs)

    def _try(self, inputs: Sequence[Tensor], before: list[Tensor]) -> str | None:
        """Records, proves, and makes this step; or says what was wrong. `before` gets the state, once it changes.

        A function of its own, so that a step that failed lets go of its memory before the next is made.
        """
        assert self.record is not None
        try:
            fixed = [x.clone() for x in inputs]
            replay = self.record(lambda: self.step(*fixed), self.device)
            before += _copies(self.changed())
            if torch.are_deterministic_algorithms_enabled():
                self.step(*inputs)
                expected = _copies(self.changed())
                _put_back(self.changed(), before)
                replay()
                if not all(map(_same_bits, self.changed(), expected)):
                    return "its replay gives other bits"
            else:
                replay()
        except RuntimeError as error:  # too little memory is one
            return _first_cause(error)
        self.inputs, self.replay = fixed, replay
        return None


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
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """On a stream of its own, as PyTorch asks for the steps before a recording; None: where everything runs."""
    if stream is None:
        yield
        return
    here = torch.cuda.current_stream(stream.device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        yield
    here.wait_stream(stream)


def _give_memory_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first_cause(error: BaseException) -> str:
    """In a line. A recording that fails ends with an error of its own, which does not tell why."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return str(error).split("\n", 1)[0]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for tensor, copy in zip(tensors, copies, strict=False):  # no copies: nothing was changed yet
        tensor.copy_(copy)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
