"""The mean image as a baseline: the output of a model that has learnt nothing but the average."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae.config.constants import SMALLEST_SIGMA
from vae.metrics.moments import pixel_moments
from vae.models.likelihood import gaussian_log_prob


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

    def elbo(self, images: np.ndarray, kind: str) -> float:
        """The ELBO of that reconstruction, in nats per image, at a rate of 0: the floor that learning starts from.

        Gaussian: with the σ that fits the training images, not below that of any model. Bernoulli: each
        pixel's mean as its probability.
        """
        if kind == "gaussian":
            pixels = self.mean.numel()
            own = self.variance.mean().clamp_min(SMALLEST_SIGMA**2)
            return float(gaussian_log_prob(torch.tensor(self.mse(images) * pixels), pixels, own))
        p, mean = self.mean.clamp(1e-6, 1 - 1e-6), pixel_moments(images)[0]
        return float((mean * p.log() + (1 - mean) * (1 - p).log()).sum())
