"""How good a saved model is on a split: bounds on the likelihood, reconstructions, latents, a linear probe.

Quantities of information are in nats per image; errors are of pixels in [0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.batches import for_measuring, in_order
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.config.parameters import Parameters
from vae.config.text import rounded
from vae.evaluation.mmd import mmd_to_prior
from vae.evaluation.probe import Probe
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import BATCH, Measurement, encode, measure
from vae.metrics.mutual_information import MutualInformation, mutual_information
from vae.models import mixture_prior
from vae.models.likelihood import Likelihood, optimal_sigma
from vae.models.mixture_prior import Mixture
from vae.models.saved import Saved
from vae.models.vae import VAE

PROBE_IMAGES = 20_000  # a linear classifier on a few latents gains nothing from more
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # of Wang 2004; both shrink together for images smaller than the window

Images = Mapping[str, NDArray[np.uint8]]
Labels = Mapping[str, NDArray[np.object_]]
Metrics = dict[str, int | float | None]


@dataclass(frozen=True)
class Evaluation:
    """One split.

    Attributes:
        metrics: rounded for JSON; None where a number does not exist.
        measurement: the pass behind rate, distortion and units.
        mu: (N, Z), the posterior means.
        errors: (N,), each image's mean squared error with z = μ.
        guesses: (N,), the class that the linear probe reads off each image's latents; None where there is no probe.
    """

    metrics: Metrics
    measurement: Measurement
    mu: NDArray[np.float32]
    errors: NDArray[np.float64]
    guesses: NDArray[np.object_] | None


def evaluate(
    saved: Saved, images: Images, labels: Labels, p: Parameters, compute: Compute
) -> dict[str, Evaluation]:
    """The validation and the test split, by name.

    Args:
        images: uint8 (N, H, W, C) of `train`, `valid` and `test`.
        labels: each image's class name, or None, for the same splits.
    """
    train_images = for_measuring(images["train"], p)
    chosen = _sample(len(train_images), PROBE_IMAGES, p.seed)
    train_mu, _ = encode(saved.model, np.asarray(train_images[chosen]), compute)
    probe = Probe.fit(train_mu, labels["train"][chosen], p.seed)
    measured = {
        split: measure(saved.model, images[split], saved.likelihood, compute, p.seed)
        for split in ("valid", "test")
    }
    calibrated = _calibrated(saved.likelihood, measured["valid"])
    mean_image = MeanImage.of(train_images)
    return {
        split: _evaluate_split(
            saved,
            images[split],
            labels[split],
            measurement,
            calibrated,
            mean_image,
            probe,
            p,
            compute,
            prune=split == "test",
        )
        for split, measurement in measured.items()
    }


def _evaluate_split(
    saved: Saved,
    images: NDArray[np.uint8],
    labels: NDArray[np.object_],
    measurement: Measurement,
    calibrated: Likelihood | None,
    mean_image: MeanImage,
    probe: Probe | None,
    p: Parameters,
    compute: Compute,
    prune: bool,
) -> Evaluation:
    likelihood = saved.likelihood
    mu, logvar = encode(saved.model, images, compute)
    errors, similarity = central_quality(saved.model, images, likelihood, compute)
    finite = bool(np.isfinite(mu).all() and np.isfinite(logvar).all())
    information = mutual_information(mu, logvar, p.seed) if finite else MutualInformation(None, None, None)
    normalised = likelihood.kind == "gaussian" or is_binary(images)
    metrics = {
        "images": len(images),
        "elbo": measurement.elbo,
        **_nll(saved, images, p, compute, measurement if prune else None, normalised),
        "reconstruction": measurement.distortion,
        "kl": measurement.rate,
        "mse": measurement.mse,
        "mse_sampled": measurement.mse_sampled,
        "psnr": psnr(measurement.mse),
        "ssim": float(similarity.mean()),
        "active_units": measurement.active_units(p.monitor.active_unit_threshold),
        "informative_units": measurement.informative_units(p.monitor.informative_unit_nats),
        "mutual_information": information.value,
        "aggregate_kl": information.aggregate_kl,
        "saturated_at": information.saturated_at,
        "mmd": mmd_to_prior(mu, logvar, p.seed) if finite else None,
        **_with_fitted_prior(saved.prior, mu, logvar, measurement, p.seed),
        "prior_gap": measurement.prior_gap,
        "prior_gap_full": measurement.prior_gap_full,
        "elbo_calibrated": measurement.with_likelihood(calibrated, saved.pixels) if calibrated else None,
        "mean_image_elbo": mean_image.elbo(images, likelihood.kind),
        "mean_image_mse": mean_image.mse(images),
        **_probed(probe, mu, labels),
    }
    guesses = probe.guess(mu) if probe else None
    return Evaluation(rounded(metrics), measurement, mu, errors, guesses)


def _with_fitted_prior(
    prior: Mixture | None,
    mu: NDArray[np.float32],
    logvar: NDArray[np.float32],
    measurement: Measurement,
    seed: int,
) -> Metrics:
    """What the fitted prior makes of KL, ELBO and MMD, beside those of N(0, I); nothing where there is none."""
    if prior is None:
        return {}
    rate = mixture_prior.rate(mu, logvar, prior, seed)
    return {
        "fitted_prior_kl": rate,
        "fitted_prior_elbo": -measurement.distortion - rate,
        "fitted_prior_mmd": mmd_to_prior(mu, logvar, seed, prior),
    }


def _nll(
    saved: Saved,
    images: NDArray[np.uint8],
    p: Parameters,
    compute: Compute,
    pruned_by: Measurement | None,
    normalised: bool,
) -> Metrics:
    """`nll`, and `nll_pruned` without the latents that `pruned_by` finds inactive; None if not normalised."""
    names = ["nll"] if pruned_by is None else ["nll", "nll_pruned"]
    if not normalised:
        return dict.fromkeys(names)

    def nll(active: NDArray[np.bool_] | None = None) -> float:
        samples = p.evaluate.importance_samples
        return -importance_weighted_bound(
            saved.model, images, saved.likelihood, compute, samples, p.seed, active
        )

    metrics: Metrics = dict.fromkeys(names, nll())
    if pruned_by is not None and not (active := pruned_by.active(p.monitor.active_unit_threshold)).all():
        metrics["nll_pruned"] = nll(active)
    return metrics


@torch.no_grad()
def importance_weighted_bound(
    model: VAE,
    images: NDArray[np.uint8] | Tensor,
    likelihood: Likelihood,
    compute: Compute,
    samples: int,
    seed: int,
    active: NDArray[np.bool_] | None = None,
) -> float:
    """L_k = E ln (1/k) Σ_i p(x, z_i)/q(z_i|x), z_i ~ q(z|x) (Burda 2016, equation 8), averaged over images.

    It is at least the ELBO, at most ln p(x), and grows with k in expectation. The k terms of a batch are
    summed one after another, in float64, so that memory does not grow with k. The noise follows the seed.

    images: uint8 (N, H, W, C). samples: k. active: (Z,), or None for all; the other latents are set to their
    prior mean 0 and left out of the weights, which gives the bound of the model without them.
    """
    model.eval()
    kept = torch.ones(model.latent_dim, device=compute.device)
    if active is not None:
        kept = torch.from_numpy(active).to(kept)
    total = 0.0
    for index, x in enumerate(in_order(images, BATCH, compute.device)):
        random = generator(seed, "importance", index, compute.device)
        with compute.autocast():
            mu, logvar = model.encode(x)
        # μ = 0, ln σ² = 0 and ε = 0 make z 0 and its term of the log ratio 0
        mu, logvar = mu * kept, logvar * kept
        std = torch.exp(0.5 * logvar)
        log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64, device=compute.device)
        for _ in range(samples):
            noise = kept * torch.randn(mu.shape, generator=random, device=compute.device)
            z = mu + std * noise
            with compute.autocast():
                output = model.decode(z, x)
            # ln p(z) − ln q(z|x): the normalisers cancel but for ln σ
            log_ratio = 0.5 * (noise.double().square() + logvar.double() - z.double().square()).sum(1)
            log_sum = torch.logaddexp(log_sum, likelihood.log_prob(x, output).double() + log_ratio)
        total += float((log_sum - math.log(samples)).sum())
    return total / len(images)


@torch.no_grad()
def central_quality(
    model: VAE, images: NDArray[np.uint8] | Tensor, likelihood: Likelihood, compute: Compute
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean squared error and SSIM of every image with z = μ: (N,) each.

    Of an autoregressive decoder, as `Measurement.mse`: each pixel is predicted from those before it in the image.
    """
    model.eval()
    errors, similarities = [], []
    for x in in_order(images, BATCH, compute.device):
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


def is_binary(images: NDArray[np.uint8]) -> bool:
    """Whether all pixels are 0 or 255: only then is a Bernoulli likelihood a probability."""
    return all(
        bool(np.isin(images[start : start + BATCH], (0, 255)).all()) for start in range(0, len(images), BATCH)
    )


def _probed(probe: Probe | None, mu: NDArray[np.float32], labels: NDArray[np.object_]) -> Metrics:
    accuracy, majority = (probe.score(mu, labels) if probe else None) or (None, None)
    return {"probe_accuracy": accuracy, "probe_majority": majority}


def _calibrated(likelihood: Likelihood, valid: Measurement) -> Likelihood | None:
    """The Gaussian whose σ² is the validation split's error: for comparing models of different σ."""
    if likelihood.kind != "gaussian" or not math.isfinite(valid.mse_sampled):
        return None
    return Likelihood("gaussian", optimal_sigma(valid.mse_sampled))


def _sample(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """All of range(count), or a seeded sample of it, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
