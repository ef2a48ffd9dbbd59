"""What a verdict on samples rests on: samples and reconstructions, compared with training images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae.compute.devices import Compute
from vae.inference.generate import as_bytes, decoded
from vae.metrics.measurement import encode
from vae.models.likelihood import Likelihood
from vae.models.pixelcnn import PixelCNN
from vae.models.vae import VAE
from vae.priors import aggregate
from vae.priors.aggregate import LowerBound
from vae.priors.standard import Prior
from vae.samples.features import pixel_features
from vae.samples.quality import RealImages, SampleQuality

IMAGES = 1_000  # of the training split, and as many samples
DRAWN_PIXEL_BY_PIXEL = 200  # samples of an autoregressive decoder, which is slow


@dataclass(frozen=True)
class SampleEvidence:
    """Samples compared with as many training images, by the principal components of their pixels.

    Attributes:
        reconstructions: decoded z ~ q(z|x) of validation images: the best that the decoder's pictures can do.
        standard, fitted: decoded z of the prior that the ELBO was trained with, which is N(0, I) unless the model
            learned its own, and of the prior fitted after training.
        aggregate_kl: the lower bound on KL(q(z) ‖ p), p the prior of the ELBO, of the validation split.
    """

    reconstructions: SampleQuality
    standard: SampleQuality
    fitted: SampleQuality
    aggregate_kl: LowerBound


def sample_evidence(
    model: VAE,
    likelihood: Likelihood,
    prior: Prior,
    train_images: NDArray[np.uint8],
    valid_images: NDArray[np.uint8],
    compute: Compute,
    seed: int,
) -> SampleEvidence | None:
    """None for too few images, or a model whose numbers are not finite.

    prior: fitted to the training split. images: uint8 (N, H, W, C).
    """
    mu, logvar = encode(model, valid_images, compute)
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        return None
    count = min(len(train_images), DRAWN_PIXEL_BY_PIXEL if isinstance(model.decoder, PixelCNN) else IMAGES)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(train_images))[:count])
    reference = np.asarray(train_images[chosen])
    features = pixel_features(reference, seed)
    real = RealImages.of(features.of(reference), seed)

    def compare(z: torch.Tensor) -> SampleQuality | None:
        pictures = as_bytes(decoded(model, likelihood, z, compute))
        return real.compare(features.of(pictures)) if real else None

    random, own = torch.Generator().manual_seed(seed), model.own_prior()
    z = torch.from_numpy(aggregate.draw(mu[:count], logvar[:count], seed)).float()
    found = [compare(z), *(compare(p.sample(count, random)) for p in (own, prior))]
    reconstructions, standard, fitted = found
    if reconstructions is None or standard is None or fitted is None:
        return None
    bound = aggregate.kl_to_prior(mu, logvar, own, prior, seed)
    return SampleEvidence(reconstructions, standard, fitted, bound)
