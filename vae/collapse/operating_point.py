"""Points on a rate–distortion curve in the numbers that people use, and how far a prediction may be off."""

import math
from dataclasses import dataclass

import numpy as np

from vae.collapse import kl_weights
from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import Curve, predict
from vae.config.beta_elbo import BetaELBO
from vae.config.parameters import Parameters

# Allowed error of the predicted KL as a share of the measured one. Larger where σ follows the network's own error,
# which feeds a small error back, and for Bernoulli, where the theory is first-order.
FIXED_SIGMA_TOLERANCE, TOLERANCE = 0.25, 0.4


@dataclass(frozen=True)
class OperatingPoint:
    """What a curve predicts at one KL weight.

    Attributes:
        threshold: s = β·σ².
        rate: in nats per image.
        distortion: `distortion`.
    """

    threshold: float
    kl_weight: float
    effective_beta: float
    rate: float
    distortion: float


def at_weight(p: Parameters, curve: Curve, weight: float) -> OperatingPoint:
    return _at(p, curve, predict(curve, BetaELBO.of(p, weight)).threshold, weight)


def at_threshold(p: Parameters, curve: Curve, s: float) -> OperatingPoint:
    return _at(p, curve, s, kl_weights.of_threshold(p, curve, s))


def _at(p: Parameters, curve: Curve, s: float, weight: float) -> OperatingPoint:
    mse = float(curve.error(np.array([s]))[0]) / curve.pixels
    beta = BetaELBO.of(p, weight).effective_beta(mse)
    return OperatingPoint(s, weight, beta, float(curve.rates(s).sum()), distortion(p, curve, s))


def distortion(p: Parameters, curve: Curve, s: float) -> float:
    """The root mean squared error of a pixel in [0, 1]; for a Bernoulli likelihood −ln p(x|z) in nats per image.

    Linear theory knows the latter up to a constant: to second order in the logits it is half of the error of the
    whitened pixels more than that.
    """
    error = float(curve.error(np.array([s]))[0])
    if p.objective.likelihood == "gaussian":
        return math.sqrt(error / curve.pixels)
    return error if isinstance(curve, PilotCurve) else error / 2


def tolerance(p: Parameters) -> float:
    """The share of the measured KL that a prediction may be off."""
    return TOLERANCE if BetaELBO.of(p, 1.0).fixed_sigma is None else FIXED_SIGMA_TOLERANCE
