"""Device, precision, compilation and threads: chosen by rule, so that one machine always makes the same choice.

Each of these decides the last bits of the weights; `Compute.describe` is recorded with every run.
"""

import ctypes
import math
import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vae.config.errors import InputError
from vae.config.sections import Train, device_name

# Compiling costs 10 to 25 seconds and speeds up what lies between convolutions and products. A CPU without matrix units
# spends so little there that compiled training was 0.8 to 1.1 times as fast (docs/benchmarks.md); with matrix units,
# about five minutes of training repay it.
COMPILE_FROM_FLOPS = {"cpu": math.inf, "cpu with matrix units": 3e13, "cuda": 3e15}

Precision = Literal["fp32", "bf16"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h

# A CPU with bf16 instructions trains larger networks 1.5 to 2 times as fast with them; in small ones the conversions
# cost what is gained (docs/benchmarks.md).
BF16_FROM_IMAGE_FLOPS = 2e7


# A step of so many operations takes one thread as long as two (docs/benchmarks.md).
ONE_THREAD_STEP_FLOPS = 1.5e8
MOST_THREADS = torch.get_num_threads()  # OMP_NUM_THREADS, or the cores: read before it is changed


@dataclass(frozen=True)
class Compute:
    """Where and how to compute; the same for training, monitoring and evaluating.

    Attributes:
        threads: of a training step on a CPU; None, as for all else: as many as the process has.
    """

    device: torch.device
    precision: Precision
    compiled: bool = False
    threads: int | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def describe(self) -> dict[str, str]:
        """What decides the last bits besides data, parameters and code."""
        hardware = platform.machine()
        if self.device.type == "cuda":
            hardware = torch.cuda.get_device_name(self.device)
        found = {
            "device": str(self.device),
            "hardware": hardware,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "precision": self.precision,
            "compiled": str(self.compiled).lower(),
            "threads": str(self.threads or torch.get_num_threads()),
            "most_threads": str(MOST_THREADS),
            "torch": torch.__version__,
        }
        if self.device.type == "cuda":
            found["deterministic"] = str(torch.are_deterministic_algorithms_enabled()).lower()
        return found


def choose(train: Train, image_flops: float = 0.0, images: int = 0) -> Compute:
    """The device, precision and compilation that `train` asks for.

    Args:
        image_flops: floating-point operations of one image, forward and backward, for `precision: auto`.
        images: of an epoch, for `compile: auto`.

    Raises:
        InputError: CUDA is asked for and absent, or has no bf16.
    """
    device = named(train.device)
    if train.precision == "auto":
        worth_it = device.type == "cuda" or image_flops >= BF16_FROM_IMAGE_FLOPS
        precision: Precision = "bf16" if worth_it and _has_bf16(device) else "fp32"
    else:
        precision = train.precision
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("train.precision = bf16: this GPU has no bf16; use fp32 or auto")
    compiled = train.compile
    if compiled == "auto":
        compiler = shutil.which("c++" if device.type == "cpu" else "cc")  # Inductor's, and Triton's
        kind = device.type
        if kind == "cpu" and precision == "bf16" and torch.cpu._is_amx_tile_supported():
            kind = "cpu with matrix units"
        compiled = image_flops * images * train.epochs >= COMPILE_FROM_FLOPS[kind] and compiler is not None
    threads = threads_of(image_flops * train.batch_size) if device.type == "cpu" else None
    return Compute(device, precision, compiled, threads)


def threads_of(step_flops: float) -> int:
    """The number of threads of a step, at most OMP_NUM_THREADS.

    Another thread saves its share of the work, and costs a constant: work / threads + constant · threads is least at
    the root of their ratio, and equal for one thread and two where the ratio is 2.
    """
    fastest = round(math.sqrt(2 * step_flops / ONE_THREAD_STEP_FLOPS))
    return max(min(fastest, MOST_THREADS), 1)


def set_up(compute: Compute, deterministic: bool) -> None:
    """Sets, for the whole process: the kernels of a GPU; the threads of a CPU, and that it keeps freed memory."""
    if compute.device.type == "cuda":
        use_kernels(deterministic)
        return
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    keep_freed_memory()


def use_kernels(deterministic: bool) -> None:
    """On a GPU: only deterministic kernels, or whichever are fastest."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(deterministic)
    # By default every new tensor is filled in this mode, for programs that read uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high")  # TF32, which cuDNN's convolutions use anyway


def keep_freed_memory() -> None:
    """What a step frees, the next step reuses, instead of returning it to the system and getting new pages.

    By glibc's mallopt; elsewhere nothing happens. New pages cost a tenth of the time at 224×224×3.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
        mallopt(M_TOP_PAD, 2**26)


def named(name: str) -> torch.device:
    """`auto`: CUDA where there is one, else the CPU; `cpu`; `cuda`; `cuda:1`.

    Raises:
        InputError: CUDA is asked for and absent, or it is another kind of device.
    """
    try:
        device_name(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device = {name}: no CUDA device is visible; use auto or cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device = {name}: the number of visible CUDA devices is {torch.cuda.device_count()}")
    return device


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
