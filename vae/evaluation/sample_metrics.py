"""Samples of each prior, compared with the test images beside what could be reached at best."""

import numpy as np
import torch
from numpy.typing import NDArray

from vae.compute.devices import Compute
from vae.features.activations import FrozenFeatures
from vae.inference.generate import decoded
from vae.inference.grids import as_bytes
from vae.metrics.measurement import posteriors_to_draw
from vae.metrics.pooled import pooled
from vae.models.pixelcnn import PixelCNN
from vae.models.saved import Saved
from vae.models.vae import VAE
from vae.priors import aggregate
from vae.samples.evidence import DRAWN_PIXEL_BY_PIXEL
from vae.samples.features import network_features, pixel_features
from vae.samples.quality import RealImages, as_metrics, ends, most_images
from vae.samples.two_sample import two_sample_test

Metrics = dict[str, int | float | None]


def sample_metrics(
    saved: Saved,
    train: NDArray[np.uint8],
    test: NDArray[np.uint8],
    compute: Compute,
    seed: int,
    frozen: FrozenFeatures | None = None,
) -> Metrics:
    """Precision, recall, density, coverage and Fréchet distance to the test images, of as many of each kind:

        training: training images, which is what samples could reach at best. reconstructions: of these same images,
        z sampled. standard_prior, fitted_prior: decoded z of the prior of the ELBO, and of `saved.prior`.

    By principal components of pixels, and under `network_…` of a frozen network's features where it is installed.
    For the priors also a classifier two-sample test of their z against q(z) of the test split, a map of latents pooled
    (`vae.metrics.pooled`). Nothing where latents are not finite.

    train, test: uint8 (N, H, W, C). frozen: has the activations of some of them.
    """
    of_test, of_train = compared_images(saved.model, train, test, seed)
    real, known, count = np.asarray(test[of_test]), np.asarray(train[of_train]), len(of_test)
    encoded, posteriors = (posteriors_to_draw(saved.model, images, compute, seed) for images in (test, known))
    if not all(np.isfinite(part).all() for part in (*encoded, *posteriors)):
        return {}
    priors = {"standard_prior": saved.own_prior, "fitted_prior": saved.prior}
    drawn = {name: prior.sample(count, torch.Generator().manual_seed(seed)) for name, prior in priors.items()}
    posterior = torch.from_numpy(aggregate.draw(*posteriors, seed)).float()
    pictures = {"training": known} | {
        name: as_bytes(decoded(saved.model, saved.likelihood, z, compute))
        for name, z in {"reconstructions": posterior, **drawn}.items()
    }
    metrics: Metrics = {}
    for features in (
        pixel_features(train, seed),
        network_features(train, seed, frozen) if frozen else None,
    ):
        if features is not None:
            reference = RealImages.of(features.of(real), seed)
            infix = "" if features.name == "pixels" else f"_{features.name}"
            for name, images in pictures.items():
                quality = reference.compare(features.of(images)) if reference else None
                metrics |= as_metrics(name + infix, quality)
    shape, of_posterior = saved.model.latent_map, aggregate.draw(*encoded, seed)
    for name, prior in priors.items():
        z = prior.sample(len(of_posterior), torch.Generator().manual_seed(seed)).numpy()
        found = two_sample_test(pooled(of_posterior, shape), pooled(z, shape), seed)
        accuracy, p_value = (found.accuracy, found.p_value) if found else (None, None)
        metrics |= {f"{name}_two_sample{end}": value for end, value in ends(accuracy).items()}
        metrics[f"{name}_two_sample_p"] = p_value
    bound = aggregate.kl_to_prior(*encoded, priors["standard_prior"], saved.prior, seed)
    return metrics | {"aggregate_kl_bound": bound.value, "aggregate_kl_bound_se": bound.standard_error}


def compared_images(
    model: VAE, train: NDArray[np.uint8], test: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which test images samples are compared with, and which training images beside them: as many, in order."""
    slow = isinstance(model.decoder, PixelCNN)
    count = min(len(test), len(train), DRAWN_PIXEL_BY_PIXEL if slow else most_images(*test.shape[1:3]))
    random = np.random.default_rng(seed)
    of_test, of_train = (np.sort(random.permutation(len(images))[:count]) for images in (test, train))
    return of_test, of_train
