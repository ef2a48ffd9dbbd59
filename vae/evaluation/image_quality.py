"""How close reconstructions are to their images: mean squared error, PSNR, SSIM."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.devices import Compute
from vae.metrics.measurement import evaluation_batches
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # of Wang 2004; both shrink together for images smaller than the window


@torch.no_grad()
def central_quality(
    model: VAE, images: NDArray[np.uint8] | Tensor, likelihood: Likelihood, compute: Compute
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean squared error and SSIM of every image with z = μ: (N,) each.

    Of an autoregressive decoder, as `Measurement.mse`: each pixel is predicted from those before it in the image.
    """
    errors, similarities = [], []
    for x in evaluation_batches(model, images, compute.device):
        with compute.autocast():
            mean = likelihood.mean(model.decode(model.encode(x)[0], x))
        errors.append((x - mean).double().square().flatten(1).mean(1).cpu())
        similarities.append(ssim(mean, x).double().cpu())
    return torch.cat(errors).numpy(), torch.cat(similarities).numpy()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang 2004), with a range of 1, averaged over a picture's pixels and channels.

    Its Gaussian window is 11 pixels wide, or the largest odd number that the shorter side allows.
    images, others: float32 (B, C, H, W) → (B,), 1 for equal pictures.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    window = ssim_window(*images.shape[2:])
    similarity = structural_similarity_index_measure(
        images,
        others,
        # torchmetrics takes 2·⌊3.5σ + ½⌋ + 1 pixels and does not look at kernel_size
        sigma=SSIM_SIGMA if window == SSIM_WINDOW else (window - 1) / 7,
        kernel_size=window,
        data_range=1.0,
        reduction="none",
    )
    assert isinstance(similarity, Tensor)
    return similarity.reshape(len(images))


def ssim_window(height: int, width: int) -> int:
    shorter = min(height, width)
    return min(SSIM_WINDOW, shorter - 1 + shorter % 2)


def psnr(mse: float) -> float:
    """10·log₁₀(1/MSE) in dB, of the split's mean error: an image without error does not make it infinite."""
    return -10 * math.log10(mse) if mse > 0 else math.inf
