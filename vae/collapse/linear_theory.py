"""What linear theory predicts for a data set before training.

A linear VAE is probabilistic PCA (Lucas 2019; Tipping & Bishop 1999). With λ_j the eigenvalues of the
training images' covariance, largest first, latent j is active where λ_j exceeds a threshold s, and its
KL is then ½ ln(λ_j/s). The threshold is the noise variance times β, so the KL weight decides how
many latents are active. A deep VAE is not linear, but the prediction is close where it matters: near collapse.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import COLLAPSED_BELOW_NATS, SMALLEST_SIGMA
from vae.config.parameters import KL, Parameters
from vae.config.resolved import ResolvedParameters
from vae.config.text import rounded
from vae.metrics.moments import pixel_moments

EXACT_UP_TO = 2048  # pixels; beyond that only the leading eigenvalues, by subspace iteration
MOST_IMAGES = 20_000  # evenly taken from a larger set: enough for its leading eigenvalues
EXTRA, ITERATIONS = 16, 6  # of the subspace iteration: vectors beyond those asked for, passes over the data
BISECTIONS = 64  # of a logarithmic interval: finer than float64 resolves
MOST_LATENTS_PER_IMAGE = 0.25  # of training images; beyond it the prediction is too high


@dataclass(frozen=True)
class Spectrum:
    """The part of the training images' covariance that the theory needs.

    Attributes:
        eigenvalues: (min(Z, N),), largest first; of the images in pixels of [0, 1] or, for a Bernoulli
            likelihood, of (x − p)/√(p(1 − p)).
        total: the sum of all N eigenvalues.
        pixels: N. images: how many the covariance was estimated from.
    """

    eigenvalues: np.ndarray
    total: float
    pixels: int
    images: int

    @property
    def rest(self) -> float:
        """Σ_{j>Z} λ_j: the variance beyond the Z latents."""
        return max(self.total - float(self.eigenvalues.sum()), 0.0)

    @property
    def smallest_mse(self) -> float:
        """Of a pixel, whatever the rate: what the Z latents leave."""
        return self.rest / self.pixels


@dataclass(frozen=True)
class Prediction:
    """The prediction for one objective. KL in nats per image; the MSE is NaN for a Bernoulli likelihood.

    threshold: s, the eigenvalue below which a latent is inactive.
    """

    kl_per_latent: np.ndarray
    mse: float
    sigma: float | None
    threshold: float

    @property
    def kl(self) -> float:
        return float(self.kl_per_latent.sum())

    @property
    def active_units(self) -> int:
        return int((self.kl_per_latent > 0).sum())


def spectrum(images: np.ndarray, latents: int, bernoulli: bool, drawn: bool = False, seed: int = 0) -> Spectrum:
    """Eigenvalues of the covariance of uint8 images (n, H, W, C), streaming over them.

    Exact up to 2048 pixels; larger images by randomised subspace iteration (Halko 2011, algorithm 4.4).

    Args:
        bernoulli: whiten each pixel by the Bernoulli standard deviation, p clipped to [0.01, 0.99].
        drawn: the pixels are probabilities that training draws zeros and ones from, which adds
            E[x(1 − x)] to the diagonal.
    """
    images = images[:: math.ceil(len(images) / MOST_IMAGES)]
    mean, variance = (moment.flatten() for moment in pixel_moments(images))
    pixels = len(mean)
    p = mean.clamp(0.01, 0.99)
    scale = (p * (1 - p)).rsqrt() if bernoulli else torch.ones_like(mean)
    drawing = (mean - mean.square() - variance).clamp_min(0) * scale.square() if drawn else None
    total = float((variance * scale.square()).sum()) + (0.0 if drawing is None else float(drawing.sum()))

    def covariance_times(vectors: Tensor) -> Tensor:
        product = torch.zeros_like(vectors)
        for start in range(0, len(images), 1024):
            part = torch.from_numpy(np.array(images[start : start + 1024])).flatten(1).double()
            centred = (part / 255 - mean) * scale
            product += centred.T @ (centred @ vectors)
        product /= len(images)
        return product if drawing is None else product + drawing[:, None] * vectors

    if pixels <= EXACT_UP_TO:
        values = torch.linalg.eigvalsh(covariance_times(torch.eye(pixels, dtype=torch.float64)))
    else:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(pixels, min(latents + EXTRA, pixels), generator=generator, dtype=torch.float64)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(covariance_times(basis)).Q
        values = torch.linalg.eigvalsh(basis.T @ covariance_times(basis))
    leading = values.flip(0).clamp_min(0)[: min(latents, pixels)].numpy()
    return Spectrum(leading, total, pixels, len(images))


def spectrum_for(p: Parameters, images: np.ndarray) -> Spectrum:
    """Of training images, under these parameters."""
    bernoulli, drawn = p.objective.likelihood == "bernoulli", p.data.binarise == "dynamic"
    return spectrum(images, p.model.latent_dim, bernoulli, drawn, p.seed)


def expectations(p: Parameters, weight: float, spectrum: Spectrum) -> dict[str, Any]:
    """The predictions for a training with these parameters: the numbers of `reports/preflight.json`.

    KL in nats per image; `predicted_kl` is None where it is unbounded: without a KL term, or where GECO asks for an
    error out of reach. `calibrated_kl` and `calibrated_mse` are those of the calibrated weight, whatever the weight or
    the control. `target_kl_weight` is the weight that leaves the rate a control asks for, None without one.

    Args:
        weight: `kl.max_weight` as a number.
        spectrum: of at least as many latents as the parameters have.
    """
    spectrum = replace(spectrum, eigenvalues=spectrum.eigenvalues[: p.model.latent_dim])
    is_steered = p.kl.control != "schedule"
    elbo = BetaELBO.of(p, 1.0 if is_steered else weight)
    bounded = is_error_reachable(spectrum, p.kl) if is_steered else weight > 0
    prediction = steered(spectrum, p, weight) if is_steered else predict(spectrum, elbo)
    beta = _steered_beta(prediction, elbo) if is_steered else elbo.effective_beta(prediction.mse)
    prediction = with_enforced_rate(prediction, spectrum, p)
    if elbo.likelihood == "bernoulli":
        prediction = replace(prediction, mse=math.nan)
    best_weight = calibrated_weight(p, spectrum)
    best = predict(spectrum, BetaELBO.of(p, best_weight))
    return {
        "predicted_active_units": prediction.active_units,
        "predicted_kl": prediction.kl if bounded else None,
        "predicted_mse": prediction.mse,
        "kl_weight": weight,
        "target_kl_weight": p.kl.target_rate and collapse_weight(p, spectrum, nats=p.kl.target_rate),
        "critical_kl_weight": critical_weight(p, spectrum),
        "collapse_kl_weight": collapse_weight(p, spectrum),
        "calibrated_kl_weight": best_weight,
        "calibrated_kl": best.kl,
        "calibrated_mse": best.mse,
        "equivalent_sigma": prediction.sigma,
        "effective_beta": beta,
        "eigenvalues": spectrum.eigenvalues.tolist(),
        "eigenvalue_sum": spectrum.total,
        "images": spectrum.images,
        "kl_per_latent": prediction.kl_per_latent.tolist(),
    }


def of_remedied(
    report: Mapping[str, Any], p: ResolvedParameters, changes: Mapping[str, Any], pixels: int
) -> dict[str, Any]:
    """`reports/preflight.json` as it would be for the changed parameters p."""
    if not changes:
        return dict(report)
    return {**report, **expectations(p, p.kl.max_weight, spectrum_of(report, pixels))}


def spectrum_of(report: Mapping[str, Any], pixels: int) -> Spectrum:
    """The spectrum in a `reports/preflight.json`."""
    return Spectrum(np.array(report["eigenvalues"]), report["eigenvalue_sum"], pixels, report["images"])


def predict(spectrum: Spectrum, elbo: BetaELBO) -> Prediction:
    """The prediction for an objective: KL_j = ½ ln(λ_j/s) where λ_j > s, else 0 (Lucas 2019, section 4)."""
    variance = noise_variance(spectrum, elbo)
    prediction = _at_threshold(spectrum, elbo.beta * variance)
    if elbo.likelihood == "bernoulli":
        return replace(prediction, mse=math.nan)
    return replace(prediction, sigma=math.sqrt(variance))


def steered(spectrum: Spectrum, p: Parameters, weight: float) -> Prediction:
    """The prediction for a control: at the threshold that meets its target, as far as its weights allow.

    The target is an error (reconstruction_target) or a rate (capacity, target_kl). A rate stays above that of the
    highest weight, where the next nat is worth more than the weight, and a controller's below that of its lowest. An
    error that the Z leading eigenvalues cannot reach gives the prediction of a vanishing KL term.
    """
    target, error = p.kl.target_rate, p.kl.reconstruction_target
    if error is not None and not is_error_reachable(spectrum, p.kl):
        return _at_threshold(spectrum, 0.0)
    if error is not None:
        return _first(spectrum, lambda at: at.mse >= error**2)
    assert target is not None
    lowest = predict(spectrum, BetaELBO.of(p, weight))
    if lowest.kl >= target:
        return lowest
    if p.kl.control == "pi" and p.kl.min_weight > 0:
        highest = predict(spectrum, BetaELBO.of(p, p.kl.min_weight))
        if highest.kl <= target:
            return highest
    return _first(spectrum, lambda at: at.kl <= target)


def is_error_reachable(spectrum: Spectrum, kl: KL) -> bool:
    """Whether GECO's target, where there is one, is above the error that the Z leading eigenvalues leave."""
    return kl.reconstruction_target is None or kl.reconstruction_target**2 > spectrum.smallest_mse


def enforced_rate(p: Parameters) -> float:
    """Nats of each latent that no weight takes away.

    Free bits are not penalised (Kingma 2016); a batch norm on the means keeps γ²/2 (Zhu 2020); a ceiling c < 0 of ln σ²
    keeps ½(exp(c) − 1 − c).
    """
    ceiling = min(p.model.logvar_max, 0.0)
    return max(p.kl.free_bits, ((p.model.mean_batch_norm or 0.0) ** 2 + math.exp(ceiling) - 1 - ceiling) / 2)


def with_enforced_rate(prediction: Prediction, spectrum: Spectrum, p: Parameters) -> Prediction:
    """The prediction with at least the rate of each latent, or of all together, that no weight takes away."""
    rates, free = prediction.kl_per_latent, p.kl.free_bits_total
    if prediction.kl < free:
        rates = _first(spectrum, lambda at: at.kl <= free).kl_per_latent
    each = enforced_rate(p)
    if each > 0:  # also of the latents beyond the pixels
        rates = np.maximum(np.pad(rates, (0, p.model.latent_dim - len(rates))), each)
    return replace(prediction, kl_per_latent=rates)


def _steered_beta(prediction: Prediction, elbo: BetaELBO) -> float:
    """The effective β of a control: s/σ² at the σ of the error."""
    variance = 1.0 if elbo.likelihood == "bernoulli" else max(prediction.mse, SMALLEST_SIGMA**2)
    return prediction.threshold / variance


def _first(spectrum: Spectrum, holds: Callable[[Prediction], bool]) -> Prediction:
    """At the lowest threshold for which this holds: the rate falls with it, and the error rises."""
    high = float(spectrum.eigenvalues[0]) if len(spectrum.eigenvalues) else 0.0
    s = _bisected(max(high, 1e-300) * 1e-12, high, lambda s: not holds(_at_threshold(spectrum, s)))
    return _at_threshold(spectrum, s)


def _at_threshold(spectrum: Spectrum, s: float) -> Prediction:
    values = spectrum.eigenvalues
    kl = 0.5 * np.log(np.maximum(values / max(s, 1e-300), 1.0))
    return Prediction(kl, (float(np.minimum(values, s).sum()) + spectrum.rest) / spectrum.pixels, None, s)


def _bisected(low: float, high: float, is_too_low: Callable[[float], bool]) -> float:
    """Where `is_too_low` turns false between two positive numbers, on a logarithmic scale."""
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_too_low(middle) else (low, middle)
    return high


def threshold(spectrum: Spectrum, elbo: BetaELBO) -> float:
    """s = β·σ², the eigenvalue below which a latent is inactive."""
    return elbo.beta * noise_variance(spectrum, elbo)


def noise_variance(spectrum: Spectrum, elbo: BetaELBO) -> float:
    """σ² of the decoder: fixed by the parameters, or as a linear VAE would learn it; 1 of whitened Bernoulli pixels."""
    if elbo.likelihood == "bernoulli":
        return 1.0
    if elbo.fixed_sigma is not None:
        return elbo.fixed_sigma**2
    return optimal_variance(spectrum, elbo.beta)


def optimal_variance(spectrum: Spectrum, beta: float) -> float:
    """The positive root of N·σ² = Σ_{j≤Z} min(λ_j, β·σ²) + Σ_{j>Z} λ_j.

    With β = 1 and all latents active it is the mean discarded eigenvalue (Tipping & Bishop 1999, eq. 8).
    """
    low, high = SMALLEST_SIGMA**2, max(spectrum.total / spectrum.pixels, SMALLEST_SIGMA**2)
    rest = spectrum.rest

    def is_too_low(variance: float) -> bool:
        """Left side less right side is convex in σ², so that it changes its sign once above a σ² that is too low."""
        explained = float(np.minimum(spectrum.eigenvalues, beta * variance).sum())
        return spectrum.pixels * variance - explained - rest < 0

    return _bisected(low, high, is_too_low) if is_too_low(low) else low


def weights_of_interest(critical: float, weight: float) -> np.ndarray:
    """KL weights to plot a prediction over, (120,): from far below collapse to beyond it, including this run's."""
    critical = critical or weight or 1.0
    weight = weight or critical
    return np.geomspace(min(critical * 1e-4, weight / 2), max(critical, weight) * 2, 120)


def critical_weight(p: Parameters, spectrum: Spectrum) -> float:
    """The KL weight at which the last latent becomes inactive: s = λ_1. At a fixed σ, s is proportional to it."""
    largest = float(spectrum.eigenvalues[0])
    if _follows_the_error(p):
        return spectrum.pixels * largest / max(spectrum.total, 1e-300)
    return largest / threshold(spectrum, BetaELBO.of(p, 1.0))


def collapse_weight(p: Parameters, spectrum: Spectrum, nats: float = COLLAPSED_BELOW_NATS) -> float:
    """The KL weight, below the critical one, at which the predicted KL falls to `nats`.

    0 where no weight gives more than that.
    """

    def is_too_low(weight: float) -> bool:
        return predict(spectrum, BetaELBO.of(p, weight)).kl > nats

    high = critical_weight(p, spectrum)
    low = high * 1e-12
    return _bisected(low, high, is_too_low) if high > 0 and is_too_low(low) else 0.0


def calibrated_weight(p: Parameters, spectrum: Spectrum) -> float:
    """The KL weight whose loss is the ELBO at the best σ: a β of 1, whatever the reduction."""
    if _follows_the_error(p):
        return 1.0
    best = 1.0 if p.objective.likelihood == "bernoulli" else optimal_variance(spectrum, 1.0)
    return best / threshold(spectrum, BetaELBO.of(p, 1.0))


def resolved_weight(p: Parameters, spectrum: Spectrum) -> float:
    """`kl.max_weight` as a number; `calibrated` is rounded as in `reports/preflight.json`."""
    return rounded(calibrated_weight(p, spectrum)) if isinstance(p.kl.max_weight, str) else p.kl.max_weight


def _follows_the_error(p: Parameters) -> bool:
    """Whether σ is optimal or learned, so that it follows the network's error."""
    elbo = BetaELBO.of(p, 1.0)
    return elbo.likelihood == "gaussian" and elbo.fixed_sigma is None
