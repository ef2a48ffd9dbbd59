"""How unusual an image is to a model: its score is −ELBO, in nats.

A score by itself says little, since images differ in how hard they are to encode. So a model keeps the percentiles of
its validation images' scores: an image beyond the 99th is more unusual than 99 in 100 images of the same kind that
were not trained on. (A generative model can give a high likelihood to images of another kind, above all to smooth
ones: Nalisnick 2019. The area under the ROC curve shows how far to trust it.)
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.compute.devices import Compute
from vae.losses.elbo import kl_per_latent, sampled_rate
from vae.metrics.measurement import batch_size, evaluation_batches, evaluation_density
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE

MOST_IMAGES = 10_000  # evenly taken from the validation split: enough for percentiles
PERCENT = np.arange(101)

Floats = npt.NDArray[np.float64]


@torch.no_grad()
def elbo_per_image(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute, samples: int = 8
) -> np.ndarray:
    """The ELBO of each image in nats, its distortion, and the rate against a learned prior, averaged over samples
    of z: (N,) float64.

    The noise follows from the image's own pixels, so its ELBO depends neither on its batch nor on its position.
    images: uint8 (N, H, W, C).
    """
    parts, prior, size = [], evaluation_density(model, compute), batch_size(*images.shape[1:3])
    for index, x in enumerate(evaluation_batches(model, images, compute.device)):
        noise = _noise_of(images[index * size : (index + 1) * size], samples, model.latent_dim)
        with compute.autocast():
            posterior = model.infer(x)
            log_prob = torch.zeros(len(x), dtype=torch.float64, device=compute.device)
            for epsilon in noise.to(compute.device):
                mu, logvar = posterior(epsilon)
                z = mu + torch.exp(0.5 * logvar) * epsilon
                log_prob += likelihood.log_prob(x, model.decode(z, x)) / samples
                if model.lower is not None:
                    log_prob -= kl_per_latent(mu, logvar).sum(1) / samples
                if prior is not None:
                    log_prob -= sampled_rate(prior, mu, logvar, epsilon) / samples
        if prior is None and model.lower is None:
            log_prob = log_prob - kl_per_latent(mu, logvar).sum(1)
        parts.append(log_prob.cpu().numpy())
    return np.concatenate(parts)


def _noise_of(images: np.ndarray | Tensor, samples: int, latents: int) -> Tensor:
    """Standard normal noise, drawn for each image by itself: uint8 (B, H, W, C) → (samples, B, latents), on the CPU."""
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
    """The 0th to 100th percentiles of these images' scores; None where a score is not finite."""
    step = -(-len(images) // MOST_IMAGES)
    found = -elbo_per_image(model, np.asarray(images[::step]), likelihood, compute)
    return np.percentile(found, PERCENT).tolist() if np.isfinite(found).all() else None


def threshold(saved: Saved, percent: float) -> float | None:
    """A percentile of the validation images' scores, in nats; None where the model has none."""
    known = saved.config.valid.score_percentiles
    return float(np.interp(percent, PERCENT, known)) if known else None


def ranks(saved: Saved, scores: Floats) -> Floats:
    """The percentage of validation images that score lower, 0 to 100; NaN where the model has no percentiles."""
    known = saved.config.valid.score_percentiles
    return np.interp(scores, known, PERCENT) if known else np.full(len(scores), np.nan)


def auroc(usual: Floats, unusual: Floats) -> float:
    """Area under the ROC curve: the probability that an unusual image scores above a usual one, ties counted half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(unusual, usual).statistic) / (len(usual) * len(unusual))
