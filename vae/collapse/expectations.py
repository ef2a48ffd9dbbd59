"""The predictions for a training: the numbers of `reports/preflight.json`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vae.collapse import kl_weights
from vae.collapse.pilot_curve import curve_of
from vae.collapse.rate_distortion import (
    Curve,
    is_error_reachable,
    predict,
    steered,
    steered_beta,
    with_enforced_rate,
)
from vae.config.beta_elbo import BetaELBO
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters


def expectations(p: Parameters, weight: float, curve: Curve) -> dict[str, Any]:
    """The predictions for a training with these parameters.

    KL in nats per image; `predicted_kl` is None where it is unbounded: without a KL term, or where GECO asks for an
    error out of reach. `calibrated_kl` and `calibrated_mse` are those of the calibrated weight, whatever the weight or
    the control. `target_kl_weight` is the weight that leaves the rate a control asks for, None without one.

    Args:
        weight: `kl.max_weight` as a number.
        curve: of at least as many latents as the parameters have.
    """
    curve = curve.of(p)
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
        "kl_per_latent": prediction.kl_per_latent.tolist(),
        **curve.facts(),
    }


def of_remedied(
    report: Mapping[str, Any], p: ResolvedParameters, changes: Mapping[str, Any], pixels: int
) -> dict[str, Any]:
    """`reports/preflight.json` as it would be for the changed parameters p."""
    if not changes:
        return dict(report)
    return {**report, **expectations(p, p.kl.max_weight, curve_of(report, pixels))}
