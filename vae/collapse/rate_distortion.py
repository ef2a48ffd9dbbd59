"""Rate against distortion, predicted before the training: what a VAE makes of an objective.

A `Curve` gives the rates and the error of a VAE at each threshold s = β·σ²: `linear_theory.Spectrum` by linear theory,
`pilot_curve.PilotCurve` as a pilot has learnt them. An objective fixes s, or σ² follows the error: N·σ² = d(β·σ²).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA
from vae.config.parameters import Parameters
from vae.config.sections import KL

ACTIVE_NATS = -0.5 * math.log1p(-0.01)  # of a latent whose posterior mean varies by 0.01 (Burda 2016)

BISECTIONS = 64  # of a logarithmic interval: finer than float64 resolves
TRIED = 200  # variances between the smallest and the images' own, to find the first root


class Curve(Protocol):
    """Rate and error over the threshold s: R falls with it, d rises.

    Attributes:
        source: who says so, for sentences. pixels: N. images: of the training split.
        total: d at a rate of 0: the squared error of the mean image, summed over pixels.
        critical: the s above which no latent is active. smallest_mse: of a pixel, whatever the rate.
    """

    @property
    def source(self) -> str: ...
    @property
    def pixels(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def total(self) -> float: ...
    @property
    def critical(self) -> float: ...
    @property
    def smallest_mse(self) -> float: ...
    def rates(self, s: float) -> NDArray[np.float64]:
        """Of each latent, largest first, in nats: (Z,)."""
        ...

    def error(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Squared error of an image, summed over its pixels in [0, 1]: (K,) → (K,)."""
        ...

    def of(self, p: Parameters) -> "Curve":
        """As far as it speaks of these parameters, which may be changed ones."""
        ...

    def facts(self) -> dict[str, Any]:
        """What `reports/preflight.json` keeps of it (`pilot_curve.curve_of`)."""
        ...


@dataclass(frozen=True)
class Prediction:
    """The prediction for one objective. KL in nats per image; the MSE is NaN for a Bernoulli likelihood.

    threshold: s, the gain of an active latent below which it is worth nothing.
    """

    kl_per_latent: NDArray[np.float64]
    mse: float
    sigma: float | None
    threshold: float

    @property
    def kl(self) -> float:
        return float(self.kl_per_latent.sum())

    @property
    def active_units(self) -> int:
        """Those of more than −½ ln(1 − 0.01) nats: so much has a linear one whose mean has a variance of 0.01."""
        return int((self.kl_per_latent > ACTIVE_NATS).sum())


def predict(curve: Curve, elbo: BetaELBO) -> Prediction:
    """The prediction for an objective: the curve at its threshold."""
    variance = noise_variance(curve, elbo)
    prediction = _at_threshold(curve, elbo.beta * variance)
    if elbo.likelihood == "bernoulli":
        return replace(prediction, mse=math.nan)
    return replace(prediction, sigma=math.sqrt(variance))


def steered(curve: Curve, p: Parameters, weight: float) -> Prediction:
    """The prediction for a control: at the threshold that meets its target, as far as its weights allow.

    The target is an error (reconstruction_target) or a rate (capacity, target_kl). A rate stays above that of the
    highest weight, where the next nat is worth more than the weight, and a controller's below that of its lowest. An
    error that the latents cannot reach gives the prediction of a vanishing KL term.
    """
    target, error = p.kl.target_rate, p.kl.reconstruction_target
    if error is not None and not is_error_reachable(curve, p.kl):
        return _at_threshold(curve, 0.0)
    if error is not None:
        return first(curve, lambda at: at.mse >= error**2)
    assert target is not None
    lowest = predict(curve, BetaELBO.of(p, weight))
    if lowest.kl >= target:
        return lowest
    if p.kl.control == "pi" and p.kl.min_weight > 0:
        highest = predict(curve, BetaELBO.of(p, p.kl.min_weight))
        if highest.kl <= target:
            return highest
    return first(curve, lambda at: at.kl <= target)


def is_error_reachable(curve: Curve, kl: KL) -> bool:
    """Whether GECO's target, where there is one, is above the error that remains whatever the rate."""
    return kl.reconstruction_target is None or kl.reconstruction_target**2 > curve.smallest_mse


def enforced_rate(p: Parameters) -> float:
    """Nats of each latent that no weight takes away.

    Free bits are not penalised (Kingma 2016); a batch norm on the means keeps γ²/2 (Zhu 2020); a ceiling c < 0 of ln σ²
    keeps ½(exp(c) − 1 − c).
    """
    ceiling = min(p.model.logvar_max, 0.0)
    return max(p.kl.free_bits, ((p.model.mean_batch_norm or 0.0) ** 2 + math.exp(ceiling) - 1 - ceiling) / 2)


def with_enforced_rate(prediction: Prediction, curve: Curve, p: Parameters) -> Prediction:
    """The prediction with at least the rate of each latent, or of all together, that no weight takes away.

    Linear theory knows one level of latents: of two, it is that of both.
    """
    levels = 1 if p.model.lower_latents is None else 2
    rates, free = prediction.kl_per_latent, levels * p.kl.free_bits_total
    if prediction.kl < free:
        rates = first(curve, lambda at: at.kl <= free).kl_per_latent
    each = enforced_rate(p)
    if each > 0:  # also of the latents beyond the pixels
        rates = np.maximum(np.pad(rates, (0, p.model.latent_dim - len(rates))), each)
    return replace(prediction, kl_per_latent=rates)


def steered_beta(prediction: Prediction, elbo: BetaELBO) -> float:
    """The effective β of a control: s/σ² at the σ of the error."""
    variance = 1.0 if elbo.likelihood == "bernoulli" else max(prediction.mse, SMALLEST_SIGMA**2)
    return prediction.threshold / variance


def first(curve: Curve, holds: Callable[[Prediction], bool]) -> Prediction:
    """At the lowest threshold for which this holds: the rate falls with it, and the error rises."""
    high = curve.critical
    s = bisected(max(high, 1e-300) * 1e-12, high, lambda s: not holds(_at_threshold(curve, s)))
    return _at_threshold(curve, s)


def _at_threshold(curve: Curve, s: float) -> Prediction:
    return Prediction(curve.rates(s), error_at(curve, s) / curve.pixels, None, s)


def error_at(curve: Curve, s: float) -> float:
    """d(s)."""
    return float(curve.error(np.array([s]))[0])


def bisected(low: float, high: float, is_too_low: Callable[[float], bool]) -> float:
    """Where `is_too_low` turns false between two positive numbers, on a logarithmic scale."""
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if is_too_low(middle) else (low, middle)
    return high


def threshold(curve: Curve, elbo: BetaELBO) -> float:
    """s = β·σ²."""
    return elbo.beta * noise_variance(curve, elbo)


def noise_variance(curve: Curve, elbo: BetaELBO) -> float:
    """σ² of the decoder: fixed by the parameters, or as it would be learned; 1 of whitened Bernoulli pixels."""
    if elbo.likelihood == "bernoulli":
        return 1.0
    if elbo.fixed_sigma is not None:
        return elbo.fixed_sigma**2
    return optimal_variance(curve, elbo.beta)


def optimal_variance(curve: Curve, beta: float) -> float:
    """The smallest positive root of N·σ² = d(β·σ²), to which a σ that falls with the error comes first.

    Of linear theory, with β = 1 and all latents active, it is the mean discarded eigenvalue (Tipping & Bishop 1999,
    eq. 8).
    """

    def excess(variance: NDArray[np.float64]) -> NDArray[np.float64]:
        return curve.pixels * variance - curve.error(beta * variance)

    tried = np.geomspace(SMALLEST_SIGMA**2, max(curve.total / curve.pixels, SMALLEST_SIGMA**2), TRIED)
    enough = excess(tried) >= 0
    if not enough.any():  # of the last by a rounding error
        return float(tried[-1])
    index = int(enough.argmax())
    if index == 0:
        return float(tried[0])
    low, high = float(tried[index - 1]), float(tried[index])
    return bisected(low, high, lambda variance: bool(excess(np.array([variance]))[0] < 0))
