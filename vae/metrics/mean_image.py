"""The mean image as a baseline: the output of a model that has learnt nothing but the average."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae.compute.batches import in_order
from vae.config.constants import SMALLEST_SIGMA
from vae.config.sections import LikelihoodKind
from vae.metrics.moments import chunk_size, pixel_moments
from vae.models.likelihood import Likelihood, gaussian_log_prob

BATCH = 256  # images at a time


@dataclass(frozen=True)
class MeanImage:
    """The training split's mean image, and the variance about it: (H, W, C) float64, pixels in [0, 1]."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, train_images: np.ndarray) -> "MeanImage":
        return cls(*pixel_moments(train_images))

    def mse(self, images: np.ndarray) -> float:
        """The error of reconstructing each of these images as the mean of the training images."""
        mean, variance = pixel_moments(images)
        return float((variance + (mean - self.mean).square()).mean())

    def elbo(self, images: np.ndarray, likelihood: Likelihood) -> float:
        """The ELBO of that reconstruction, in nats per image, at a rate of 0: the floor that learning starts from.

        With the σ that fits the training images, not below that of any model: one, or one of each channel or pixel, as
        the likelihood has it; of a mixture a single component. Bernoulli: each pixel's mean as its probability.
        """
        if likelihood.kind == "gaussian" and isinstance(likelihood.sigma, float):
            pixels = self.mean.numel()
            own = self.variance.mean().clamp_min(SMALLEST_SIGMA**2)
            return float(gaussian_log_prob(torch.tensor(self.mse(images) * pixels), pixels, own))
        if likelihood.kind != "bernoulli":
            return self._log_prob(images, likelihood)
        p, mean = self.mean.clamp(1e-6, 1 - 1e-6), pixel_moments(images)[0]
        return float((mean * p.log() + (1 - mean) * (1 - p).log()).sum())

    def _log_prob(self, images: np.ndarray, likelihood: Likelihood) -> float:
        """ln p of these images, on average, with their mean as the decoder's output whatever z is."""
        mean, variance = (moment.permute(2, 0, 1)[None].float() for moment in (self.mean, self.variance))
        variance = variance.clamp_min(SMALLEST_SIGMA**2)
        kind: LikelihoodKind = "discretised_logistic" if likelihood.components is not None else likelihood.kind
        if likelihood.sigma is None:
            output, own = torch.cat([mean, 0.5 * variance.log()], 1), Likelihood(kind)
        else:
            over = (2, 3) if isinstance(likelihood.sigma, tuple) else (1, 2, 3)
            sigmas = variance.mean(over).sqrt().flatten().tolist()
            output, own = mean, Likelihood(kind, tuple(sigmas) if isinstance(likelihood.sigma, tuple) else sigmas[0])
        batches = in_order(images, min(BATCH, chunk_size(self.mean.numel())), torch.device("cpu"))
        total = sum(float(own.log_prob(x, output.expand(len(x), -1, -1, -1)).double().sum()) for x in batches)
        return total / len(images)
