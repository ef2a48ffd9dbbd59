"""The training loop.

All randomness follows from (seed, epoch or step), so a training that resumes from a checkpoint ends with the same bits
as one that was never interrupted.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae.compute import devices
from vae.compute.batches import epoch_order, for_measuring, full_batches, resident
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters
from vae.losses.elbo import Logs
from vae.metrics.measurement import Measurement, encode, measure
from vae.metrics.mutual_information import mutual_information
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE
from vae.schedules.kl import ramp
from vae.schedules.learning_rate import learning_rate
from vae.training import checkpoint
from vae.training.history import Row, why_stop
from vae.training.standardise import is_exact, standardise
from vae.training.state import TrainState
from vae.training.step import Step
from vae.training.validation import likelihood_of, sigma_sample, validate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: its row of the history, its timing, and the model that would be kept."""

    row: Row
    seconds: float
    images_per_second: float
    model: VAE
    likelihood: Likelihood
    kl_per_latent: list[float]  # of the validation split


@dataclass(frozen=True)
class Trained:
    """The kept model and how training ended.

    Attributes:
        kept_epoch: the epoch of the model, counted from 1; 0 where the first one diverged already.
        stopped: why training ended before its last epoch, or None.
        model: the kept one, its latents standardised where that is exact (`vae.training.standardise`).
        train: the training split, measured with it and its frozen likelihood.
        kl_per_latent: of the validation split, Z numbers for each row of the history.
    """

    model: VAE
    likelihood: Likelihood
    history: list[Row]
    kept_epoch: int
    stopped: str | None
    train: Measurement
    kl_per_latent: list[list[float]]


def train(
    p: ResolvedParameters,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    checkpoint_path: Path | None = None,
    initial_weights: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_resume: Callable[[TrainState], None] = lambda state: None,
) -> Trained:
    """Trains a VAE and keeps its best epoch at the final KL weight.

    Args:
        train_images, valid_images: uint8 (N, H, W, C).
        checkpoint_path: resumed from if it exists, written after every epoch.
        on_step: called with the number of steps done. on_epoch: after each new epoch. on_resume: before training
            continues from a checkpoint.

    Raises:
        InputError: fewer training images than a batch, weights that do not fit, no memory on the GPU.
    """
    check_images(p, len(train_images), len(valid_images))
    devices.set_up(compute, p.train.deterministic)
    steps, measured = p.train.steps_per_epoch(len(train_images)), for_measuring(train_images, p)
    sample = sigma_sample(measured)
    stored = resident(train_images, compute.device)
    state = TrainState(p, measured, compute.device, initial_weights)
    step = Step(p, state, stored, compute)
    if checkpoint_path is not None and checkpoint.resume(state, checkpoint_path, compute.device):
        on_resume(state)

    while (stopped := why_stop(state.history, p)) is None and len(state.history) < p.train.epochs:
        # Train for an epoch of full batches.
        epoch, started = len(state.history), time.perf_counter()
        order = epoch_order(p.seed, epoch, len(train_images))
        sums = torch.zeros(1, dtype=torch.float64, device=compute.device)
        logs: Logs = {}
        state.model.train()
        for batch, images in enumerate(full_batches(stored, order, p.train.batch_size, compute.device)):
            number = epoch * steps + batch
            progress = number / steps
            share = ramp(p.kl, progress, p.train.epochs)
            state.optimiser.set_learning_rate(learning_rate(p.train, (number + 0.5) / steps))
            logs = step(images, number, beta=p.elbo.beta * share)
            sums = sums + torch.stack(list(logs.values()))
            on_step(number + 1)
        averages = dict(zip(logs, (sums / steps).tolist(), strict=True))
        trained = time.perf_counter()

        # Judge it on the whole validation split, and keep it if it is the best so far.
        valid = validate(p, state.judged, valid_images, sample, compute)
        row: Row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * steps,
            "kl_weight": state.control.effective_weight(p.kl.max_weight * share, valid.likelihood.sigma),
            **{f"train/{name}": average for name, average in averages.items()},
            **valid.row(p),
        }
        state.record(row, valid.measured.kl_per_latent.tolist())
        end_aggressive_phase(state, valid_images, compute)
        if checkpoint_path is not None:
            checkpoint.save_or_warn(checkpoint_path, state)
        speed = steps * p.train.batch_size / (trained - started)
        seconds = time.perf_counter() - started
        on_epoch(Epoch(row, seconds, speed, state.judged, valid.likelihood, state.kl_per_latent[-1]))

    # Freeze the kept model with the likelihood that everything reported will use, and standardise its latents.
    model = state.judged
    model.load_state_dict(state.kept_weights)
    likelihood = likelihood_of(p, model, measured, compute)
    result = measure(model, measured, likelihood, compute, p.seed)
    if standardise(model, result):
        standardised = measure(model, measured, likelihood, compute, p.seed)
        if is_exact(result, standardised):
            result = standardised
        else:
            model.load_state_dict(state.kept_weights)
    return Trained(model, likelihood, state.history, state.kept_epoch, stopped, result, state.kl_per_latent)


def end_aggressive_phase(state: TrainState, valid_images: np.ndarray, compute: Compute) -> None:
    """Ends the phase once the mutual information has stopped rising."""
    if state.phase.on:
        found = mutual_information(*encode(state.model, valid_images, compute), state.p.seed)
        state.phase = state.phase.after(found)
        if not state.phase.on:
            log.info("the aggressive encoder phase ends with epoch %d", len(state.history))


def check_images(p: Parameters, train: int, valid: int) -> None:
    """Raises: InputError: too few images for a batch, for batch norm, or for a verdict."""
    size = p.train.batch_size
    if p.model.batch_norm and min(train, size) < 2:
        raise InputError(
            f"train.batch_size = {size} with {train} training images: batch norm needs at least 2 images in a batch"
        )
    if train < size:
        raise InputError(
            f"train.batch_size = {size} is more than the {train} training images; the largest batch allowed is {train}"
        )
    if valid < 2:
        raise InputError(
            f"the validation split holds {valid} image(s); measuring whether a latent varies takes at "
            "least 2, a reliable verdict 20 or more: add images or raise data.valid_fraction"
        )
