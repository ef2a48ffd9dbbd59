"""The evaluation of a saved model: likelihood bounds, reconstructions, latents, a linear probe.

Quantities of information are in nats per image; errors are of pixels in [0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vae.compute.batches import for_measuring
from vae.compute.devices import Compute
from vae.config.parameters import Parameters
from vae.config.text import rounded
from vae.evaluation.detail import Detail, Extract, detail
from vae.evaluation.image_quality import central_quality, psnr
from vae.evaluation.importance_weighted import importance_weighted_bound, is_binary
from vae.evaluation.mmd import mmd_to_prior
from vae.evaluation.probe import Probe
from vae.evaluation.sample_metrics import compared_images, sample_metrics
from vae.evaluation.yardstick import PixelComponents, Yardstick
from vae.features.activations import FrozenFeatures, frozen_features
from vae.metrics.free_running import free_running
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import Measurement, encode, measure, posteriors_to_draw
from vae.metrics.mutual_information import MutualInformation, mutual_information
from vae.metrics.pooled import pooled
from vae.models.likelihood import Likelihood, bits_per_dim, optimal_sigma
from vae.models.saved import Saved
from vae.priors import aggregate
from vae.priors.standard import Prior, StandardNormal
from vae.samples.features import COMPONENTS
from vae.samples.quality import most_images

DRAWS = 32  # of z for each image, for ELBO, distortion and error; training measures one
PROBE_IMAGES = 20_000  # enough for a linear classifier on a few latents

Images = Mapping[str, NDArray[np.uint8]]
Labels = Mapping[str, NDArray[np.object_]]
Metrics = dict[str, int | float | None]


@dataclass(frozen=True)
class Evaluation:
    """One split.

    Attributes:
        metrics: rounded for JSON; None where a number does not exist.
        measurement: the source of rate, distortion and units.
        mu: (N, Z), the posterior means.
        errors: (N,), each image's mean squared error with z = μ.
        guesses: (N,), the class that the linear probe predicts from each image's latents; None without a probe.
        yardstick, detail: of the test split alone, of at most 5,000 images; None also where there are no classes, or
            latents that are not finite.
    """

    metrics: Metrics
    measurement: Measurement
    mu: NDArray[np.float32]
    errors: NDArray[np.float64]
    guesses: NDArray[np.object_] | None
    yardstick: Yardstick | None = None
    detail: Detail | None = None


def evaluate(saved: Saved, images: Images, labels: Labels, p: Parameters, compute: Compute) -> dict[str, Evaluation]:
    """The validation and the test split, by name.

    Args:
        images: uint8 (N, H, W, C) of `train`, `valid` and `test`.
        labels: each image's class name, or None, for the same splits.
    """
    measured = {
        split: measure(saved.model, images[split], saved.likelihood, compute, p.seed, DRAWS)
        for split in ("valid", "test")
    }
    # Fit to the training split, and the calibrated σ to the validation split, what both are compared with.
    train = for_measuring(images["train"], p)
    chosen = _sample(len(train), PROBE_IMAGES, p.seed)
    mu, _ = encode(saved.model, np.asarray(train[chosen]), compute)
    calibrated = None
    if isinstance(saved.likelihood.sigma, float) and math.isfinite(measured["valid"].mse_sampled):
        calibrated = Likelihood(saved.likelihood.kind, optimal_sigma(measured["valid"].mse_sampled))
    probe = Probe.fit(pooled(mu, saved.model.latent_map), labels["train"][chosen], p.seed)
    frozen = frozen_features(compute.device)
    few = _sample(len(chosen), most_images(*train.shape[1:3]), p.seed)
    known = _Pictures(np.asarray(train[chosen[few]]), mu[few], labels["train"][chosen[few]])
    asked, _ = compared_images(saved.model, train, images["test"], p.seed)
    if frozen:  # first, since samples are compared by them too
        frozen.remember(known.images)
        frozen.remember(images["test"][asked])
    references = _References(train, MeanImage.of(train), probe, calibrated, frozen)
    evaluated = {
        split: _evaluate_split(saved, images[split], labels[split], found, references, p, compute, split == "test")
        for split, found in measured.items()
    }
    test = evaluated["test"]
    found = _Pictures(np.asarray(images["test"][asked]), test.mu[asked], labels["test"][asked])
    return evaluated | {"test": _with_yardstick(test, saved, known, found, frozen, compute, p.seed)}


@dataclass(frozen=True)
class _Pictures:
    """Images of a split: uint8 (N, H, W, C), their posterior means (N, Z) and classes (N,)."""

    images: NDArray[np.uint8]
    mu: NDArray[np.float32]
    labels: NDArray[np.object_]


def _with_yardstick(
    test: Evaluation,
    saved: Saved,
    known: _Pictures,
    asked: _Pictures,
    frozen: FrozenFeatures | None,
    compute: Compute,
    seed: int,
) -> Evaluation:
    """The test split's evaluation with what its latents are worth as features, and the detail of reconstructions.

    known: of the training split. asked: of the test split.
    """
    network: dict[str, Extract] = {"frozen": frozen.of} if frozen else {}
    as_many, as_ever = network, network
    if len({label for label in known.labels if label is not None}) > 1:
        counts = pooled(known.mu[:1], saved.model.latent_map).shape[1], COMPONENTS
        as_many, as_ever = ({"pixels": PixelComponents.fit(known.images, count, seed).of} | network for count in counts)
    features = [
        {"latents": pooled(part.mu, saved.model.latent_map)} | {kind: of(part.images) for kind, of in as_many.items()}
        for part in (known, asked)
    ]
    yardstick = Yardstick.of(features[0], known.labels, features[1], asked.labels, seed)
    # The same classifiers for every model of these images, so that models compare.
    probes = {kind: Probe.fit(of(known.images), known.labels, seed) for kind, of in as_ever.items()}
    kept = detail(saved, asked.images, asked.labels, asked.mu, probes, as_ever, compute)
    more = (yardstick.metrics() if yardstick else {}) | (kept.metrics() if kept else {})
    return replace(test, metrics=test.metrics | rounded(more), yardstick=yardstick, detail=kept)


@dataclass(frozen=True)
class _References:
    """What a split is compared with.

    calibrated: the likelihood whose σ² is the validation split's error, for comparing models of different σ.
    """

    train: NDArray[np.uint8]
    mean_image: MeanImage
    probe: Probe | None
    calibrated: Likelihood | None
    frozen: FrozenFeatures | None


def _evaluate_split(
    saved: Saved,
    images: NDArray[np.uint8],
    labels: NDArray[np.object_],
    measurement: Measurement,
    references: _References,
    p: Parameters,
    compute: Compute,
    prune: bool,
) -> Evaluation:
    likelihood, probe = saved.likelihood, references.probe
    calibrated, mean_image = references.calibrated, references.mean_image
    mu, logvar = encode(saved.model, images, compute)
    errors, similarity = central_quality(saved.model, images, likelihood, compute)
    features = pooled(mu, saved.model.latent_map)
    finite = bool(np.isfinite(mu).all() and np.isfinite(logvar).all())
    two_levels = saved.model.lower is not None
    to_draw = posteriors_to_draw(saved.model, images, compute, p.seed) if two_levels else (mu, logvar)
    # Of two levels q(z) is no mixture of Gaussians, of which the estimate is.
    has_estimate = finite and not two_levels
    information = mutual_information(mu, logvar, p.seed) if has_estimate else MutualInformation(None, None, None)
    drawn = free_running(saved.model, images, mean_image, likelihood, compute, p.seed)
    accuracy, majority = (probe and probe.score(features, labels)) or (None, None)
    nll = _nll(saved, images, p, compute, measurement if prune else None)
    metrics = {
        "images": len(images),
        "elbo": measurement.elbo,
        "elbo_se": measurement.elbo_se,
        **nll,
        **(_bits(measurement.elbo, nll, saved.pixels) if likelihood.is_discretised else {}),
        "reconstruction": measurement.distortion,
        "kl": measurement.rate,
        **measurement.kl_of_levels,
        "mse": measurement.mse,
        "mse_sampled": measurement.mse_sampled,
        **({"mse_free_running": drawn.mse, "gain_from_z": drawn.gain} if drawn else {}),
        "psnr": psnr(measurement.mse),
        "ssim": float(similarity.mean()),
        "active_units": measurement.active_units(p.monitor.active_unit_threshold),
        "informative_units": measurement.informative_units(p.monitor.informative_unit_nats),
        "mutual_information": information.value,
        "aggregate_kl": information.aggregate_kl,
        "saturated_at": information.saturated_at,
        "mmd": mmd_to_prior(*to_draw, p.seed) if finite else None,
        **(_with_fitted_prior(saved.prior, *to_draw, measurement, p.seed) if finite else {}),
        "prior_gap": measurement.prior_gap,
        "prior_gap_full": measurement.prior_gap_full,
        "elbo_calibrated": _calibrated(saved, images, calibrated, measurement, p, compute),
        "mean_image_elbo": mean_image.elbo(images, likelihood),
        "mean_image_mse": mean_image.mse(images),
        **(sample_metrics(saved, references.train, images, compute, p.seed, references.frozen) if prune else {}),
        "probe_accuracy": accuracy,
        "probe_majority": majority,
    }
    guesses = probe.guess(features) if probe else None
    return Evaluation(rounded(metrics), measurement, mu, errors, guesses)


def _calibrated(
    saved: Saved,
    images: NDArray[np.uint8],
    calibrated: Likelihood | None,
    measurement: Measurement,
    p: Parameters,
    compute: Compute,
) -> float | None:
    """The ELBO at the calibrated σ: of a Gaussian it follows from the error, else it takes another pass."""
    if calibrated is None:
        return None
    if calibrated.kind == "gaussian":
        return measurement.with_likelihood(calibrated, saved.pixels)
    return measure(saved.model, images, calibrated, compute, p.seed, DRAWS).elbo


def _with_fitted_prior(
    prior: Prior, mu: NDArray[np.float32], logvar: NDArray[np.float32], measurement: Measurement, seed: int
) -> Metrics:
    """KL, ELBO and MMD with the fitted prior in place of the prior of the ELBO."""
    # Exact where the prior is that of the ELBO: N(0, I), or of two levels.
    exact = measurement.top > 0 or isinstance(prior, StandardNormal)
    rate = measurement.rate if exact else aggregate.rate(mu, logvar, prior, seed)
    return {
        "fitted_prior_kl": rate,
        "fitted_prior_elbo": -measurement.distortion - rate,
        "fitted_prior_mmd": mmd_to_prior(mu, logvar, seed, prior),
    }


def _nll(
    saved: Saved, images: NDArray[np.uint8], p: Parameters, compute: Compute, pruned_by: Measurement | None
) -> Metrics:
    """`nll`, and `nll_pruned` without the latents that `pruned_by` finds inactive; None if p(x|z) is not normalised.

    `nll_pruned` is None also of a learned prior, which is no product over latents.
    """
    names = ["nll"] if pruned_by is None else ["nll", "nll_pruned"]
    if saved.likelihood.kind == "bernoulli" and not is_binary(images):
        return dict.fromkeys(names)

    def nll(active: NDArray[np.bool_] | None = None) -> float:
        samples = p.evaluate.importance_samples
        return -importance_weighted_bound(saved.model, images, saved.likelihood, compute, samples, p.seed, active)

    metrics: Metrics = dict.fromkeys(names, nll())
    if pruned_by is not None and not (active := pruned_by.active(p.monitor.active_unit_threshold)).all():
        metrics["nll_pruned"] = None if pruned_by.learned_prior else nll(active)
    return metrics


def _bits(elbo: float, nll: Metrics, pixels: int) -> Metrics:
    """The ELBO and the nll in bits per dimension, of a likelihood of 8-bit levels."""
    bound = nll["nll"]
    found = {"bits_per_dim": bits_per_dim(elbo, pixels)}
    return found | {"nll_bits_per_dim": None if bound is None else bits_per_dim(-bound, pixels)}


def _sample(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """All of range(count), or a seeded sample of it, in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
