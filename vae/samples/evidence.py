"""What a verdict on samples rests on: samples and reconstructions, compared with training images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.devices import Compute
from vae.inference.generate import decoded
from vae.inference.grids import as_bytes
from vae.metrics.measurement import posteriors_to_draw
from vae.models.likelihood import Likelihood
from vae.models.pixelcnn import PixelCNN
from vae.models.vae import VAE
from vae.priors import aggregate
from vae.priors.aggregate import LowerBound
from vae.priors.standard import Prior
from vae.samples.features import pixel_features
from vae.samples.manifolds import COVERAGE_NEIGHBOURS
from vae.samples.quality import RealImages, SampleQuality

IMAGES = 1_000  # of the training split, to compare with, and as many of each kind
DRAWN_PIXEL_BY_PIXEL = 200  # by an autoregressive decoder, which is slow


@dataclass(frozen=True)
class SampleEvidence:
    """Each kind of picture compared with training images, by the principal components of their pixels.

    Attributes:
        reconstructions: decoded z ~ q(z|x) of as many other training images: the best that the decoder can do.
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
    count = min(len(train_images) // 2, DRAWN_PIXEL_BY_PIXEL if isinstance(model.decoder, PixelCNN) else IMAGES)
    if count <= COVERAGE_NEIGHBOURS:
        return None
    order = np.random.default_rng(seed).permutation(len(train_images))
    halves = (order[:count], order[count : 2 * count])
    reference, others = (np.asarray(train_images[np.sort(half)]) for half in halves)
    posteriors, judged = (posteriors_to_draw(model, images, compute, seed) for images in (others, valid_images))
    if not all(np.isfinite(part).all() for part in (*posteriors, *judged)):
        return None
    features = pixel_features(reference, seed)
    real = RealImages.of(features.of(reference), seed)

    def compare(z: Tensor) -> SampleQuality | None:
        pictures = as_bytes(decoded(model, likelihood, z, compute))
        return real.compare(features.of(pictures)) if real else None

    reconstructions, own = compare(torch.from_numpy(aggregate.draw(*posteriors, seed)).float()), model.own_prior()
    standard, fitted = (compare(p.sample(count, torch.Generator().manual_seed(seed))) for p in (own, prior))
    if reconstructions is None or standard is None or fitted is None:
        return None
    return SampleEvidence(reconstructions, standard, fitted, aggregate.kl_to_prior(*judged, own, prior, seed))
