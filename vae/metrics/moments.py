"""Mean and variance of each pixel over images."""

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # images at a time,
CHUNK_NUMBERS = CHUNK * 128 * 128 * 3  # of larger ones fewer, so that memory stays bounded


def chunk_size(numbers: int) -> int:
    """Images at a time, of so many numbers each."""
    return max(min(CHUNK, CHUNK_NUMBERS // numbers), 1)


def pixel_moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel over images, streaming: float64 (H, W, C), pixels in [0, 1]."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    squares = torch.zeros_like(total)
    size = chunk_size(total.numel())
    for start in range(0, len(images), size):
        part = torch.from_numpy(np.array(images[start : start + size])).double() / 255
        total += part.sum(0)
        squares += part.square().sum(0)
    mean = total / len(images)
    return mean, (squares / len(images) - mean.square()).clamp_min(0)
