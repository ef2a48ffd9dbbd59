"""Points on a curve: their KL weights, and their distortion by hand."""

import math
from typing import Any

import numpy as np
import pytest
from helpers.parameters import parse

from vae.collapse import expectations
from vae.collapse.expectations import FIXED_SIGMA_TOLERANCE, TOLERANCE
from vae.collapse.linear_theory import Spectrum

SPECTRUM = Spectrum(np.array([4.0, 1.0]), total=6.0, pixels=64, images=1000)
OBJECTIVES = {
    "optimal": ({}, TOLERANCE),
    "learned": ({"objective.sigma": "learned"}, TOLERANCE),
    "fixed": ({"objective.sigma": 0.2}, FIXED_SIGMA_TOLERANCE),
    "mean": ({"objective.reduction": "mean"}, FIXED_SIGMA_TOLERANCE),
    "bernoulli": ({"objective.likelihood": "bernoulli"}, TOLERANCE),
}


@pytest.mark.parametrize(("objective", "tolerance"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_threshold_is_that_of_its_weight(objective: dict[str, Any], tolerance: float) -> None:
    p = parse({"data.image_size": 8, "model.latent_dim": 2, **objective})
    for s in (0.1, 0.5, 2.0):
        at = expectations.at_threshold(p, SPECTRUM, s)
        assert expectations.at_weight(p, SPECTRUM, at.kl_weight).threshold == pytest.approx(s)
        assert at.rate == pytest.approx(0.5 * (math.log(4 / s) + max(math.log(1 / s), 0)))
    assert expectations.tolerance(p) == tolerance


def test_the_distortion_is_the_error_of_a_pixel_or_half_of_the_whitened_one() -> None:
    grey = parse({"data.image_size": 8, "model.latent_dim": 2})
    assert expectations.at_threshold(grey, SPECTRUM, 2.0).distortion == pytest.approx(math.sqrt((2 + 1 + 1) / 64))
    binary = parse({"data.image_size": 8, "model.latent_dim": 2, "objective.likelihood": "bernoulli"})
    assert expectations.at_threshold(binary, SPECTRUM, 2.0).distortion == pytest.approx((2 + 1 + 1) / 2)
