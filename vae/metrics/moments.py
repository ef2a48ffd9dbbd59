"""Mean and variance of each pixel over images."""

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # images at a time


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
