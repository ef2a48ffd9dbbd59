"""The state of a training between two steps: what a checkpoint holds and a resumed training restores."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters
from vae.features.network import load
from vae.losses.features import FeatureLoss
from vae.losses.kl_control import KLControl
from vae.metrics.mean_image import MeanImage
from vae.models.autoencoder_kl import ResnetBlock
from vae.models.likelihood import form, optimal_sigma
from vae.models.residual import ResidualBlock
from vae.models.vae import VAE, build, to_device
from vae.priors.learned import VampPrior
from vae.training.aggressive import Phase
from vae.training.history import Row, chosen_epoch
from vae.training.optimiser import Optimiser


class TrainState:
    """Model, optimiser, moving average, control, aggressive phase, history, and the best weights so far.

    Attributes:
        features: the losses on features of a frozen network; None without `objective.align` and `objective.perceptual`.
        trained: the weights of the model and of that loss.
        average: the exponential moving average of the weights; None without `train.ema`.
        kl_per_latent: of the validation split, Z numbers for each row of the history.
        kept_epoch: the epoch whose weights are kept, counted from 1; 0 before any.
    """

    def __init__(
        self,
        p: ResolvedParameters,
        train_images: np.ndarray,
        device: torch.device,
        initial_weights: Mapping[str, Tensor] | None,
    ) -> None:
        self.p = p
        self.model = to_device(build(p), device)
        for module in self.model.modules():
            if isinstance(module, ResidualBlock | ResnetBlock):
                module.checkpointing = p.train.gradient_checkpointing
        if initial_weights is not None:
            load_weights(self.model, initial_weights, "train.initial_weights")
        else:
            start_sigma(self.model, p, train_images)
        if initial_weights is None and isinstance(self.model.prior, VampPrior):
            self.model.prior.start(train_images, p.seed)
        self.features = feature_loss(p, train_images, device) if p.objective.uses_features else None
        head = None if self.features is None else self.features.head
        self.optimiser = Optimiser(self.model, p.train, head)
        self.trained = [*self.model.parameters(), *([] if head is None else head.parameters())]
        self.average = None if p.train.ema is None else copy.deepcopy(self.model)
        self.control = KLControl(p.kl, math.prod(p.data.image_shape), device)
        self.phase = Phase(p.train.aggressive_encoder)
        self.history: list[Row] = []
        self.kl_per_latent: list[list[float]] = []
        self.kept_epoch, self.kept_weights = 0, copy.deepcopy(self.judged.state_dict())

    @property
    def judged(self) -> VAE:
        """The model that is measured and kept: the moving average, where there is one."""
        return self.model if self.average is None else self.average

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """a ← a + (1 − decay)·(w − a), of weights and buffers; after step 0 a is w itself.

        The decay rises to `train.ema`, so that the first weights do not weigh on a short training (as TensorFlow's
        `ExponentialMovingAverage` does with `num_updates`).

        `AveragedModel.update_parameters` reads a counter on the GPU, and so waits for it, at every step.
        """
        if self.average is None or self.p.train.ema is None:
            return
        if step == 0:
            self.average.load_state_dict(self.model.state_dict())
            return
        decay = min(self.p.train.ema, (1 + step) / (10 + step))
        averaged = [*self.average.parameters(), *self.average.buffers()]
        current = [*self.model.parameters(), *self.model.buffers()]
        floats = [(a, w) for a, w in zip(averaged, current, strict=True) if a.is_floating_point()]
        counts = [(a, w) for a, w in zip(averaged, current, strict=True) if not a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [w for _, w in floats], 1 - decay)
        for a, w in counts:
            a.copy_(a * decay + w * (1 - decay))

    def record(self, row: Row, kl_per_latent: list[float]) -> None:
        """Adds an epoch; keeps its weights if they are the best so far."""
        self.history.append(row)
        self.kl_per_latent.append(kl_per_latent)
        if chosen_epoch(self.history, self.p) == len(self.history):
            self.kept_epoch, self.kept_weights = len(self.history), copy.deepcopy(self.judged.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "head": None if self.features is None else self.features.head_state(),
            "control": self.control.state,
            "phase": dataclasses.asdict(self.phase),
            "history": self.history,
            "kl_per_latent": self.kl_per_latent,
            "kept_epoch": self.kept_epoch,
            "kept_weights": self.kept_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.features is not None:
            self.features.load_head_state(state["head"])
        self.control.state.copy_(state["control"])
        self.phase = Phase(**state["phase"])
        self.history, self.kl_per_latent = state["history"], state["kl_per_latent"]
        self.kept_epoch, self.kept_weights = state["kept_epoch"], state["kept_weights"]


def start_sigma(model: VAE, p: ResolvedParameters, train_images: np.ndarray) -> None:
    """A learned σ starts at the mean image's error: from σ = 1 the latents would die before σ has fallen."""
    likelihood = form(p.elbo)
    if model.log_sigma is None and likelihood.start(1, 1.0) is None:
        return
    sigma = optimal_sigma(MeanImage.of(train_images).mse(train_images))
    if model.log_sigma is not None:
        model.log_sigma.data.fill_(math.log(sigma))
    if (start := likelihood.start(p.data.channels, sigma)) is not None:
        model.start_output(start)


def feature_loss(p: ResolvedParameters, train_images: np.ndarray, device: torch.device) -> FeatureLoss:
    """Its head drawn from the seed. Raises: InputError: there is no such network."""
    network, objective = load(p.objective.features, device), p.objective
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        return FeatureLoss(network, objective.align, objective.perceptual, p.model.latent_dim, train_images, device)


def load_weights(model: VAE, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises: InputError: a tensor is missing, unknown or of another shape."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{name}: these weights are of another model: {reason}") from None
