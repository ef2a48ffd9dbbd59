"""How unusual an image is to a model: its score is −ELBO, in nats.

A score by itself says little, since images differ in how hard they are to draw. So a model keeps the percentiles
of its validation images' scores: an image beyond the 99th is more unusual than 99 in 100 of images that are like
those of the training and were not trained on. (The likelihood of a generative model can be high for images of quite
another kind, smooth ones above all: Nalisnick 2019. The area under the ROC curve says how far to trust it.)
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.compute.devices import Compute
from vae.losses.elbo import kl_per_latent
from vae.metrics.measurement import BATCH, evaluation_batches
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE

MOST_IMAGES = 10_000  # of the validation split, evenly taken: a percentile gains nothing from more
PERCENT = np.arange(101)

Floats = npt.NDArray[np.float64]


@torch.no_grad()
def elbo_per_image(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute, samples: int = 8
) -> np.ndarray:
    """The ELBO of each image in nats, its distortion averaged over samples of z: (N,) float64.

    The noise follows from the image's own pixels: neither its neighbours nor its place changes its ELBO.
    images: uint8 (N, H, W, C).
    """
    parts = []
    for index, x in enumerate(evaluation_batches(model, images, compute.device)):
        noise = _noise_of(images[index * BATCH : (index + 1) * BATCH], samples, model.latent_dim)
        with compute.autocast():
            mu, logvar = model.encode(x)
            log_prob = torch.zeros(len(x), dtype=torch.float64, device=compute.device)
            for epsilon in noise.to(compute.device):
                z = mu + torch.exp(0.5 * logvar) * epsilon
                log_prob += likelihood.log_prob(x, model.decode(z, x)) / samples
        parts.append((log_prob - kl_per_latent(mu, logvar).sum(1)).cpu().numpy())
    return np.concatenate(parts)


def _noise_of(images: np.ndarray | Tensor, samples: int, latents: int) -> Tensor:
    """Standard normal, drawn for each image on its own: uint8 (B, H, W, C) → (samples, B, latents), on the CPU."""
    drawn = []
    for image in images.cpu().numpy() if isinstance(images, Tensor) else images:
        digest = hashlib.sha256(image.tobytes()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn.append(torch.randn(samples, latents, generator=random))
    return torch.stack(drawn, dim=1)


def scores(saved: Saved, images: npt.NDArray[np.uint8], compute: Compute) -> Floats:
    """−ELBO of each image, in nats: (N, H, W, C) uint8 → (N,). The higher, the more unusual."""
    return -elbo_per_image(saved.model, images, saved.likelihood, compute)


def percentiles(
    model: VAE, images: npt.NDArray[np.uint8], likelihood: Likelihood, compute: Compute
) -> list[float] | None:
    """The scores that 0, 1, … 100 percent of these images do not exceed; None where a score is no number."""
    step = -(-len(images) // MOST_IMAGES)
    found = -elbo_per_image(model, np.asarray(images[::step]), likelihood, compute)
    return np.percentile(found, PERCENT).tolist() if np.isfinite(found).all() else None


def threshold(saved: Saved, percent: float) -> float | None:
    """The score that `percent` of the validation images do not exceed, in nats; None where the model has none."""
    known = saved.config.valid.score_percentiles
    return float(np.interp(percent, PERCENT, known)) if known else None


def ranks(saved: Saved, scores: Floats) -> Floats:
    """How many percent of the validation images score lower, 0 to 100; NaN where the model has none."""
    known = saved.config.valid.score_percentiles
    return np.interp(scores, known, PERCENT) if known else np.full(len(scores), np.nan)


def auroc(usual: Floats, unusual: Floats) -> float:
    """The chance that an unusual image scores above a usual one, ties counted half: the area under the ROC curve."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(unusual, usual).statistic) / (len(usual) * len(unusual))
