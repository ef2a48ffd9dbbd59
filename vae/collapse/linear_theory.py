"""What a linear VAE would make of the training images: probabilistic PCA (Lucas 2019; Tipping & Bishop 1999).

With λ_j the eigenvalues of the images' covariance, largest first, latent j is active where λ_j exceeds the threshold
s = β·σ², and its KL is then ½ ln(λ_j/s). A deep VAE is not linear: a pilot (`vae.pilot`) shows the difference.
8-bit levels are taken for a Gaussian, their probability being about the density times the width of a level; a σ of each
channel or pixel, or a mixture, for one σ.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.config.parameters import Parameters
from vae.metrics.moments import chunk_size, pixel_moments

EXACT_UP_TO = 2048  # pixels; beyond that only the leading eigenvalues, by subspace iteration
MOST_IMAGES = 20_000  # evenly taken from a larger set: enough for its leading eigenvalues
MOST_DIRECTIONS = 1024  # of subspace iteration; of more latents the eigenvalues are those of as many images
EXTRA, ITERATIONS = 16, 6  # of the subspace iteration: vectors beyond those asked for, passes over the data
ROUNDING = 1e-12  # of the variance of a pixel
MOST_LATENTS_PER_IMAGE = 0.25  # of training images; beyond it the prediction is too high


@dataclass(frozen=True)
class Spectrum:
    """The part of the training images' covariance that the theory needs: a `rate_distortion.Curve`.

    Attributes:
        eigenvalues: (min(Z, N),), largest first; of the images in pixels of [0, 1] or, for a Bernoulli
            likelihood, of (x − p)/√(p(1 − p)). At most 1,024 of images of more than 2,048 pixels.
        total: the sum of all N eigenvalues.
        pixels: N. images: how many the covariance was estimated from.
    """

    eigenvalues: NDArray[np.float64]
    total: float
    pixels: int
    images: int

    source = "linear theory"

    @property
    def rest(self) -> float:
        """Σ_{j>Z} λ_j: the variance beyond the Z latents."""
        return max(self.total - float(self.eigenvalues.sum()), 0.0)

    @property
    def smallest_mse(self) -> float:
        """Of a pixel, whatever the rate: what the Z latents leave."""
        return self.rest / self.pixels

    @property
    def critical(self) -> float:
        """λ_1: the threshold above which no latent is active."""
        return float(self.eigenvalues[0])

    def rates(self, s: float) -> NDArray[np.float64]:
        """KL_j = ½ ln(λ_j/s) where λ_j > s, else 0 (Lucas 2019, section 4): (Z,) in nats."""
        return 0.5 * np.log(np.maximum(self.eigenvalues / max(s, 1e-300), 1.0))

    def error(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ_{j≤Z} min(λ_j, s) + Σ_{j>Z} λ_j: the squared error of an image, (K,) for the thresholds (K,)."""
        return np.minimum(self.eigenvalues[:, None], s).sum(0) + self.rest

    def of(self, p: Parameters) -> "Spectrum":
        """The part of it for as many latents as these parameters have."""
        return replace(self, eigenvalues=self.eigenvalues[: p.model.latent_dim])

    def facts(self) -> dict[str, Any]:
        return {"eigenvalues": self.eigenvalues.tolist(), "eigenvalue_sum": self.total, "images": self.images}


def spectrum(images: np.ndarray, latents: int, bernoulli: bool, drawn: bool = False, seed: int = 0) -> Spectrum:
    """Eigenvalues of the covariance of uint8 images (n, H, W, C), streaming over them.

    Exact up to 2048 pixels; larger images by randomised subspace iteration (Halko 2011, algorithm 4.4), or of more than
    1,024 latents by the Gram matrix of 1,024 images.

    Args:
        bernoulli: whiten each pixel by the Bernoulli standard deviation, p clipped to [0.01, 0.99].
        drawn: the pixels are probabilities that training draws zeros and ones from, which adds
            E[x(1 − x)] to the diagonal.
    """
    images = images[:: math.ceil(len(images) / MOST_IMAGES)]
    mean, variance = (moment.flatten() for moment in pixel_moments(images))
    pixels, size = len(mean), chunk_size(len(mean))
    p = mean.clamp(0.01, 0.99)
    scale = (p * (1 - p)).rsqrt() if bernoulli else torch.ones_like(mean)
    drawing = (mean - mean.square() - variance).clamp_min(0) * scale.square() if drawn else None
    total = float((variance * scale.square()).sum()) + (0.0 if drawing is None else float(drawing.sum()))
    if total < ROUNDING * pixels:  # images that are all the same
        return Spectrum(np.zeros(min(latents, pixels)), 0.0, pixels, len(images))

    def covariance_times(vectors: Tensor) -> Tensor:
        product = torch.zeros_like(vectors)
        for start in range(0, len(images), size):
            part = torch.from_numpy(np.array(images[start : start + size])).flatten(1).double()
            centred = (part / 255 - mean) * scale
            product += centred.T @ (centred @ vectors)
        product /= len(images)
        return product if drawing is None else product + drawing[:, None] * vectors

    if pixels <= EXACT_UP_TO:
        values = torch.linalg.eigvalsh(covariance_times(torch.eye(pixels, dtype=torch.float64)))
    elif latents > MOST_DIRECTIONS:
        values = _of_gram_matrix(images[:: math.ceil(len(images) / MOST_DIRECTIONS)], mean, scale)
    else:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(pixels, min(latents + EXTRA, pixels), generator=generator, dtype=torch.float64)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(covariance_times(basis)).Q
        values = torch.linalg.eigvalsh(basis.T @ covariance_times(basis))
    leading = values.flip(0).clamp_min(0)[: min(latents, pixels)].numpy()
    return Spectrum(leading, total, pixels, len(images))


def _of_gram_matrix(images: np.ndarray, mean: Tensor, scale: Tensor) -> Tensor:
    """The eigenvalues of the images' covariance that are not 0, by inner products of images: (n,), ascending."""
    flat, gram = images.reshape(len(images), -1), torch.zeros(len(images), len(images), dtype=torch.float64)
    for start in range(0, len(mean), 8192):
        part = slice(start, start + 8192)
        centred = (torch.from_numpy(np.array(flat[:, part])).double() / 255 - mean[part]) * scale[part]
        gram += centred @ centred.T
    return torch.linalg.eigvalsh(gram / len(images))


def spectrum_for(p: Parameters, images: np.ndarray) -> Spectrum:
    """Of training images, under these parameters."""
    bernoulli, drawn = p.objective.likelihood == "bernoulli", p.data.binarise == "dynamic"
    return spectrum(images, p.model.latent_dim, bernoulli, drawn, p.seed)
