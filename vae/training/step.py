"""A training step: pixels and noise drawn from (seed, step), the loss, and the update of the weights."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vae.compute.augmentation import ORIENTATIONS, each_oriented, random_orientations, random_shifts, shifted
from vae.compute.batches import gather, to_pixels
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters
from vae.config.sections import Train
from vae.losses.elbo import Beside, ELBOLoss, Logs
from vae.losses.importance_weighted import ImportanceWeightedLoss
from vae.training import aggressive
from vae.training.compiled import wrong_gradient
from vae.training.state import TrainState

log = logging.getLogger(__name__)


class Step:
    """`logs = step(images, number, beta)`; nothing here waits for the device.

    Args:
        stored: the training images, from which the aggressive phase draws batches of its own.
    """

    def __init__(self, p: ResolvedParameters, state: TrainState, stored: np.ndarray | Tensor, compute: Compute) -> None:
        self.p, self.state, self.stored, self.compute = p, state, stored, compute
        self.inference, self.generation = aggressive.halves(state.model)
        self.loss = self._loss(compute.compiled)
        if compute.compiled and (weight := self._miscompiled()) is not None:
            log.warning(f"torch.compile gets the gradient of {weight} wrong on this machine: training without it")
            self.loss = self._loss(compiled=False)

    def __call__(self, images: Tensor, number: int, beta: float) -> Logs:
        """images: uint8 (B, H, W, C). number: of the step, from 0. beta: of the schedule."""
        with memory_errors_explained(self.p.train):
            x, noise = draw(self.p, images, number, self.compute.device)
            if not self.state.phase.on:
                logs = self._descend(x, noise, beta, beside=self._beside(x))
            else:  # the encoder goes first, on other batches, and this step is the decoder's
                aggressive.converge(functools.partial(self._encoder_step, number, beta))
                with aggressive.frozen(self.inference):
                    logs = self._descend(x, noise, beta)
        self.state.update_average(number)
        return logs

    def _loss(self, compiled: bool) -> ELBOLoss | ImportanceWeightedLoss:
        if self.p.objective.importance_samples_train > 1:
            return ImportanceWeightedLoss(self.p.elbo, compiled)
        return ELBOLoss(self.p.elbo, self.state.control, compiled)

    def _beside(self, x: Tensor) -> Beside | None:
        """The losses on features, of these images."""
        return None if self.state.features is None else functools.partial(self.state.features, x)

    def _miscompiled(self) -> str | None:
        """The weight of which the compiled loss has a wrong gradient on the first images; None: all are right."""
        chosen = torch.arange(self.p.train.batch_size)
        images = gather(self.stored, chosen, self.compute.device)
        x, noise = draw(self.p, images, 0, self.compute.device)
        model, beside = self.state.model.train(), self._beside(x)

        state = self.state.control.state
        before = state.clone()

        def value(loss: ELBOLoss | ImportanceWeightedLoss) -> Tensor:
            state.copy_(before)  # steered from where it stands, so that the rate has a weight
            with self.compute.autocast():
                return loss(model, x, noise, self.p.elbo.beta, beside=beside)[0]

        with memory_errors_explained(self.p.train):
            plain = self._loss(compiled=False)
            wrong = wrong_gradient(model, lambda: value(self.loss), lambda: value(plain))
        state.copy_(before)
        return wrong

    def _descend(self, x: Tensor, noise: Tensor, beta: float, steer: bool = True, beside: Beside | None = None) -> Logs:
        """One optimiser step on all weights that are not frozen."""
        with self.compute.autocast():
            loss, logs = self.loss(self.state.model, x, noise, beta, steer, beside)
        self.state.optimiser.zero_grad()
        (self.p.elbo.scale * loss).backward()
        if self.p.train.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.state.trained, self.p.train.gradient_clip)
        self.state.optimiser.step()
        return logs

    def _encoder_step(self, number: int, beta: float, sub_step: int) -> Tensor:
        """One sub-step of the aggressive phase, on a batch of its own; the control does not change."""
        device, train = self.compute.device, self.p.train
        chosen = aggressive.random_batch(self.p.seed, number, sub_step, len(self.stored), train.batch_size)
        images = gather(self.stored, chosen, device)
        x, noise = draw(self.p, images, number, device, f"aggressive{sub_step}.")
        with aggressive.frozen(self.generation):
            return self._descend(x, noise, beta, steer=False)["loss"]


def draw(p: Parameters, images: Tensor, number: int, device: torch.device, purpose: str = "") -> tuple[Tensor, Tensor]:
    """The pixels, augmented and binarised as the parameters say, and the noise of z: (B, C, H, W), (k, B, Z).

    Args:
        images: a batch, uint8 (B, H, W, C).
        purpose: keeps the draws apart from those of the step itself.
    """

    def random(what: str) -> torch.Generator:
        return generator(p.seed, purpose + what, number, device)

    x = to_pixels(images, device)
    if (count := ORIENTATIONS[p.data.augment]) > 1:
        x = each_oriented(x, random_orientations(len(x), count, random("flip")), count)
    if p.data.shift:
        x = shifted(x, *random_shifts(len(x), p.data.shift, random("shift")))
    x = x.contiguous(memory_format=torch.channels_last)  # which turning and moving do not keep
    if p.data.binarise == "dynamic":
        x = torch.bernoulli(x, generator=random("binarise"))
    shape = (p.objective.importance_samples_train, len(x), p.model.latent_dim)
    return x, torch.randn(shape, generator=random("noise"), device=device)


@contextmanager
def memory_errors_explained(train: Train) -> Iterator[None]:
    """Turns an out-of-memory error of the GPU into one that names the parameter to change."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise InputError(
            f"train.batch_size = {train.batch_size} needs more memory than the GPU has free; "
            f"try {max(train.batch_size // 2, 1)}, or smaller model.widths or data.image_size"
        ) from None
