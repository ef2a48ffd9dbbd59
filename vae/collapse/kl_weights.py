"""KL weights that follow from a curve: where the latents collapse, where β is 1, where a wish is met."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vae.collapse.rate_distortion import (
    Curve,
    bisected,
    error_at,
    optimal_variance,
    predict,
    threshold,
    with_enforced_rate,
)
from vae.config.beta_elbo import BetaELBO
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.sections import Wish
from vae.config.text import rounded, written

LOWEST = 1e-12  # of the critical weight
MET = 0.1  # of a wish, by which the prediction at its weight may differ: more is a jump of the curve
# The effective β for what a model is for.
PURPOSES = {"calibrated": 1.0, "reconstruct": 0.3, "represent": 1.0, "sample": 2.0}


def of_interest(critical: float, weight: float) -> NDArray[np.float64]:
    """KL weights to plot a prediction over, (120,): from far below collapse to beyond it, including this run's."""
    critical = critical or weight or 1.0
    weight = weight or critical
    return np.geomspace(min(critical * 1e-4, weight / 2), max(critical, weight) * 2, 120)


def critical(p: Parameters, curve: Curve) -> float:
    """The KL weight at which the last latent becomes inactive. At a fixed σ, s is proportional to it."""
    if follows_the_error(p):
        return curve.pixels * curve.critical / max(curve.total, 1e-300)
    return curve.critical / threshold(curve, BetaELBO.of(p, 1.0))


def of_threshold(p: Parameters, curve: Curve, s: float) -> float:
    """The KL weight whose threshold β·σ² is s: where σ follows the error, N·σ² = d(s)."""
    if follows_the_error(p):
        return s * curve.pixels / max(error_at(curve, s), 1e-300)
    return s / threshold(curve, BetaELBO.of(p, 1.0))


def of_rate(p: Parameters, curve: Curve, nats: float = COLLAPSED_BELOW_NATS) -> float:
    """The KL weight, below the critical one, at which the predicted KL falls to `nats`: of 1 nat, the collapse weight.

    0 where no weight gives more than that.
    """

    def is_too_low(weight: float) -> bool:
        return predict(curve, BetaELBO.of(p, weight)).kl > nats

    return _largest(p, curve, is_too_low)


def of_error(p: Parameters, curve: Curve, rmse: float) -> float:
    """The KL weight at which the predicted root mean squared error, in pixels of [0, 1], rises to `rmse`.

    0 where no weight has less than that.
    """

    def is_too_low(weight: float) -> bool:
        return predict(curve, BetaELBO.of(p, weight)).mse < rmse**2

    return _largest(p, curve, is_too_low)


def _largest(p: Parameters, curve: Curve, is_too_low: Callable[[float], bool]) -> float:
    high = critical(p, curve)
    low = LOWEST * high
    return bisected(low, high, is_too_low) if high > 0 and is_too_low(low) else 0.0


def of_beta(p: Parameters, curve: Curve, beta: float = 1.0) -> float:
    """The KL weight that amounts to this β at the best σ, whatever the reduction; of 1, the loss is the ELBO."""
    if follows_the_error(p):
        return beta
    best = 1.0 if p.objective.likelihood == "bernoulli" else optimal_variance(curve, beta)
    return beta * best / threshold(curve, BetaELBO.of(p, 1.0))


def follows_the_error(p: Parameters) -> bool:
    """Whether σ is optimal or learned, so that it follows the network's error."""
    elbo = BetaELBO.of(p, 1.0)
    return elbo.likelihood != "bernoulli" and elbo.fixed_sigma is None


def resolved(p: Parameters, curve: Curve) -> float:
    """`kl.max_weight` as a number; one that follows from a wish is rounded as in `reports/preflight.json`.

    Raises:
        InputError: no weight meets the wish.
    """
    wish = p.kl.max_weight
    if isinstance(wish, str):
        return rounded(of_beta(p, curve, PURPOSES[wish]))
    if not isinstance(wish, Wish):
        return wish
    name = f"kl.max_weight = {written(wish)}"
    if wish.rate is not None:
        weight = of_rate(p, curve, wish.rate)
        if weight == 0:
            most = predict(curve, BetaELBO.of(p, LOWEST * critical(p, curve))).kl
            raise InputError(f"{name}: {curve.source} expects at most {most:.3g} nats; ask for less")
        nearest: float = rounded(weight)
        there = with_enforced_rate(predict(curve, BetaELBO.of(p, nearest)), curve, p).kl
        if abs(there - wish.rate) > MET * wish.rate:  # where the curve jumps, or something keeps a rate up
            raise InputError(
                f"{name}: no weight is expected to meet it; the nearest, {nearest:.4g}, gives {there:.3g} nats by "
                f"{curve.source}. Ask for another rate, use kl.target_kl, or lower what keeps a rate up (kl.free_bits, "
                "model.mean_batch_norm, model.logvar_max)"
            )
        return nearest
    assert wish.rmse is not None
    least, most = math.sqrt(curve.smallest_mse), math.sqrt(curve.total / curve.pixels)
    if wish.rmse >= most:
        raise InputError(f"{name}: the mean image alone has an error of {most:.3g}; ask for less")
    weight = of_error(p, curve, wish.rmse)
    if weight == 0:
        raise InputError(
            f"{name}: {curve.source} expects an error of at least {least:.3g} of {p.model.latent_dim} latents; "
            f"ask for more, raise {p.model.latents_set_by}, or set a low weight as a number: a long training may end "
            "below"
        )
    nearest = rounded(weight)
    error = math.sqrt(predict(curve, BetaELBO.of(p, nearest)).mse)
    if abs(error - wish.rmse) > MET * wish.rmse:
        raise InputError(
            f"{name}: no weight is expected to meet it; the nearest, {nearest:.4g}, gives an error of {error:.3g} by "
            f"{curve.source}. Ask for another error, or use kl.reconstruction_target"
        )
    return nearest
