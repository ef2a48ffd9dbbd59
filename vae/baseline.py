"""The mean image: what a model gives that has learnt nothing but the average."""

import numpy as np
import torch
from torch import Tensor

from vae.objective import SMALLEST_SIGMA, gaussian_log_prob

CHUNK = 1024  # images at a time


def mean_image_elbo(images: np.ndarray, kind: str) -> float:
    """The ELBO of a model that answers every image with their mean: the floor that skill is counted from.

    Gaussian: at its own σ, not below that of any model; Bernoulli: each pixel's mean as its probability. Rate 0.
    """
    mean, variance = pixel_moments(images)
    if kind == "gaussian":
        own = variance.mean().clamp_min(SMALLEST_SIGMA**2)
        return float(gaussian_log_prob(variance.sum(), variance.numel(), own))
    p = mean.clamp(1e-6, 1 - 1e-6)
    return float((mean * p.log() + (1 - mean) * (1 - p).log()).sum())


def mean_image_mse(images: np.ndarray) -> float:
    """The error of answering every image with their mean: the pixels' variance, averaged."""
    return float(pixel_moments(images)[1].mean())


def pixel_moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel over images, streaming: float64 (H, W, C), pixels in [0, 1]."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(images), CHUNK):
        part = torch.from_numpy(np.array(images[start : start + CHUNK])).double() / 255
        total += part.sum(0)
        squares += part.square().sum(0)
    mean = total / len(images)
    return mean, (squares / len(images) - mean.square()).clamp_min(0)
