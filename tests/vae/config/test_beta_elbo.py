import math
from typing import Any

import pytest
from helpers.parameters import Changes, parse

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA

LATENTS, PIXELS = 7, 8 * 9
FROM_MEAN = PIXELS / LATENTS  # of a weight with `reduction: mean`, per latent and pixel


def elbo(weight: float, **objective: Any) -> BetaELBO:
    values = {f"objective.{name}": value for name, value in objective.items()}
    size = {"data.image_size": [8, 9], "model.latent_dim": LATENTS}
    return BetaELBO.of(parse(size | values), weight)


@pytest.mark.parametrize(
    ("objective", "beta", "scale", "sigma"),
    [
        ({}, 0.3, 1, None),
        ({"sigma": "learned"}, 0.3, 1, None),
        ({"sigma": 0.2}, 0.3, 1, 0.2),
        ({"likelihood": "bernoulli"}, 0.3, 1, None),
        ({"likelihood": "bernoulli", "reduction": "mean"}, 0.3 * FROM_MEAN, 1 / PIXELS, None),
        ({"reduction": "mean"}, 1, 0.3 / LATENTS, math.sqrt(0.3 * FROM_MEAN / 2)),
    ],
)
def test_a_weight_of_0_3(objective: Changes, beta: float, scale: float, sigma: float | None) -> None:
    """That these are the losses they claim to be: tests/vae/losses/test_elbo.py."""
    e = elbo(0.3, **objective)
    assert (e.beta, e.scale) == pytest.approx((beta, scale))
    assert e.fixed_sigma == (None if sigma is None else pytest.approx(sigma))
    assert e.pixels == PIXELS


@pytest.mark.parametrize(
    ("weight", "objective", "mse", "expected"),
    [
        (4.0, {}, 0.01, 4.0),
        (4.0, {"sigma": "learned"}, 0.5, 4.0),
        (2.0, {"sigma": 0.1}, 0.02, 2.0 * 0.01 / 0.02),
        (0.001, {"reduction": "mean"}, 0.02, 0.001 * FROM_MEAN / (2 * 0.02)),
        (3.0, {"likelihood": "bernoulli"}, 0.02, 3.0),
        (3.0, {"likelihood": "bernoulli", "reduction": "mean"}, 0.02, 3 * FROM_MEAN),
        (1.0, {"sigma": 0.1}, 0.0, 0.01 / SMALLEST_SIGMA**2),
    ],
)
def test_effective_beta(weight: float, objective: Changes, mse: float, expected: float) -> None:
    assert elbo(weight, **objective).effective_beta(mse) == pytest.approx(expected)
