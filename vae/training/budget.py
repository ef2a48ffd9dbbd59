"""`train.budget`: how many epochs fit into a number of seconds on this machine."""

import itertools
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vae.compute import devices
from vae.compute.batches import epoch_order, for_measuring, full_batches, resident
from vae.compute.devices import Compute
from vae.config.resolved import ResolvedParameters
from vae.training import checkpoint
from vae.training.aggressive import Phase
from vae.training.loop import check_images
from vae.training.state import TrainState
from vae.training.step import Step
from vae.training.validation import sigma_sample, validate

UNTIMED, TIMED = 5, 30  # steps: the first ones reserve memory, and compile
FEWEST = 3  # timed steps, where more would take a tenth of the budget


def epochs_within(
    seconds: float, p: ResolvedParameters, train_images: np.ndarray, valid_images: np.ndarray, compute: Compute
) -> int:
    """Times some steps, a validation and a checkpoint; 0 where not even one epoch fits.

    Another machine, or a busier one, gives another number: ask once, and keep the answer.

    train_images, valid_images: uint8 (N, H, W, C).
    """
    check_images(p, len(train_images), len(valid_images))
    devices.set_up(compute, p.train.deterministic)
    measured, stored = for_measuring(train_images, p), resident(train_images, compute.device)
    begin = time.perf_counter()
    state = TrainState(p, measured, compute.device, None)
    start = time.perf_counter() - begin  # with `align`, a pass of the frozen network over the training split
    state.phase = Phase(False)  # an aggressive encoder: that it takes longer at first is not counted
    step, order = Step(p, state, stored, compute), epoch_order(p.seed, 0, len(train_images))
    batches = itertools.cycle(full_batches(stored, order, p.train.batch_size, compute.device))
    took: list[float] = []
    for number, images in enumerate(itertools.islice(batches, UNTIMED + TIMED)):
        if number >= UNTIMED + FEWEST and sum(took) > seconds / 10:
            break
        begin = time.perf_counter()
        step(images, number, p.elbo.beta)
        _wait(compute)
        took.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    validate(p, state.judged, valid_images, sigma_sample(measured), compute)
    validation = time.perf_counter() - begin
    with TemporaryDirectory() as folder:
        begin = time.perf_counter()
        checkpoint.save_or_warn(Path(folder) / "state.pt", state)
        saving = time.perf_counter() - begin
    epoch = p.train.steps_per_epoch(len(train_images)) * median(took[UNTIMED:]) + validation + saving
    # At the end, the kept model is measured on the training split.
    last = validation * len(train_images) / len(valid_images)
    return max(int((seconds - start - last) / epoch), 0)


def _wait(compute: Compute) -> None:
    """A GPU computes a step after the call that asks for it has returned."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
