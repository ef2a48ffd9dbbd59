"""A wish becomes a KL weight that meets it, whatever the objective."""

from typing import Any

import numpy as np
import pytest
from helpers.trainings import unresolved

from vae.collapse import kl_weights
from vae.collapse.linear_theory import Spectrum
from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import Curve, optimal_variance, predict
from vae.config.beta_elbo import BetaELBO
from vae.config.errors import InputError

SPECTRUM = Spectrum(np.array([8.0, 4.0, 0.4]), 14.0, 64, 1000)
THRESHOLDS = np.geomspace(0.05, 10.4, 33)
PILOT = PilotCurve(
    SPECTRUM, THRESHOLDS, np.array([1.2 * SPECTRUM.rates(s) for s in THRESHOLDS]), SPECTRUM.error(THRESHOLDS)
)
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"objective.sigma": 0.2},
    {"objective.sigma": "learned"},
    {"objective.reduction": "mean"},
]


@pytest.mark.parametrize("curve", [SPECTRUM, PILOT])
@pytest.mark.parametrize("objective", [*OBJECTIVES, {"objective.likelihood": "bernoulli"}])
@pytest.mark.parametrize("nats", [0.5, 2.0, 5.0])
def test_a_rate(curve: Curve, objective: dict[str, Any], nats: float) -> None:
    p = unresolved({**objective, "kl.max_weight": {"rate": nats}})
    weight = kl_weights.resolved(p, curve)
    assert predict(curve, BetaELBO.of(p, weight)).kl == pytest.approx(nats, rel=1e-3)


@pytest.mark.parametrize("curve", [SPECTRUM, PILOT])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rmse", [0.2, 0.3])
def test_an_error(curve: Curve, objective: dict[str, Any], rmse: float) -> None:
    p = unresolved({**objective, "kl.max_weight": {"rmse": rmse}})
    weight = kl_weights.resolved(p, curve)
    assert predict(curve, BetaELBO.of(p, weight)).mse ** 0.5 == pytest.approx(rmse, rel=1e-3)


@pytest.mark.parametrize("curve", [SPECTRUM, PILOT])
@pytest.mark.parametrize("objective", [*OBJECTIVES, {"objective.likelihood": "bernoulli"}])
@pytest.mark.parametrize("purpose", list(kl_weights.PURPOSES))
def test_a_purpose_is_an_effective_beta(curve: Curve, objective: dict[str, Any], purpose: str) -> None:
    p = unresolved({**objective, "kl.max_weight": purpose})
    elbo = BetaELBO.of(p, kl_weights.resolved(p, curve))
    beta = kl_weights.PURPOSES[purpose]
    assert elbo.effective_beta(predict(curve, elbo).mse) == pytest.approx(beta, rel=1e-3)
    if elbo.fixed_sigma is not None:
        assert elbo.beta * elbo.fixed_sigma**2 == pytest.approx(beta * optimal_variance(curve, beta), rel=1e-3)


def test_a_number_stays_as_it_is() -> None:
    assert kl_weights.resolved(unresolved({"kl.max_weight": 0.7}), SPECTRUM) == 0.7


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"rate": 1e6}, "kl.max_weight = {rate: 1e+06}: linear theory expects at most 42.9 nats"),
        ({"rmse": 0.01}, "kl.max_weight = {rmse: 0.01}: linear theory expects an error of at least 0.158"),
        ({"rmse": 0.9}, "kl.max_weight = {rmse: 0.9}: the mean image alone has an error of 0.468"),
    ],
)
def test_what_no_weight_gives_is_refused(wish: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as refused:
        kl_weights.resolved(unresolved({"kl.max_weight": wish}), SPECTRUM)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "kept",
    [
        {"kl.free_bits": 1.0},
        {"model.mean_batch_norm": 1.5},
        {"kl.free_bits_total": 3.0},
        {"kl.free_bits_total": 1.5, "model.lower_latents": 1},
    ],
)
def test_a_rate_below_what_no_weight_takes_away_is_refused(kept: dict[str, Any]) -> None:
    p = unresolved({**kept, "kl.max_weight": {"rate": 2.0}})
    with pytest.raises(
        InputError, match=r"\{rate: 2\}: no weight is expected to meet it; .* gives 3.* nats by linear theory"
    ):
        kl_weights.resolved(p, SPECTRUM)
    more = unresolved({**kept, "kl.max_weight": {"rate": 5.0}})
    assert kl_weights.resolved(more, SPECTRUM) > 0


def test_a_wish_in_a_jump_of_the_curve_is_refused() -> None:
    """As of images that form clusters: a pilot that still carries 6 nats at its highest threshold."""
    rates = np.array([[3.0 + s, 2.0, 1.0] for s in np.linspace(2, 0, 33)])
    jump = PilotCurve(SPECTRUM, THRESHOLDS, rates, np.geomspace(1.0, 5.0, 33))
    p = unresolved({"objective.sigma": 0.2, "kl.max_weight": {"rate": 2.0}})
    with pytest.raises(InputError, match="no weight is expected to meet it; the nearest"):
        kl_weights.resolved(p, jump)
