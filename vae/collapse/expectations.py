"""The predictions for a training: the numbers of `reports/preflight.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vae.collapse import kl_weights
from vae.collapse.pilot_curve import PilotCurve, curve_of
from vae.collapse.rate_distortion import (
    Curve,
    error_at,
    is_error_reachable,
    predict,
    steered,
    steered_beta,
    with_enforced_rate,
)
from vae.config.beta_elbo import BetaELBO
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters

# Allowed error of the predicted KL as a share of the measured one. Larger where σ follows the network's own error,
# which feeds a small error back, and for Bernoulli, where the theory is first-order.
FIXED_SIGMA_TOLERANCE, TOLERANCE = 0.25, 0.4

BESIDE = (  # of linear theory
    "predicted_kl",
    "predicted_active_units",
    "predicted_mse",
    "critical_kl_weight",
    "collapse_kl_weight",
    "calibrated_kl_weight",
)


def expectations(p: Parameters, weight: float, curve: Curve) -> dict[str, Any]:
    """The predictions for a training with these parameters.

    KL in nats per image; `predicted_kl` is None where it is unbounded: without a KL term, or where GECO asks for an
    error out of reach. `calibrated_kl` and `calibrated_mse` are those of the calibrated weight, whatever the weight or
    the control. `target_kl_weight` is the weight that leaves the rate a control asks for, None without one.
    `linear_theory` has what it says by itself, beside a pilot.

    Args:
        weight: `kl.max_weight` as a number.
        curve: of at least as many latents as the parameters have.
    """
    curve = curve.of(p)
    found = _by(curve, p, weight)
    linear = _by(curve.spectrum, p, weight) if isinstance(curve, PilotCurve) else found
    return {
        **found,
        "linear_theory": {name: linear[name] for name in BESIDE},
        **curve.facts(),
    }


def _by(curve: Curve, p: Parameters, weight: float) -> dict[str, Any]:
    is_steered = p.kl.control != "schedule"
    elbo = BetaELBO.of(p, 1.0 if is_steered else weight)
    bounded = is_error_reachable(curve, p.kl) if is_steered else weight > 0
    prediction = steered(curve, p, weight) if is_steered else predict(curve, elbo)
    beta = steered_beta(prediction, elbo) if is_steered else elbo.effective_beta(prediction.mse)
    prediction = with_enforced_rate(prediction, curve, p)
    if elbo.likelihood == "bernoulli":
        prediction = replace(prediction, mse=math.nan)
    best_weight = kl_weights.of_beta(p, curve)
    best = predict(curve, BetaELBO.of(p, best_weight))
    return {
        "predicted_by": curve.source,
        "predicted_active_units": prediction.active_units,
        "predicted_kl": prediction.kl if bounded else None,
        "predicted_mse": prediction.mse,
        "kl_weight": weight,
        "target_kl_weight": p.kl.target_rate and kl_weights.of_rate(p, curve, nats=p.kl.target_rate),
        "critical_kl_weight": kl_weights.critical(p, curve),
        "collapse_kl_weight": kl_weights.of_rate(p, curve),
        "calibrated_kl_weight": best_weight,
        "calibrated_kl": best.kl,
        "calibrated_mse": best.mse,
        "equivalent_sigma": prediction.sigma,
        "effective_beta": beta,
        # Which channel of a map carries what, neither theory nor the pilot says.
        "kl_per_latent": prediction.kl_per_latent.tolist() if p.model.latent_shape is None else [],
    }


def of_remedied(
    report: Mapping[str, Any], p: ResolvedParameters, changes: Mapping[str, Any], pixels: int
) -> dict[str, Any]:
    """`reports/preflight.json` as it would be for the changed parameters p."""
    if not changes:
        return dict(report)
    kept = {name: value for name, value in report.items() if name != "latent_dims"}  # of the parameters before
    return {**kept, **expectations(p, p.kl.max_weight, curve_of(report, pixels))}


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
    mse = error_at(curve, s) / curve.pixels
    beta = BetaELBO.of(p, weight).effective_beta(mse)
    return OperatingPoint(s, weight, beta, float(curve.rates(s).sum()), distortion(p, curve, s))


def distortion(p: Parameters, curve: Curve, s: float) -> float:
    """The root mean squared error of a pixel in [0, 1]; for a Bernoulli likelihood −ln p(x|z) in nats per image.

    Linear theory knows the latter up to a constant: to second order in the logits it is half of the error of the
    whitened pixels more than that.
    """
    error = error_at(curve, s)
    if p.objective.likelihood != "bernoulli":
        return math.sqrt(error / curve.pixels)
    return error if isinstance(curve, PilotCurve) else error / 2


def tolerance(p: Parameters) -> float:
    """The share of the measured KL that a prediction may be off."""
    return TOLERANCE if BetaELBO.of(p, 1.0).fixed_sigma is None else FIXED_SIGMA_TOLERANCE
